//! The ledgers that a command works on: one, or several of shards or regions.

use cutover::ledger::Ledger;
use cutover::migration::admin::AdminError;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::OnceCell;

use crate::arguments::Arguments;

/// A value of `--ledger`. The error is without the value, which may hold a password.
fn named_url(text: &str) -> Result<(String, PgConnectOptions), String> {
    let (name, url) = text.split_once('=').unwrap_or_default();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err("write NAME=URL, for example eu=postgres://user@host/name; the name has letters, digits, `-`, `_` \
                    and `.`"
            .into());
    }
    let options = connect_options(url).map_err(|problem| {
        format!("the URL of {name:?} cannot be used ({problem}); it looks like postgres://user@host/name")
    })?;
    Ok((name.to_owned(), options))
}

/// A database with a ledger. It is connected to when it is first used, and again after a failure.
pub(crate) struct Database {
    /// `None`: it is the only one, of `--database-url`.
    pub(crate) name: Option<String>,
    pub(crate) options: PgConnectOptions,
    ledger: OnceCell<Ledger>,
}

impl Database {
    fn new(name: Option<String>, options: PgConnectOptions) -> Self {
        let options = options.application_name("cutover command line");
        Self { name, options, ledger: OnceCell::new() }
    }

    /// The ledger. Only `install` may change the schema.
    pub(crate) async fn ledger(&self) -> Result<&Ledger, AdminError> {
        let connect = || async { Ok(Ledger::existing(self.options.clone()).await?) };
        self.ledger.get_or_try_init(connect).await
    }
}

/// The databases that the arguments name, or why there are none, without any URL, which may hold a password.
pub(crate) fn databases(arguments: &Arguments) -> Result<Vec<Database>, String> {
    if !arguments.ledgers.is_empty() {
        let mut databases: Vec<Database> = Vec::new();
        for value in arguments.ledgers.iter().flat_map(|value| value.split_whitespace()) {
            let (name, options) = named_url(value).map_err(|problem| format!("--ledger: {problem}"))?;
            if databases.iter().any(|other| other.name.as_ref() == Some(&name)) {
                return Err(format!(
                    "--ledger: two ledgers have the name {name:?}; give each a name of its own"
                ));
            }
            databases.push(Database::new(Some(name), options));
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
    let Some(url) = &arguments.database_url else {
        return Err(
            "no database is given: set DATABASE_URL or --database-url to postgres://user@host/name".into()
        );
    };
    match connect_options(url) {
        Ok(options) => Ok(vec![Database::new(None, options)]),
        Err(problem) => Err(format!(
            "the database URL cannot be used ({problem}); it looks like postgres://user@host/name"
        )),
    }
}

fn connect_options(url: &str) -> Result<PgConnectOptions, String> {
    // The parser accepts any scheme.
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err("it begins with neither postgres:// nor postgresql://".into());
    }
    url.parse().map_err(|error: sqlx::Error| error.to_string())
}

/// The exit status of an error: whether the ledger could be used.
pub(crate) fn code(error: &AdminError) -> u8 {
    if matches!(error, AdminError::Ledger(_)) { 3 } else { 1 }
}
