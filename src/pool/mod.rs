//! Connection pools that together fit the server.
//!
//! # The hazard
//!
//! During a rolling update the replicas, the surge and the terminating pods each have a full pool. The sum reaches
//! `max_connections` in the middle of a deploy, and the server refuses the new pod: "too many clients". Here an instance
//! leases a *share* of the connections in the ledger. Shares are granted under one lock, so that their sum stays within what
//! the server allows. A renewal is one statement, and no lock is held across a round trip, so a thousand instances can share a
//! server. A
//! share is smaller while other instances need connections, and larger when they have left. The share of a killed instance
//! counts until its lease has ended and the server has none of its connections left.
//!
//! **What it does not cover.** Connections of other programs that are opened after the shares were granted: the shares
//! shrink at the next renewal, and `spare` covers the time until then. An instance that was paused for longer than its
//! lease, without an open connection, may open what it held before it learns of its smaller share. The ledger has to be on
//! the server, and used by the role, that the pool connects to. Behind a pooler the server sees the pooler's connections,
//! so there is no share ([`ShareError::Pooler`]): limit the pooler instead.
//!
//! # Defaults and reasons
//!
//! | option | default | because |
//! |---|---|---|
//! | [`min_connections`](ShareOptions::min_connections) | 1 | a pod that serves slowly is better than one that does not start |
//! | [`max_connections`](ShareOptions::max_connections) | 10 | the default of sqlx; more than a few connections per core of the server make it slower |
//! | [`spare`](ShareOptions::spare) | 3 | a person with `psql`, a job, and the moment in which a closed connection still counts |
//! | [`start_within`](ShareOptions::start_within) | 30 s | longer than a pod takes to give back its connections, shorter than a `startupProbe` allows |
//! | `max_lifetime` | 30 min if the pool's options have none | a pool that never closes a connection never follows a changed DNS record |

mod admission;
mod bound;
mod guard;
mod share;
mod waits;

pub use admission::{Admission, AdmissionPermit, AdmissionService, Overloaded, ResponseFuture};
pub use guard::{ConnectionShare, PoolGuard};
pub(crate) use share::MAX_CONNECTIONS;
pub use share::{ShareError, ShareOptions};
pub use waits::PoolWaitMetrics;
