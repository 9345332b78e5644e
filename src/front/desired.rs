use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::flags::{Flags, Switch};
use crate::migration::{DesiredPhase, Phase, Target};
use crate::scrape::Scraped;

/// Changes of the desired phase back to an earlier one are counted within this time.
const FLAPPING_WINDOW: Duration = Duration::from_secs(60);
/// More such changes are flapping. A person who turns a flag off, on and off again makes two. The number is generous, because
/// a flag that is held cannot be used to go back.
const FLAPPING_CHANGES: usize = 10;

/// The desired phase from the payload of a flag's variant.
///
/// | the flag | the migration |
/// |---|---|
/// | on, and the payload names a phase | moves to that phase |
/// | turned off | moves back to reading the old side, not further than `verify` |
/// | missing, archived, with several possible answers, with another payload, or unknown because the server refused the token or is unreachable | stays, with the reason |
/// | goes back and forth more than ten times within a minute | stays until the flag is stable |
///
/// A reason to stay is logged once at WARN, is part of what the migration waits for, and is a metric.
#[derive(Debug, Clone)]
pub(super) struct FromFlag {
    flags: Flags,
    flag: String,
    actor: String,
    seen: Arc<Mutex<Seen>>,
}

/// Every reason to stay, as the metric names it.
const REASONS: [&str; 9] = [
    "unreachable",
    "missing",
    "ambiguous",
    "no_strategy",
    "broken",
    "own_client",
    NO_PAYLOAD,
    NOT_A_PHASE,
    FLAPPING,
];
const NO_PAYLOAD: &str = "no_payload";
const NOT_A_PHASE: &str = "not_a_phase";
const FLAPPING: &str = "flapping";

/// Why the flag gives no phase.
struct Held {
    /// One of [`REASONS`].
    reason: &'static str,
    text: String,
}

/// What the flag said before.
#[derive(Debug, Default)]
struct Seen {
    /// The last reason to stay that was logged.
    logged: Option<String>,
    phases: Flapping,
}

impl FromFlag {
    pub(super) fn new(flags: Flags, flag: &str) -> Self {
        let (flag, actor) = (flag.to_owned(), format!("flag {flag}"));
        Self { flags, flag, actor, seen: Arc::default() }
    }

    /// Registers `cutover_migration_flag_held{migration,flag,reason}`.
    pub(super) fn register(
        &self,
        registry: &prometheus::Registry,
        migration: &str,
    ) -> prometheus::Result<()> {
        let labels = [("migration", migration.to_owned()), ("flag", self.flag.clone())];
        let mut scraped = Scraped::with(labels);
        let source = self.clone();
        let help = "1 while the flag gives no phase for this reason and the migration stays where it is, otherwise 0.";
        scraped.gauge("cutover_migration_flag_held", help, &["reason"], move |samples| {
            let held = source.held();
            for reason in REASONS {
                samples.flag(&[reason], held == Some(reason));
            }
        })?;
        scraped.register(registry)
    }

    /// Why the flag gives no phase at this moment.
    fn held(&self) -> Option<&'static str> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.phases.is_flapping_at(Instant::now()) {
            return Some(FLAPPING);
        }
        drop(seen);
        self.read().err().map(|held| held.reason)
    }

    fn read(&self) -> Result<Target, Held> {
        let flag = &self.flag;
        let held = |reason: &'static str, what: String, remedy: &str| {
            Err(Held { reason, text: format!("a phase from flag {flag:?}: {what}; to unblock: {remedy}") })
        };
        let example = "give the flag one variant whose payload is a phase, such as ramp:25";
        match self.flags.switch(flag) {
            Switch::On(Some(payload)) => match Target::from_text(&payload) {
                Target::Hold(text) => held(NOT_A_PHASE, text, example),
                target => Ok(target),
            },
            Switch::On(None) => {
                held(NO_PAYLOAD, "it is on, but has no variant with a payload".into(), example)
            }
            Switch::Off => Ok(Target::SwitchedOff),
            Switch::Unknown(problem) => held(problem.name(), problem.to_string(), problem.remedy()),
        }
    }
}

impl DesiredPhase for FromFlag {
    fn target(&self) -> Option<Target> {
        let mut target = self.read().unwrap_or_else(|held| Target::Hold(held.text));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.phases.is_flapping(&target, Instant::now()) {
            target = Target::Hold(format!(
                "flag {:?} to be stable: its phase went back and forth more than {FLAPPING_CHANGES} times \
                 within {} s; to unblock: stop what changes the flag",
                self.flag,
                FLAPPING_WINDOW.as_secs()
            ));
        }
        match &target {
            Target::Hold(reason) if seen.logged.as_ref() != Some(reason) => {
                tracing::warn!(flag = self.flag, reason, "migration stays in its phase");
                seen.logged = Some(reason.clone());
            }
            Target::Hold(_) => {}
            _ => seen.logged = None,
        }
        Some(target)
    }

