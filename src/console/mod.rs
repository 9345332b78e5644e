//! A page on the admin listener that shows the migrations of the service (cargo feature `console`).
//!
//! `Cutover` serves it at `/`: phases, what a migration waits for, instances, progress, rows that wait for repair, external
//! writers, history, and the steps ahead with their SQL. It changes nothing; `cutover console` of package `cutover-cli` can.
//! The page loads no file from another server. It polls every two seconds, and all viewers share one read of the ledger.
//!
//! The other items of this module are for the command line, which serves the same pages.

mod charts;
mod database;
mod feed;
mod instance;
#[doc(hidden)]
pub mod pages;
mod sides;
#[doc(hidden)]
pub mod text;

#[doc(hidden)]
pub use database::Database;
#[doc(hidden)]
pub use feed::{Feed, Shown, Topic, status};
pub use instance::InstanceConsole;
#[doc(hidden)]
pub use sides::{SideCalls, SideNumbers, SideSource};

#[doc(hidden)]
pub use instance::{SCRIPT, STYLE, with_headers};
