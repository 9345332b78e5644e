//! The demo's result, as JSON and as a table.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::args::Rule;
use crate::failure::{During, Result};

/// The demo's result. Names contain units; rates are per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Whether the demo succeeded. With `broken` set: whether the damage was found.
    pub(crate) passed: bool,
    /// The safety rule that was removed, if any.
    pub(crate) broken: Option<Rule>,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    pub(crate) lost_writes: u64,
    pub(crate) stale_reads: u64,
    pub(crate) sessions_lost: u64,
    /// Payments by the flow that flag `payment-new-flow` selected.
    pub(crate) paid_by_new_flow: u64,
    pub(crate) paid_by_legacy_flow: u64,
    /// Rows that no request wrote but that have changed or disappeared.
    pub(crate) wrong_rows: u64,
    /// Rows whose columns differed while both were complete.
    pub(crate) rows_that_differed: u64,
    pub(crate) phases: Vec<PhaseReport>,
    pub(crate) deploys: Vec<DeployReport>,
    pub(crate) p50_ms_quiet: f64,
    pub(crate) p50_ms_rollout: f64,
    pub(crate) p99_ms_quiet: f64,
    /// Everything after the quiet stage: deploys and migration.
    pub(crate) p99_ms_rollout: f64,
    pub(crate) p99_ms_deploys: f64,
    pub(crate) p99_ms_migration: f64,
    pub(crate) max_ms: f64,
    /// From switching the flag off until every instance reads the old column.
    pub(crate) rollback_seconds: Option<f64>,
    pub(crate) rows: u64,
    pub(crate) rows_backfilled: u64,
    pub(crate) backfill_rows_per_second: f64,
    /// Rows of the CSV file that could not be used.
    pub(crate) bad_rows: u64,
    /// Failures by kind.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Examples of what the checker found.
    pub(crate) examples: Vec<String>,
    pub(crate) keys_checked: u64,
    pub(crate) reads_checked: u64,
    pub(crate) writes_checked: u64,
    pub(crate) rate: u32,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) servers: BTreeMap<String, String>,
    /// Replacements for servers that are not installed.
    pub(crate) fallbacks: Vec<String>,
    /// Why the demo ended early, if it did so.
    pub(crate) ended_early: Option<String>,
}

/// One phase that was requested.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PhaseReport {
    pub(crate) name: String,
    pub(crate) epoch: i32,
    /// From the request until all instances worked in it.
    pub(crate) seconds: f64,
}

/// One rolling deploy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DeployReport {
    pub(crate) from: u8,
    pub(crate) to: u8,
    pub(crate) seconds: f64,
    pub(crate) failed: u64,
}

impl Report {
    /// Whether nothing failed, was lost or was stale.
    pub(crate) fn is_clean(&self) -> bool {
        let damage = [
            self.failed,
            self.lost_writes,
            self.stale_reads,
            self.sessions_lost,
            self.wrong_rows,
            self.rows_that_differed,
        ];
        self.ended_early.is_none() && damage.iter().all(|count| *count == 0)
    }

    /// Whether the damage that the missing rule causes was found. A demo that got stuck proves nothing.
    fn shows(&self, missing: Rule) -> bool {
        let wrong_data = [self.lost_writes, self.stale_reads, self.wrong_rows, self.rows_that_differed];
        let is_data_wrong = wrong_data.iter().any(|count| *count > 0);
        match missing {
            Rule::Compare => is_data_wrong,
            // The fence and the gates, which are still there, refuse late operations.
            Rule::Agree => is_data_wrong || self.failed > 0,
            Rule::Drain => self.failed > 0,
        }
    }

    pub(crate) fn judge(&mut self) {
        self.passed = match self.broken {
            None => self.is_clean(),
            Some(rule) => self.shows(rule),
        };
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let what = format!("writing the report to {}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).during(&what)?;
        }
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").during(&what)
    }

