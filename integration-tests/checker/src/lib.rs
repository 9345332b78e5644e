//! Judges a recorded history of reads and writes.
//!
//! Every key is a register: a read has to return the value that was current at some moment between
//! its start and its end, in one order of all operations on that key that everybody saw
//! (linearizability, Herlihy and Wing 1990). The checker knows nothing of phases, columns or SQL and
//! depends on nothing that it judges: the caller records what clients sent and what they were answered.
//!
//! ```
//! use cutover_checker::Recorder;
//!
//! let recorder = Recorder::new(1, |raw: &str| raw.trim().to_lowercase());
//! recorder.write(0, 7, "paid", 10, Some(20));
//! recorder.read(0, 7, " PAID", 30, 40);
//! recorder.read(0, 7, "pending", 50, 60);
//! let mut history = recorder.history();
//! history.initial(7, "pending");
//! history.last(7, "paid");
//! let verdict = history.check();
//! assert_eq!((verdict.stale_reads, verdict.lost_writes), (1, 0));
//! ```
//!
//! # What it finds
//!
//! Per key, every read that no order explains (an overwritten value, one that nobody wrote, one older
//! than what an earlier read returned), and a last value that no order explains (an acknowledged write
//! that is gone). Values need not be unique, and a correct history is never reported.
//!
//! # What it does not find
//!
//! - Anomalies across keys: keys are judged one by one.
//! - What happened to show the right value again: a write that was lost and then overwritten before
//!   anybody read the key can't be told from a write that was never lost.
//! - A key with very many simultaneous operations, or very many writes of unknown outcome, gets the
//!   simpler check of [`Verdict::keys_checked_simply`].

mod history;
mod recorder;
mod search;
mod simple;
mod verdict;
mod words;

#[cfg(test)]
mod tests;

pub use history::History;
pub use recorder::Recorder;
pub use verdict::Verdict;
