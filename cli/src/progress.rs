//! Progress of a step, while a person waits for it.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use cutover::migration::admin::MigrationReport;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{complain, printable, text};

/// Between two lines if standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// A progress bar on a terminal; otherwise a line every ten seconds.
pub(crate) struct Progress {
    bar: ProgressBar,
    last_line: Cell<Option<Instant>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:30} {msg}") {
            bar.set_style(style);
        }
        Self { bar, last_line: Cell::new(None) }
    }

    /// `flag`: where the service takes the desired phase from, if that is not the ledger.
    pub(crate) fn show(&self, state: &Option<MigrationReport>, flag: Option<&str>) {
        let Some(state) = state else { return };
        let mut line = format!("{} in `{}`", state.name, text::phase(&state.phase, state.ramp_percent));
        if let Some(work) = state.work.as_ref().filter(|work| !work.finished) {
            self.bar.set_length(work.rows_total.unsigned_abs());
            self.bar.set_position(work.rows_done.unsigned_abs());
            line += &format!("; {}", text::progress(work));
        }
        if let Some(why) = text::no_driver(state) {
            line += &format!("; {why}");
        } else if let Some(waits_for) = &state.waits_for {
            line += &format!("; waits for: {waits_for}");
        }
        if let Some(flag) = flag {
            line += &format!("; the service takes the desired phase from {flag}");
        }
        if std::io::stderr().is_terminal() {
            self.bar.set_message(printable(&line));
            self.bar.tick();
        } else if self.last_line.get().is_none_or(|at| at.elapsed() >= LINE_INTERVAL) {
            complain(&line);
            self.last_line.set(Some(Instant::now()));
        }
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
