use sqlx::PgConnection;

use crate::ledger::LedgerError;
use crate::ledger::commands::{self, NamedMigration};

/// Why a command or report about a migration failed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The ledger has no migration of this name.
    #[error("there is no migration {name:?}; {}", listed(.known))]
    UnknownMigration {
        /// The name that was given.
        name: String,
        /// The migrations in the ledger, as `fleet/name`.
        known: Vec<String>,
    },
    /// Several fleets have a migration of this name.
    #[error("several fleets have a migration {name:?}; name the fleet too: {}", .matches.join(" or "))]
    Ambiguous {
        /// The name that was given.
        name: String,
        /// The migrations of this name, as `fleet/name`.
        matches: Vec<String>,
    },
    /// The drop of the old side can be approved in `retire` only.
    #[error(
        "migration {name:?} is in `{phase}`: the drop of the old side can be approved in `retire` only; \
         move it there with `cutover set-phase {name} retire`"
    )]
    NotInRetire {
        /// The migration.
        name: String,
        /// Its phase.
        phase: String,
    },
    /// The migration has ended, and nothing about it changes any more.
    #[error(
        "migration {name:?} is {ended_as} and cannot be changed any more; `cutover history {name}` shows how it ended"
    )]
    HasEnded {
        /// The migration.
        name: String,
        /// `finished` or `abandoned`.
        ended_as: String,
    },
    /// The old side is gone, or is about to be dropped.
    #[error(
        "migration {name:?} is {state}, and from there is no way back to the old side; what is left to do: {}",
        .left.join("; ")
    )]
    NoWayBack {
        /// The migration.
        name: String,
        /// Its phase, or how it ended.
        state: String,
        /// What a person can do now.
        left: Vec<String>,
    },
    /// The migration cannot be ended or archived in this way now.
    #[error("migration {name:?} cannot be ended or archived in this way: {}", .reasons.join("; "))]
    CannotEnd {
        /// The migration.
        name: String,
        /// Every reason against it, each with what to do.
        reasons: Vec<String>,
    },
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<sqlx::Error> for AdminError {
    fn from(error: sqlx::Error) -> Self {
        Self::Ledger(error.into())
    }
}

impl NamedMigration {
    pub(crate) fn refuse_if_ended(&self) -> Result<(), AdminError> {
        match &self.ended_as {
            Some(ended_as) => {
                Err(AdminError::HasEnded { name: self.name.clone(), ended_as: ended_as.clone() })
            }
            None => Ok(()),
        }
    }
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "the ledger has none: a migration is registered when an instance that declares it first starts"
            .into(),
        names => format!("the ledger has {}", names.join(", ")),
    }
}

/// The migration of this name: `name` or `fleet/name`.
pub(crate) async fn find(tx: &mut PgConnection, name: &str) -> Result<NamedMigration, AdminError> {
    let found = commands::find(tx, name).await?;
    only_one(tx, name, found).await
}

/// Like [`find`], and locks it until the transaction ends.
pub(crate) async fn find_and_lock(tx: &mut PgConnection, name: &str) -> Result<NamedMigration, AdminError> {
    let found = commands::find_and_lock(tx, name).await?;
    only_one(tx, name, found).await
}

async fn only_one(
    tx: &mut PgConnection,
    name: &str,
    mut found: Vec<NamedMigration>,
) -> Result<NamedMigration, AdminError> {
    match (found.pop(), found.is_empty()) {
        (Some(migration), true) => Ok(migration),
        (Some(last), false) => {
            found.push(last);
            let matches = found.iter().map(|one| format!("{}/{}", one.fleet, one.name)).collect();
            Err(AdminError::Ambiguous { name: name.to_owned(), matches })
        }
        (None, _) => {
            let known = commands::names(tx).await?;
            Err(AdminError::UnknownMigration { name: name.to_owned(), known })
        }
    }
}
