use std::time::Duration;

use tokio::sync::Semaphore;

use super::DrainSecret;
use crate::Problem;

/// The time limits of a drain, and the limits on connections.
///
/// Not `#[non_exhaustive]`, so that a service can write it as a literal with `..DrainOptions::default()`.
///
/// ```
/// use std::time::Duration;
/// use cutover::drain::DrainOptions;
///
/// let options = DrainOptions { grace: Duration::from_secs(60), ..DrainOptions::default() };
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainOptions {
    /// Time from the beginning of the drain to the kill: the pod's `terminationGracePeriodSeconds`. Default 30 s.
    pub grace: Duration,
    /// How long connections are still accepted while proxies learn that this instance is leaving. Default 5 s.
    pub propagation: Duration,
    /// Part of the grace period that is kept for the hooks. Default 3 s.
    pub hook_time: Duration,
    /// Part of the grace period that is kept for the process to exit after the hooks. Default 1 s.
    pub margin: Duration,
    /// How long a connection may take to send the head of its first request, and how long an HTTP/1 connection may
    /// take from the first byte of a later head to its end. Default 30 s.
    pub head_timeout: Duration,
    /// How long a request of HTTP/1 goes on after its client has closed its side of the connection. A client that only
    /// sends no more, such as `nc -N`, gets its response within this time. One that is gone looks the same, so its request
    /// is given up after this time. Zero: at once. Default 2 s.
    pub half_closed_timeout: Duration,
    /// How long an HTTP/1 connection may stay idle between two requests. Must be longer than the proxy in front
    /// keeps idle connections (Envoy: 1 hour), or a request races with the close. Default 65 min.
    pub idle_timeout: Duration,
    /// How many connections the public listeners of a process serve at a time. Further connections wait in the
    /// kernel's queue. Default 10,000.
    pub max_connections: usize,
    /// Content types of responses that do not end by themselves, such as `application/x-ndjson` for a feed. A drain ends them
    /// when propagation has passed, as it does with [`LongStream`](super::LongStream). Default: `text/event-stream`.
    pub long_types: Vec<String>,
    /// Allows `/drain` to be called from other hosts, and by `GET`; see [`Drain::router`](super::Drain::router).
    /// Default none: `POST` from the same host only.
    pub secret: Option<DrainSecret>,
}

impl Default for DrainOptions {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            propagation: Duration::from_secs(5),
            hook_time: Duration::from_secs(3),
            margin: Duration::from_secs(1),
            head_timeout: Duration::from_secs(30),
            half_closed_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(65 * 60),
            max_connections: 10_000,
            long_types: vec!["text/event-stream".to_owned()],
            secret: None,
        }
    }
}

/// The longest accepted duration. The clock can't add arbitrarily large ones.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl DrainOptions {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let reserved = self.propagation.saturating_add(self.hook_time).saturating_add(self.margin);
        if reserved >= self.grace {
            problems.push(Problem::new(
                "drain.grace",
                format!(
                    "{:?} leaves no time for requests to end after propagation {:?}, hook_time {:?} and margin {:?}; \
                     use more than {reserved:?}",
                    self.grace, self.propagation, self.hook_time, self.margin
                ),
            ));
        }
        for (field, value, may_be_zero) in [
            ("drain.grace", self.grace, false),
            ("drain.head_timeout", self.head_timeout, false),
            ("drain.half_closed_timeout", self.half_closed_timeout, true),
            ("drain.idle_timeout", self.idle_timeout, false),
        ] {
            if value.is_zero() && !may_be_zero {
                problems.push(Problem::new(field, "is zero; use a longer duration"));
            } else if value > DAY {
                problems.push(Problem::new(field, format!("{value:?} is too long; use at most {DAY:?}")));
            }
        }
        if self.max_connections == 0 || self.max_connections > Semaphore::MAX_PERMITS {
            problems.push(Problem::new(
                "drain.max_connections",
                format!("{} is out of range; use 1 to {}", self.max_connections, Semaphore::MAX_PERMITS),
            ));
        }
        for long_type in self.long_types.iter().filter(|long_type| !long_type.contains('/')) {
            let problem = format!("{long_type:?} is no content type; use for example text/event-stream");
            problems.push(Problem::new("drain.long_types", problem));
        }
        problems
    }

    /// From the beginning of the drain to the forced close.
    pub(super) fn request_time(&self) -> Duration {
        self.hooks_end().saturating_sub(self.hook_time)
    }

    /// From the beginning of the drain to the end of the hooks.
    pub(super) fn hooks_end(&self) -> Duration {
        self.grace.saturating_sub(self.margin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_option_is_reported() {
        assert_eq!(DrainOptions::default().problems(), []);
        let options = DrainOptions {
            propagation: Duration::from_secs(27),
            head_timeout: Duration::ZERO,
            idle_timeout: Duration::MAX,
            max_connections: 0,
            long_types: vec!["feed".to_owned()],
            ..DrainOptions::default()
        };
        let problems = options.problems();
        let fields: Vec<&str> = problems.iter().map(|problem| &*problem.field).collect();
        assert_eq!(
            fields,
            [
                "drain.grace",
                "drain.head_timeout",
                "drain.idle_timeout",
                "drain.max_connections",
                "drain.long_types"
            ]
        );
    }
}
