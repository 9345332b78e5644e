use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::watch;

/// How far the drain has come. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    Serving,
    /// The instance is unready; connections are still accepted.
    Propagating,
    /// Connections are no longer accepted; requests go on.
    Closing,
    /// The deadline has passed, or nothing was left to wait for.
    Forced,
    /// The hooks have run and the report is complete.
    Finished,
}

impl Stage {
    pub(super) const ALL: [Self; 5] =
        [Self::Serving, Self::Propagating, Self::Closing, Self::Forced, Self::Finished];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Propagating => "propagating",
            Self::Closing => "closing",
            Self::Forced => "forced",
            Self::Finished => "finished",
        }
    }
}

/// The current stage of a drain.
pub(super) struct Stages {
    /// For the request path, which must not take the channel's lock.
    now: AtomicU8,
    /// For tasks that wait for a stage.
    changes: watch::Sender<Stage>,
}

impl Stages {
    pub(super) fn new() -> Self {
        Self { now: AtomicU8::new(Stage::Serving as u8), changes: watch::Sender::new(Stage::Serving) }
    }

    /// Leaves [`Stage::Serving`]; `false` if it was left before.
    pub(super) fn begin(&self) -> bool {
        self.now.fetch_max(Stage::Propagating as u8, Ordering::AcqRel) == Stage::Serving as u8
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.now.fetch_max(stage as u8, Ordering::AcqRel);
        self.changes.send_replace(stage);
    }

    pub(super) fn is_at(&self, stage: Stage) -> bool {
        self.now.load(Ordering::Acquire) >= stage as u8
    }

    pub(super) fn current(&self) -> Stage {
        *self.changes.borrow()
    }

    pub(super) async fn reached(&self, stage: Stage) {
        // The sender is in `self`, so the wait ends only with the stage.
        let _ = self.changes.subscribe().wait_for(|now| *now >= stage).await;
    }
}
