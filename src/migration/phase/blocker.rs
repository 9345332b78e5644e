use std::fmt;
use std::time::Duration;

use super::{LaggingStandby, OlderOpen, Phase, PhaseRange, Side, TableProblem};

/// A reason why a migration cannot make its next step.
///
/// The text completes "the migration waits for …". If a person can do something about it, it ends with "; to unblock: …".
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blocker {
    /// An instance has, or may have, operations at an older epoch.
    Unacknowledged {
        /// The instance.
        instance: String,
        /// The epoch that it acknowledged last; 0: none.
        at: i32,
        /// The epoch that it has to acknowledge.
        epoch: i32,
        /// Its open operations at older epochs, if it has reported some.
        older_open: Option<OlderOpen>,
    },
    /// All instances have acknowledged the current epoch, but the previous one is not drained yet.
    EpochInUse(i32),
    /// A live build does not support the next phase.
    Unsupported {
        /// An instance of that build.
        instance: String,
        /// The phases that it supports.
        range: PhaseRange,
        /// The next phase.
        to: Phase,
    },
    /// The new side does not exist.
    NotExpanded,
    /// The side that would be read or compared is not complete.
    Incomplete(Side),
    /// There is no clean scan since the last backfill.
    NotScanned,
    /// The sides of some rows are known to differ.
    Unrepaired {
        /// How many.
        rows: i64,
        /// How many of them are given up.
        given_up: i64,
    },
    /// No scan has shown that the old side can be rebuilt from the new one.
    NotReversible,
    /// An external writer wrote what the guard trigger cannot mirror; this much of the quiet period is left.
    ExternalWrites(Duration),
    /// A standby that serves reads has not replayed enough WAL.
    Standby(LaggingStandby),
    /// Something about the tables has to be changed first.
    Table(TableProblem),
    /// The server does not refuse yet what the change forbids.
    NotEnforced,
    /// The server still refuses what the change forbids.
    NotRelaxed,
    /// No person has approved the drop of the old side.
    NotApproved,
    /// `retire` must last this much longer.
    Soaking(Duration),
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocker::Unacknowledged { instance, at, epoch, older_open } => {
                write!(f, "instance {instance}")?;
                if let Some(OlderOpen { count, seconds }) = older_open {
                    let s = if *count == 1 { "" } else { "s" };
                    write!(f, " with {count} operation{s} open at an older epoch for {seconds} s")?;
                }
                write!(f, " to acknowledge epoch {epoch} (")?;
                match at {
                    0 => f.write_str("it has acknowledged no epoch yet"),
                    at => write!(f, "it is at epoch {at}"),
                }?;
                f.write_str("); to unblock: let its older operations end, or stop the instance")
            }
            Blocker::EpochInUse(epoch) => write!(f, "the last transactions of epoch {epoch} to end"),
            Blocker::Unsupported { instance, range, to } if *range == PhaseRange::UNAWARE => write!(
                f,
                "instance {instance} to stop: its build does not declare the migration and supports only `off`; \
                 to unblock: replace it with a build that supports `{to}`"
            ),
            Blocker::Unsupported { instance, range, to } => write!(
                f,
                "instance {instance} to stop: its build supports {range} and not `{to}`; \
                 to unblock: replace it with a build that supports `{to}`"
            ),
            Blocker::NotExpanded => f.write_str(
                "the new side to exist; to unblock: run the statements of `cutover plan` with a role that may change the \
                 schema, or let an instance with such a role run them",
            ),
            Blocker::Incomplete(Side::New) => f.write_str("the backfill to complete the new side"),
            Blocker::Incomplete(Side::Old) => f.write_str("the reverse backfill to complete the old side"),
            Blocker::NotScanned => f.write_str("a scan in `verify` that finds no difference"),
            Blocker::Unrepaired { rows, given_up } => {
                let s = if *rows == 1 { "" } else { "s" };
                write!(f, "the repair of {rows} row{s} whose sides differ")?;
                match given_up {
                    0 => f.write_str("; to unblock: correct the errors that `cutover repairs` shows"),
                    _ => write!(
                        f,
                        ", {given_up} of them given up; to unblock: correct the errors that `cutover repairs` shows, \
                         then run `cutover repairs <migration> --retry`"
                    ),
                }
            }
            Blocker::NotReversible => {
                f.write_str("a scan that maps every value from new to old and back without a difference")
            }
            Blocker::NotEnforced => f.write_str("the constraints of the change to be added"),
            Blocker::NotRelaxed => f.write_str("the constraints of the change to be dropped"),
            Blocker::ExternalWrites(left) => write!(
                f,
                "another {} without external writes that the guard trigger cannot mirror, or that the change forbids \
                 (MigrationSpec::external_write_quiet_period); \
                 to unblock: stop the writers that `cutover external-writes` shows",
                time_left(*left)
            ),
            Blocker::Standby(LaggingStandby { standby, bytes: Some(bytes) }) => {
                write!(f, "standby {standby} to replay another {} kB of WAL", (bytes >> 10).max(1))
            }
            Blocker::Standby(LaggingStandby { standby, bytes: None }) => write!(
                f,
                "standby {standby}, which is not connected, or whose WAL position this role may not see; to unblock: start it, \
                 `grant pg_monitor` and execute on `pg_current_wal_insert_lsn` to the service's role, or take it out of MigrationSpec::standbys"
            ),
            Blocker::Table(problem) => f.write_str(&problem.text),
            Blocker::NotApproved => {
                f.write_str(
                    "approval to drop the old side, which is valid for seven days; to unblock: `cutover approve <migration>`",
                )
            }
            Blocker::Soaking(left) => write!(
                f,
                "`retire` to last long enough: {} left (MigrationSpec::soak); \
                 to unblock: wait, or deploy a build with a shorter soak",
                time_left(*left)
            ),
        }
    }
}

/// A duration in the two largest units, rounded up to whole seconds.
pub(crate) fn time_left(left: Duration) -> String {
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_that_delays_a_close_is_named_with_operations() {
        let older_open = Some(OlderOpen { count: 1, seconds: 41 });
        let late = Blocker::Unacknowledged { instance: "pay-7c9".into(), at: 4, epoch: 5, older_open };
        assert_eq!(
            late.to_string(),
            "instance pay-7c9 with 1 operation open at an older epoch for 41 s to acknowledge epoch 5 \
             (it is at epoch 4); to unblock: let its older operations end, or stop the instance"
        );
    }

    #[test]
    fn time_left_is_in_readable_units() {
        for (seconds, text) in [(0.2, "1 s"), (59.0, "59 s"), (61.0, "1 min 1 s"), (86_399.5, "24 h 0 min")] {
            assert_eq!(time_left(Duration::from_secs_f64(seconds)), text);
        }
        assert_eq!(time_left(Duration::from_secs(86_390)), "23 h 59 min");
    }
}
