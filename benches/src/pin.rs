use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use tokio_util::task::TaskTracker;

use super::timing::{compare, repeat};
use super::world;

pub(crate) async fn run(quick: bool) -> Result<()> {
    let (_postgres, _, instance) = world::alone().await?;
    let migration = &instance.migration;
    let shared = AtomicU64::new(0);
    let tracker = TaskTracker::new();
    let works = [
        repeat("pin, taken and dropped", || migration.pin().is_ok()),
        repeat("pin, with the final check", || migration.pin().is_ok_and(|pin| pin.holds())),
        repeat("one shared atomic, up and down", || {
            shared.fetch_add(1, Ordering::SeqCst);
            shared.fetch_sub(1, Ordering::SeqCst)
        }),
        repeat("TaskTracker token", || drop(tracker.token())),
        repeat("Instant::now(), once", Instant::now),
    ];
    tokio::task::block_in_place(|| compare("Cost of a pin", &works, quick)).publish("pin")
}
