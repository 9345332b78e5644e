//! The program `cutover`, for tests of the command line.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::KitError;

/// The path of `cutover`. The first call builds it, because it belongs to another package than the tests.
///
/// # Errors
///
/// [`KitError::Misuse`] if it does not compile, or if this process is not a test that cargo built.
pub fn program() -> Result<PathBuf, KitError> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = PROGRAM.get_or_init(build).clone();
    built.ok_or_else(|| {
        KitError::Misuse(
            "could not build the program cutover; run `cargo build --workspace --all-features --bin cutover`"
                .into(),
        )
    })
}

fn build() -> Option<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    // With the features of the tests, so that nothing is compiled twice.
    let arguments = ["build", "--quiet", "--workspace", "--all-features", "--bin", "cutover"];
    let mut build = Command::new(cargo);
    build.args(arguments).current_dir(root);
    // `cargo test` describes the package of the test in the environment. A build script that reads these variables would
    // run again, and cargo would compile all that depends on its package again: now, and in the next `cargo test`.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(describes_package)) {
        build.env_remove(name);
    }
    let status = build.status().ok()?;
    // The test is target/debug/deps/cli-…
    let tests = std::env::current_exe().ok()?;
    status.success().then(|| tests.ancestors().nth(2).map(|folder| folder.join("cutover")))?
}

fn describes_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| variable.starts_with(prefix))
}
