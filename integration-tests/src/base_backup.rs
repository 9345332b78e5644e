//! Copies the data folder of a running Postgres, as `pg_basebackup` does.
//!
//! `pg_basebackup` refuses a server that is newer than itself, and the packages of the version matrix do not contain it.
//! The functions that it is built on exist in every version.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use sqlx::{Connection, PgConnection};

use crate::{KitError, error::write};

/// Folders whose contents a standby makes itself. `pg_wal` is copied last.
const EMPTY: [&str; 8] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];
/// Files that belong to the running server.
const SKIPPED: [&str; 3] = ["postmaster.pid", "postmaster.opts", "pgsql_tmp"];

/// Copies `from`, the data folder of the server at `url`, to the empty folder `to`, and makes the copy a standby of
/// that server. The files belong to `owner` (user and group), if given.
pub(crate) async fn copy(
    url: &str,
    port: u16,
    from: PathBuf,
    to: &Path,
    owner: Option<u32>,
) -> Result<(), KitError> {
    let failed = |source| KitError::sql("take a base backup")(source);
    let mut connection = PgConnection::connect(url).await.map_err(failed)?;
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
    let (start, stop) = if version >= 150_000 {
        ("select pg_backup_start('standby', true)::text", "select labelfile from pg_backup_stop(false)")
    } else {
        (
            "select pg_start_backup('standby', true, false)::text",
            "select labelfile from pg_stop_backup(false, false)",
        )
    };
    sqlx::query(start).execute(&mut connection).await.map_err(failed)?;
    files(from.clone(), to.to_owned(), owner).await?;
    let label: String = sqlx::query_scalar(stop).fetch_one(&mut connection).await.map_err(failed)?;
    // The log of the time of the copy is complete now.
    files(from.join("pg_wal"), to.join("pg_wal"), owner).await?;
    write(&to.join("backup_label"), label)?;
    write(&to.join("standby.signal"), "")?;
    let settings = to.join("postgresql.auto.conf");
    write(&settings, format!("primary_conninfo = 'host=127.0.0.1 port={port} user=postgres'\n"))?;
    for file in ["backup_label", "standby.signal"] {
        chown(to.join(file), owner, owner).map_err(KitError::io("hand a file to Postgres's user"))?;
    }
    connection.close().await.map_err(failed)
}

async fn files(from: PathBuf, to: PathBuf, owner: Option<u32>) -> Result<(), KitError> {
    let doing = format!("copy {} to {}", from.display(), to.display());
    let copied = tokio::task::spawn_blocking(move || folder(&from, &to, owner)).await;
    copied.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(KitError::io(doing))
}

/// A file that the server removes during the copy is not needed: the log of that time says so.
fn folder(from: &Path, to: &Path, owner: Option<u32>) -> io::Result<()> {
    if !to.is_dir() {
        fs::create_dir(to)?;
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o700))?;
    chown(to, owner, owner)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_one_of = |names: &[&str]| names.iter().any(|one| name.to_str() == Some(one));
        let target = to.join(&name);
        let kind = entry.file_type()?;
        // Its socket is in the folder, too.
        if is_one_of(&SKIPPED) || !(kind.is_file() || kind.is_dir()) {
            continue;
        }
        let result = if kind.is_dir() {
            if is_one_of(&EMPTY) {
                fs::create_dir(&target)
                    .and_then(|()| fs::set_permissions(&target, fs::Permissions::from_mode(0o700)))
                    .and_then(|()| chown(&target, owner, owner))
            } else {
                folder(&entry.path(), &target, owner)
            }
        } else {
            fs::copy(entry.path(), &target).and_then(|_| chown(&target, owner, owner))
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}
