//! Progress, while somebody waits for it.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use cutover::migration::admin::MigrationReport;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{complain, text};

/// Between lines where there is no terminal.
const LINE: Duration = Duration::from_secs(10);

/// What is going on, on the terminal or in a line now and then.
pub(crate) struct Screen {
    bar: ProgressBar,
    said: std::cell::Cell<Option<Instant>>,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:30} {msg}") {
            bar.set_style(style);
        }
        Self { bar, said: std::cell::Cell::new(None) }
    }

    /// `asked_of`: where the service takes its phase from, where that is not the ledger.
    pub(crate) fn show(&self, state: &Option<MigrationReport>, asked_of: Option<&str>) {
        let Some(state) = state else { return };
        let work = state.work.as_ref().filter(|work| !work.finished);
        let mut line = format!("{} in `{}`", state.name, state.phase);
        if let Some(work) = work {
            self.bar.set_length(work.rows_total.unsigned_abs());
            self.bar.set_position(work.rows_done.unsigned_abs());
            line += &format!("; {}", text::progress(work));
        }
        if state.driver.is_none() {
            line += "; no instance drives it: does the service run, with this migration declared?";
        } else if let Some(waits) = &state.waits_for {
            line += &format!("; waits: {waits}");
        }
        if let Some(source) = asked_of {
            line += &format!("; the service goes by {source}, not by what is asked for here");
        }
        if std::io::stderr().is_terminal() {
            self.bar.set_message(line);
            self.bar.tick();
        } else if self.said.get().is_none_or(|said| said.elapsed() >= LINE) {
            complain(&line);
            self.said.set(Some(Instant::now()));
        }
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
