//! Where the servers' programs are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::KitError;

/// The repository's own folder of programs, filled by `scripts/servers`.
pub(crate) fn cache() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).join(".cache")
}

/// `program` on the `PATH` or in the folders for servers, else in the cache.
pub(crate) fn program(server: &'static str, program: &'static str) -> Result<PathBuf, KitError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .chain([cache().join(server).join("bin").join(program)])
        .find(|file| file.is_file())
        .ok_or_else(|| missing(server, program))
}

/// `file` of a server that is always the cache's, in the version that `scripts/servers` names.
pub(crate) fn cached(server: &'static str, program: &'static str, file: &str) -> Result<PathBuf, KitError> {
    let path = cache().join(server).join(file);
    // The version is written last.
    if path.is_file() && cache().join(server).join("version").is_file() {
        Ok(path)
    } else {
        Err(missing(server, program))
    }
}

/// The folder of the open client specification of Unleash: cases that every client has to pass.
///
/// # Errors
///
/// [`KitError::Missing`] when it was not fetched.
pub fn specification() -> Result<PathBuf, KitError> {
    let index = "node_modules/@unleash/client-specification/specifications/index.json";
    cached("specification", "client-specification", index)
        .map(|index| index.parent().map(Path::to_path_buf).unwrap_or_default())
}

/// The folder with what holds the recipes of `examples/deploy` against their schemas: `bin/node`, `node_modules`, and
/// `python` for a `PYTHONPATH`.
///
/// # Errors
///
/// [`KitError::Missing`] when it was not fetched.
pub fn manifests() -> Result<PathBuf, KitError> {
    let node = cached("manifests", "schemas of manifests", "bin/node")?;
    Ok(node.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default())
}

/// The folder of Postgres's server programs.
///
/// They are not on the `PATH` of Debian and its like: `pg_config` knows, or the newest of the
/// folders where distributions put them.
pub(crate) fn postgres_programs() -> Result<PathBuf, KitError> {
    let told = Command::new("pg_config").arg("--bindir").output().ok();
    let told = told.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut usual: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    usual.sort_by_key(|path| std::cmp::Reverse(major(path)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    told.into_iter()
        .chain(usual)
        .chain(std::env::split_paths(&path))
        .chain([cache().join("postgres/bin")])
        .find(|folder| folder.join("postgres").is_file() && folder.join("initdb").is_file())
        .ok_or_else(|| missing("postgres", "postgres"))
}

/// 15 for `/usr/lib/postgresql/15/bin`.
fn major(bin: &Path) -> Option<u32> {
    bin.parent()?.file_name()?.to_str()?.parse().ok()
}

pub(crate) fn missing(server: &'static str, program: &'static str) -> KitError {
    KitError::Missing { program, server, cache: cache().display().to_string() }
}
