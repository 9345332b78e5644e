//! Comparison of a sample of reads: shadow reads.

use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::{Executor, PgPool};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::dual_write::DualWrite;
use crate::config::{ConfigError, Problem};
use crate::migration::phase::Phase;
use crate::migration::runtime::{Error, Isolation, Migration, PinnedTx};

/// Time between a comparison that finds a difference and the one that confirms it.
const CONFIRM_AFTER: Duration = Duration::from_millis(50);

/// Reads a side for a comparison. Both sides' repositories implement it.
pub trait Compared<K>: Send + Sync + 'static {
    /// The value to compare. Leave out what the two sides may legitimately represent differently.
    type Value: PartialEq + Debug + Send;

    /// Reads the value of this side under `key`, within the transaction.
    ///
    /// # Errors
    ///
    /// An error of the database. It is counted and has no other effect.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped at the time limit.
    fn read(&self, tx: &mut PinnedTx, key: &K) -> impl Future<Output = Result<Self::Value, Error>> + Send;
}

/// How many reads are compared, and how.
///
/// It has no private fields and is not `non_exhaustive`, so that struct update syntax with `Default` works.
#[derive(Debug, Clone)]
pub struct ShadowOptions {
    /// The share of reads to compare, from 0 to 1. Default 0.01.
    pub share: f64,
    /// How many reads may wait for their comparison. Further reads are dropped and counted. Default 1,000.
    pub queue: usize,
    /// The time limit of a comparison. A move of the migration waits for a running comparison. Default 1 s.
    pub time_limit: Duration,
    /// Whether values stay out of the log. Default `false`.
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
            problems.push(Problem::new("shadow.share", format!("{} must be between 0 and 1", self.share)));
        }
        if self.queue == 0 || self.queue > 1_000_000 {
            problems.push(Problem::new(
                "shadow.queue",
                format!("{} must be between 1 and 1,000,000", self.queue),
            ));
        }
        if self.time_limit.is_zero() {
            problems.push(Problem::new("shadow.time_limit", "0 s is too short: use for example 1 s"));
        }
        if tokio::runtime::Handle::try_current().is_err() {
            problems
                .push(Problem::new("shadow", "no Tokio runtime: call `Shadow::start` in an async function"));
        }
        ConfigError::check(problems)
    }
}

/// Compares a sample of what requests read between both sides, in the background: shadow reads.
///
/// It compares from `verify` to `switch`, while both sides must hold the same values. A scan compares all rows once. Shadow
/// reads keep comparing while the service runs, through the service's own code for each side.
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
/// shadow.observe(7);
/// # Ok(())
/// # }
/// ```
///
/// # Cost and limits
///
/// In phases without comparisons [`observe`](Shadow::observe) is one atomic load, in the others also a random number. A key
/// that is sampled goes into a bounded queue without waiting. The outcome of a request never changes: not by an error, by a
/// panic in [`Compared::read`] or by a full queue.
///
/// Both sides are read in one REPEATABLE READ snapshot, so writes between the two reads make no difference. A difference
/// counts if a second comparison in another snapshot confirms it. It is logged with its key. The metric
/// `cutover_migration_shadow_reads_total{outcome}` counts `same`, `different`, `error` and `dropped`.
#[derive(Debug, Clone)]
pub struct Shadow<K> {
    queue: mpsc::Sender<K>,
    migration: Migration,
    share: f64,
}

impl<K: Clone + Debug + Send + Sync + 'static> Shadow<K> {
    /// Starts a task that compares. It ends when the last clone is dropped and the queue is empty. `pool` is a pool of the
    /// service's database, of which one connection is used at a time.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every problem of the options.
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
                // A panic of a repository must not end the task.
                let outcome = AssertUnwindSafe(comparison).catch_unwind().await.unwrap_or("error");
                sides.migration().work().compared(outcome);
            }
        });
        Ok(Self { queue, migration, share })
    }

    /// Reports that a request has read this key, which may then be compared in the background.
    #[inline]
    pub fn observe(&self, key: K) {
        if self.migration.current().is_some_and(|(_, phase)| is_compared(phase))
            && fastrand::f64() < self.share
        {
            self.enqueue(key);
        }
    }

    #[cold]
    fn enqueue(&self, key: K) {
        if self.queue.try_send(key).is_err() {
            self.migration.work().compared("dropped");
        }
    }
}

fn is_compared(phase: Phase) -> bool {
    (Phase::Verify..=Phase::Switch).contains(&phase)
}

/// The outcome of a comparison as the metric counts it: `same`, `different` or `error`.
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
            sleep(CONFIRM_AFTER).await;
        }
        match timeout(options.time_limit, read_both(sides, pool, key)).await {
            Ok(Ok(Some((old, new)))) if old != new => {
                if is_second {
                    report(sides.migration(), options, key, &old, &new);
                }
            }
            Ok(Ok(_)) => return "same",
            Ok(Err(error)) => {
                tracing::debug!(%error, migration = sides.migration().name(), "shadow read failed");
                return "error";
            }
            Err(_) => return "error",
        }
    }
    "different"
}

/// Both sides' values in one snapshot; `None` if the phase no longer requires them to be the same.
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
        tracing::warn!(migration, ?key, "sides differ");
    } else {
        tracing::warn!(migration, ?key, ?old, ?new, "sides differ");
    }
}
