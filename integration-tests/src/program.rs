//! The command line that the tests ask.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::KitError;

/// The program `cutover`, built on first use: it belongs to another package than the tests.
///
/// # Errors
///
/// [`KitError::Misuse`] when it does not compile, or when this is not a test that cargo has built.
pub fn program() -> Result<PathBuf, KitError> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = PROGRAM.get_or_init(build).clone();
    built.ok_or_else(|| {
        KitError::Misuse("the program cutover does not compile, or is not next to the tests".into())
    })
}

fn build() -> Option<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    // As the tests are built, so that nothing is compiled twice.
    let arguments = ["build", "--quiet", "--workspace", "--all-features", "--bin", "cutover"];
    let status = Command::new(cargo).args(arguments).current_dir(root).status().ok()?;
    // Next to the tests: target/debug/deps/cli-…
    let tests = std::env::current_exe().ok()?;
    status.success().then(|| tests.ancestors().nth(2).map(|folder| folder.join("cutover")))?
}
