//! One change of where data lives, agreed on by the whole fleet and enforced by Postgres.
//!
//! # The hazard
//!
//! While a migration runs, builds and instances that write one side, both, or the other work on the same rows.
//! If one of them still reads the old side when another has stopped writing it, the reader sees stale data;
//! if one still writes only the old side after the copy was made, its write is lost. Every instance therefore
//! works at an *epoch* that the ledger gives out; the next one is opened only when every live instance has
//! said that nothing of an older one is running in it any more, and a write transaction at a closed epoch is
//! refused by the database itself.

pub mod control;
pub mod data;
pub mod phase;

pub use phase::{Desired, Phase, PhaseRange, Side, Wish};
