use cutover::migration::phase::{Completeness, Phase, PreviousEpoch, Step, Task};

/// What a side holds for the one row of the model, seen from the last acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// There is no such column.
    Missing,
    /// The column is there, the row was never written in it.
    Null,
    /// An older value than the last acknowledged one.
    Stale,
    /// The last acknowledged value.
    Fresh,
}

/// An epoch and its phase: what an operation is pinned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin {
    /// Its number.
    pub epoch: u8,
    /// What it means.
    pub phase: Phase,
}

/// A backfill, forwards or back. Its row in the ledger commits with each batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Job {
    /// The direction.
    pub task: Task,
    /// The epoch at which it began.
    pub epoch: u8,
    /// The row was copied.
    pub copied: bool,
}

/// An admitted instance's rows in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// The epoch below which it has nothing under way.
    pub acknowledged: u8,
}

/// Everything that is on the primary's disk: the ledger and the data, from one write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Database {
    /// The current epoch.
    pub at: Pin,
    /// The state of the previous epoch.
    pub previous: PreviousEpoch,
    /// The previous epoch's phase.
    pub before: Phase,
    /// The flags.
    pub complete: Completeness,
    /// By instance; `None`: not admitted.
    pub members: Vec<Option<Member>>,
    /// The backfill under way.
    pub job: Option<Job>,
    /// The row's new side is noted for repair.
    pub behind: bool,
    /// The migration has ended.
    pub ended: bool,
    /// The ended migration was archived, and its name was declared again, with a new id.
    pub again: bool,
    /// Another column has the name that the old one had.
    pub foreign: bool,
    /// The old column.
    pub old: Value,
    /// The new column.
    pub new: Value,
}

/// A write transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Write {
    /// What it is pinned to.
    pub pin: Pin,
    /// It has passed the fence and holds the epoch's shared lock.
    pub fenced: bool,
}

/// Which phases a build can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Build {
    /// Before the migration: it doesn't know of it.
    Unaware,
    /// During it: code for both sides.
    Both,
    /// After the migration: no code for the old side.
    NewOnly,
}

/// The memory of one process. A paused process takes no step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance {
    /// What it runs.
    pub build: Build,
    /// The gate. `None` while it is closed.
    pub gate: Option<Pin>,
    /// Its lease holds by its own clock.
    pub lease: bool,
    /// The gate is still open for an earlier membership than the one that the lease belongs to.
    pub behind: bool,
    /// The lease has not been extended since the failover.
    pub unrenewed: bool,
    /// The ledger has not been looked at since the failover.
    pub unfollowed: bool,
    /// A read whose query has not run yet.
    pub read: Option<Pin>,
    /// A write that has not ended.
    pub write: Option<Write>,
    /// What an admission without the lock has seen.
    pub joining: Option<Pin>,
}

/// What must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Violation {
    /// A read returned something else than the last acknowledged value.
    StaleRead,
    /// A query named a column that is not there.
    MissingColumn,
    /// A side that a phase in use reads lacks the last acknowledged write.
    LostWrite,
    /// A column was dropped that is not the old side.
    ForeignColumnDropped,
}

/// The whole state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The primary.
    pub db: Database,
    /// The standby's older copy, while there may be a failover to it.
    pub standby: Option<Database>,
    /// There was one.
    pub failed_over: bool,
    /// The fleet.
    pub instances: Vec<Instance>,
    /// The decision of the paused driver.
    pub decided: Option<Decision>,
    /// The damage. The run ends there.
    pub violation: Option<Violation>,
}

/// What a driver may do in `Turn::step`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Make the previous epoch unusable.
    Close,
    /// Open the next one.
    Move(Phase),
}

impl Decision {
    /// The steps that are transactions of `Turn::step`.
    pub fn of(step: &Step) -> Option<Self> {
        match step {
            Step::Close => Some(Self::Close),
            Step::Move(to) => Some(Self::Move(*to)),
            _ => None,
        }
    }
}

impl State {
    /// Instances have no names, so one order stands for all orders of them.
    pub(crate) fn canonical(mut self) -> Self {
        let mut order: Vec<usize> = (0..self.instances.len()).collect();
        order.sort_by_key(|&i| {
            (&self.instances[i], self.db.members[i], self.standby.as_ref().map(|db| db.members[i]))
        });
        if order.is_sorted() {
            return self;
        }
        let members = |db: &Database| order.iter().map(|&i| db.members[i]).collect();
        self.db.members = members(&self.db);
        if let Some(standby) = &mut self.standby {
            standby.members = members(standby);
        }
        self.instances = order.iter().map(|&i| self.instances[i].clone()).collect();
        self
    }
}
