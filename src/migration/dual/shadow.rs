use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::{Executor, PgPool};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::dual::DualWrite;
use crate::config::{ConfigError, Problem};
use crate::migration::phase::Phase;
use crate::migration::runtime::{Error, Isolation, Migration, PinnedTx};

/// Between the first look and the one that confirms it.
const AGAIN: Duration = Duration::from_millis(50);

/// How a side is read for a comparison: implemented by both sides' repositories.
pub trait Compared<K>: Send + Sync + 'static {
    /// What is compared. Make it something for which equal means equal: what the sides may spell differently does not
    /// belong in it.
    type Value: PartialEq + Debug + Send;

    /// Reads what this side has under `key`, within the transaction.
    ///
    /// # Errors
    ///
    /// The database's; it is counted, and nothing else comes of it.
    ///
    /// # Cancel safety
    ///
    /// It is dropped at the time limit.
    fn read(&self, tx: &mut PinnedTx, key: &K) -> impl Future<Output = Result<Self::Value, Error>> + Send;
}

/// How much is compared.
#[derive(Debug, Clone)]
pub struct ShadowOptions {
    /// The share of reads that is compared, 0 to 1. Default 0.01.
    pub share: f64,
    /// How many may wait to be compared; what comes beyond is dropped and counted. Default 1,000.
    pub queue: usize,
    /// How long a comparison may take: a migration waits for one that is under way. Default 1 s.
    pub time_limit: Duration,
    /// Whether values stay out of the log. Default no.
    pub sensitive: bool,
}

impl Default for ShadowOptions {
    fn default() -> Self {
        Self { share: 0.01, queue: 1_000, time_limit: Duration::from_secs(1), sensitive: false }
    }
}

impl ShadowOptions {
    fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if !(0.0..=1.0).contains(&self.share) {
            problems.push(Problem::new("shadow.share", format!("{} has to be between 0 and 1", self.share)));
        }
        if self.queue == 0 || self.queue > 1_000_000 {
            problems.push(Problem::new("shadow.queue", format!("{} has to be 1 to 1,000,000", self.queue)));
        }
        if self.time_limit.is_zero() {
            problems.push(Problem::new("shadow.time_limit", "has to be longer than nothing"));
        }
        if tokio::runtime::Handle::try_current().is_err() {
            problems.push(Problem::new("shadow", "has to be started within a Tokio runtime"));
        }
        ConfigError::check(problems)
    }
}

/// Compares a sample of what requests read between both sides, in the background: shadow reads.
///
/// From `verify` to `switch`, when both sides have to say the same. A whole scan proves it of all rows at one time; this
/// goes on watching while the service runs, with its own code for each side.
///
/// ```
/// use cutover::migration::{Error, PinnedTx};
/// use cutover::ConfigError;
/// use cutover::migration::{Compared, DualWrite, Shadow, ShadowOptions};
///
/// struct OldColumn;
/// struct NewColumn;
///
/// impl Compared<i64> for OldColumn {
///     type Value = Option<String>;
///     async fn read(&self, tx: &mut PinnedTx, id: &i64) -> Result<Self::Value, Error> {
///         let query = sqlx::query_scalar("select lower(old_status) from orders where id = $1");
///         Ok(query.bind(*id).fetch_optional(&mut **tx).await?)
///     }
/// }
/// # impl Compared<i64> for NewColumn {
/// #     type Value = Option<String>;
/// #     async fn read(&self, _: &mut PinnedTx, _: &i64) -> Result<Self::Value, Error> { Ok(None) }
/// # }
///
/// # fn f(sides: DualWrite<OldColumn, NewColumn>, pool: sqlx::PgPool) -> Result<(), ConfigError> {
/// let shadow = Shadow::start(sides, pool, ShadowOptions::default())?;
/// // In a handler, beside the read itself:
/// shadow.look(7);
/// # Ok(())
/// # }
/// ```
///
/// # What it costs and what it can't do
///
/// [`look`](Shadow::look) is one atomic load where nothing is compared in the phase, and a random number more where it is;
/// a key that is drawn goes into a bounded queue without waiting. Nothing of it changes a request's outcome: not an error,
/// not a panic in [`Compared::read`], not a full queue. Both sides are read in one REPEATABLE READ snapshot, so that writes
/// between them make no difference, and a difference counts when a second look in another snapshot confirms it. It is
/// in the log with its key, and `cutover_migration_shadow_reads_total{outcome}` counts `same`, `different`, `error`, `dropped`.
#[derive(Debug, Clone)]
pub struct Shadow<K> {
    queue: mpsc::Sender<K>,
    migration: Migration,
    share: f64,
}

