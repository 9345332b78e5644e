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
    /// Time since the start and event; the newest at the back.
    pub(crate) notes: VecDeque<(Duration, String)>,
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
