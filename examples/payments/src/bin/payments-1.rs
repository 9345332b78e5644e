//! Release 1 of the payments service: knows only the old column.

use payments::start::{BoxError, Release, run};

fn main() -> Result<(), BoxError> {
    run(Release::One)
}
