use std::time::Duration;

use futures_util::future::{join_all, ready};
use sqlx::postgres::PgConnectOptions;
use tokio::time::timeout;

use super::report::{Finding, PreflightReport, Severity};
use crate::flags::{FlagProblemKind, Flags};
use crate::health::{Check, ProbeOutcome};
use crate::ledger::{Capacity, Ledger, LedgerError};
use crate::migration::MigrationSpec;
use crate::migration::admin::incompatible_builds;
use crate::pool::ShareOptions;

/// How long flags may take to arrive. A server that is just starting needs some seconds.
const FLAGS_WAIT: Duration = Duration::from_secs(5);
/// How often it is asked whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// For everything that is asked of the ledger, connecting included.
const LEDGER_LIMIT: Duration = Duration::from_secs(15);

/// What is to be looked at before a build runs here. See the [module](super).
///
/// ```no_run
/// use cutover::health::Check;
/// use cutover::migration::{PhaseRange, MigrationSpec};
/// use cutover::preflight::Preflight;
///
/// # async fn f(pool: sqlx::PgPool) {
/// let report = Preflight::new()
///     .check(Check::postgres(&pool))
///     .ledger((*pool.connect_options()).clone(), "payments", vec![MigrationSpec::new("status", PhaseRange::FULL)])
///     .run()
///     .await;
/// assert!(report.passed, "{report}");
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use = "nothing is looked at before run"]
pub struct Preflight {
    problems: Vec<(String, String)>,
    fingerprint: Option<String>,
    checks: Vec<Check>,
    ledger: Option<(PgConnectOptions, String, Vec<MigrationSpec>)>,
    budget: Option<(u32, Option<usize>)>,
    flags: Option<(Flags, Vec<String>)>,
}

impl Preflight {
    /// Nothing to be looked at yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Something that is known to be wrong already.
    pub fn problem(mut self, area: impl Into<String>, text: impl Into<String>) -> Self {
        self.problems.push((area.into(), text.into()));
        self
    }

    /// What the report calls the configuration by.
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// A dependency, by the check that readiness goes by.
    pub fn check(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    /// The ledger at `options`, and whether a build that declares these migrations fits in with `fleet` there.
    pub fn ledger(
        mut self,
        options: PgConnectOptions,
        fleet: impl Into<String>,
        specs: Vec<MigrationSpec>,
    ) -> Self {
        self.ledger = Some((options, fleet.into(), specs));
        self
    }

    /// Whether the ledger's server has connections for pools of `size` on so many instances, surge and terminating ones
    /// among them; of those that are alive and one more where no number is given. Too few for one connection each is a
    /// problem; for less than `size` each it is a warning, since the pools then share what there is.
    pub fn budget(mut self, size: u32, instances: Option<usize>) -> Self {
        self.budget = Some((size, instances));
        self
    }

    /// Whether the source has the flags that this build declares.
    pub fn flags(mut self, flags: Flags, declared: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.flags = Some((flags, declared.into_iter().map(Into::into).collect()));
        self
    }

    /// Looks at everything, side by side, each under its own time limit, and changes nothing. It takes 15 seconds
    /// at most, unless a check's own limit is longer.
    ///
    /// # Cancel safety
    ///
    /// As safe as the checks.
    pub async fn run(self) -> PreflightReport {
        let problems = self.problems.into_iter().map(|(area, text)| finding(&area, Severity::Problem, text));
        let checks = async { join_all(self.checks.iter().map(probe)).await };
        let ledger = async {
            match self.ledger {
                Some((options, fleet, specs)) => look_at_ledger(options, &fleet, &specs, self.budget).await,
                None => Vec::new(),
            }
        };
        let flags = async {
            match self.flags {
                Some((flags, declared)) => look_at_flags(&flags, &declared).await,
                None => Vec::new(),
            }
        };
        let (known, checks, ledger, flags) = tokio::join!(ready(problems.collect()), checks, ledger, flags);
        PreflightReport::new([known, checks, ledger, flags].concat(), self.fingerprint)
    }
}

fn finding(area: &str, severity: Severity, text: impl Into<String>) -> Finding {
    Finding { area: area.to_owned(), severity, text: Some(text.into()) }
}

fn pass(area: &str) -> Finding {
    Finding { area: area.to_owned(), severity: Severity::Pass, text: None }
}

async fn probe(check: &Check) -> Finding {
    match check.once().await {
        Ok(ProbeOutcome::Pass) => pass(check.name()),
        Ok(ProbeOutcome::Warn(text)) => finding(check.name(), Severity::Warning, text),
        Err(text) => finding(check.name(), Severity::Problem, text),
    }
}

async fn look_at_ledger(
    options: PgConnectOptions,
    fleet: &str,
    specs: &[MigrationSpec],
    budget: Option<(u32, Option<usize>)>,
) -> Vec<Finding> {
    let look = async {
        let ledger = match Ledger::existing(options.clone()).await {
            Ok(ledger) => ledger,
            Err(error @ (LedgerError::Missing | LedgerError::Older { .. })) => {
                Ledger::can_install(&options).await?;
                let text = match error {
                    LedgerError::Missing => {
                        "schema `cutover` is not installed; the first start will install it"
                    }
                    _ => "schema `cutover` is older than this build; the first start will upgrade it",
                };
                return Ok(vec![finding("ledger", Severity::Warning, text)]);
            }
            Err(error) => return Err(error),
        };
        let incompatible_builds = incompatible_builds(&ledger, fleet, specs).await?;
        let mut findings = vec![pass("ledger")];
        if incompatible_builds.is_empty() {
            findings.push(pass("migrations"));
        }
        if let Some((size, instances)) = budget {
            findings.push(connections(size, &ledger.room(instances, ShareOptions::default().spare).await?));
        }
        findings.extend(
            incompatible_builds.into_iter().map(|text| finding("migrations", Severity::Problem, text)),
        );
        Ok::<_, LedgerError>(findings)
    };
    match timeout(LEDGER_LIMIT, look).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![finding("ledger", Severity::Problem, error.to_string())],
        Err(_) => vec![finding("ledger", Severity::Problem, format!("no answer within {LEDGER_LIMIT:?}"))],
    }
}

