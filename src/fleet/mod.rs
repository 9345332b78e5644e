//! Membership of a fleet: which instances are alive, under leases on the database's clock.
//!
//! # The hazard
//!
//! "All instances run the new code" is a guess unless something counts them. A process that was killed, paused or cut off
//! looks the same from outside, and a paused one resumes what it was doing. Liveness is therefore a lease on the database's
//! clock. An instance counts its own lease from the moment before it sends the renewal, subtracts a margin, and uses a clock
//! that runs while the machine is suspended. So its reads stop before others stop waiting for it.
//!
//! # Defaults and reasons
//!
//! | option | default | why |
//! |---|---|---|
//! | [`lease`](FleetOptions::lease) | 10 s | longer than a restart or failover of Postgres takes, so that neither makes the fleet unready; a migration waits for a killed instance no longer than this |
//! | [`renew_every`](FleetOptions::renew_every) | 2 s | four answers in a row may be lost; one statement in two seconds is no load, also with hundreds of pods |
//! | [`name`](FleetOptions::name) | the service's | most tables are written by one service |
//!
//! The margin between the lease and an instance's own measure of it is a tenth: no working clock is that far off.

mod clock;
mod instance;
mod lease;
mod options;

pub use instance::{Fleet, Membership};
pub use lease::Lease;
pub use options::FleetOptions;
