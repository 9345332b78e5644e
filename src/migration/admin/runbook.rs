//! Which section of the runbook belongs to what a migration waits for.

/// A part of the text, and the heading in `docs/runbook.md`. The first that matches counts.
const SECTIONS: [(&str, &str); 37] = [
    ("a desired phase to be set", "No desired phase"),
    ("a valid desired phase", "No desired phase"),
    ("no instance drives it", "No instance drives it"),
    ("an instance with the plan", "No instance drives it"),
    ("to acknowledge epoch", "Instance at an older epoch"),
    ("the last transactions of epoch", "Transactions of an older epoch"),
    ("transaction of closed epoch", "Transactions of an older epoch"),
    ("to stop: its build", "Build does not support the phase"),
    ("the new side to exist", "New side does not exist"),
    ("paused by", "Work is paused"),
    ("the backfill to complete", "Work on rows"),
    ("the reverse backfill to complete", "Work on rows"),
    ("a scan in `verify`", "Work on rows"),
    ("a scan that maps", "Work on rows"),
    ("the throttle of the", "Work on rows"),
    ("the repair of", "Rows wait for repair"),
    ("external writes that the guard trigger cannot mirror", "External writes"),
    ("fires after the guard trigger", "Tables are not ready"),
    ("rewrites every", "Tables are not ready"),
    ("guard trigger", "Guard trigger is disabled"),
    ("transaction of an external writer", "Open external transactions"),
    ("to replay another", "Standby is behind"),
    ("which is not connected", "Standby is behind"),
    ("could not acquire the lock", "Locks"),
    ("waited for a lock for too long", "Locks"),
    ("older transactions to end", "Locks"),
    ("transaction that blocks", "Locks"),
    ("to be unlocked", "Locks"),
    ("a lock in schema", "Locks"),
    ("the constraints of the change", "Locks"),
    ("approval to drop", "Approval"),
    ("`retire` to last", "Soak time"),
    ("a reconcile step", "Reconcile step fails"),
    ("flag", "No desired phase"),
    ("row", "Work on rows"),
    ("table", "Tables are not ready"),
    ("; to unblock:", "Tables are not ready"),
];

/// The sections of the runbook (`docs/runbook.md`) for a text of
/// [`waits_for`](super::MigrationReport::waits_for), each once. A text can have several reasons.
pub fn runbook_sections(waits_for: &str) -> Vec<&'static str> {
    let mut sections = Vec::new();
    let mut add = |reason: &str| {
        let found = SECTIONS.iter().find(|(part, _)| reason.contains(part));
        let section = found.map_or("Reconcile step fails", |(_, section)| *section);
        if !sections.contains(&section) {
            sections.push(section);
        }
    };
    // "; to unblock: …" belongs to the reason before it.
    let mut reasons: Vec<String> = Vec::new();
    for part in waits_for.split("; ") {
        match reasons.last_mut() {
            Some(reason) if part.starts_with("to unblock:") => *reason += &format!("; {part}"),
            _ => reasons.push(part.to_owned()),
        }
    }
    reasons.iter().for_each(|reason| add(reason));
    sections
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::migration::phase::{Blocker, LaggingStandby, Phase, PhaseRange, Side, TableProblem};

    const RUNBOOK: &str = include_str!("../../../docs/runbook.md");

    /// The section of each kind. It does not compile without an arm for every kind.
    fn section(blocker: &Blocker) -> &'static str {
        match blocker {
            Blocker::Unacknowledged { .. } => "Instance at an older epoch",
            Blocker::EpochInUse(_) => "Transactions of an older epoch",
            Blocker::Unsupported { .. } => "Build does not support the phase",
            Blocker::NotExpanded => "New side does not exist",
            Blocker::Incomplete(_) | Blocker::NotScanned | Blocker::NotReversible => "Work on rows",
            Blocker::Unrepaired { .. } => "Rows wait for repair",
            Blocker::ExternalWrites(_) => "External writes",
            Blocker::Standby(_) => "Standby is behind",
            Blocker::Table(_) => "Tables are not ready",
            Blocker::NotEnforced | Blocker::NotRelaxed => "Locks",
            Blocker::NotApproved => "Approval",
            Blocker::Soaking(_) => "Soak time",
        }
    }

    #[test]
    fn every_blocker_has_its_section_of_the_runbook() {
        let (instance, minute) = (|| "a".to_owned(), Duration::from_secs(60));
        let standby = |bytes| Blocker::Standby(LaggingStandby { standby: instance(), bytes });
        let unsupported = |range| Blocker::Unsupported { instance: instance(), range, to: Phase::Ramp };
        let text = "column new_status has no default; to unblock: alter table orders".to_owned();
        let blockers = vec![
            Blocker::Unacknowledged { instance: instance(), at: 4, epoch: 5, older_open: None },
            Blocker::EpochInUse(4),
            unsupported(PhaseRange::UNAWARE),
            unsupported(PhaseRange::FULL),
            Blocker::NotExpanded,
            Blocker::Incomplete(Side::Old),
            Blocker::Incomplete(Side::New),
            Blocker::NotScanned,
            Blocker::NotReversible,
            Blocker::Unrepaired { rows: 3, given_up: 0 },
            Blocker::Unrepaired { rows: 3, given_up: 1 },
            Blocker::ExternalWrites(minute),
            standby(Some(1)),
            standby(None),
            Blocker::Table(TableProblem { text, by_library: false }),
            Blocker::NotEnforced,
            Blocker::NotRelaxed,
            Blocker::NotApproved,
            Blocker::Soaking(minute),
        ];
        for blocker in &blockers {
            assert_eq!(runbook_sections(&blocker.to_string()), [section(blocker)], "{blocker}");
        }
        let all: Vec<String> = blockers.iter().map(ToString::to_string).collect();
        assert_eq!(runbook_sections(&all.join("; ")).len(), 12);
    }

    #[test]
    fn reasons_of_running_work_have_their_section() {
        for (reason, section) in [
            ("a desired phase to be set", "No desired phase"),
            ("a valid desired phase: \"sideways\" is not a phase", "No desired phase"),
            ("the throttle of the scan: 12 sessions wait for locks; to unblock: wait", "Work on rows"),
            (
                "older transactions to end: pid 7, which block `create index … on rows`; to unblock: end them",
                "Locks",
            ),
        ] {
            assert_eq!(runbook_sections(reason), [section], "{reason}");
        }
    }

    #[test]
    fn every_section_is_a_heading_of_the_runbook() {
        let headings: Vec<&str> = RUNBOOK.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        for (_, section) in SECTIONS {
            assert!(headings.contains(&section), "{section:?} is not in docs/runbook.md");
        }
    }
}