    /// The table at the end.
    pub(crate) fn table(&self) -> String {
        let mut rows: Vec<(String, String)> = Vec::new();
        let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
        row("requests", self.requests.to_string());
        row("failed", self.failed.to_string());
        for (what, times) in &self.failures {
            row(&format!("  {what}"), times.to_string());
        }
        row("lost writes", self.lost_writes.to_string());
        row("stale reads", self.stale_reads.to_string());
        row("sessions lost", self.sessions_lost.to_string());
        row("rows changed without a write", self.wrong_rows.to_string());
        row("rows whose columns differed", self.rows_that_differed.to_string());
        let pair = |p50: f64, p99: f64| format!("{p50:.1} ms / {p99:.1} ms");
        row("p50 / p99, quiet", pair(self.p50_ms_quiet, self.p99_ms_quiet));
        row("p50 / p99, deploys and migration", pair(self.p50_ms_rollout, self.p99_ms_rollout));
        row("slowest request", format!("{:.0} ms", self.max_ms));
        if let Some(seconds) = self.rollback_seconds {
            row("rollback (flag off)", format!("{seconds:.1} s"));
        }
        let speed = format!("{} rows, {:.0} rows/s", self.rows_backfilled, self.backfill_rows_per_second);
        row("backfill", speed);
        for deploy in &self.deploys {
            let name = format!("deploy of release {}", deploy.to);
            row(&name, format!("{:.1} s, {} failed", deploy.seconds, deploy.failed));
        }
        for phase in &self.phases {
            row(&format!("phase {}", phase.name), format!("{:.1} s, epoch {}", phase.seconds, phase.epoch));
        }
        let flows = format!("{} legacy, {} new", self.paid_by_legacy_flow, self.paid_by_new_flow);
        row("payments by flow", flows);
        let judged = format!(
            "{} reads, {} writes, {} keys",
            self.reads_checked, self.writes_checked, self.keys_checked
        );
        row("judged", judged);
        row("duration", format!("{:.0} s", self.seconds));
        let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let line = |(name, value): &(String, String)| format!("  {name:<width$}  {value}\n");
        let mut text: String = rows.iter().map(line).collect();
        for example in &self.examples {
            text.push_str(&format!("  ! {example}\n"));
        }
        text + &self.sentence()
    }

    fn sentence(&self) -> String {
        match (&self.broken, self.passed, &self.ended_early) {
            (Some(rule), true, _) => {
                format!("The checker found the damage that the missing rule {} causes.\n", rule.name())
            }
            (Some(rule), false, _) => {
                format!(
                    "The checker found no damage without the rule {}: it cannot see this damage.\n",
                    rule.name()
                )
            }
            (None, true, _) => {
                "Passed: no request failed, no write was lost, no read was stale.\n".to_owned()
            }
            (None, false, Some(why)) => format!("The demo ended early: {why}\n"),
            (None, false, None) => "Failed: see the counts above.\n".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_problem_fails_the_demo() {
        let mut clean = Report { requests: 10, ..Report::default() };
        clean.judge();
        assert!(clean.passed && clean.table().contains("Passed: "));
        let spoil: [fn(&mut Report); 7] = [
            |report| report.failed = 1,
            |report| report.lost_writes = 1,
            |report| report.stale_reads = 1,
            |report| report.sessions_lost = 1,
            |report| report.wrong_rows = 1,
            |report| report.rows_that_differed = 1,
            |report| report.ended_early = Some("stuck".to_owned()),
        ];
        for spoil in spoil {
            let mut report = clean.clone();
            spoil(&mut report);
            report.judge();
            assert!(!report.passed, "{report:?}");
        }
    }

    #[test]
    fn with_a_broken_rule_only_found_damage_passes() {
        let mut report = Report { broken: Some(Rule::Compare), ..Report::default() };
        report.judge();
        assert!(!report.passed && report.table().contains("found no damage"));
        report.ended_early = Some("stuck".to_owned());
        report.judge();
        assert!(!report.passed, "a stuck demo finds nothing");
        report.failed = 1;
        report.judge();
        assert!(!report.passed, "a skipped row does not fail requests");
        report.stale_reads = 1;
        report.judge();
        assert!(report.passed && report.table().contains("found the damage"));
    }

    #[test]
    fn report_round_trips_and_table_is_aligned() {
        let folder = cutover_testkit::Folder::new("report").unwrap();
        let path = folder.path().join("a/b/report.json");
        let report = Report {
            requests: 5,
            phases: vec![PhaseReport { name: "expand".to_owned(), epoch: 2, seconds: 1.25 }],
            rollback_seconds: Some(0.5),
            ..Report::default()
        };
        report.write(&path).unwrap();
        let read: Report = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(read, report);
        let table = report.table();
        assert!(table.contains("  phase expand                      1.2 s, epoch 2\n"), "{table}");
    }
}
