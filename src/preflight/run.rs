use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;

use super::ledger::{Budget, LedgerCheck};
use super::report::{Finding, PreflightReport, Severity};
use super::{flags, ledger};
use crate::flags::Flags;
use crate::health::{Check, ProbeOutcome};
use crate::migration::MigrationSpec;

/// The things to check before a build runs in an environment. See the [module](super).
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
#[must_use = "a preflight checks nothing before `run`"]
pub struct Preflight {
    problems: Vec<Finding>,
    fingerprint: Option<String>,
    checks: Vec<Check>,
    ledger: Option<LedgerCheck>,
    unnamed_statements: bool,
    budget: Option<Budget>,
    flags: Option<(Option<Flags>, Vec<String>)>,
}

impl Preflight {
    /// A preflight without checks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a problem that is already known. The text may not contain a secret.
    pub fn problem(mut self, area: impl Into<String>, text: impl Into<String>) -> Self {
        self.problems.push(Finding {
            area: area.into(),
            severity: Severity::Problem,
            text: Some(text.into()),
        });
        self
    }

    /// Sets the fingerprint of the configuration that the report shows.
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// Adds a dependency, with the check that readiness uses.
    pub fn check(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    /// Checks the ledger at `options`, and whether a build that declares these migrations can join `fleet`.
    pub fn ledger(
        mut self,
        options: PgConnectOptions,
        fleet: impl Into<String>,
        specs: Vec<MigrationSpec>,
    ) -> Self {
        self.ledger = Some(LedgerCheck { options, fleet: fleet.into(), specs });
        self
    }

    /// States that none of the build's own statements has a name, so that a pooler that does not keep prepared statements is a
    /// warning and not a problem. See [`Cutover::unnamed_statements`](crate::Cutover::unnamed_statements).
    pub fn unnamed_statements(mut self) -> Self {
        self.unnamed_statements = true;
        self
    }

    /// Checks whether the ledger's server has enough connections for pools with a limit of `size` on this many
    /// instances, including surge and terminating ones. The default number is the live instances plus one. Fewer than
    /// one connection per instance is a problem. Fewer than `size` is a warning, because the pools share what there is.
    pub fn budget(mut self, size: u32, instances: Option<usize>) -> Self {
        self.budget = Some((size, instances));
        self
    }

    /// Checks whether the source has the flags that this build declares. Without a source (`None`), declared flags are a
    /// problem.
    pub fn flags(
        mut self,
        source: impl Into<Option<Flags>>,
        declared: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.flags = Some((source.into(), declared.into_iter().map(Into::into).collect()));
        self
    }

    /// Runs all checks concurrently, each under its own time limit, and changes nothing. It takes at most 15 seconds,
    /// unless the time limit of a check is longer.
    ///
    /// # Cancel safety
    ///
    /// As safe as the checks.
    pub async fn run(self) -> PreflightReport {
        let checks = async { join_all(self.checks.iter().map(probe)).await };
        let ledger = async {
            match self.ledger {
                Some(check) => ledger::examine(check, self.unnamed_statements, self.budget).await,
                None => Vec::new(),
            }
        };
        let flags = async {
            match &self.flags {
                Some((source, declared)) => flags::examine(source.as_ref(), declared).await,
                None => Vec::new(),
            }
        };
        let (checks, ledger, flags) = tokio::join!(checks, ledger, flags);
        PreflightReport::new([self.problems, checks, ledger, flags].concat(), self.fingerprint)
    }
}

async fn probe(check: &Check) -> Finding {
    match check.once().await {
        Ok(ProbeOutcome::Pass) => Finding::pass(check.name()),
        Ok(ProbeOutcome::Warn(text)) => Finding::new(check.name(), Severity::Warning, text),
        Err(text) => Finding::new(check.name(), Severity::Problem, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::FixedFlag;

    fn impaired() -> Check {
        Check::new("cache", || async { Ok::<_, std::io::Error>(ProbeOutcome::Warn("saturated".into())) })
    }

    #[tokio::test(start_paused = true)]
    async fn all_problems_are_reported_at_once() {
        let hanging = Check::new("search", std::future::pending::<Result<(), std::io::Error>>);
        let report = Preflight::new()
            .problem("configuration", "LISTEN_ADDR: no port")
            .check(hanging)
            .check(impaired())
            .flags(Flags::fixed([("present", FixedFlag::ON)]), ["present", "missing"])
            .fingerprint("12ab")
            .run()
            .await;
        assert!(!report.passed);
        let text = report.to_string();
        for line in [
            "preflight failed: 3 problems, 1 warning, configuration 12ab",
            "problem  configuration: LISTEN_ADDR: no port",
            "problem  flags: the build declares flag \"missing\"",
            "problem  search: no answer within 2s",
            "warning  cache: saturated",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["passed"], json["findings"].as_array().unwrap().len()), (&false.into(), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_with_warnings_passes() {
        let flags = Flags::fixed([("present", FixedFlag::ON)]);
        let report = Preflight::new().check(impaired()).flags(flags, ["present"]).run().await;
        assert!(report.passed, "{report}");
        assert_eq!(report.of(Severity::Pass).map(|f| f.area.as_str()).collect::<Vec<_>>(), ["flags"]);
    }

    #[tokio::test]
    async fn declared_flags_without_a_source_are_a_problem() {
        let report = Preflight::new().flags(None, ["new-flow", "limits"]).run().await;
        assert!(!report.passed);
        let text = report.to_string();
        assert!(
            text.contains("declares the flags new-flow, limits") && text.contains("UNLEASH_URL"),
            "{text}"
        );
        assert!(Preflight::new().flags(None, [""; 0]).run().await.passed);
    }
}
