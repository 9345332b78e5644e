use std::borrow::Borrow;
use std::fmt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::Registry;
use prometheus::proto::MetricType;

use super::columns::MirroredColumns;
use super::error::Error;
use super::fence::{FencedPool, Isolation, Mirroring, PinnedTx};
use super::gate::{Gate, Pin};
use super::key::Key;
use super::side_metrics::SideMetrics;
use super::work_metrics::WorkMetrics;
use super::write_times::WriteTimes;
use crate::fleet::Lease;
use crate::migration::phase::Phase;
use crate::scrape::Scraped;

/// One migration as this instance sees it. Operations learn here which sides to write and read.
///
/// A cheap handle. Nothing here queries the ledger: a background task keeps the epoch in an atomic.
#[derive(Clone)]
pub struct Migration {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    // Changes only while the gate is shut.
    id: AtomicI32,
    /// The columns whose writes the guard trigger mirrors, if the plan says so.
    columns: Option<Arc<MirroredColumns>>,
    /// Which keys are read from the new side first.
    seed: u64,
    gate: Gate,
    work: WorkMetrics,
    sides: SideMetrics,
    write_times: WriteTimes,
    note: Mutex<String>,
}

impl Migration {
    pub(crate) fn new(name: &str, id: i32, lease: Lease, columns: Option<MirroredColumns>) -> Self {
        let shards = std::thread::available_parallelism().map_or(4, |cores| cores.get() * 2);
        let gate = Gate::new(lease, shards);
        let work = WorkMetrics::new(name);
        Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                id: AtomicI32::new(id),
                columns: columns.map(Arc::new),
                seed: Key::of(name).seed(),
                gate,
                work,
                sides: SideMetrics::new(),
                write_times: WriteTimes::new(),
                note: Mutex::default(),
            }),
        }
    }

    /// The migration's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The migration's id in the ledger.
    pub(crate) fn id(&self) -> i32 {
        self.inner.id.load(Ordering::SeqCst)
    }

    /// The metrics of the migration's work on rows.
    pub(crate) fn work(&self) -> &WorkMetrics {
        &self.inner.work
    }

    /// The metrics of calls of both sides' repositories.
    #[inline]
    pub(crate) fn sides(&self) -> &SideMetrics {
        &self.inner.sides
    }

    /// Registers the metrics of this migration.
    pub(crate) fn register(&self, registry: &Registry, version: &str) -> Result<(), prometheus::Error> {
        self.work().register(registry)?;
        let name = ("migration", self.name().to_owned());
        let mut state = Scraped::with([name.clone()]);
        let migration = self.clone();
        let help = "Phase that this instance works in: 1 for the present one, 0 for the others; all 0 while it is not admitted.";
        state.gauge("cutover_migration_phase", help, &["phase"], move |samples| {
            let current = migration.current().map(|(_, phase)| phase);
            for phase in Phase::ALL {
                samples.flag(&[phase.name()], current == Some(phase));
            }
        })?;
        let migration = self.clone();
        let help = "Epoch that this instance works at; absent while it is not admitted.";
        state.gauge("cutover_migration_epoch", help, &[], move |samples| {
            if let Some((epoch, _)) = migration.current() {
                samples.value(&[], f64::from(epoch));
            }
        })?;
        let migration = self.clone();
        let help = "Share of keys that are read from the new side in `ramp`.";
        state.gauge("cutover_migration_ramp_percent", help, &[], move |samples| {
            if let Some(ramp) = migration.gate().ramp() {
                samples.value(&[], f64::from(ramp.get()));
            }
        })?;
        state.register(registry)?;

        let mut sides = Scraped::with([name, ("version", version.to_owned())]);
        let migration = self.clone();
        let help = "Duration of the calls of each side's repository by DualWrite, from `expand` to `retire`.";
        let (kind, family) = (MetricType::HISTOGRAM, "cutover_side_duration_seconds");
        sides.add(kind, family, help, &["operation", "side"], move |samples| {
            migration.sides().durations(samples);
        })?;
        let migration = self.clone();
        let help = "Calls among them that failed, or that were dropped before their end.";
        let (kind, family) = (MetricType::COUNTER, "cutover_side_failures_total");
        sides.add(kind, family, help, &["operation", "reason", "side"], move |samples| {
            migration.sides().failures(samples);
        })?;
        sides.register(registry)
    }

    /// How long the service's transactions take.
    pub(crate) fn write_times(&self) -> &WriteTimes {
        &self.inner.write_times
    }

    /// Sets what its running task waits for; empty: nothing. The driver records it. The text completes "the migration waits
    /// for …". Returns whether it has changed.
    pub(crate) fn note(&self, what: &str) -> bool {
        let mut note = self.inner.note.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *note != what;
        what.clone_into(&mut note);
        is_news
    }

    /// What its running task waits for.
    pub(crate) fn noted(&self) -> Option<String> {
        let note = self.inner.note.lock().unwrap_or_else(PoisonError::into_inner);
        Some(note.clone()).filter(|note| !note.is_empty())
    }

    /// Sets another id. Only the agent calls this, while the gate is shut: the fence refuses what was pinned before under
    /// either id.
    pub(crate) fn renumber(&self, id: i32) {
        self.inner.id.store(id, Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn gate(&self) -> &Gate {
        &self.inner.gate
    }

    /// The epoch and phase at which operations begin at this moment; `None` while this instance is not in the fleet. This is
    /// for display: an operation takes a pin.
    #[inline]
    pub fn current(&self) -> Option<(i32, Phase)> {
        self.inner.gate.current()
    }

    /// Pins an operation to the current epoch. No allocation, no lock, no query.
    ///
    /// # Errors
    ///
    /// [`Error::NotInFleet`] while this instance has no lease or has not been admitted.
    #[inline]
    pub fn pin(&self) -> Result<Pin<'_>, Error> {
        // Not `ok_or`, which makes an error for each pin and drops it.
        match Pin::enter(&self.inner.gate) {
            Some(pin) => Ok(pin),
            None => Err(Error::NotInFleet),
        }
    }

    /// Runs a read under a pin, and returns its value only if this instance was in the fleet all the time.
    ///
    /// # Errors
    ///
    /// The read's own error, or [`Error::NotInFleet`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a drop releases the pin.
    pub async fn read<T, E: From<Error>>(
        &self,
        read: impl AsyncFnOnce(&Pin<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let pin = self.pin()?;
        let value = read(&pin).await?;
        if pin.holds() { Ok(value) } else { Err(Error::NotInFleet.into()) }
    }

    /// Begins a transaction at the current epoch, with the fence in the same round trip as `BEGIN`.
    ///
    /// `pool` is a `sqlx::PgPool` or, with the cargo feature `deadpool`, a `deadpool_postgres::Pool`. For a transaction that
    /// writes under several migrations see [`Migration::and`].
    ///
    /// If the fence refuses the epoch because the migration has just moved on, the transaction is begun again at the new
    /// epoch, a few times at most. No statement of the caller has run by then.
    ///
    /// # Errors
    ///
    /// [`Error::NotInFleet`], [`Error::Database`], and the fence's refusals if they persist.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a transaction that has begun is rolled back.
    pub async fn begin<P: FencedPool>(&self, pool: &P) -> Result<PinnedTx<P::Transaction>, Error> {
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
    pub async fn begin_isolated<P: FencedPool>(
        &self,
        pool: &P,
        isolation: Isolation,
    ) -> Result<PinnedTx<P::Transaction>, Error> {
        PinnedTx::begin(pool, isolation, Mirroring::AsDeclared, self, &[]).await
    }

    /// Like [`Migration::begin`], for work that makes both sides what they have to be, so that nothing is mirrored.
    pub(crate) async fn begin_work<P: FencedPool>(
        &self,
        pool: &P,
    ) -> Result<PinnedTx<P::Transaction>, Error> {
        PinnedTx::begin(pool, Isolation::default(), Mirroring::Never, self, &[]).await
    }

    /// The columns whose writes the guard trigger mirrors, if the plan says so.
    pub(crate) fn mirrored_columns(&self) -> Option<&Arc<MirroredColumns>> {
        self.inner.columns.as_ref()
    }

    /// The seed of [`Key::side`].
    pub(crate) fn seed(&self) -> u64 {
        self.inner.seed
    }

    /// Whether both are handles of the same migration.
    pub(crate) fn is(&self, other: &Migration) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Borrow<Gate> for Migration {
    #[inline]
    fn borrow(&self) -> &Gate {
        &self.inner.gate
    }
}

impl fmt::Debug for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Migration")
            .field("name", &self.name())
            .field("current", &self.current())
            .finish_non_exhaustive()
    }
}
