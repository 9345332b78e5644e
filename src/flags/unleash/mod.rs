//! Flags from an Unleash server.

mod backup;
mod options;
mod poller;
mod state;
#[cfg(test)]
mod tests;
mod transport;

pub use options::UnleashOptions;
pub(super) use poller::Poller;
pub(super) use state::Unleash;
