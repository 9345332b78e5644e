use std::error::Error as StdError;
use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::PgPool;
use tokio::time::timeout;

use super::direction::Direction::{self, Back, Forward};
use super::failures::{Failure, TestFailures};
use super::fleet::TestFleet;
use crate::ledger::describe_error;
use crate::migration::{self, Desired, Migration, MigrationSpec, Phase};

/// The stops, in order. `expand` to `ramp` are entered twice in the forward direction, the second time with a new side that
/// holds stale values.
const STOPS: [(&str, Direction); 23] = [
    ("off", Forward),
    ("expand", Forward),
    ("backfill", Forward),
    ("verify", Forward),
    ("ramp:50", Forward),
    ("ramp:100", Forward),
    ("switch", Forward),
    ("ramp:100", Back),
    ("ramp:0", Back),
    ("verify", Back),
    ("backfill", Back),
    ("expand", Back),
    ("off", Back),
    ("expand", Forward),
    ("backfill", Forward),
    ("verify", Forward),
    ("ramp:100", Forward),
    ("switch", Forward),
    ("retire", Forward),
    ("switch", Back),
    ("verify", Back),
    ("retire", Forward),
    ("contract", Forward),
];

/// How long one step, or one call of the code under test, may take.
const LIMIT: Duration = Duration::from_secs(20);

/// One call of the code under test: where the migration is, and what earlier calls returned.
#[derive(Debug)]
pub struct Visit<K> {
    fleet: TestFleet,
    migration: Migration,
    phase: Phase,
    direction: Direction,
    earlier: Vec<K>,
}

impl<K> Visit<K> {
    /// The migration under test.
    pub fn migration(&self) -> &Migration {
        &self.migration
    }

    /// Another migration, which was declared with [`EveryPhase::also`].
    pub fn other_migration(&self, name: &str) -> Option<Migration> {
        self.fleet.migration(name)
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The direction in which the phase was entered.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// What the calls in earlier phases returned, for example keys of the rows that they inserted. Read and write these
    /// rows, too: they were written under other rules.
    pub fn earlier(&self) -> &[K] {
        &self.earlier
    }
}

/// Takes a repository, or a whole router, through every phase of a migration, in both directions. See
/// [the module](super).
#[derive(Debug)]
#[must_use = "nothing is tested before `run`"]
pub struct EveryPhase {
    pool: PgPool,
    spec: MigrationSpec,
    others: Vec<MigrationSpec>,
    limit: Duration,
}

impl EveryPhase {
    /// For this migration, in the database of `pool`, whose tables are as they are before the migration.
    ///
    /// The migration is taken through all phases, and the code under test is called in those that the declaration supports.
    /// So the code of a later build is tested with `PhaseRange::from_phase(Phase::Retire)`. The soak time, the standbys and
    /// the source of the desired phase are replaced.
    ///
    /// The changes to the database stay: use one that only this test uses, such as that of `#[sqlx::test]`.
    pub fn new(pool: &PgPool, spec: MigrationSpec) -> Self {
        Self { pool: pool.clone(), spec, others: Vec::new(), limit: LIMIT }
    }

    /// Also declares this migration, for code that works under both. It stays in `off`.
    pub fn also(mut self, other: MigrationSpec) -> Self {
        self.others.push(other);
        self
    }

    /// How long one step, or one call of the code under test, may take. Default 20 s. Increase it for a table with many
    /// rows.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Calls `exercise` in every phase. It should read, insert and change rows, also those of earlier calls, and check what
    /// it reads. It fails by an error or by a panic.
    ///
    /// # Errors
    ///
    /// Everything that failed. The calls go on after a failed one. They end at a step that does not complete.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the instance leaves the fleet, and the database stays as it is.
    pub async fn run<K, E>(
        self,
        exercise: impl AsyncFn(&Visit<K>) -> Result<K, E>,
    ) -> Result<(), TestFailures>
    where
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        let (name, range, limit) = (self.spec.name.clone(), self.spec.range, self.limit);
        let failures = |failures| TestFailures { migration: name.clone(), failures };
        let failure = |at, text| Failure { at, text };
        let start = TestFleet::start(&self.pool, self.spec, self.others, limit).await;
        let fleet = start.map_err(|text| failures(vec![failure(None, text)]))?;
        let Some(migration) = fleet.migration(&name) else {
            return Err(failures(vec![failure(None, "the migration was not declared".to_owned())]));
        };
        let mut visit =
            Visit { fleet, migration, phase: Phase::Off, direction: Forward, earlier: Vec::new() };
        let mut found = Vec::new();
        for (stop, direction) in STOPS {
            let Ok(to) = stop.parse::<Desired>() else { continue };
            let at = Some((to.phase, direction));
            if let Err(text) = visit.fleet.go(to, direction).await {
                found.push(failure(at, text));
                break;
            }
            (visit.phase, visit.direction) = (to.phase, direction);
            if range.contains(to.phase) {
                match call(&exercise, &visit, limit).await {
                    Ok(value) => visit.earlier.push(value),
                    Err(text) => found.push(failure(at, text)),
                }
            }
        }
        visit.fleet.leave().await;
        if found.is_empty() { Ok(()) } else { Err(failures(found)) }
    }
}

/// Calls the code under test.
async fn call<K, E: Into<Box<dyn StdError + Send + Sync>>>(
    exercise: &impl AsyncFn(&Visit<K>) -> Result<K, E>,
    visit: &Visit<K>,
    limit: Duration,
) -> Result<K, String> {
    let called = AssertUnwindSafe(exercise(visit)).catch_unwind();
    match timeout(limit, called).await {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(error))) => Err(with_sources(&*error.into())),
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(format!("panicked: {text}"))
        }
        Err(_) => Err(format!("did not end within {limit:?} (`EveryPhase::limit`)")),
    }
}

/// An error and its sources, without repetitions.
fn with_sources(error: &(dyn StdError + 'static)) -> String {
    let (mut text, mut next) = (String::new(), Some(error));
    while let Some(error) = next {
        let database = error.downcast_ref::<sqlx::Error>();
        let part = database.map_or_else(|| error.to_string(), describe_error);
        if !text.contains(&part) {
            text = if text.is_empty() { part } else { format!("{text}: {part}") };
        }
        // The texts of these two include those of their sources.
        let is_complete = database.is_some() || error.is::<migration::Error>();
        next = error.source().filter(|_| !is_complete);
    }
    text
}
