use std::{fmt, time::Duration};

/// How long a drain may take, and how its time is shared out.
///
/// ```
/// use std::time::Duration;
/// use cutover::drain::DrainOptions;
///
/// let options = DrainOptions { grace: Duration::from_secs(60), ..DrainOptions::default() };
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainOptions {
    /// From the begin to the kill: the pod's `terminationGracePeriodSeconds`. Default 30 s.
    pub grace: Duration,
    /// How long connections are still accepted while proxies learn that this instance is
    /// leaving. Default 5 s.
    pub propagation: Duration,
    /// Kept from the grace period for the hooks. Default 3 s.
    pub hook_time: Duration,
    /// Kept from the grace period for the process to end after the hooks. Default 1 s.
    pub margin: Duration,
    /// How long a connection may take to send its first request, and an HTTP/1 connection any whole
    /// request head. hyper counts the
    /// idle time between two requests in it, so it must be longer than a proxy in front
    /// keeps idle connections (Envoy: 1 hour), or requests race with the close. Default
    /// 65 minutes. During a drain the deadline holds for half-sent heads.
    pub head_timeout: Duration,
}

impl Default for DrainOptions {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            propagation: Duration::from_secs(5),
            hook_time: Duration::from_secs(3),
            margin: Duration::from_secs(1),
            head_timeout: Duration::from_secs(65 * 60),
        }
    }
}

impl DrainOptions {
    pub(super) fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let kept = self.propagation.saturating_add(self.hook_time).saturating_add(self.margin);
        if kept >= self.grace {
            problems.push(format!(
                "propagation {:?}, hook_time {:?} and margin {:?} must leave some of grace {:?} \
                 for requests to end",
                self.propagation, self.hook_time, self.margin, self.grace
            ));
        }
        if self.head_timeout.is_zero() {
            problems.push("head_timeout must be above zero".to_owned());
        }
        // A clock can't add more; nobody means it either.
        let day = Duration::from_secs(24 * 60 * 60);
        for (name, value) in [("grace", self.grace), ("head_timeout", self.head_timeout)] {
            if value > day {
                problems.push(format!("{name} {value:?} must be at most a day"));
            }
        }
        problems
    }

    /// From the begin to the closing by force.
    pub(super) fn request_time(&self) -> Duration {
        self.hooks_end().saturating_sub(self.hook_time)
    }

    /// From the begin to the end of the hooks.
    pub(super) fn hooks_end(&self) -> Duration {
        self.grace.saturating_sub(self.margin)
    }
}

/// Why a drain could not be made: every problem found, each naming the option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainError {
    problems: Vec<String>,
}

impl DrainError {
    pub(super) fn new(problems: Vec<String>) -> Self {
        Self { problems }
    }

    /// One sentence per problem.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for DrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unusable drain options: {}", self.problems.join("; "))
    }
}

impl std::error::Error for DrainError {}
