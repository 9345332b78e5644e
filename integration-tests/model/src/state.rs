use cutover::migration::phase::{Completeness, Phase, Previous, Step, Task};

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
    pub epoch: u8,
    pub phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Job {
    pub task: Task,
    pub epoch: u8,
    pub copied: bool,
}

/// An admitted instance's rows in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    pub acknowledged: u8,
}

/// Everything that is on the primary's disk: the ledger and the data, from one write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Database {
    pub at: Pin,
    pub previous: Previous,
    /// The previous epoch's phase.
    pub before: Phase,
    pub complete: Completeness,
    pub members: Vec<Option<Member>>,
    pub job: Option<Job>,
    pub old: Value,
    pub new: Value,
}

/// A write transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Write {
    pub pin: Pin,
    /// It has passed the fence and holds the epoch's shared lock.
    pub fenced: bool,
}

/// Which phases a build can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Build {
    /// Before the migration: it doesn't know of it.
    Unaware,
    Both,
    /// After the migration: no code for the old side.
    NewOnly,
}

/// What is in the memory of one process. Being paused is nothing special: it takes no step while others do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance {
    pub build: Build,
    /// Where operations enter; `None` while it is shut.
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
    pub write: Option<Write>,
    /// What an admission without the lock has seen.
    pub joining: Option<Pin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Violation {
    StaleRead,
    MissingColumn,
    LostWrite,
    UnableBuild,
    ThirdEpoch,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub db: Database,
    /// The standby's older copy, while there may be a failover to it.
    pub standby: Option<Database>,
    pub failed_over: bool,
    pub instances: Vec<Instance>,
    /// What a driver has decided that was then paused.
    pub decided: Option<Decision>,
    pub violation: Option<Violation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Decision {
    Close,
    Move(Phase),
}

impl Decision {
    pub fn of(step: &Step) -> Option<Self> {
        match step {
            Step::Close => Some(Self::Close),
            Step::Move(to) => Some(Self::Move(*to)),
            _ => None,
        }
    }
}

impl State {
    /// Instances have no names: of all orders of them one stands for all.
    pub fn canonical(mut self) -> Self {
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