    fn actor(&self) -> &str {
        &self.actor
    }
}

/// Counts changes back to a phase that was desired shortly before.
#[derive(Debug, Default)]
struct Flapping(VecDeque<Change>);

#[derive(Debug)]
struct Change {
    at: Instant,
    /// `None` for a flag that is off.
    to: Option<Phase>,
    is_return: bool,
}

impl Flapping {
    fn is_flapping(&mut self, target: &Target, now: Instant) -> bool {
        // The last change stays, whatever its age, because it tells the current phase.
        while self.0.len() > 1
            && self.0.front().is_some_and(|change| now.duration_since(change.at) > FLAPPING_WINDOW)
        {
            self.0.pop_front();
        }
        let to = match target {
            Target::Desired(desired) => Some(Some(desired.phase)),
            Target::SwitchedOff => Some(None),
            Target::Hold(_) => None,
        };
        if let Some(to) = to.filter(|to| self.0.back().is_none_or(|last| last.to != *to)) {
            let is_return = self.0.iter().any(|change| change.to == to);
            self.0.push_back(Change { at: now, to, is_return });
        }
        self.is_flapping_at(now)
    }

    fn is_flapping_at(&self, now: Instant) -> bool {
        let is_recent = |change: &&Change| now.duration_since(change.at) <= FLAPPING_WINDOW;
        self.0.iter().filter(|change| change.is_return).filter(is_recent).count() > FLAPPING_CHANGES
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::flags::FixedFlag;

    fn from_flag(flag: FixedFlag) -> (Flags, FromFlag) {
        let flags = Flags::fixed([("status", flag)]);
        let source = FromFlag::new(flags.clone(), "status");
        (flags, source)
    }

    fn reason(source: &FromFlag) -> String {
        match source.target() {
            Some(Target::Hold(reason)) => reason,
            other => panic!("{other:?} is no reason to stay"),
        }
    }

    #[test]
    fn only_a_flag_that_is_turned_off_moves_back() {
        let (flags, source) = from_flag(FixedFlag::payload("switch"));
        assert_eq!(source.target(), Some(Target::Desired(Phase::Switch.into())));
        flags.set("status", FixedFlag::payload("sideways")).unwrap();
        assert!(reason(&source).contains("\"sideways\" is not a phase"), "{}", reason(&source));
        flags.set("status", FixedFlag::ON).unwrap();
        assert!(reason(&source).contains("no variant with a payload"));
        flags.set("status", FixedFlag::OFF).unwrap();
        assert_eq!(source.target(), Some(Target::SwitchedOff));
        let archived = FromFlag::new(flags, "archived");
        let missing = reason(&archived);
        assert!(missing.contains("no flag of this name"), "{missing}");
        assert_eq!(archived.held(), Some("missing"));
        assert_eq!(source.held(), None);
    }

    #[test]
    fn a_reason_to_stay_is_logged_once() {
        let (flags, source) = from_flag(FixedFlag::ON);
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&log);
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || Log(Arc::clone(&writer))).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..3 {
                source.target();
            }
            flags.set("status", FixedFlag::payload("sideways")).unwrap();
            source.target();
            source.target();
        });
        let text = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("WARN").count(), 2, "{text}");
        assert_eq!(text.matches("sideways").count(), 1, "{text}");
    }

    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flag_that_goes_back_and_forth_is_held_until_it_is_stable() {
        let (flags, source) = from_flag(FixedFlag::payload("ramp"));
        let ramp = Some(Target::Desired(Phase::Ramp.into()));
        let turn = async |flag: FixedFlag| {
            tokio::time::advance(Duration::from_secs(1)).await;
            flags.set("status", flag).unwrap();
            source.target()
        };
        assert_eq!(source.target(), ramp);
        for _ in 0..5 {
            assert_eq!(turn(FixedFlag::OFF).await, Some(Target::SwitchedOff));
            assert_eq!(turn(FixedFlag::payload("ramp")).await, ramp);
        }
        assert_eq!(turn(FixedFlag::OFF).await, Some(Target::SwitchedOff), "the tenth change back");
        assert!(matches!(turn(FixedFlag::payload("ramp")).await, Some(Target::Hold(_))));
        assert!(reason(&source).contains("went back and forth more than 10 times within 60 s"));
        assert_eq!(source.held(), Some("flapping"));
        tokio::time::advance(FLAPPING_WINDOW).await;
        assert_eq!(source.target(), ramp);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_walk_through_all_phases_is_not_flapping() {
        let (flags, source) = from_flag(FixedFlag::payload("off"));
        for phase in Phase::ALL {
            for payload in [phase.to_string(), "ramp:1".into(), "ramp:50".into()] {
                if phase == Phase::Ramp || !payload.starts_with("ramp") {
                    flags.set("status", FixedFlag::payload(payload)).unwrap();
                    assert!(matches!(source.target(), Some(Target::Desired(_))), "{phase}");
                }
            }
        }
    }
}
