use std::{fmt, sync::Arc, time::Duration};

/// The result of a drain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// What had not ended at the deadline, or when the drain was cut short, and was closed by force; the oldest first.
    pub cut: Vec<Cut>,
    /// Time from the beginning until the last request had ended or was cut.
    pub waited: Duration,
    /// How each hook ended, in the order in which they were added.
    pub hooks: Vec<HookReport>,
}

/// A request, connection or work that was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// Method and path (without the query) of a request, the peer's address of a connection
    /// without request, or the name of a [`WorkGuard`](super::WorkGuard).
    pub what: String,
    /// How long it had been running.
    pub age: Duration,
    /// Its phase when it was cut.
    pub phase: CutPhase,
}

impl Cut {
    /// Only the first segment of a path: the rest may contain a name or a token.
    pub(super) fn for_logs(&self) -> String {
        let is_request = matches!(self.phase, CutPhase::Head | CutPhase::Body | CutPhase::Upgraded);
        match self.what.match_indices('/').nth(1) {
            Some((second, _)) if is_request => format!("{}/…", &self.what[..second]),
            _ => self.what.clone(),
        }
    }
}

/// The phase of a request, connection or work when it was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CutPhase {
    /// A connection without a request: an incomplete handshake or head, or a silent HTTP/2 client.
    Connection,
    /// The response head was not sent yet.
    Head,
    /// The response body had not ended.
    Body,
    /// Upgraded (WebSocket): the reads and writes of its handler fail now.
    Upgraded,
    /// Work beside requests. It can't be closed by force and ends with the process.
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
#[non_exhaustive]
pub enum HookEnd {
    /// The hook finished.
    Done,
    /// Its time had passed, or the drain was cut short.
    TimedOut,
    /// The hook panicked.
    Panicked,
}
