use serde::{Deserialize, Serialize};

use crate::{history::Op, words::Words};

/// The findings about one key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Positions of the impossible reads in the key's operations.
    pub(crate) stale: Vec<usize>,
    /// The key's last value, if no order of its operations explains it.
    pub(crate) lost: Option<u32>,
}

/// The outcome of [`History::check`](crate::History::check).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Keys whose last value no order of their operations explains: an acknowledged write is lost.
    pub lost_writes: u64,
    /// Reads that returned a value that was not current at any moment between their start and end.
    pub stale_reads: u64,
    /// The first few findings, in words, with times in seconds.
    pub examples: Vec<String>,
    /// Keys with operations.
    pub keys: u64,
    /// Judged writes, including those of unknown outcome.
    pub writes: u64,
    /// Writes of unknown outcome.
    pub unknown_writes: u64,
    /// Judged reads.
    pub reads: u64,
    /// Keys with too many simultaneous operations for the full search. Of those, each read and the last
    /// value were compared only with the writes that had certainly been overwritten by then.
    pub keys_checked_simply: u64,
}

impl Verdict {
    const EXAMPLES: usize = 10;
    /// Limits the findings of one key, which would fill the list.
    const EXAMPLES_OF_A_KEY: usize = 2;

    /// Whether no write was lost and no read was stale.
    pub fn is_clean(&self) -> bool {
        self.lost_writes == 0 && self.stale_reads == 0
    }

    pub(crate) fn add(&mut self, ops: &[Op], finding: &Finding, words: &Words<'_>) {
        let writes = ops.iter().filter(|op| op.is_write);
        let unknown = writes.clone().filter(|op| !op.is_acknowledged()).count() as u64;
        let writes = writes.count() as u64;
        self.keys += 1;
        self.writes += writes;
        self.unknown_writes += unknown;
        self.reads += ops.len() as u64 - writes;
        self.stale_reads += finding.stale.len() as u64;
        self.lost_writes += u64::from(finding.lost.is_some());
        let lost = finding.lost.iter().map(|&last| words.lost(last));
        let stale = finding.stale.iter().map(|&read| words.stale(&ops[read]));
        let room = Self::EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(lost.chain(stale).take(room.min(Self::EXAMPLES_OF_A_KEY)));
    }
}
