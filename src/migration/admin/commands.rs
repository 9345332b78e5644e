//! What people ask of the ledger: where a migration shall go, that its end is approved, and what is going on.

use sqlx::{FromRow, PgConnection};

use crate::ledger::{Ledger, LedgerError, unprepared};
use crate::migration::phase::{Desired, Phase};

/// Why something could not be asked of a migration. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// There is no migration of this name.
    #[error("there is no migration {name:?}{}", listed(.known))]
    UnknownMigration {
        /// What was asked for.
        name: String,
        /// What there is, as `fleet/name`.
        known: Vec<String>,
    },
    /// Several fleets have a migration of this name.
    #[error("several fleets have a migration {name:?}: name the fleet too, as in {first:?}")]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// One of them, as `fleet/name`.
        first: String,
    },
    /// An approval was given too early or too late.
    #[error("migration {name:?} is in `{phase}`: the drop of its old side can be approved in `retire` only")]
    NotInRetire {
        /// Which one.
        name: String,
        /// Where it is.
        phase: String,
    },
    /// The ledger's.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<sqlx::Error> for AdminError {
    fn from(error: sqlx::Error) -> Self {
        Self::Ledger(error.into())
    }
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "; none has been declared yet: it appears with the first build that declares it".into(),
        names => format!("; there are {}", names.join(", ")),
    }
}

/// Asks for a phase: the driver goes there one step at a time, as far as the gates let it.
///
/// It counts for builds that take the desired phase from the ledger; one that takes it from a flag goes by the
/// flag.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: asked or not asked.
pub async fn set_phase(ledger: &Ledger, migration: &str, to: Desired, actor: &str) -> Result<(), AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, migration).await?;
    unprepared::query("update cutover.migrations set desired = $2, desired_by = $3 where id = $1")
        .bind(found.id)
        .bind(to.to_string())
        .bind(actor)
        .execute(&mut *tx)
        .await?;
    record(&mut tx, &found, &format!("desired {to}"), actor, "").await?;
    tx.commit().await?;
    Ok(())
}

/// Approves that the old side of a migration in `retire` is dropped. The approval is for this stay in `retire`.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: approved or not approved.
pub async fn approve(ledger: &Ledger, migration: &str, actor: &str, reason: &str) -> Result<(), AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, migration).await?;
    if found.phase != Phase::Retire.name() {
        return Err(AdminError::NotInRetire { name: migration.to_owned(), phase: found.phase });
    }
    unprepared::query(
        "insert into cutover.approvals (migration_id, phase, actor, reason) values ($1, 'contract', $2, $3) \
         on conflict do nothing",
    )
    .bind(found.id)
    .bind(actor)
    .bind(reason)
    .execute(&mut *tx)
    .await?;
    record(&mut tx, &found, "contract approved", actor, reason).await?;
    tx.commit().await?;
    Ok(())
}

#[derive(FromRow)]
pub(crate) struct Found {
    pub(crate) id: i32,
    fleet: String,
    name: String,
    phase: String,
    epoch: i32,
}

/// By name, or by `fleet/name`. Locked, so that what is found stays true until the commit.
pub(crate) async fn find(tx: &mut PgConnection, migration: &str) -> Result<Found, AdminError> {
    let mut found: Vec<Found> = unprepared::query_as(
        "select id, fleet, name, phase, epoch from cutover.migrations \
         where name = $1 or fleet || '/' || name = $1 order by id for no key update",
    )
    .bind(migration)
    .fetch_all(&mut *tx)
    .await?;
    match (found.pop(), found.first()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some(first)) => Err(AdminError::Ambiguous {
            name: migration.to_owned(),
            first: format!("{}/{}", first.fleet, first.name),
        }),
        (None, _) => Err(AdminError::UnknownMigration {
            name: migration.to_owned(),
            known: unprepared::query_scalar(
                "select fleet || '/' || name from cutover.migrations order by id",
            )
            .fetch_all(tx)
            .await?,
        }),
    }
}

pub(crate) async fn record(
    tx: &mut PgConnection,
    migration: &Found,
    event: &str,
    actor: &str,
    reason: &str,
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "insert into cutover.history (fleet, migration, event, epoch, actor, reason) \
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&migration.fleet)
    .bind(&migration.name)
    .bind(event)
    .bind(migration.epoch)
    .bind(actor)
    .bind(reason)
    .execute(tx)
    .await?;
    Ok(())
}