impl<K: Clone + Debug + Send + Sync + 'static> Shadow<K> {
    /// Starts to compare, in a task that ends when the last clone is dropped and the queue is empty. `pool` is one of the
    /// service's database; one connection is used at a time.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with everything that is wrong with the options.
    pub fn start<O, N, B>(
        sides: DualWrite<O, N, B>,
        pool: PgPool,
        options: ShadowOptions,
    ) -> Result<Self, ConfigError>
    where
        O: Compared<K>,
        N: Compared<K, Value = O::Value>,
        B: Send + Sync + 'static,
    {
        options.check()?;
        let (queue, mut keys) = mpsc::channel::<K>(options.queue);
        let (migration, share) = (sides.migration().clone(), options.share);
        tokio::spawn(async move {
            while let Some(key) = keys.recv().await {
                let comparison = compare(&sides, &pool, &options, &key);
                // Whatever a repository does, the next key has its turn.
                let outcome = AssertUnwindSafe(comparison).catch_unwind().await.unwrap_or("error");
                sides.migration().work().compared(outcome);
            }
        });
        Ok(Self { queue, migration, share })
    }

    /// A request has read this key: it may be compared, some time later.
    #[inline]
    pub fn look(&self, key: K) {
        if self.migration.current().is_some_and(|(_, phase)| is_compared(phase))
            && fastrand::f64() < self.share
        {
            self.note(key);
        }
    }

    #[cold]
    fn note(&self, key: K) {
        if self.queue.try_send(key).is_err() {
            self.migration.work().compared("dropped");
        }
    }
}

fn is_compared(phase: Phase) -> bool {
    (Phase::Verify..=Phase::Switch).contains(&phase)
}

/// Whether the sides are `same` or `different`, or that it came to an `error`, as the metric has it.
async fn compare<K, O, N, B>(
    sides: &DualWrite<O, N, B>,
    pool: &PgPool,
    options: &ShadowOptions,
    key: &K,
) -> &'static str
where
    K: Debug,
    O: Compared<K>,
    N: Compared<K, Value = O::Value>,
{
    for is_second in [false, true] {
        if is_second {
            sleep(AGAIN).await;
        }
        match timeout(options.time_limit, read_both(sides, pool, key)).await {
            Ok(Ok(Some((old, new)))) if old != new => {
                if is_second {
                    report(sides.migration(), options, key, &old, &new);
                }
            }
            Ok(Ok(_)) => return "same",
            Ok(Err(error)) => {
                tracing::debug!(%error, migration = sides.migration().name(), "a shadow read failed");
                return "error";
            }
            Err(_) => return "error",
        }
    }
    "different"
}

/// Both sides at one moment; `None` where they don't have to be the same any more.
async fn read_both<K, O, N, B>(
    sides: &DualWrite<O, N, B>,
    pool: &PgPool,
    key: &K,
) -> Result<Option<(O::Value, O::Value)>, Error>
where
    O: Compared<K>,
    N: Compared<K, Value = O::Value>,
{
    let mut tx = sides.migration().begin_isolated(pool, Isolation::RepeatableRead).await?;
    if !is_compared(tx.phase()) {
        tx.rollback().await?;
        return Ok(None);
    }
    tx.execute("set local lock_timeout = '100ms'").await?;
    let (old, new) = sides.sides();
    let both = (old.read(&mut tx, key).await?, new.read(&mut tx, key).await?);
    tx.rollback().await?;
    Ok(Some(both))
}

fn report<K: Debug, V: Debug>(migration: &Migration, options: &ShadowOptions, key: &K, old: &V, new: &V) {
    let migration = migration.name();
    if options.sensitive {
        tracing::warn!(migration, ?key, "the sides differ");
    } else {
        tracing::warn!(migration, ?key, ?old, ?new, "the sides differ");
    }
}
