use std::{fmt, sync::Arc, time::Duration};

/// How a drain went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// What was still running at the deadline and was closed by force, the oldest first.
    pub cut: Vec<Cut>,
    /// From the begin until the last request had ended or was cut.
    pub waited: Duration,
    /// How each hook ended, in the order in which they were added.
    pub hooks: Vec<HookReport>,
}

/// One thing that had not ended at the deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// Method and path (without the query) of a request, the peer's address of a connection
    /// without request, or the name of a [`WorkGuard`](super::WorkGuard).
    pub what: String,
    /// How long it had been running.
    pub age: Duration,
    /// How far it had come.
    pub phase: CutPhase,
}

impl Cut {
    /// Of a path only its beginning: what comes after that may be a name or a token, and is nobody's business.
    pub(super) fn for_logs(&self) -> String {
        let is_request = matches!(self.phase, CutPhase::Head | CutPhase::Body | CutPhase::Upgraded);
        match self.what.match_indices('/').nth(1) {
            Some((second, _)) if is_request => format!("{}/…", &self.what[..second]),
            _ => self.what.clone(),
        }
    }
}

/// How far something had come when it was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CutPhase {
    /// A connection without a request: half of a handshake or head, or an HTTP/2 client
    /// that is mute.
    Connection,
    /// The response head was not there yet.
    Head,
    /// The response body had not ended.
    Body,
    /// Upgraded (WebSocket): its bytes belonged to the handler, whose reads and writes fail now.
    Upgraded,
    /// Work beside requests. It can't be closed by force: it ends with the process.
    Work,
}

impl fmt::Display for CutPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "connection",
            Self::Head => "head",
            Self::Body => "body",
            Self::Upgraded => "upgraded",
            Self::Work => "work",
        })
    }
}

/// How one hook ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HookReport {
    /// The name it was added under.
    pub name: Arc<str>,
    /// How it ended.
    pub end: HookEnd,
    /// How long it ran.
    pub took: Duration,
}

/// How a hook ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookEnd {
    /// By itself.
    Done,
    /// The time was over.
    TimedOut,
    /// It panicked.
    Panicked,
}
