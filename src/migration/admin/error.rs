use sqlx::PgConnection;

use crate::ledger::LedgerError;
use crate::ledger::commands::{self, NamedMigration};

/// Why a command or report about a migration failed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The ledger has no migration of this name.
    #[error("there is no migration {name:?}; {}", listed(.name, .known))]
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

/// As many names as a person reads.
const LISTED: usize = 10;

/// The migrations of the ledger; of many, those whose names are most like the one that was given.
fn listed(name: &str, known: &[String]) -> String {
    let mut known: Vec<&str> = known.iter().map(String::as_str).collect();
    match known.len() {
        0 => "the ledger has none: a migration is registered when an instance that declares it first starts"
            .into(),
        1..=LISTED => format!("the ledger has {}", known.join(", ")),
        all => {
            let bare = |full: &str| full.split_once('/').map_or(full, |(_, bare)| bare).to_owned();
            let wanted = bare(name);
            known.sort_by_cached_key(|full| distance(&wanted, &bare(full)));
            known.truncate(LISTED);
            format!("the ledger has {}, and {} more: `cutover status`", known.join(", "), all - LISTED)
        }
    }
}

/// How many characters to insert, delete or replace to come from one name to the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, c) in one.chars().enumerate() {
        let mut above_left = std::mem::replace(&mut row[0], line + 1);
        for (column, d) in other.iter().enumerate() {
            let replaced = above_left + usize::from(c != *d);
            above_left = row[column + 1];
            row[column + 1] = replaced.min(above_left + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_migrations_the_most_similar_are_named() {
        let known =
            |many| (0..many).map(|i| format!("shop/other-{i}")).chain(["shop/status".into()]).collect();
        let unknown = |many| AdminError::UnknownMigration { name: "stauts".into(), known: known(many) };
        let text = unknown(199).to_string();
        assert!(
            text.contains("the ledger has shop/status, ") && text.ends_with("and 190 more: `cutover status`"),
            "{text}"
        );
        assert!(unknown(2).to_string().ends_with("the ledger has shop/other-0, shop/other-1, shop/status"));
    }

    #[test]
    fn a_distance_counts_the_changes() {
        for (one, other, changes) in
            [("", "", 0), ("ab", "ab", 0), ("stauts", "status", 2), ("", "abc", 3), ("abcd", "bc", 2)]
        {
            assert_eq!((distance(one, other), distance(other, one)), (changes, changes), "{one} {other}");
        }
    }
}
