//! Release 3 of the payments service: knows only the new column.

use payments::migration::{NAME, new_only};
use payments::release3::Release3;
use payments::start;

#[tokio::main]
async fn main() -> Result<(), start::BoxError> {
    start::run(Some(new_only()), |pool, instance| {
        start::routes(Release3::new(pool, instance.migration(NAME)?))
    })
    .await
}
