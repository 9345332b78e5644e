//! What is drawn over time, sampled while a page is open.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use maud::{Markup, html};

use crate::migration::admin::{ExternalWriteReport, MigrationReport};

/// Samples of a chart: four minutes of rows, half an hour of external writes.
const SAMPLES: usize = 120;

/// A growing count, as its increase per second between two reads.
#[derive(Default)]
struct Series {
    rates: VecDeque<f64>,
    last: Option<(Instant, i64)>,
}

impl Series {
    fn add(&mut self, count: i64) {
        if let Some((at, before)) = self.last {
            self.rates.push_back((count - before).max(0) as f64 / at.elapsed().as_secs_f64().max(0.001));
            self.rates.drain(..self.rates.len().saturating_sub(SAMPLES));
        }
        self.last = Some((Instant::now(), count));
    }

    /// Draws the rates, multiplied by `scale`. `what` names the unit.
    fn draw(&self, what: &str, scale: f64) -> Markup {
        if self.rates.len() < 2 {
            return html! {};
        }
        let most = self.rates.iter().copied().fold(0.0, f64::max);
        let height = |rate: f64| 40.0 - rate / most.max(f64::MIN_POSITIVE) * 38.0;
        let points: Vec<String> =
            self.rates.iter().enumerate().map(|(at, rate)| format!("{at},{:.2}", height(*rate))).collect();
        let now = self.rates.back().unwrap_or(&0.0);
        let label = format!("{what}, at most {:.0}, now {:.0}", most * scale, now * scale);
        html! {
            figure {
                svg.chart viewBox=(format!("0 0 {} 40", self.rates.len() - 1)) preserveAspectRatio="none" role="img" aria-label=(label) {
                    polyline points=(points.join(" ")) {}
                }
                figcaption { (label) }
            }
        }
    }
}

/// The series of one migration.
#[derive(Default)]
pub(super) struct Charts {
    rows: Series,
    /// By application and role.
    writers: BTreeMap<(String, String), Series>,
}

impl Charts {
    /// Adds a sample of the running backfill or scan.
    pub(super) fn add_rows(&mut self, report: &MigrationReport) {
        match report.work.as_ref().filter(|work| !work.finished) {
            Some(work) => self.rows.add(work.rows_done),
            None => self.rows.last = None,
        }
    }

    /// Adds a sample of each external writer.
    pub(super) fn add_writers(&mut self, seen: &[ExternalWriteReport]) {
        for one in seen {
            let writer = (one.application.clone(), one.role.clone());
            self.writers.entry(writer).or_default().add(one.transactions);
        }
    }

    /// Rows per second.
    pub(super) fn rows(&self) -> Markup {
        self.rows.draw("Rows per second", 1.0)
    }

    /// Transactions per minute of each external writer that has written since the page was opened.
    pub(super) fn writers(&self) -> Markup {
        html! {
            @for ((application, role), series) in &self.writers {
                @if series.rates.iter().any(|rate| *rate > 0.0) {
                    (series.draw(&format!("{application} as {role}: transactions per minute"), 60.0))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(application: &str, transactions: i64) -> ExternalWriteReport {
        ExternalWriteReport {
            fleet: "shop".into(),
            migration: "status".into(),
            application: application.into(),
            role: "batch".into(),
            transactions,
            unmirrored: 0,
            first_seen: String::new(),
            last_seen: String::new(),
            age_seconds: 1.0,
        }
    }

    #[test]
    fn only_writers_that_go_on_are_drawn() {
        let mut charts = Charts::default();
        for count in 1..=3 {
            charts.add_writers(&[writer("nightly <job>", count), writer("past", 7)]);
        }
        let drawn = charts.writers().into_string();
        assert!(drawn.contains("nightly &lt;job&gt; as batch: transactions per minute, at most "), "{drawn}");
        assert!(!drawn.contains("past"), "{drawn}");
    }
}
