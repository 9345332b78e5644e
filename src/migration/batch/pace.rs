use std::time::Duration;

use super::options::BatchOptions;

/// Beside a service that writes, a batch that writes has at most one in this many rows of the table. A request that wants
/// one of these rows waits for the batch, so this bounds the share of such requests, whatever the size of the table.
const SHARE: i64 = 256;

/// Chooses the number of rows of the next batch so that it takes about as long as the target.
#[derive(Debug)]
pub(crate) struct Pace {
    options: BatchOptions,
    target: Duration,
    rows: u32,
    most: u32,
    /// The next this many rows contain one that fails.
    suspects: Option<u32>,
}

impl Pace {
    pub(crate) fn new(options: &BatchOptions) -> Self {
        let BatchOptions { target, min_rows, max_rows, .. } = *options;
        Self { options: options.clone(), target, rows: min_rows, most: max_rows, suspects: None }
    }

    pub(crate) fn rows(&self) -> u32 {
        self.suspects.map_or(self.rows, |suspects| suspects.div_ceil(2))
    }

    /// Limits batches to the time that a slow write of the service takes without a pass. A write that waits for a row of a
    /// batch, or for a processor, then takes about twice that time, whatever the target is. Batches that lock rows of a
    /// table with `locked_of` rows are also limited to a share of these.
    pub(crate) fn limit_beside_writes(&mut self, locked_of: Option<i64>, slow_write: Option<Duration>) {
        let share = locked_of.map_or(u32::MAX, |total| u32::try_from(total / SHARE).unwrap_or(u32::MAX));
        self.most = share.clamp(self.options.min_rows, self.options.max_rows);
        self.target = slow_write.map_or(self.options.target, |time| time.min(self.options.target));
    }

    /// Limits batches only by their options.
    pub(crate) fn lift_limit(&mut self) {
        (self.most, self.target) = (self.options.max_rows, self.options.target);
    }

    /// Adapts to the duration of the last batch: at most to half or to double the rows.
    pub(crate) fn record(&mut self, elapsed: Duration) {
        if let Some(suspects) = self.suspects {
            // The failing row is among those that follow.
            self.suspects = Some(suspects - suspects.div_ceil(2)).filter(|left| *left > 0);
            return;
        }
        let factor = self.target.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
        let rows = f64::from(self.rows) * factor.clamp(0.5, 2.0);
        self.rows = (rows as u32).clamp(self.options.min_rows, self.most);
    }

    /// A row of the last batch fails: the next batch has half as many rows. `false` if it was a single row.
    pub(crate) fn halve(&mut self) -> bool {
        let rows = self.rows();
        self.suspects = Some(rows);
        rows > 1
    }

    /// The last batch failed on a lock: the next one locks fewer rows.
    pub(crate) fn shrink(&mut self) {
        self.rows = (self.rows / 2).max(self.options.min_rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_rows_converges_to_the_target() {
        let mut pace = Pace::new(&BatchOptions::default());
        // A server that does 40,000 rows/s.
        for _ in 0..20 {
            pace.record(Duration::from_secs_f64(f64::from(pace.rows()) / 40_000.0));
        }
        assert!((2_900..=3_100).contains(&pace.rows()), "{}", pace.rows());
    }

    #[test]
    fn a_batch_beside_writes_takes_as_long_as_a_slow_write() {
        let mut pace = Pace::new(&BatchOptions::default());
        let batches = |pace: &mut Pace| {
            (0..20).for_each(|_| pace.record(Duration::from_secs_f64(f64::from(pace.rows()) / 100_000.0)));
            pace.rows()
        };
        assert!((7_400..=7_600).contains(&batches(&mut pace)));
        for (slow, rows) in [(20, 1_950..=2_050), (1, 500..=500), (500, 7_400..=7_600)] {
            pace.limit_beside_writes(Some(100_000_000), Some(Duration::from_millis(slow)));
            let found = batches(&mut pace);
            assert!(rows.contains(&found), "{slow} ms: {found}");
        }
        pace.lift_limit();
        assert!((7_400..=7_600).contains(&batches(&mut pace)));
    }

    #[test]
    fn a_scan_beside_writes_takes_as_long_as_a_slow_write() {
        let mut pace = Pace::new(&BatchOptions::default());
        pace.limit_beside_writes(None, Some(Duration::from_millis(20)));
        (0..20).for_each(|_| pace.record(Duration::from_secs_f64(f64::from(pace.rows()) / 500_000.0)));
        assert!((9_900..=10_100).contains(&pace.rows()), "{}", pace.rows());
    }

    #[test]
    fn a_failing_row_is_found_by_halving() {
        for bad in 0..500 {
            let mut pace = Pace::new(&BatchOptions::default());
            let (mut done, mut tries) = (0, 0);
            loop {
                tries += 1;
                if (done..done + pace.rows()).contains(&bad) {
                    if !pace.halve() {
                        break;
                    }
                } else {
                    done += pace.rows();
                    pace.record(Duration::ZERO);
                }
            }
            assert_eq!(done, bad);
            assert!(tries <= 20, "{tries}");
            pace.record(Duration::ZERO);
            assert_eq!(pace.rows(), 500);
        }
    }

    #[test]
    fn the_number_of_rows_stays_within_its_bounds() {
        let mut pace = Pace::new(&BatchOptions::default());
        pace.record(Duration::from_secs(60));
        pace.shrink();
        assert_eq!(pace.rows(), 500);
        for _ in 0..20 {
            pace.record(Duration::ZERO);
        }
        assert_eq!(pace.rows(), 20_000);
        for (total, most) in [(10, 500), (300_000, 1_171), (100_000_000, 20_000)] {
            pace.limit_beside_writes(Some(total), None);
            pace.record(Duration::ZERO);
            assert!(pace.rows() <= most, "{total}");
            (0..20).for_each(|_| pace.record(Duration::ZERO));
            assert_eq!(pace.rows(), most, "{total}");
            pace.lift_limit();
            (0..20).for_each(|_| pace.record(Duration::ZERO));
            assert_eq!(pace.rows(), 20_000, "{total}");
        }
    }
}
