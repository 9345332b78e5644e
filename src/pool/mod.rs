//! A fleet whose pools fit the server.
//!
//! # The hazard
//!
//! A rolling update holds the replicas, the surge and the pods that are still terminating, each with a full pool. The
//! sum meets `max_connections` in the middle of a deploy, and the new pod is refused: "too many clients". Here an
//! instance holds a *share*: leased in the ledger, given out under one lock so that the sum stays within what the server
//! allows, smaller while others need room and larger when they have left. A killed instance's share counts until its
//! lease has ended and the server has none of its connections left.
//!
//! **What it does not cover.** Connections of others that come after the shares were given out: the shares shrink at the
//! next renewal, and `spare` is what there is until then. An instance that was paused for longer than its lease, without a
//! connection open, may open what it held before it hears of its smaller share. The ledger has to be on the server, and
//! used by the role, that the pool connects to. Behind a pooler the server sees the pooler's connections and the shares
//! don't apply: bound the pooler instead.
//!
//! # Defaults, and why
//!
//! | option | default | because |
//! |---|---|---|
//! | [`min_connections`](ShareOptions::min_connections) | 1 | a pod that can serve something slowly is better than one that does not start |
//! | [`max_connections`](ShareOptions::max_connections) | 10 | sqlx's own; more than a few connections per core of the server make it slower |
//! | [`spare`](ShareOptions::spare) | 3 | a person with `psql`, a job, and the moment in which a closed connection still counts |
//! | [`start_within`](ShareOptions::start_within) | 30 s | longer than a pod takes to give back what it has, shorter than a `startupProbe` allows |
//! | `max_lifetime` | 30 min where the pool's options have none | a pool that never closes a connection never follows a changed DNS record |

mod admission;
mod arithmetic;
mod bound;
mod guard;
mod waits;

pub use admission::{Admission, AdmissionPermit, AdmissionService, Overloaded, ResponseFuture};
pub use guard::{ConnectionShare, PoolGuard, ShareError, ShareOptions};
pub use waits::PoolWaitMetrics;
