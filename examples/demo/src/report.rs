//! What came out, as JSON for programs and as a table for people.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::args::Rule;
use crate::failure::{During, Result};

/// The demo's result. Times are as the name says; rates are per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Whether the demo succeeded: with `broken` set, whether the damage was found.
    pub(crate) passed: bool,
    /// The safety rule that was taken out, if any.
    pub(crate) broken: Option<Rule>,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    pub(crate) lost_writes: u64,
    pub(crate) stale_reads: u64,
    pub(crate) sessions_lost: u64,
    /// Payments by the flow that the flag `payment-new-flow` chose.
    pub(crate) paid_by_new_flow: u64,
    pub(crate) paid_by_legacy_flow: u64,
    /// Rows that no request wrote and that are not what they were loaded as, or gone.
    pub(crate) wrong_rows: u64,
    /// Rows whose columns did not agree when both should have.
    pub(crate) rows_that_differed: u64,
    pub(crate) phases: Vec<PhaseReport>,
    pub(crate) deploys: Vec<DeployReport>,
    pub(crate) p50_ms_quiet: f64,
    pub(crate) p50_ms_rollout: f64,
    pub(crate) p99_ms_quiet: f64,
    /// Everything after the quiet part: deploys and migration.
    pub(crate) p99_ms_rollout: f64,
    pub(crate) p99_ms_deploys: f64,
    pub(crate) p99_ms_migration: f64,
    pub(crate) max_ms: f64,
    /// From switching the flag off until every instance read the old column again.
    pub(crate) rollback_seconds: Option<f64>,
    pub(crate) rows: u64,
    pub(crate) rows_backfilled: u64,
    pub(crate) backfill_rows_per_second: f64,
    /// Rows of the given file that could not be used.
    pub(crate) bad_rows: u64,
    /// What failed, and how often.
    pub(crate) failures: BTreeMap<String, u64>,
    /// What the checker found, in words.
    pub(crate) examples: Vec<String>,
    pub(crate) keys_checked: u64,
    pub(crate) reads_checked: u64,
    pub(crate) writes_checked: u64,
    pub(crate) rate: u32,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) servers: BTreeMap<String, String>,
    /// What stood in for a server that was not there.
    pub(crate) fallbacks: Vec<String>,
    /// Why the demo ended early, if it did.
    pub(crate) ended_early: Option<String>,
}

/// One phase that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PhaseReport {
    pub(crate) name: String,
    pub(crate) epoch: i32,
    /// From asking for it until everybody worked in it.
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
    /// Whether anything failed, was lost or was stale.
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

    /// Whether the damage that a missing rule does was noticed, and not something else: being stuck is no proof.
    fn shows(&self, missing: Rule) -> bool {
        let wrong_data = [self.lost_writes, self.stale_reads, self.wrong_rows, self.rows_that_differed];
        let is_data_wrong = wrong_data.iter().any(|count| *count > 0);
        match missing {
            Rule::Compare => is_data_wrong,
            // What comes late is refused by the fence and the gates, which are still there.
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
        row("rows wrong without a write", self.wrong_rows.to_string());
        row("rows whose columns differed", self.rows_that_differed.to_string());
        let pair = |p50: f64, p99: f64| format!("{p50:.1} ms / {p99:.1} ms");
        row("p50 / p99, nothing going on", pair(self.p50_ms_quiet, self.p99_ms_quiet));
        row("p50 / p99, deploys and migration", pair(self.p50_ms_rollout, self.p99_ms_rollout));
        row("slowest request", format!("{:.0} ms", self.max_ms));
        if let Some(seconds) = self.rollback_seconds {
            row("flag off until all read old again", format!("{seconds:.1} s"));
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
        row("took", format!("{:.0} s", self.seconds));
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
                format!("The checker found the damage that the lack of {rule:?} does.\n")
            }
            (Some(rule), false, _) => {
                format!("Without {rule:?} nothing was found: the check is blind.\n")
            }
            (None, true, _) => "Nothing failed, nothing was lost, nothing was stale.\n".to_owned(),
            (None, false, Some(why)) => format!("The demo ended early: {why}\n"),
            (None, false, None) => "This is not what was promised.\n".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_passes_only_if_nothing_at_all_was_wrong() {
        let mut clean = Report { requests: 10, ..Report::default() };
        clean.judge();
        assert!(clean.passed && clean.table().contains("Nothing failed"));
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
    fn with_a_rule_broken_it_passes_only_if_damage_was_found() {
        let mut report = Report { broken: Some(Rule::Compare), ..Report::default() };
        report.judge();
        assert!(!report.passed && report.table().contains("blind"));
        report.ended_early = Some("stuck".to_owned());
        report.judge();
        assert!(!report.passed, "being stuck is not finding anything");
        report.failed = 1;
        report.judge();
        assert!(!report.passed, "a failed request is not what a skipped row leads to");
        report.stale_reads = 1;
        report.judge();
        assert!(report.passed && report.table().contains("found the damage"));
    }

    #[test]
    fn it_can_be_read_back_and_the_table_lines_up() {
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
        assert!(table.contains("  phase expand                       1.2 s, epoch 2\n"), "{table}");
    }
}
