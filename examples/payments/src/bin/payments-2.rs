//! Release 2 of the payments service: knows both columns.

use cutover::migration::PhaseRange;
use payments::migration::NAME;
use payments::release2::Release2;
use payments::start;

#[tokio::main]
async fn main() -> Result<(), start::BoxError> {
    start::run(Some(PhaseRange::FULL), |pool, instance| {
        start::routes(Release2::new(pool, instance.migration(NAME)?))
    })
    .await
}
