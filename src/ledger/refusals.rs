//! Why the server refuses the ledger's connections or their writes, and what ends that.

use sqlx::postgres::PgConnectOptions;
use sqlx::{Executor, PgConnection, Row};

use super::error::LedgerError;
use super::literal::quote;
use super::sqlstate::{describe_error, sql_state};

/// The oldest server whose features the ledger uses.
const OLDEST_SERVER: i32 = 130_000;

/// Checks that the server can be used and that the session may write. Returns its role.
pub(super) async fn check_session(connection: &mut PgConnection) -> Result<String, LedgerError> {
    let row = connection
        .fetch_one(
            "select current_setting('server_version_num')::int as server, pg_is_in_recovery() as standby, \
             current_user::text as role, quote_ident(session_user) as login, \
             quote_ident(current_database()) as database, current_setting('transaction_read_only')::boolean as read_only, \
             (select source from pg_settings where name = 'default_transaction_read_only') as source",
        )
        .await?;
    check_server(row.try_get("server")?, row.try_get("standby")?)?;
    let role: String = row.try_get("role")?;
    if row.try_get("read_only")? {
        let (login, database, source) =
            (row.try_get("login")?, row.try_get("database")?, row.try_get("source")?);
        return Err(LedgerError::ReadOnlySession { role, remedy: writable(source, login, database) });
    }
    Ok(role)
}

fn check_server(version: i32, is_standby: bool) -> Result<(), LedgerError> {
    if version < OLDEST_SERVER {
        return Err(LedgerError::ServerTooOld(version / 10_000));
    }
    if is_standby { Err(LedgerError::ReadOnly) } else { Ok(()) }
}

/// How to make transactions writable, if `default_transaction_read_only` has this source in `pg_settings`. Names are quoted.
fn writable(source: &str, login: &str, database: &str) -> String {
    let setting = "reset default_transaction_read_only";
    match source {
        "user" => format!("alter role {login} {setting}"),
        "database" => format!("alter database {database} {setting}"),
        "database user" => format!("alter role {login} in database {database} {setting}"),
        "configuration file" => {
            "remove default_transaction_read_only from the server's configuration (`alter system` with `reset`), and \
             run: select pg_reload_conf()"
                .to_owned()
        }
        _ => "remove default_transaction_read_only from the options of the connection".to_owned(),
    }
}

/// A refused connection as text, with what makes the server accept it.
pub(super) fn refused_connection(error: &sqlx::Error, options: &PgConnectOptions) -> String {
    let text = describe_error(error);
    match remedy(error, options) {
        Some(remedy) => format!("{text}; to unblock: {remedy}"),
        None => text,
    }
}

/// What makes the server accept a connection that it refused.
pub(crate) fn remedy(error: &sqlx::Error, options: &PgConnectOptions) -> Option<String> {
    let role = quote(options.get_username());
    let database = quote(options.get_database().unwrap_or(options.get_username()));
    let message = error.as_database_error().map_or("", |refusal| refusal.message());
    Some(match &*sql_state(error)? {
        "28000" if message.contains("not permitted to log in") => format!("`alter role {role} login`"),
        "28000" if message.contains("does not exist") => {
            format!("check the name of the role, or `create role {role} login`")
        }
        "28000" => format!(
            "allow role {role} to connect from this host in the server's pg_hba.conf, and run `select pg_reload_conf()`"
        ),
        "28P01" => format!("use the present password of role {role}"),
        "3D000" => format!("check the name of the database, or `create database {database}`"),
        "55000" if message.contains("accepting connections") => {
            format!("`alter database {database} with allow_connections true`")
        }
        "53300" if message.contains("for role") => format!("`alter role {role} connection limit -1`"),
        "53300" if message.contains("for database") => {
            format!("`alter database {database} connection limit -1`")
        }
        "53300" => {
            "end idle sessions (`select pid, application_name, state from pg_stat_activity`), or raise \
             max_connections"
                .to_owned()
        }
        "42501" if message.contains("for database") => {
            format!("`grant connect on database {database} to {role}`")
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_or_read_only_server_is_refused() {
        assert!(check_server(130_000, false).is_ok());
        let old = check_server(120_017, false).expect_err("refused").to_string();
        assert!(old.contains("PostgreSQL 12") && old.contains("13 or newer"), "{old}");
        assert!(matches!(check_server(150_003, true), Err(LedgerError::ReadOnly)));
    }
}
