use super::requirement::{blockers, unacknowledged};
use super::{Blocker, Observed, Phase, PhaseRange, PreviousEpoch};

/// What the driver does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the desired phase is reached and only the current epoch is in use.
    Idle,
    /// Close the previous epoch, so that the fence refuses it.
    Close,
    /// Wait until no transaction of the closed epoch is left.
    Drain,
    /// Open the next epoch, with this phase.
    Move(Phase),
    /// Wait. The list has every reason.
    Wait(Vec<Blocker>),
}

/// Decides the next step of a migration towards `target`.
///
/// At most two adjacent epochs are ever in use: a move requires that the previous epoch is drained, and a close requires
/// every member's acknowledgement of the current epoch. Google's F1 changes its schema in the same way (Rae et al.,
/// "Online, Asynchronous Schema Change in F1", VLDB 2013).
pub fn next_step(observed: &Observed, target: Phase) -> Step {
    let next = observed.phase.towards(target);
    match (observed.previous, next) {
        (PreviousEpoch::Open, next) if !unacknowledged(observed).is_empty() => {
            Step::Wait(next.map_or_else(|| unacknowledged(observed), |to| blockers(observed, to)))
        }
        (PreviousEpoch::Open, _) => Step::Close,
        (PreviousEpoch::Closed, _) => Step::Drain,
        (PreviousEpoch::Drained, None) => Step::Idle,
        (PreviousEpoch::Drained, Some(to)) => {
            let reasons = blockers(observed, to);
            if reasons.is_empty() { Step::Move(to) } else { Step::Wait(reasons) }
        }
    }
}

/// Whether an instance with `older` operations still running at older epochs may acknowledge the current one.
pub fn may_acknowledge(older: u64) -> bool {
    older == 0
}

