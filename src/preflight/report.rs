use crate::config::redact;
use std::fmt;

use serde::Serialize;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Severity {
    /// The check passed.
    Pass,
    /// An instance would start and serve, but a person should look at it.
    Warning,
    /// An instance would not start, would not become ready, or would not do what was intended.
    Problem,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What was checked: `configuration`, `ledger`, `migrations`, `connections`, `flags` or the name of a check.
    pub area: String,
    /// How serious it is.
    pub severity: Severity,
    /// What is wrong and what to do; `None` if nothing is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl Finding {
    pub(super) fn new(area: impl Into<String>, severity: Severity, text: impl Into<String>) -> Self {
        Self { area: area.into(), severity, text: Some(redact(&text.into())) }
    }

    pub(super) fn pass(area: impl Into<String>) -> Self {
        Self { area: area.into(), severity: Severity::Pass, text: None }
    }
}

/// The result of a preflight: as text by `Display`, as JSON by `Serialize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PreflightReport {
    /// Whether there is no problem. Warnings do not count.
    pub passed: bool,
    /// The fingerprint of the configuration, the same on all pods with the same configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// All findings, the most serious first.
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
        let counted = |severity, what| match count(severity) {
            1 => format!("1 {what}"),
            many => format!("{many} {what}s"),
        };
        let (problems, warnings) =
            (counted(Severity::Problem, "problem"), counted(Severity::Warning, "warning"));
        let verdict = if self.passed { "passed" } else { "failed" };
        write!(f, "preflight {verdict}: {problems}, {warnings}")?;
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
