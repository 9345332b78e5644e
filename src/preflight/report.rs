use std::fmt;

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Pass,
    /// An instance would start and serve; somebody should look.
    Warning,
    /// An instance would not start, would not become ready, or would do something else than what was meant.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `configuration`, `ledger`, `migrations`, `connections`, `flags` or the name of a check.
    pub area: String,
    /// How it is.
    pub severity: Severity,
    /// What is wrong and what would be right; `None` where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What a preflight found. As text by `Display`, as JSON by `Serialize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PreflightReport {
    /// Whether there is no problem; warnings don't count.
    pub passed: bool,
    /// A number for the configuration that was looked at; the same on every pod that is configured alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// What was looked at, the worst first.
    pub findings: Vec<Finding>,
}

impl PreflightReport {
    pub(super) fn new(mut findings: Vec<Finding>, fingerprint: Option<String>) -> Self {
        findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.area.cmp(&b.area)));
        let passed = findings.iter().all(|finding| finding.severity != Severity::Problem);
        Self { passed, fingerprint, findings }
    }

    /// The findings of this severity.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.severity == severity)
    }
}

impl fmt::Display for PreflightReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |severity| self.of(severity).count();
        let (problems, warnings) = (count(Severity::Problem), count(Severity::Warning));
        let verdict = if self.passed { "passed" } else { "failed" };
        write!(f, "preflight {verdict}: {problems} problems, {warnings} warnings")?;
        if let Some(fingerprint) = &self.fingerprint {
            write!(f, ", configuration {fingerprint}")?;
        }
        for Finding { area, severity, text } in &self.findings {
            let word = match severity {
                Severity::Pass => "ok     ",
                Severity::Warning => "warning",
                Severity::Problem => "problem",
            };
            write!(f, "\n  {word}  {area}")?;
            if let Some(text) = text {
                write!(f, ": {text}")?;
            }
        }
        Ok(())
    }
}