fn connections(size: u32, room: &Capacity) -> Finding {
    let instances = u32::try_from(room.instances).unwrap_or(u32::MAX);
    let Capacity { connections, reckoning, .. } = room;
    if *connections < instances {
        let text = format!("{instances} instances can't have a connection each: {reckoning}");
        return finding("connections", Severity::Problem, text);
    }
    if *connections < instances.saturating_mul(size) {
        let text = format!(
            "{instances} pools of {size} would share {connections} connections, {} each: {reckoning}",
            connections / instances.max(1)
        );
        return finding("connections", Severity::Warning, text);
    }
    pass("connections")
}

async fn look_at_flags(flags: &Flags, declared: &[String]) -> Vec<Finding> {
    let fresh = async {
        let mut changed = flags.changed();
        while !flags.is_fresh() {
            let _ = timeout(LOOK_AGAIN, changed.changed()).await;
        }
    };
    if timeout(FLAGS_WAIT, fresh).await.is_err() {
        let text = format!(
            "the flag server was not reached within {FLAGS_WAIT:?}: the last known state or the defaults would serve"
        );
        return vec![finding("flags", Severity::Warning, text)];
    }
    let gaps = flags.coverage(declared.iter().map(String::as_str));
    if gaps.is_empty() {
        return vec![pass("flags")];
    }
    let findings = gaps.iter().map(|problem| match problem.kind {
        FlagProblemKind::Missing => finding(
            "flags",
            Severity::Problem,
            format!("{:?} is declared, but the source has none: create it, or revive it", problem.flag),
        ),
        FlagProblemKind::Stale => finding(
            "flags",
            Severity::Warning,
            format!("{:?} is stale at the source: remove it from the code", problem.flag),
        ),
    });
    findings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_connections_are_a_problem_and_fewer_than_wanted_a_warning() {
        let of = |connections| {
            connections_of(Capacity { instances: 4, connections, reckoning: "100 less others".into() })
        };
        fn connections_of(room: Capacity) -> Severity {
            connections(10, &room).severity
        }
        assert_eq!(
            [of(3), of(4), of(39), of(40)],
            [Severity::Problem, Severity::Warning, Severity::Warning, Severity::Pass]
        );
    }
    use crate::flags::FixedFlag;

    #[tokio::test(start_paused = true)]
    async fn everything_that_is_wrong_is_said_at_once_and_warnings_are_no_problem() {
        let never = || Check::new("mute", std::future::pending::<Result<(), std::io::Error>>);
        let warm =
            Check::new("warm", || async { Ok::<_, std::io::Error>(ProbeOutcome::Warn("rather".into())) });
        let flags = Flags::fixed([("there", FixedFlag::ON)]);
        let report = Preflight::new()
            .problem("configuration", "LISTEN_ADDR: no")
            .check(never())
            .check(warm.clone())
            .flags(flags.clone(), ["there", "gone"])
            .fingerprint("12ab")
            .run()
            .await;
        assert!(!report.passed);
        let text = report.to_string();
        for line in [
            "preflight failed: 3 problems, 1 warnings, configuration 12ab",
            "problem  configuration: LISTEN_ADDR: no",
            "problem  flags: \"gone\" is declared",
            "problem  mute: no answer within 2s",
            "warning  warm: rather",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["passed"], json["findings"].as_array().unwrap().len()), (&false.into(), 4));

        let report = Preflight::new().check(warm).flags(flags, ["there"]).run().await;
        assert!(report.passed, "{report}");
        assert_eq!(report.of(Severity::Pass).map(|f| f.area.as_str()).collect::<Vec<_>>(), ["flags"]);
    }
}
