use std::time::Duration;

use super::BatchOptions;

/// How many rows the next batch has, so that it takes about as long as it should.
#[derive(Debug)]
pub(super) struct Pace {
    options: BatchOptions,
    rows: u32,
}

impl Pace {
    pub(super) fn new(options: &BatchOptions) -> Self {
        Self { options: options.clone(), rows: options.min_rows }
    }

    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    /// Follows what the last batch took. One slow batch halves the next at most, and a fast one doubles it.
    pub(super) fn took(&mut self, elapsed: Duration) {
        let factor = self.options.target.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
        let rows = f64::from(self.rows) * factor.clamp(0.5, 2.0);
        self.rows = (rows as u32).clamp(self.options.min_rows, self.options.max_rows);
    }

    /// The last batch ran into a lock: the next one holds fewer.
    pub(super) fn shrink(&mut self) {
        self.rows = (self.rows / 2).max(self.options.min_rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_rows_settles_at_what_the_target_allows() {
        let mut pace = Pace::new(&BatchOptions::default());
        // A server that does 40,000 rows/s.
        for _ in 0..20 {
            pace.took(Duration::from_secs_f64(f64::from(pace.rows()) / 40_000.0));
        }
        assert!((2_900..=3_100).contains(&pace.rows()), "{}", pace.rows());
    }

    #[test]
    fn it_stays_within_its_bounds() {
        let mut pace = Pace::new(&BatchOptions::default());
        pace.took(Duration::from_secs(60));
        pace.shrink();
        assert_eq!(pace.rows(), 500);
        for _ in 0..20 {
            pace.took(Duration::ZERO);
        }
        assert_eq!(pace.rows(), 20_000);
    }
}
