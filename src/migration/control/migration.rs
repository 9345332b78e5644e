use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;

use super::fence::Isolation;
use super::gate::{Gate, Held, Pin};
use super::plan::{DesiredPhase, FromLedger, Plan};
use super::{Error, PinnedTx};
use crate::fleet::Lease;
use crate::migration::phase::{Phase, PhaseRange};

/// How often [`Migration::transaction`] begins again before it gives up.
const ATTEMPTS: u32 = 5;

/// What a build declares about a migration.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The migration's name, the same in every build, in flags and on the command line.
    pub name: String,
    /// The phases that this build can run.
    pub range: PhaseRange,
    /// What has to be done to schema and data; `None` in a build that only takes part.
    pub plan: Option<Arc<dyn Plan>>,
    /// Where the desired phase comes from.
    pub desired: Arc<dyn DesiredPhase>,
    /// How long `retire` has to last before the old side may be dropped.
    pub soak: Duration,
}

impl Spec {
    /// A migration that this build can run in these phases, with the desired phase in the ledger and a soak
    /// time of a day.
    pub fn new(name: impl Into<String>, range: PhaseRange) -> Self {
        Self {
            name: name.into(),
            range,
            plan: None,
            desired: Arc::new(FromLedger),
            soak: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// One migration as this instance sees it: where operations find out which sides to write and read.
///
/// A cheap handle. Nothing here asks the ledger; the epoch is an atomic that a background task keeps.
#[derive(Clone)]
pub struct Migration {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    id: i32,
    gate: Arc<Gate>,
}

impl Migration {
    pub(super) fn new(name: &str, id: i32, lease: Lease) -> Self {
        let shards = std::thread::available_parallelism().map_or(4, |cores| cores.get() * 2);
        let gate = Arc::new(Gate::new(lease, shards));
        Self { inner: Arc::new(Inner { name: name.to_owned(), id, gate }) }
    }

    /// The migration's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The migration's number in the ledger.
    pub(crate) fn id(&self) -> i32 {
        self.inner.id
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.inner.gate
    }

    /// The epoch and phase at which operations begin at this moment; `None` while this instance is out of the
    /// fleet. For people to look at: an operation takes a pin.
    pub fn at(&self) -> Option<(i32, Phase)> {
        self.inner.gate.at()
    }

    /// Pins an operation to the current epoch. No allocation, no lock, no query.
    ///
    /// # Errors
    ///
    /// [`Error::NotInFleet`] while this instance has no lease or has not been admitted.
    #[inline]
    pub fn pin(&self) -> Result<Pin<'_>, Error> {
        Pin::enter(&self.inner.gate).ok_or(Error::NotInFleet)
    }

    /// Runs a read under a pin and returns what it read only if this instance was in the fleet all the while.
    ///
    /// # Errors
    ///
    /// The read's own, or [`Error::NotInFleet`].
    ///
    /// # Cancel safety
    ///
    /// Safe: the pin is given back.
    pub async fn read<T, E, F>(&self, read: impl FnOnce(&Pin<'_>) -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let pin = self.pin()?;
        let value = read(&pin).await?;
        if pin.holds() { Ok(value) } else { Err(Error::NotInFleet.into()) }
    }

    /// Begins a transaction at the current epoch, with the fence in the same message as `BEGIN`.
    ///
    /// # Errors
    ///
    /// Any [`Error`]. After [`Error::EpochClosed`] begin again, or use [`Migration::transaction`].
    ///
    /// # Cancel safety
    ///
    /// Safe: a connection on which something was under way is closed.
    pub async fn begin(&self, pool: &PgPool) -> Result<PinnedTx, Error> {
        self.begin_isolated(pool, Isolation::default()).await
    }

    /// Like [`Migration::begin`], at an isolation level.
    ///
    /// # Errors
    ///
    /// Any [`Error`].
    ///
    /// # Cancel safety
    ///
    /// As [`Migration::begin`].
    pub async fn begin_isolated(&self, pool: &PgPool, isolation: Isolation) -> Result<PinnedTx, Error> {
        let pin = Held::enter(self.inner.gate.clone()).ok_or(Error::NotInFleet)?;
        PinnedTx::begin(pool, isolation, self, pin).await
    }

    /// Runs `work` in a pinned transaction and commits. Begins again, a few times at most, when the epoch moved
    /// on before the transaction began, or when the commit failed because of a concurrent transaction.
    ///
    /// `work` gets the transaction and gives it back to have it committed. It may run more than once, so it must
    /// not do anything that a rollback can't undo.
    ///
    /// (The transaction is passed by value because futures of an `AsyncFn(&mut PinnedTx)` that borrows what it
    /// works with can't be shown to be `Send` today, and a handler's have to be.)
    ///
    /// ```no_run
    /// # use cutover::migration::control::{Error, Migration};
    /// # async fn f(migration: Migration, pool: sqlx::PgPool) -> Result<u64, Error> {
    /// migration
    ///     .transaction(&pool, |mut tx| async move {
    ///         let done = sqlx::query("update orders set note = 'paid'").execute(&mut *tx).await?;
    ///         Ok::<_, Error>((tx, done.rows_affected()))
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The work's own, or the last attempt's.
    ///
    /// # Cancel safety
    ///
    /// Safe up to the commit; see [`PinnedTx::commit`].
    pub async fn transaction<T, E: From<Error>, F>(
        &self,
        pool: &PgPool,
        work: impl Fn(PinnedTx) -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<(PinnedTx, T), E>>,
    {
        let mut attempt = 1;
        loop {
            let refused = match self.begin(pool).await {
                Ok(tx) => {
                    let (tx, value) = work(tx).await?;
                    match tx.commit().await {
                        Ok(()) => return Ok(value),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            if attempt == ATTEMPTS || !refused.is_retryable() {
                return Err(refused.into());
            }
            // The next epoch is on its way to this instance already.
            tokio::time::sleep(Duration::from_millis(5) * attempt).await;
            attempt += 1;
        }
    }
}

impl fmt::Debug for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Migration")
            .field("name", &self.name())
            .field("at", &self.at())
            .finish_non_exhaustive()
    }
}
