//! Sessions in Redis that several builds share.
//!
//! During a deploy two builds read and write the same sessions. **Hazards** that this module removes:
//!
//! - A build writes back what it read, without the fields that only the other build knows. [`RedisStore`] writes only
//!   what a request changed and keeps everything else as it is at that moment. [`PreserveUnknown`] does the same for
//!   fields inside a value.
//! - Two requests of one session run at the same time, and the later save undoes the earlier one. Changes of different
//!   keys are merged. For a key that both changed, the last write wins and the conflict is counted
//!   ([`ConflictPolicy`]).
//! - A request that is still running brings a session back after a log-out. A deleted session stays deleted.
//! - A save fails unnoticed. Here it is an error, which tower-sessions turns into a 500.
//! - A build finds a record of a format that it does not know, and replaces it. It refuses such a record.
//! - A Redis primary is demoted while it is alive, and every save fails until the service restarts. The store drops its
//!   connections to that server and tries again on a new one.
//!
//! # Defaults and reasons
//!
//! | option | default | reason |
//! |---|---|---|
//! | [`prefix`](RedisStoreOptions::prefix) | `session:` | other data usually shares the Redis, and an ACL or an eviction policy needs a prefix |
//! | [`time_limit`](RedisStoreOptions::time_limit) | 1 s | every request with a session waits for it, and a Redis that needs a second does not work |
//! | [`on_conflict`](RedisStoreOptions::on_conflict) | [`LastWriteWins`](ConflictPolicy::LastWriteWins) | two requests of one page that set the same key should both succeed |

mod envelope;
mod options;
mod preserve_unknown;
mod store;
#[cfg(test)]
mod tests;

pub use options::{ConflictPolicy, RedisStoreOptions};
pub use preserve_unknown::PreserveUnknown;
pub use store::RedisStore;
