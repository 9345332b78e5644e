//! How many connections an instance requests, and why it gets none.

use std::time::Duration;

use crate::ledger::LedgerError;
use crate::{ConfigError, Problem};

/// More connections than one process can use. The pool opens and ends one for each place beyond its share.
pub(crate) const MAX_CONNECTIONS: u32 = 1000;

/// How many connections an instance requests.
///
/// Not `#[non_exhaustive]`, so that a service can write it as a literal with `..ShareOptions::default()`.
#[derive(Debug, Clone)]
pub struct ShareOptions {
    /// The instance does not start with fewer. Default 1.
    pub min_connections: u32,
    /// The instance never has more. Default 10, at most 1,000.
    pub max_connections: u32,
    /// Connections of the server that are left free: for people, and for the moment in which a closed connection still
    /// counts. Default 3.
    pub spare: u32,
    /// How long a start waits until other instances have given back connections. Default 30 s.
    pub start_within: Duration,
}

impl Default for ShareOptions {
    fn default() -> Self {
        Self { min_connections: 1, max_connections: 10, spare: 3, start_within: Duration::from_secs(30) }
    }
}

/// Why there is no share.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The options can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server does not have enough connections for the fleet.
    #[error(
        "the fleet's {instances} pools need at least {needed} connections, {min_connections} of them for this instance, and \
         no others were given back in time. {reckoning}. Lower `min_connections`, or raise the server's limit by {missing}"
    )]
    Budget {
        /// Pools that are open or still closing, this one included.
        instances: usize,
        /// The sum of their minimums.
        needed: u32,
        /// The minimum of this instance.
        min_connections: u32,
        /// By how much the limit is too low for the sum.
        missing: u32,
        /// How many connections the server allows, and how they are used.
        reckoning: String,
    },
    /// The server did not take the pool's surplus connections in time.
    #[error(
        "the server did not answer within {limit:?} while the pool was reduced to its share; check its load"
    )]
    Timeout {
        /// [`ShareOptions::start_within`].
        limit: Duration,
    },
    /// A pooler is between, so the server's connections are the pooler's and not the share's.
    #[error("{reason}")]
    Pooler {
        /// Which pooler was found, and what to set.
        reason: String,
    },
    /// The ledger can't be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The `deadpool` pool could not be built.
    #[cfg(feature = "deadpool")]
    #[error("could not build the pool: {0}")]
    Pool(#[from] deadpool_postgres::BuildError),
}

impl ShareOptions {
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.min_connections == 0 {
            problems
                .push(Problem::new("pool.min_connections", "0 connections serve no request; use 1 or more"));
        }
        if self.max_connections < self.min_connections {
            let problem = format!(
                "{} is less than pool.min_connections ({})",
                self.max_connections, self.min_connections
            );
            problems.push(Problem::new("pool.max_connections", problem));
        }
        if self.max_connections > MAX_CONNECTIONS {
            let problem = format!("{} is too many; use at most {MAX_CONNECTIONS}", self.max_connections);
            problems.push(Problem::new("pool.max_connections", problem));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_out_of_range_are_refused() {
        let of = |min_connections, max_connections| {
            let options = ShareOptions { min_connections, max_connections, ..ShareOptions::default() };
            let problems = options.problems();
            problems.iter().map(|problem| problem.field.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(1, 1000), [""; 0]);
        assert_eq!(of(0, 10), ["pool.min_connections"]);
        assert_eq!(of(2, 1), ["pool.max_connections"]);
        assert_eq!(of(1, u32::MAX), ["pool.max_connections"]);
    }
}
