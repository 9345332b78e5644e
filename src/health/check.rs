use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;

use super::component::Criticality;
use super::one_line::one_line;
use crate::config::{ConfigError, Problem, describe_source};

/// The error of a failed probe. Anything that converts into a boxed error works.
pub type CheckError = Box<dyn Error + Send + Sync>;

/// The outcome of a probe that completed.
// Exhaustive: a probe that did not pass and is not impaired returns an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The dependency works.
    Pass,
    /// The dependency is reachable but impaired (saturated, lagging). Never blocks readiness.
    Warn(String),
}

#[cfg(any(feature = "deadpool", feature = "redis"))]
impl ProbeOutcome {
    /// The outcome for a server that answers: a warning if the pool in front of it is used up.
    pub(super) fn of_pool(status: deadpool::Status) -> Self {
        if status.waiting == 0 {
            return ProbeOutcome::Pass;
        }
        ProbeOutcome::Warn(format!(
            "reachable, but {} requests wait for one of the pool's {} connections",
            status.waiting, status.max_size
        ))
    }
}

impl From<()> for ProbeOutcome {
    fn from((): ()) -> Self {
        Self::Pass
    }
}

type Probe =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<ProbeOutcome, CheckError>> + Send>> + Send + Sync>;

/// A probe of a dependency and the thresholds that turn its outcomes into a status, for
/// [`Health::check`](super::Health::check).
///
/// | setting | default |
/// |---|---|
/// | [`interval`](Check::interval), from the end of a probe to the next | 5 s |
/// | [`time_limit`](Check::time_limit) of one probe | 2 s |
/// | [`failing_after`](Check::failing_after): consecutive failures *and* time | 3 and 10 s |
/// | [`passing_after`](Check::passing_after): consecutive successes | 1 |
/// | [`criticality`](Check::criticality) | [`Criticality::Degrades`] |
///
/// ```
/// use std::time::Duration;
/// use cutover::health::{Check, Criticality};
///
/// let check = Check::new("ledger", || async {
///     std::fs::metadata("/var/lib/ledger").map(|_| ())
/// })
/// .interval(Duration::from_secs(1))
/// .criticality(Criticality::Critical);
/// ```
#[derive(Clone)]
pub struct Check {
    pub(super) name: Arc<str>,
    pub(super) group: Option<Arc<str>>,
    probe: Probe,
    pub(super) interval: Duration,
    time_limit: Duration,
    pub(super) failures: u32,
    pub(super) failing_for: Duration,
    pub(super) successes: u32,
    pub(super) criticality: Criticality,
}

impl Check {
    /// A check with the default settings.
    ///
    /// `probe` is called once per round, never twice at a time. It is dropped at the time limit, so it must be cancel
    /// safe. A panic counts as a failure. The health pages show its error without the userinfo of URLs and without the
    /// values of `password=`, `token=` and `secret=`.
    pub fn new<F, Fut, T, E>(name: impl Into<Arc<str>>, probe: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<ProbeOutcome>,
        E: Into<CheckError>,
    {
        Self {
            name: name.into(),
            group: None,
            probe: Arc::new(move || {
                let probe = probe();
                Box::pin(async move { probe.await.map(Into::into).map_err(Into::into) })
            }),
            interval: Duration::from_secs(5),
            time_limit: Duration::from_secs(2),
            failures: 3,
            failing_for: Duration::from_secs(10),
            successes: 1,
            criticality: Criticality::Degrades,
        }
    }

    /// Changes the name. Two databases of one kind need a name each.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Puts the check into a group. A group is addressed as a whole by `/readyz/<group>`, by `?exclude=<group>`, and as
    /// a service of gRPC's health protocol.
    #[must_use]
    pub fn group(mut self, group: impl Into<Arc<str>>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// The time from the end of a probe to the next. Until the first pass it is at most one second, so that a start
    /// does not wait for a long interval.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// The time limit of one probe.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// A passing check starts to fail after `failures` consecutive failures that span at least `time`, counted from the
    /// first of them.
    #[must_use]
    pub fn failing_after(mut self, failures: u32, time: Duration) -> Self {
        self.failures = failures;
        self.failing_for = time;
        self
    }

    /// A failing check passes after this many consecutive successes.
    #[must_use]
    pub fn passing_after(mut self, successes: u32) -> Self {
        self.successes = successes;
        self
    }

    /// What a failure does to readiness.
    #[must_use]
    pub fn criticality(mut self, criticality: Criticality) -> Self {
        self.criticality = criticality;
        self
    }

    /// The name of the check.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Probes once, now, under the time limit, without the thresholds. A preflight uses it.
    ///
    /// # Errors
    ///
    /// The text that the health pages would show, without secrets.
    ///
    /// # Cancel safety
    ///
    /// As safe as the probe.
    pub async fn once(&self) -> Result<ProbeOutcome, String> {
        match self.run_probe().await {
            Ok(ProbeOutcome::Warn(text)) => Ok(ProbeOutcome::Warn(one_line(&text))),
            Ok(ProbeOutcome::Pass) => Ok(ProbeOutcome::Pass),
            Err(text) => Err(one_line(&text)),
        }
    }

    /// Runs the probe under its time limit. The text of an error is not redacted yet.
    pub(super) async fn run_probe(&self) -> Result<ProbeOutcome, String> {
        // The closure is called inside, so that its panics are caught too.
        let probe = AssertUnwindSafe(async { (self.probe)().await }).catch_unwind();
        match timeout(self.time_limit, probe).await {
            Ok(Ok(Ok(outcome))) => Ok(outcome),
            Ok(Ok(Err(error))) => Err(with_causes(&*error)),
            Ok(Err(panic)) => Err(format!("the probe panicked: {}", panic_text(&*panic))),
            Err(_) => Err(format!("no answer within {:?}", self.time_limit)),
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let name = &self.name;
        let mut problem = |what: &str, text: String| {
            problems.push(Problem::new(format!("check {name:?}: {what}"), text));
        };
        for (what, text) in [("name", Some(name)), ("group", self.group.as_ref())] {
            if let Some(text) = text.filter(|text| text.trim().is_empty() || text.contains(['/', '?', ','])) {
                problem(
                    what,
                    format!(
                        "{text:?} must not be empty or contain `/`, `?` or `,`, because it is part of \
                         /readyz/<{what}> and ?exclude="
                    ),
                );
            }
        }
        for (what, time) in [("interval", self.interval), ("time_limit", self.time_limit)] {
            if time.is_zero() {
                problem(what, "0 s is too short; use a time above zero".to_owned());
            }
        }
        for (what, count) in [("failing_after", self.failures), ("passing_after", self.successes)] {
            if count == 0 {
                problem(what, "0 is too few; use 1 or more".to_owned());
            }
        }
        ConfigError::check(problems)
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("name", &self.name)
            .field("group", &self.group)
            .field("interval", &self.interval)
            .field("time_limit", &self.time_limit)
            .field("failures", &self.failures)
            .field("failing_for", &self.failing_for)
            .field("successes", &self.successes)
            .field("criticality", &self.criticality)
            .finish_non_exhaustive()
    }
}

fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = describe_source(error);
    let mut last = error;
    // The text of a database's error is complete; its causes repeat it.
    while let Some(cause) = last.source().filter(|_| !last.is::<sqlx::Error>()) {
        let cause_text = describe_source(cause);
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        last = cause;
    }
    text
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
