use std::time::Duration;

use super::options::BatchOptions;

/// Of a table's rows a batch that writes has one in so many at most. Whoever wants one of them waits for the batch: this is
/// how few of all requests that are, whatever the size of the table.
const PART: i64 = 256;

/// How many rows the next batch has, so that it takes about as long as it should.
#[derive(Debug)]
pub(crate) struct Pace {
    options: BatchOptions,
    rows: u32,
    most: u32,
    /// Among so many rows there is one that can't be done.
    suspects: Option<u32>,
}

impl Pace {
    pub(crate) fn new(options: &BatchOptions) -> Self {
        Self { options: options.clone(), rows: options.min_rows, most: options.max_rows, suspects: None }
    }

    pub(crate) fn rows(&self) -> u32 {
        self.suspects.map_or(self.rows, |suspects| suspects.div_ceil(2))
    }

    /// Leaves most of a table with so many rows to others.
    pub(crate) fn spare(&mut self, total: i64) {
        let part = u32::try_from(total / PART).unwrap_or(u32::MAX);
        self.most = part.clamp(self.options.min_rows, self.options.max_rows);
    }

    /// Follows what the last batch took. One slow batch halves the next at most, and a fast one doubles it.
    pub(crate) fn took(&mut self, elapsed: Duration) {
        if let Some(suspects) = self.suspects {
            // These were not the ones.
            self.suspects = Some(suspects - suspects.div_ceil(2)).filter(|left| *left > 0);
            return;
        }
        let factor = self.options.target.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
        let rows = f64::from(self.rows) * factor.clamp(0.5, 2.0);
        self.rows = (rows as u32).clamp(self.options.min_rows, self.most);
    }

    /// One of the last batch's rows can't be done: half as many next, until it is a single one. `false` when it was.
    pub(crate) fn halve(&mut self) -> bool {
        let rows = self.rows();
        self.suspects = Some(rows);
        rows > 1
    }

    /// The last batch ran into a lock: the next one holds fewer.
    pub(crate) fn shrink(&mut self) {
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
    fn a_bad_row_is_found_by_halving() {
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
                    pace.took(Duration::ZERO);
                }
            }
            assert_eq!(done, bad);
            assert!(tries <= 20, "{tries}");
            pace.took(Duration::ZERO);
            assert_eq!(pace.rows(), 500);
        }
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
        for (total, most) in [(10, 500), (300_000, 1_171), (100_000_000, 20_000)] {
            pace.spare(total);
            pace.took(Duration::ZERO);
            assert!(pace.rows() <= most, "{total}");
            (0..20).for_each(|_| pace.took(Duration::ZERO));
            assert_eq!(pace.rows(), most, "{total}");
        }
    }
}
