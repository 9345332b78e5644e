//! External writers, and wrong clocks.

use std::time::Duration;

use super::{day::Day, instance_faults::PHASES_IN_ORDER};
use crate::{
    failure::{Failure, Result},
    proxy::STABLE,
};

/// Writes like a nightly job: by SQL, without the library, and only the old column.
pub(super) async fn external_writers(day: &mut Day) -> Result<()> {
    for phase in PHASES_IN_ORDER {
        day.step(format!("external writes before and during the move to {phase}"));
        let before = day.external_write().await?;
        day.ask_for(phase).await?;
        let began = std::time::Instant::now();
        let during = day.external_write().await?;
        day.walk.arrive(phase, began).await?;
        let after = day.external_write().await?;
        let words = |is_accepted: bool| if is_accepted { "accepted" } else { "refused" };
        day.outcome.notes.push(format!(
            "{phase}: before {}, during {}, after {}",
            words(before),
            words(during),
            words(after)
        ));
        if phase == "retire" && after {
            return Err(Failure::new("an external write of the old column was accepted in `retire`"));
        }
    }
    Ok(())
}

pub(super) async fn clock_ahead(day: &mut Day) -> Result<()> {
    wrong_clock(day, "+1d").await
}

pub(super) async fn clock_behind(day: &mut Day) -> Result<()> {
    wrong_clock(day, "-1d").await
}

/// Starts an instance whose wall clock `libfaketime` shifts.
async fn wrong_clock(day: &mut Day, by: &str) -> Result<()> {
    let library = std::fs::read_dir("/usr/lib")?
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.is_file());
    let Some(library) = library else {
        day.outcome.notes.push("skipped: libfaketime is not installed (Debian package faketime)".to_owned());
        return Ok(());
    };
    day.step(format!("starting an instance with a clock shifted by {by}"));
    let set = |text: &str| Some(text.to_owned());
    day.fleet.environment = vec![
        ("LD_PRELOAD", Some(library.display().to_string())),
        ("FAKETIME", set(by)),
        // Only the wall clock can be wrong.
        ("FAKETIME_DONT_FAKE_MONOTONIC", set("1")),
    ];
    day.fleet.start(2, STABLE).await?;
    day.fleet.environment.clear();
    for phase in PHASES_IN_ORDER {
        day.go(phase).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}
