//! Release 3 of the payments service: knows only the new column.

use payments::start::{BoxError, Release, run};

fn main() -> Result<(), BoxError> {
    run(Release::Three)
}
