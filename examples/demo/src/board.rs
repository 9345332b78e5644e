//! The state that the screen shows. All tasks update it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{ledger::Standing, stats::Counts};

/// One instance of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InstanceLine {
    pub(crate) name: String,
    pub(crate) release: u8,
    pub(crate) admin: SocketAddr,
    pub(crate) state: InstanceState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstanceState {
    Starting,
    Ready,
    NotReady,
    Draining,
}

/// The state at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) elapsed: Duration,
    pub(crate) title: String,
    pub(crate) instances: Vec<InstanceLine>,
    pub(crate) standing: Option<Standing>,
    /// The demo's current step.
    pub(crate) doing: String,
    pub(crate) counts: Counts,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) charts: Charts,
    /// Time since the start and event; the newest at the back.
    pub(crate) notes: VecDeque<(Duration, String)>,
}

/// What happened in each second; the newest at the back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Charts {
    pub(crate) requests: VecDeque<u64>,
    pub(crate) failed: VecDeque<u64>,
    /// In microseconds.
    pub(crate) p99: VecDeque<u64>,
    pub(crate) rows: VecDeque<u64>,
    /// Requests, failed requests and rows at the end of the latest second.
    pub(crate) last: (u64, u64, i64),
}

impl Charts {
    pub(crate) const SECONDS: usize = 240;

    fn push(series: &mut VecDeque<u64>, value: u64) {
        series.push_back(value);
        series.drain(..series.len().saturating_sub(Self::SECONDS));
    }
}

impl View {
    /// Adds the second that has ended to the charts.
    pub(crate) fn second(&mut self) {
        let job = self.standing.as_ref().and_then(|standing| standing.job.as_ref());
        let rows = job.filter(|job| !job.is_finished).map_or(0, |job| job.rows_done);
        let now = (self.counts.requests, self.counts.failed, rows);
        let charts = &mut self.charts;
        Charts::push(&mut charts.requests, now.0.saturating_sub(charts.last.0));
        Charts::push(&mut charts.failed, now.1.saturating_sub(charts.last.1));
        Charts::push(&mut charts.p99, (self.p99_ms * 1e3) as u64);
        // A new job begins at zero.
        Charts::push(&mut charts.rows, u64::try_from(now.2 - charts.last.2).unwrap_or(0));
        charts.last = now;
    }
}

/// The shared [`View`].
pub(crate) struct Board {
    began: Instant,
    view: Mutex<View>,
    /// Notes that have not been printed yet.
    unprinted: Mutex<Vec<String>>,
}

impl Board {
    const NOTES: usize = 8;

    pub(crate) fn new(title: String) -> Self {
        let view = View { title, ..View::default() };
        Self { began: Instant::now(), view: Mutex::new(view), unprinted: Mutex::default() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn view(&self) -> View {
        View { elapsed: self.elapsed(), ..self.lock().clone() }
    }

    /// Changes the state.
    pub(crate) fn update(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.lock());
    }

    /// Sets the current step, and notes when it began.
    pub(crate) fn doing(&self, what: impl Into<String>) {
        let what = what.into();
        self.note(what.clone());
        self.update(|view| view.doing = what);
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        let (at, text) = (self.elapsed(), text.into());
        let mut unprinted = self.unprinted.lock().unwrap_or_else(PoisonError::into_inner);
        unprinted.push(format!("[{:6.1} s] {text}", at.as_secs_f64()));
        drop(unprinted);
        let mut view = self.lock();
        view.notes.push_back((at, text));
        while view.notes.len() > Self::NOTES {
            view.notes.pop_front();
        }
    }

    /// Takes the notes since the last call, one line each.
    pub(crate) fn take_unprinted(&self) -> Vec<String> {
        std::mem::take(&mut *self.unprinted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_instance(&self, name: &str, state: InstanceState) {
        self.update(|view| {
            if let Some(line) = view.instances.iter_mut().find(|line| line.name == name) {
                line.state = state;
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
