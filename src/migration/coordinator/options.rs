use std::time::Duration;

use crate::config::Problem;

/// How an instance drives migrations.
///
/// Build it as a struct literal with `..DriverOptions::default()`; later versions may add fields.
#[derive(Debug, Clone)]
pub struct DriverOptions {
    /// How long a transaction of a closed epoch may stay open before its backend is terminated, if this role may do
    /// that. Default 30 s. A migration waits up to this long for a process that is paused or cut off.
    pub transaction_limit: Duration,
    /// How long an instance stays the driver of a migration without a renewal, and how long the driver waits for an answer
    /// of the ledger. Default 5 s, at least 2 s.
    pub leadership_lease: Duration,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self { transaction_limit: Duration::from_secs(30), leadership_lease: Duration::from_secs(5) }
    }
}

/// A reconcile step may wait half a second for a lock, and must fit into the lease.
const MIN_LEASE: Duration = Duration::from_secs(2);

impl DriverOptions {
    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        if self.leadership_lease < MIN_LEASE {
            let problem = format!("{:?} is too short: use {MIN_LEASE:?} or more", self.leadership_lease);
            problems.push(Problem::new("driver.leadership_lease", problem));
        }
    }
}
