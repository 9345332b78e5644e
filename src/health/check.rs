use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::redact::redact;
use super::{Criticality, HealthError, runner};

/// What a failed probe says. Anything that turns into a boxed error will do.
pub type CheckError = Box<dyn Error + Send + Sync>;

/// What a probe that came to an end saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// All is well.
    Pass,
    /// Reachable, but not as it should be (saturated, lagging). Never blocks readiness.
    Warn(String),
}

#[cfg(any(feature = "deadpool", feature = "redis"))]
impl ProbeOutcome {
    /// A server that answers, behind a pool that may be used up.
    pub(super) fn of_pool(status: deadpool::Status) -> Self {
        if status.waiting == 0 {
            return ProbeOutcome::Pass;
        }
        ProbeOutcome::Warn(format!(
            "reachable, but {} wait for one of the pool's {} connections",
            status.waiting, status.max_size
        ))
    }
}

impl From<()> for ProbeOutcome {
    fn from((): ()) -> Self {
        Self::Pass
    }
}

pub(super) type Probe =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<ProbeOutcome, CheckError>> + Send>> + Send + Sync>;

/// A probe of a dependency and the rules of judging it, for
/// [`Health::check`](super::Health::check).
///
/// | setting | default |
/// |---|---|
/// | [`interval`](Check::interval) between the end of a probe and the next one | 5 s |
/// | [`time_limit`](Check::time_limit) of one probe | 2 s |
/// | [`failing_after`](Check::failing_after) so many failures in a row *and* so much time | 3 and 10 s |
/// | [`passing_after`](Check::passing_after) so many successes in a row | 1 |
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
    pub(super) probe: Probe,
    pub(super) interval: Duration,
    pub(super) time_limit: Duration,
    pub(super) failures: u32,
    pub(super) failing_for: Duration,
    pub(super) successes: u32,
    pub(super) criticality: Criticality,
}

impl Check {
    /// A check with the default settings.
    ///
    /// `probe` is called for each round; never twice at a time. It is dropped at the time
    /// limit, so it must be cancel safe. A panic counts as a failure. Its error text is
    /// shown on the health pages without the userinfo of URLs and `password=` values.
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

    /// Another name for its state; two databases of one kind need one each.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Checks of one group can be asked for together: `/readyz/<group>`, `?exclude=<group>`,
    /// and as a service of gRPC's health protocol.
    #[must_use]
    pub fn group(mut self, group: impl Into<Arc<str>>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Time from the end of a probe to the next. Until the first success it is at most one
    /// second, so that a start doesn't wait for a long interval.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How long one probe may take.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// A check that passed turns to failing after `failures` in a row that span at least
    /// `time`, counted from the first of them.
    #[must_use]
    pub fn failing_after(mut self, failures: u32, time: Duration) -> Self {
        self.failures = failures;
        self.failing_for = time;
        self
    }

    /// A check turns to passing after so many successes in a row.
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

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Probes once, now, under the time limit, and judges by that alone: for a preflight, where there is no time
    /// for thresholds.
    ///
    /// # Errors
    ///
    /// What the health pages would say: what is wrong, without passwords.
    ///
    /// # Cancel safety
    ///
    /// As safe as the probe.
    pub async fn once(&self) -> Result<ProbeOutcome, String> {
        match runner::probe(self).await {
            Ok(ProbeOutcome::Warn(text)) => Ok(ProbeOutcome::Warn(redact(&text))),
            Ok(ProbeOutcome::Pass) => Ok(ProbeOutcome::Pass),
            Err(text) => Err(redact(&text)),
        }
    }

    pub(super) fn validate(&self) -> Result<(), HealthError> {
        let mut problems = Vec::new();
        let name = &self.name;
        for (what, text) in [("name", Some(name)), ("group", self.group.as_ref())] {
            if text.is_some_and(|text| text.trim().is_empty() || text.contains(['/', '?', ','])) {
                problems.push(format!(
                    "check {name:?}: the {what} must not be empty or hold `/`, `?` or `,` \
                     (it is part of /readyz/<{what}> and ?exclude=)"
                ));
            }
        }
        if self.interval.is_zero() {
            problems.push(format!("check {name:?}: interval must be above zero"));
        }
        if self.time_limit.is_zero() {
            problems.push(format!("check {name:?}: time_limit must be above zero"));
        }
        if self.failures == 0 {
            problems.push(format!("check {name:?}: failing_after needs at least 1 failure"));
        }
        if self.successes == 0 {
            problems.push(format!("check {name:?}: passing_after needs at least 1 success"));
        }
        HealthError::check(problems)
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
