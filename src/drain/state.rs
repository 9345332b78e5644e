use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::refusal::Refusals;
use super::registry::Registry;
use super::stage::{Stage, Stages};
use super::{DrainOptions, DrainReport};
use crate::health::Signal;

pub(super) type Hook = (Arc<str>, Box<dyn FnOnce(Duration) -> BoxFuture<'static, ()> + Send>);

/// What the listeners, the connections and the sequence of one drain share.
pub(super) struct State {
    pub(super) options: DrainOptions,
    pub(super) stages: Stages,
    pub(super) registry: Registry,
    /// One permit per connection of the public listeners.
    pub(super) connections: Arc<Semaphore>,
    pub(super) refusals: Refusals,
    /// `None` once the hooks have been started.
    pub(super) hooks: Mutex<Option<Vec<Hook>>>,
    pub(super) report: OnceLock<DrainReport>,
    /// How often the drain was cut short.
    pub(super) cut_short: watch::Sender<u32>,
    pub(super) readiness: Signal,
    pub(super) runtime: Handle,
}

impl State {
    pub(super) fn new(options: DrainOptions, readiness: Signal, runtime: Handle) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(options.max_connections)),
            refusals: Refusals::default(),
            options,
            stages: Stages::new(),
            registry: Registry::default(),
            hooks: Mutex::new(Some(Vec::new())),
            report: OnceLock::new(),
            cut_short: watch::Sender::new(0),
            readiness,
            runtime,
        }
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.stages.enter(stage);
        self.registry.wake_connections();
    }

    /// Ends the current wait of the sequence: that for requests and work, or that for the hooks.
    pub(super) fn cut_short(&self) {
        self.cut_short.send_modify(|times| *times += 1);
    }
}
