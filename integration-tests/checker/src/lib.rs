//! Judges a recorded history of reads and writes.
//!
//! Every key is a register: a read has to return the value that was current at some moment between its start and its
//! end, in one order of all operations on that key (linearizability, Herlihy and Wing 1990). The checker does not use
//! the code that it judges, and has no notion of phases, columns or SQL. The caller records what clients sent and
//! received.
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
//! For each key: every read that no order explains (an overwritten value, a value that was never written, or one
//! older than what an earlier read returned), and a last value that no order explains (a lost acknowledged write).
//! Values need not be unique. A correct history is never reported.
//!
//! # What it does not find
//!
//! - Anomalies across keys: keys are judged one by one.
//! - A lost write that was overwritten before the key was read. It has the same effect as a write that was not lost.
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
