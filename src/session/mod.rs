//! Sessions in Redis that several builds share.
//!
//! During a deploy two builds read and write the same sessions. The hazards that this room removes:
//!
//! - A build that writes back what it read, without the fields that only the other build knows.
//!   [`RedisStore`] writes what a request changed and leaves everything else as it finds it then;
//!   [`PreserveUnknown`] does the same for the fields inside of a value.
//! - Two requests of one session at the same time, of which the later one undoes what the earlier
//!   one wrote. Changes of different keys are merged, a change of the same key is an error.
//! - A save that fails and nobody hears of it. Here it is an error, which tower-sessions turns into
//!   a 500.
//! - A build that meets a record of a format it doesn't know, and replaces it. It is refused.
//!
//! # Defaults, and why
//!
//! | option | default | because |
//! |---|---|---|
//! | [`prefix`](RedisStoreOptions::prefix) | `session:` | a Redis is rarely for sessions alone, and an expiry policy or an ACL goes by prefix |
//! | [`time_limit`](RedisStoreOptions::time_limit) | 1 s | it is on the path of every request with a session, and a Redis that needs a second is down |
//! | [`same_key`](RedisStoreOptions::same_key) | [`Refuse`](ConflictPolicy::Refuse) | an error is seen; a change that was undone by another request is not |

mod envelope;
mod error;
mod keep;
mod store;
#[cfg(test)]
mod tests;

pub use error::SessionError;
pub use keep::PreserveUnknown;
pub use store::{ConflictPolicy, RedisStore, RedisStoreOptions};
