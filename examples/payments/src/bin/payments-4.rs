//! Release 4 of the payments service: a second migration of the same table.

use payments::start::{BoxError, Release, run};

fn main() -> Result<(), BoxError> {
    run(Release::Four)
}
