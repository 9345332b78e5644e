use std::sync::Arc;
use std::time::Duration;

use super::plan::{DesiredPhase, FromLedger, Plan};
use crate::migration::phase::PhaseRange;

/// What a build declares about a migration.
///
/// ```
/// use std::time::Duration;
/// use cutover::migration::{Phase, PhaseRange, MigrationSpec};
///
/// // A build that has no code for the old side any more.
/// let spec = MigrationSpec::new("payment_status", PhaseRange::from_phase(Phase::Retire)).soak(Duration::from_secs(3600));
/// ```
#[derive(Debug, Clone)]
#[must_use = "a declaration does nothing until an agent is started with it"]
pub struct MigrationSpec {
    pub(crate) name: String,
    pub(crate) range: PhaseRange,
    pub(crate) plan: Option<Arc<dyn Plan>>,
    pub(crate) desired: Arc<dyn DesiredPhase>,
    pub(crate) soak: Duration,
    pub(crate) external_write_quiet_period: Duration,
    pub(crate) standbys: Vec<String>,
}

impl MigrationSpec {
    /// A migration of this name (the same in every build, in flags and on the command line), and the phases of it
    /// that this build can run.
    ///
    /// Without more, the desired phase is the ledger's, `retire` lasts a day at least, and schema and data are
    /// somebody else's affair.
    pub fn new(name: impl Into<String>, range: PhaseRange) -> Self {
        Self {
            name: name.into(),
            range,
            plan: None,
            desired: Arc::new(FromLedger),
            soak: Duration::from_secs(24 * 60 * 60),
            external_write_quiet_period: Duration::from_secs(60),
            standbys: Vec::new(),
        }
    }

    /// What has to be done to schema and data, such as a
    /// [`ColumnMigration`](crate::migration::ColumnMigration).
    pub fn plan(mut self, plan: impl Plan + 'static) -> Self {
        self.plan = Some(Arc::new(plan));
        self
    }

    /// Where the desired phase comes from.
    pub fn desired(mut self, source: impl DesiredPhase + 'static) -> Self {
        self.desired = Arc::new(source);
        self
    }

    /// For how long nobody may have written past the library before `verify`, where such writes can't be copied on the
    /// spot because the mapping is not SQL. Default a minute; longer than the pause between two runs of a job is better.
    pub fn external_write_quiet_period(mut self, time: Duration) -> Self {
        self.external_write_quiet_period = time;
        self
    }

    /// The standbys that reads go to, by their `application_name` (or `cluster_name`), as `pg_stat_replication` has it.
    ///
    /// `ramp` then waits until each has replayed the copy and what was repaired since, because on one that lags the new side
    /// is not old but empty, and the drop until none is behind the phases that read the old side. One that is not connected
    /// holds the migration. The role has to be a member of `pg_monitor`, or it sees no positions. Default none.
    pub fn standbys<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.standbys = names.into_iter().map(Into::into).collect();
        self
    }

    /// How long `retire` has to last before the old side may be dropped. Default a day.
    pub fn soak(mut self, time: Duration) -> Self {
        self.soak = time;
        self
    }
}