/// Whether a build may join while epochs with these phases are in use.
pub fn may_join(range: PhaseRange, in_use: impl IntoIterator<Item = Phase>) -> bool {
    in_use.into_iter().all(|phase| range.contains(phase))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{
        Completeness, Conditions, LaggingStandby, Member, OlderOpen, Requirement, Side, TableProblem,
        requirements,
    };
    use super::*;

    /// At rest in `phase`, with everything that any step requires.
    fn ready(phase: Phase) -> Observed {
        Observed {
            epoch: 7,
            phase,
            previous: PreviousEpoch::Drained,
            members: vec![Member {
                name: "a".into(),
                range: PhaseRange::FULL,
                acknowledged: 7,
                older_open: None,
            }],
            complete: Completeness { old: true, new: true },
            conditions: Conditions {
                expanded: true,
                scanned: true,
                reversible: true,
                enforced: true,
                relaxed: true,
                approved: true,
                quiet_period_left: Duration::ZERO,
                soak_left: Duration::ZERO,
                unrepaired: 0,
                unrepaired_old: 0,
                given_up: 0,
            },
            lagging_standbys: Vec::new(),
            table_problems: Vec::new(),
        }
    }

    type Spoil = fn(&mut Observed);

    /// One condition each, made false, and the only steps that it must block. A condition that blocks every step names
    /// none.
    const CONDITIONS: [(Spoil, &[(Phase, Phase)]); 15] = [
        (|o| o.members[0].range = PhaseRange::new(o.phase..=o.phase).unwrap_or(PhaseRange::UNAWARE), &[]),
        (|o| o.conditions.expanded = false, &[(Phase::Off, Phase::Expand)]),
        (|o| o.complete.new = false, &[(Phase::Backfill, Phase::Verify), (Phase::Verify, Phase::Ramp)]),
        (|o| o.complete.old = false, &[(Phase::Switch, Phase::Ramp)]),
        (
            |o| o.conditions.quiet_period_left = Duration::from_secs(9),
            &[(Phase::Backfill, Phase::Verify), (Phase::Verify, Phase::Ramp)],
        ),
        (
            |o| o.conditions.unrepaired = 1,
            &[
                (Phase::Verify, Phase::Ramp),
                (Phase::Ramp, Phase::Switch),
                (Phase::Switch, Phase::Retire),
                (Phase::Retire, Phase::Contract),
            ],
        ),
        (|o| o.conditions.unrepaired_old = 1, &[(Phase::Switch, Phase::Ramp)]),
        (|o| o.conditions.scanned = false, &[(Phase::Verify, Phase::Ramp)]),
        (|o| o.conditions.reversible = false, &[(Phase::Ramp, Phase::Switch)]),
        (
            |o| o.lagging_standbys.push(LaggingStandby { standby: "reader".into(), bytes: None }),
            &[(Phase::Verify, Phase::Ramp), (Phase::Switch, Phase::Ramp), (Phase::Retire, Phase::Contract)],
        ),
        (
            |o| o.table_problems.push(TableProblem { text: "an index".into(), by_library: false }),
            &[
                (Phase::Expand, Phase::Backfill),
                (Phase::Backfill, Phase::Verify),
                (Phase::Verify, Phase::Ramp),
                (Phase::Ramp, Phase::Switch),
                (Phase::Switch, Phase::Retire),
                (Phase::Retire, Phase::Contract),
            ],
        ),
        (|o| o.conditions.enforced = false, &[(Phase::Switch, Phase::Retire)]),
        (|o| o.conditions.relaxed = false, &[(Phase::Switch, Phase::Ramp), (Phase::Expand, Phase::Off)]),
        (|o| o.conditions.approved = false, &[(Phase::Retire, Phase::Contract)]),
        (|o| o.conditions.soak_left = Duration::from_secs(9), &[(Phase::Retire, Phase::Contract)]),
    ];

    fn steps() -> impl Iterator<Item = (Phase, Phase)> {
        let pairs = Phase::ALL.into_iter().flat_map(|from| Phase::ALL.map(|target| (from, target)));
        pairs.filter(|(from, to)| from.towards(*to) == Some(*to))
    }

    #[test]
    fn a_condition_blocks_the_steps_that_require_it_and_no_other() {
        for (from, to) in steps() {
            assert_eq!(next_step(&ready(from), to), Step::Move(to), "{from} → {to}");
            for (index, (spoil, blocked)) in CONDITIONS.iter().enumerate() {
                let mut observed = ready(from);
                spoil(&mut observed);
                let waits = matches!(next_step(&observed, to), Step::Wait(_));
                assert_eq!(
                    waits,
                    blocked.is_empty() || blocked.contains(&(from, to)),
                    "{from} → {to}, {index}"
                );
            }
        }
    }

    #[test]
    fn all_reasons_are_reported_at_once() {
        for (from, to) in steps() {
            for previous in [PreviousEpoch::Drained, PreviousEpoch::Open] {
                let mut observed = Observed { previous, ..ready(from) };
                let mut expected = 0;
                for (spoil, blocked) in CONDITIONS {
                    spoil(&mut observed);
                    expected += usize::from(blocked.is_empty() || blocked.contains(&(from, to)));
                }
                if previous == PreviousEpoch::Open {
                    observed.members[0].acknowledged = 6;
                    expected += 1;
                }
                match next_step(&observed, to) {
                    Step::Wait(reasons) => assert_eq!(reasons.len(), expected, "{from} → {to}: {reasons:?}"),
                    step => panic!("{from} → {to}: {step:?}"),
                }
            }
        }
    }

    #[test]
    fn a_side_is_complete_before_a_step_begins_to_read_it() {
        for (from, to) in steps() {
            for side in [Side::Old, Side::New] {
                if to.may_read(side) && !from.may_read(side) {
                    let required = requirements(from, to).any(|one| one == Requirement::Complete(side));
                    assert!(required, "{from} → {to}, {side:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_moves_while_two_epochs_are_in_use() {
        for phase in Phase::ALL {
            for target in Phase::ALL {
                for previous in [PreviousEpoch::Open, PreviousEpoch::Closed] {
                    let step = next_step(&Observed { previous, ..ready(phase) }, target);
                    assert!(!matches!(step, Step::Move(_)), "{phase} → {target}: {step:?}");
                }
            }
        }
    }

    #[test]
    fn one_late_member_delays_the_close() {
        for target in [Phase::Ramp, Phase::Switch] {
            let mut observed = Observed { previous: PreviousEpoch::Open, ..ready(Phase::Ramp) };
            let older_open = Some(OlderOpen { count: 2, seconds: 3 });
            observed.members.push(Member {
                name: "b".into(),
                range: PhaseRange::FULL,
                acknowledged: 6,
                older_open,
            });
            let late = Blocker::Unacknowledged { instance: "b".into(), at: 6, epoch: 7, older_open };
            assert_eq!(next_step(&observed, target), Step::Wait(vec![late]));
        }
    }

    #[test]
    fn only_agreement_can_block_the_step_from_retire_back_to_switch() {
        let mut observed = ready(Phase::Retire);
        for (spoil, _) in &CONDITIONS[1..] {
            spoil(&mut observed);
        }
        assert_eq!(next_step(&observed, Phase::Off), Step::Move(Phase::Switch));
    }
}
