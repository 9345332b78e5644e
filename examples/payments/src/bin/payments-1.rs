//! Release 1 of the payments service: knows only the old column.

use payments::release1::Release1;
use payments::start;

#[tokio::main]
async fn main() -> Result<(), start::BoxError> {
    start::run(None, |pool, _| start::routes(Release1 { pool })).await
}
