//! Who is alive: the ledger in schema `cutover`, the instances in it, and their leases.
//!
//! # The hazard
//!
//! "All instances run the new code" is a hope unless somebody counts them. A process that was killed, paused
//! or cut off looks the same from outside; only the paused one comes back and goes on with what it was doing.
//! Liveness is therefore a lease on the database's clock. An instance measures its own lease on a clock that
//! goes on while the machine is suspended, from before it asked, less a margin, so that it stops trusting
//! itself before anybody else stops counting it.
//!
//! # Defaults, and why
//!
//! | option | default | because |
//! |---|---|---|
//! | [`lease`](FleetOptions::lease) | 10 s | longer than a failover or a restart of Postgres takes, so that neither makes the fleet unready; a killed instance holds a migration up for no longer |
//! | [`renew_every`](FleetOptions::renew_every) | 2 s | four answers may be lost; one statement in two seconds is no load, also from hundreds of pods |
//! | [`name`](FleetOptions::name) | the service's | most tables are written by one service |
//!
//! The margin between the lease and an instance's own reckoning of it is a tenth: no clock is that far off.

mod clock;
mod instance;
mod lease;

pub use instance::{Fleet, FleetOptions, Membership};
pub use lease::Lease;
