//! Finds the servers' programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::KitError;

/// The repository's folder `.cache`, which `scripts/servers` fills.
pub(crate) fn cache() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).join(".cache")
}

/// Finds `program` on the `PATH`, in the folders for servers, or in the cache.
pub(crate) fn program(server: &'static str, program: &'static str) -> Result<PathBuf, KitError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .chain([cache().join(server).join("bin").join(program)])
        .find(|file| file.is_file())
        .ok_or_else(|| missing(server, program))
}

/// Finds `file` of a server that only the cache has.
pub(crate) fn cached(server: &'static str, program: &'static str, file: &str) -> Result<PathBuf, KitError> {
    let path = cache().join(server).join(file);
    // `scripts/servers` writes the version last, so its presence means a complete folder.
    if path.is_file() && cache().join(server).join("version").is_file() {
        Ok(path)
    } else {
        Err(missing(server, program))
    }
}

/// The folder of the Unleash client specification: cases that every client has to pass.
///
/// # Errors
///
/// [`KitError::Missing`] if `scripts/servers specification` has not run.
pub fn specification() -> Result<PathBuf, KitError> {
    let index = "node_modules/@unleash/client-specification/specifications/index.json";
    cached("specification", "client-specification", index)
        .map(|index| index.parent().map(Path::to_path_buf).unwrap_or_default())
}

/// The folder with the validators and schemas for the recipes of `examples/deploy`: `bin/node`, `node_modules`, and
/// `python` for a `PYTHONPATH`.
///
/// # Errors
///
/// [`KitError::Missing`] if `scripts/servers manifests` has not run.
pub fn manifests() -> Result<PathBuf, KitError> {
    let node = cached("manifests", "schemas of manifests", "bin/node")?;
    Ok(node.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default())
}

/// What drives a browser: the folder with `bin/node` and `node_modules`, and the program Chromium.
///
/// # Errors
///
/// [`KitError::Missing`] if `scripts/servers browser` has not run.
pub fn browser() -> Result<(PathBuf, PathBuf), KitError> {
    let node = cached("browser", "puppeteer-core and axe-core", "bin/node")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let chromium = names.into_iter().find_map(|name| program("browser", name).ok());
    let chromium = chromium.ok_or_else(|| missing("browser", "chromium"))?;
    Ok((node.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default(), chromium))
}

/// The environment variable that names the folder of the Postgres server to test against.
const POSTGRES_BIN: &str = "TESTKIT_POSTGRES_BIN";

/// The folder of Postgres's server programs: the one in `TESTKIT_POSTGRES_BIN`, else the system's.
///
/// Debian does not put them on the `PATH`. `pg_config` knows the folder; without it, the newest of the folders where
/// distributions put them is taken.
///
/// # Errors
///
/// [`KitError::Missing`] if there is none, [`KitError::Misuse`] if `TESTKIT_POSTGRES_BIN` names another folder.
pub(crate) fn postgres_programs() -> Result<PathBuf, KitError> {
    let has_server = |folder: &Path| folder.join("postgres").is_file() && folder.join("initdb").is_file();
    if let Some(folder) = std::env::var_os(POSTGRES_BIN) {
        let folder = PathBuf::from(folder);
        if has_server(&folder) {
            return Ok(folder);
        }
        let folder = folder.display();
        return Err(KitError::Misuse(format!(
            "{POSTGRES_BIN}={folder} has no programs postgres and initdb; \
             `scripts/servers postgres-13` makes .cache/postgres-13/bin"
        )));
    }
    let output = Command::new("pg_config").arg("--bindir").output().ok();
    let configured = output.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut usual: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    usual.sort_by_key(|path| std::cmp::Reverse(major(path)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    configured
        .into_iter()
        .chain(usual)
        .chain(std::env::split_paths(&path))
        .chain([cache().join("postgres/bin")])
        .find(|folder| has_server(folder))
        .ok_or_else(|| missing("postgres", "postgres"))
}

/// 15 for `/usr/lib/postgresql/15/bin`.
fn major(bin: &Path) -> Option<u32> {
    bin.parent()?.file_name()?.to_str()?.parse().ok()
}

pub(crate) fn missing(server: &'static str, program: &'static str) -> KitError {
    KitError::Missing { program, server, cache: cache().display().to_string() }
}
