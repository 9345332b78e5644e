use std::sync::Arc;
use std::time::Duration;

use super::plan::{DesiredPhase, FromLedger, Plan};
use crate::config::Problem;
use crate::migration::phase::PhaseRange;

/// What a build declares about a migration.
///
/// ```
/// use std::time::Duration;
/// use cutover::migration::{Phase, PhaseRange, MigrationSpec};
///
/// // A build that no longer has code for the old side.
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
    /// A migration of this name, and the phases of it that this build can run.
    ///
    /// The name is the same in every build, in flags and on the command line. By default the desired phase is the ledger's,
    /// `retire` lasts at least a day, and the library changes neither schema nor data.
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

    /// What the migration does to schema and data, for example a
    /// [`ColumnMigration`](crate::migration::ColumnMigration).
    ///
    /// If a running build has a plan with an old side, only instances that have a plan drive the migration.
    pub fn plan(mut self, plan: impl Plan + 'static) -> Self {
        self.plan = Some(Arc::new(plan));
        self
    }

    /// Where the desired phase comes from.
    pub fn desired(mut self, source: impl DesiredPhase + 'static) -> Self {
        self.desired = Arc::new(source);
        self
    }

    /// How long no external write may have been seen before `verify`, if such writes cannot be copied at once because the
    /// mapping is not SQL. Default one minute. Set it longer than the pause between two runs of an external job.
    pub fn external_write_quiet_period(mut self, time: Duration) -> Self {
        self.external_write_quiet_period = time;
        self
    }

    /// The standbys that reads go to, by their `application_name` (or `cluster_name`) as in `pg_stat_replication`. Default
    /// none.
    ///
    /// `ramp` waits until each has replayed the copy and later repairs, because on a lagging standby the new side is not old
    /// but empty. The drop waits until each has replayed the phases that read the old side. A standby that is not connected
    /// holds the migration. The role must be a member of `pg_monitor` to see positions.
    pub fn standbys<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.standbys = names.into_iter().map(Into::into).collect();
        self
    }

    /// How long `retire` must last before the old side may be dropped. Default one day.
    pub fn soak(mut self, time: Duration) -> Self {
        self.soak = time;
        self
    }
}

/// Adds a problem for each declaration that cannot be used.
pub(crate) fn check(specs: &[MigrationSpec], problems: &mut Vec<Problem>) {
    for (index, spec) in specs.iter().enumerate() {
        let problem = if spec.name.is_empty() || spec.name.len() > 63 {
            "must have 1 to 63 bytes"
        } else if specs[..index].iter().any(|earlier| earlier.name == spec.name) {
            "is declared twice"
        } else {
            continue;
        };
        problems.push(Problem::new("migration.name", format!("{:?} {problem}", spec.name)));
    }
}
