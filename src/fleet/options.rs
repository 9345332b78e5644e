use std::time::Duration;

use crate::config::Problem;

/// How an instance takes part in its fleet.
///
/// Build it as a struct literal with `..FleetOptions::default()`; later versions may add fields.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// The set of instances that have to agree. `None`: the service's name.
    ///
    /// Services that write the same tables set the same name here. Otherwise a migration would not wait for both.
    pub name: Option<String>,
    /// How long an instance counts as alive without a renewal. Default 10 s.
    ///
    /// A migration waits this long for a killed instance. An instance that is cut off from the database refuses reads
    /// after it. If the database is unreachable for longer than this, every instance becomes unready while a declared
    /// migration is past `off`.
    pub lease: Duration,
    /// How often the lease is renewed. Default 2 s; at most a third of the lease, so that one lost answer does no harm.
    pub renew_every: Duration,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self { name: None, lease: Duration::from_secs(10), renew_every: Duration::from_secs(2) }
    }
}

impl FleetOptions {
    /// By how much an instance's own lease is shorter than the one in the ledger: a tenth of it. This covers clocks of
    /// different speeds (0.1 % would already be a broken clock) and the granularity of timers.
    pub fn margin(&self) -> Duration {
        self.lease / 10
    }

    pub(crate) fn problems(&self, fleet: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        if fleet.is_empty() || fleet.len() > 63 {
            problems.push(Problem::new("fleet.name", format!("{fleet:?} must have 1 to 63 bytes")));
        }
        if self.renew_every.is_zero() {
            problems.push(Problem::new("fleet.renew_every", "0 s is too short: use for example 2 s"));
        }
        if self.lease < self.renew_every * 3 {
            let problem = format!(
                "{:?} is less than three times renew_every ({:?}): use {:?} or more",
                self.lease,
                self.renew_every,
                self.renew_every * 3
            );
            problems.push(Problem::new("fleet.lease", problem));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_option_is_reported_with_a_valid_value() {
        let options = FleetOptions { lease: Duration::from_secs(5), ..FleetOptions::default() };
        let problems = options.problems("");
        let fields: Vec<&str> = problems.iter().map(|problem| &*problem.field).collect();
        assert_eq!(fields, ["fleet.name", "fleet.lease"]);
        assert!(problems[1].problem.contains("6s"), "{}", problems[1]);
        assert!(FleetOptions::default().problems("payments").is_empty());
    }
}
