//! `pg_dump`: a database restored elsewhere, where every object has another oid.

use std::{process::Command, time::Duration};

use sqlx::{Connection, PgConnection};

use crate::{Folder, KitError, Process, find};

const LIMIT: Duration = Duration::from_secs(120);

/// Restores a dump of the database at `from` in the empty database at `to`. `false`: the server is newer than the installed
/// `pg_dump`, which refuses it.
///
/// # Errors
///
/// [`KitError::Missing`] if `pg_dump` or `psql` is not installed. [`KitError::Exited`] if a statement of the dump fails.
pub async fn copy_by_dump(from: &str, to: &str) -> Result<bool, KitError> {
    let folder = Folder::new("dump")?;
    let beside = find::postgres_programs()?;
    let program = |name: &'static str| match beside.join(name) {
        path if path.is_file() => Ok(path),
        _ => find::program("postgres", name),
    };
    let (dump, restore) = (program("pg_dump")?, program("psql")?);
    let failed = |source| KitError::sql("ask for the version")(source);
    let mut connection = PgConnection::connect(from).await.map_err(failed)?;
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int / 10000")
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
    let output = Command::new(&dump).arg("--version").output().map_err(KitError::io("run pg_dump"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let of_program = text.split_whitespace().nth(2).and_then(|text| text.split('.').next()?.parse().ok());
    if of_program.is_none_or(|of_program: i32| of_program < version) {
        return Ok(false);
    }
    let file = folder.path().join("dump.sql");
    let mut command = Command::new(dump);
    command.arg("--file").arg(&file).arg(from);
    Process::run(&folder, "pg_dump", LIMIT, &command).await?;
    let mut command = Command::new(restore);
    command.args(["--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--file"]).arg(&file).arg(to);
    Process::run(&folder, "psql", LIMIT, &command).await?;
    Ok(true)
}
