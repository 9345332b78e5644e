//! The ledgers that a command works on: one, or several of shards or regions.

pub(crate) use cutover::console::Database;
use cutover::migration::admin::AdminError;
use cutover::postgres_options;
use sqlx::postgres::PgConnectOptions;

use crate::arguments::Arguments;

/// A value of `--ledger`. The error is without the value, which may hold a password.
fn named_url(text: &str) -> Result<(String, PgConnectOptions), String> {
    let (name, url) = text.split_once('=').unwrap_or_default();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err(
            "write NAME=URL, for example eu=postgres://host/name; the name has letters, digits, `-`, `_` \
                    and `.`"
                .into(),
        );
    }
    let options = postgres_options(url).map_err(|problem| {
        format!("the URL of {name:?} cannot be used: it {problem}; it looks like postgres://host/name")
    })?;
    Ok((name.to_owned(), options))
}

/// The `application_name` of sessions.
const NAME: &str = "cutover command line";

/// The databases that the arguments name, or why there are none, without any URL, which may hold a password.
pub(crate) fn databases(arguments: &Arguments) -> Result<Vec<Database>, String> {
    // An empty CUTOVER_LEDGERS is the same as none.
    let ledgers: Vec<&str> = arguments.ledgers.iter().flat_map(|value| value.split_whitespace()).collect();
    if !ledgers.is_empty() {
        let mut databases: Vec<Database> = Vec::new();
        for value in ledgers {
            let (name, options) = named_url(value).map_err(|problem| format!("--ledger: {problem}"))?;
            if databases.iter().any(|other| other.name.as_ref() == Some(&name)) {
                return Err(format!(
                    "--ledger: two ledgers have the name {name:?}; give each a name of its own"
                ));
            }
            databases.push(Database::new(Some(name), options.application_name(NAME)));
        }
        return match &arguments.only {
            None => Ok(databases),
            Some(only) => {
                let names: Vec<String> = databases.iter().filter_map(|one| one.name.clone()).collect();
                databases.retain(|one| one.name.as_ref() == Some(only));
                match databases.is_empty() {
                    true => Err(format!("--only: there is no ledger {only:?}, only {}", names.join(", "))),
                    false => Ok(databases),
                }
            }
        };
    }
    if let Some(only) = &arguments.only {
        return Err(format!(
            "--only {only}: no ledger has a name; name them with --ledger NAME=URL or CUTOVER_LEDGERS"
        ));
    }
    let Some(url) = arguments.database_url.as_ref().filter(|url| !url.is_empty()) else {
        return Err("no database is given: set DATABASE_URL or --database-url to postgres://host/name".into());
    };
    match postgres_options(url) {
        Ok(options) => Ok(vec![Database::new(None, options.application_name(NAME))]),
        Err(problem) => {
            Err(format!("the database URL cannot be used: it {problem}; it looks like postgres://host/name"))
        }
    }
}

/// The exit status of an error: whether the ledger could be used.
pub(crate) fn code(error: &AdminError) -> u8 {
    if matches!(error, AdminError::Ledger(_)) { 3 } else { 1 }
}
