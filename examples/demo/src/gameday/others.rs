//! Others write, or believe in another time.

use std::time::Duration;

use super::{day::Day, injuries::WAY};
use crate::{
    failure::{Failure, Result},
    proxy::STABLE,
};

/// Writes as a job of the night does: by SQL, past the library, into the only column that it knows.
pub(super) async fn strangers(day: &mut Day) -> Result<()> {
    for phase in WAY {
        day.trouble(format!("a stranger writes before and during the move to {phase}"));
        let before = day.stranger_writes().await?;
        day.ask_for(phase).await?;
        let began = std::time::Instant::now();
        let during = day.stranger_writes().await?;
        day.walk.arrive(phase, began).await?;
        let after = day.stranger_writes().await?;
        let words = |taken: bool| if taken { "taken" } else { "refused" };
        day.line.notes.push(format!(
            "{phase}: before {}, during {}, after {}",
            words(before),
            words(during),
            words(after)
        ));
        if phase == "retire" && after {
            return Err(Failure::new("a write to a column that nobody reads any more was taken"));
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

/// `libfaketime` turns the wall clock of one instance.
async fn wrong_clock(day: &mut Day, by: &str) -> Result<()> {
    let library = std::fs::read_dir("/usr/lib")?
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.is_file());
    let Some(library) = library else {
        day.line.notes.push("left out: libfaketime is not installed (Debian: faketime)".to_owned());
        return Ok(());
    };
    day.trouble(format!("one instance's clock is wrong by {by}"));
    let set = |text: &str| Some(text.to_owned());
    day.fleet.environment = vec![
        ("LD_PRELOAD", Some(library.display().to_string())),
        ("FAKETIME", set(by)),
        // Only the wall clock is wrong; the other ones can't be.
        ("FAKETIME_DONT_FAKE_MONOTONIC", set("1")),
    ];
    day.fleet.start(2, STABLE).await?;
    day.fleet.environment.clear();
    for phase in WAY {
        day.go(phase).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}
