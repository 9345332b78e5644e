//! Release 2 of the payments service: knows both columns.

use payments::start::{BoxError, Release, run};

fn main() -> Result<(), BoxError> {
    run(Release::Two)
}
