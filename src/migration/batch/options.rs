use std::time::Duration;

use crate::config::Problem;

/// How a backfill or a scan is cut into batches, each of which is a transaction.
///
/// It has no private fields and is not `non_exhaustive`, so that `BatchOptions { workers: 2, ..Default::default() }` works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchOptions {
    /// How long a batch should take, and so how long a writer may have to wait for one of its rows. The number of rows
    /// follows from it. While this instance has pinned transactions, and the throttle does not ignore these
    /// ([`Throttle::foreground`](super::Throttle::foreground)), a batch takes no longer than the 99th percentile
    /// of these without the pass, if it has more than `min_rows` rows. Default 75 ms.
    pub target: Duration,
    /// The fewest rows in a batch. Default 500.
    pub min_rows: u32,
    /// The most rows in a batch. While this instance has pinned transactions, a batch that writes also has at most
    /// `min_rows` rows or every 256th row of the table, whichever is more. Default 20,000.
    pub max_rows: u32,
    /// Into how many key ranges the rows are cut. All instances together run at most one batch per range at a time. No
    /// range is shorter than `max_rows`. Default 4.
    pub ranges: u16,
    /// How many batches one instance runs at a time. Every instance of the fleet takes part, and each worker needs a
    /// connection of the plan's pool. Default 1.
    pub workers: u16,
    /// How many rows that cannot be mapped are set aside before the work stops. Default 100.
    pub bad_rows: u32,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            target: Duration::from_millis(75),
            min_rows: 500,
            max_rows: 20_000,
            ranges: 4,
            workers: 1,
            bad_rows: 100,
        }
    }
}

impl BatchOptions {
    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        if self.target.is_zero() {
            problems.push(Problem::new("batches.target", "0 s is too short: use for example 75 ms"));
        }
        if self.min_rows == 0 || self.min_rows > self.max_rows {
            problems.push(Problem::new(
                "batches.min_rows",
                format!("{} must be between 1 and max_rows ({})", self.min_rows, self.max_rows),
            ));
        }
        for (field, number) in [("batches.ranges", self.ranges), ("batches.workers", self.workers)] {
            if number == 0 || number > 1_000 {
                problems.push(Problem::new(field, format!("{number} must be between 1 and 1000")));
            }
        }
    }
}
