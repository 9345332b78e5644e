//! `pg_dump`: a database restored elsewhere, where every object has another oid.

use std::path::{Path, PathBuf};
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
    match Dump::of(from, &[]).await? {
        Some(dump) => dump.restore(to).await.map(|()| true),
        None => Ok(false),
    }
}

/// What `pg_dump` wrote about a database.
#[derive(Debug)]
pub struct Dump {
    folder: Folder,
    psql: PathBuf,
}

impl Dump {
    /// Dumps the database at `from`. `options`: of `pg_dump`. `None`: the server is newer than the installed `pg_dump`.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] if `pg_dump` or `psql` is not installed.
    pub async fn of(from: &str, options: &[&str]) -> Result<Option<Self>, KitError> {
        let (folder, [dump, psql]) = (Folder::new("dump")?, programs()?);
        if !is_new_enough(&dump, from).await? {
            return Ok(None);
        }
        let mut command = Command::new(dump);
        command.args(options).arg("--file").arg(folder.path().join("dump.sql")).arg(from);
        Process::run(&folder, "pg_dump", LIMIT, &command).await?;
        Ok(Some(Self { folder, psql }))
    }

    /// Restores it in the database at `to`.
    ///
    /// # Errors
    ///
    /// [`KitError::Exited`] if a statement of the dump fails.
    pub async fn restore(&self, to: &str) -> Result<(), KitError> {
        let mut command = Command::new(&self.psql);
        command.args(["--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--file"]);
        command.arg(self.folder.path().join("dump.sql")).arg(to);
        Process::run(&self.folder, "psql", LIMIT, &command).await.map(drop)
    }

    /// Removes what is there with `statements` and restores the dump, in one transaction. In a deadlock with it, others fail.
    ///
    /// # Errors
    ///
    /// [`KitError::Exited`] if a statement fails.
    pub async fn replace(&self, to: &str, statements: &str) -> Result<(), KitError> {
        let mut command = Command::new(&self.psql);
        command.args(["--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--single-transaction"]);
        command.args(["--command", "set deadlock_timeout = '1min'", "--command", statements, "--file"]);
        command.arg(self.folder.path().join("dump.sql")).arg(to);
        Process::run(&self.folder, "psql", LIMIT, &command).await.map(drop)
    }
}

/// `pg_dump` and `psql`, those of the server if it has them.
fn programs() -> Result<[PathBuf; 2], KitError> {
    let beside = find::postgres_programs()?;
    let program = |name: &'static str| match beside.join(name) {
        path if path.is_file() => Ok(path),
        _ => find::program("postgres", name),
    };
    Ok([program("pg_dump")?, program("psql")?])
}

async fn is_new_enough(dump: &Path, from: &str) -> Result<bool, KitError> {
    let failed = |source| KitError::sql("ask for the version")(source);
    let mut connection = PgConnection::connect(from).await.map_err(failed)?;
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int / 10000")
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
    let output = Command::new(dump).arg("--version").output().map_err(KitError::io("run pg_dump"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let of_program = text.split_whitespace().nth(2).and_then(|text| text.split('.').next()?.parse().ok());
    Ok(of_program.is_some_and(|of_program: i32| of_program >= version))
}
