//! Visits every state of the protocol within bounds, and shows that the check can fail: each rule is left out
//! once, and the damage is found.
//!
//! `cargo test -p cutover-model -- --nocapture` prints states and times; with `--ignored` the nightly depth.

use std::collections::BTreeSet;
use std::time::Instant;

use cutover::migration::phase::Phase;
use cutover_model::{Action, Build, Protocol, Rule};
use stateright::{Checker, HasDiscoveries, Model, Path};

const STALE: &str = "no stale read";
const LOST: &str = "no lost write";
const MISSING: &str = "no query on a missing column";
const UNABLE: &str = "no phase that a build can't run";
const FOREIGN: &str = "no other column is dropped";
const EPOCHS: &str = "at most two epochs in use";
const SAFE: [&str; 6] = [STALE, LOST, MISSING, UNABLE, FOREIGN, EPOCHS];

/// Two instances that were at rest in any of the phases, and moves up to this epoch.
fn from_anywhere(epochs: u8) -> Protocol {
    Protocol {
        starts: Phase::ALL.to_vec(),
        epochs,
        instances: 2,
        operations: 1,
        drops: true,
        builds: &[Build::Both],
        paused_driver: false,
        failover: false,
        judges_before_contact: false,
        without: None,
        leaves_behind: false,
        endings: false,
        fresh: false,
    }
}

/// The same from the very beginning.
fn from_off(epochs: u8) -> Protocol {
    Protocol { starts: vec![Phase::Off], ..from_anywhere(epochs) }
}

fn two_drivers(epochs: u8) -> Protocol {
    Protocol { paused_driver: true, ..from_anywhere(epochs) }
}

fn failover(epochs: u8) -> Protocol {
    Protocol { failover: true, drops: false, ..from_anywhere(epochs) }
}

fn rolling_deploy(epochs: u8) -> Protocol {
    let builds = &[Build::Unaware, Build::Both, Build::NewOnly];
    Protocol { builds, operations: 0, ..from_anywhere(epochs) }
}

fn leaving_behind(epochs: u8) -> Protocol {
    Protocol { leaves_behind: true, drops: false, ..from_anywhere(epochs) }
}

/// Ends of every kind, and new beginnings, with reads and writes.
fn ending(epochs: u8) -> Protocol {
    Protocol { endings: true, fresh: true, ..from_off(epochs) }
}

/// The same from any phase, without operations, while builds come and go.
fn ending_deploy(epochs: u8) -> Protocol {
    Protocol { endings: true, fresh: true, ..rolling_deploy(epochs) }
}

/// What a run found, by the property's name, as the steps that lead there.
type Found = Vec<(&'static str, Vec<Action>)>;

#[expect(clippy::print_stdout, reason = "what was visited is part of the result")]
fn explore(name: &str, protocol: Protocol, until: HasDiscoveries) -> Found {
    let began = Instant::now();
    let checker = protocol.checker().finish_when(until).spawn_bfs().join();
    println!(
        "{name}: {} states, {} steps, {:.1?}",
        checker.unique_state_count(),
        checker.state_count(),
        began.elapsed()
    );
    checker.discoveries().into_iter().map(|(name, path)| (name, Path::into_actions(path))).collect()
}

/// Visits every state. Finds no damage, and reaches all of `reached`.
fn holds(name: &str, protocol: Protocol, reached: &[&str]) {
    let found = explore(name, protocol, HasDiscoveries::AnyFailures);
    for (property, path) in &found {
        assert!(!SAFE.contains(property), "{name}: {property}: {path:#?}");
    }
    for property in reached {
        assert!(found.iter().any(|(name, _)| name == property), "{name}: not reached: {property}");
    }
}

const WHOLE_LINE: [&str; 3] = [
    "contract is reached and the old side is gone",
    "a side that went unwritten is complete again",
    "the last epoch is reached",
];

#[test]
fn the_protocol_holds() {
    holds("the whole line, without operations", Protocol { operations: 0, ..from_off(10) }, &WHOLE_LINE);
    let late = "a write waits between pin and fence while its epoch is closed";
    holds("reads, writes, lapses", from_anywhere(4), &[late]);
    holds("two drivers, one paused", two_drivers(3), &["the last epoch is reached"]);
    holds("failover", failover(4), &["the last epoch is reached"]);
    holds("rolling deploy", rolling_deploy(5), &["the last epoch is reached"]);
    let began_again = "an abandoned migration begins again and reaches ramp";
    holds("ends, without operations", Protocol { operations: 0, ..ending(8) }, &[began_again]);
    let from_the_start = "a migration is finished from the start, and an instance works";
    holds("ends, with reads and writes", ending(5), &[from_the_start]);
    let without_code = "a build without the migration runs after its end";
    holds("ends during rolling deploys", ending_deploy(4), &[without_code, from_the_start]);
    holds("rows left behind", leaving_behind(5), &["the last epoch is reached"]);
}

#[test]
#[ignore = "nightly depth: minutes, and a few GB of memory"]
fn the_protocol_holds_deeply() {
    let late = "a write waits between pin and fence while its epoch is closed";
    let reached: Vec<&str> = WHOLE_LINE.into_iter().chain([late]).collect();
    holds("reads, writes, lapses, from off", from_off(10), &reached);
    holds("reads, writes, lapses, from anywhere", from_anywhere(6), &[late]);
    holds("two drivers, one paused", two_drivers(5), &[late]);
    holds("failover", failover(7), &["the last epoch is reached"]);
    holds("failover and lapses", Protocol { drops: true, ..failover(3) }, &["the last epoch is reached"]);
    holds("two operations of a kind", Protocol { operations: 2, ..from_anywhere(3) }, &[late]);
    holds("three instances", Protocol { instances: 3, ..from_anywhere(3) }, &[late]);
}

/// A rule, the start at which its absence shows, and the damage.
fn damage(rule: Rule) -> (Protocol, &'static str) {
    match rule {
        Rule::OneStep
        | Rule::Fence
        | Rule::DrainWaitsForTransactions
        | Rule::CompletenessCleared
        | Rule::CompletenessRequired
        | Rule::WorkWaitsForDrain => (from_anywhere(5), LOST),
        Rule::ExpandNeedsSchema => (from_anywhere(4), MISSING),
        Rule::BackfillCompares | Rule::BackfillOfOneEpoch | Rule::BackfillEndFenced => {
            (Protocol { drops: false, ..from_anywhere(8) }, LOST)
        }
        Rule::AtMostTwoEpochs
        | Rule::CloseNeedsAcknowledgements
        | Rule::AcknowledgeAfterOwnOperations
        | Rule::DropNeedsLapse
        | Rule::LeaseAtReadEnd
        | Rule::LeaseOfOwnMembership
        | Rule::AdmissionLocked => (from_anywhere(5), STALE),
        Rule::DriverDecidesAgain => (Protocol { drops: false, ..two_drivers(5) }, STALE),
        Rule::FenceComparesPhase => (failover(5), LOST),
        Rule::Generation | Rule::TakesOnSuccessorOnly | Rule::AcknowledgesKnownEpoch => (failover(5), STALE),
        Rule::RampNeedsRepairs | Rule::RampSealsTheEpoch | Rule::NothingBehindWhileRampIsOpen => {
            (leaving_behind(5), LOST)
        }
        Rule::AdmissionNeedsRange | Rule::MoveNeedsRanges => (rolling_deploy(5), UNABLE),
        Rule::EndedStaysEnded => (ending_deploy(4), FOREIGN),
        Rule::FinishNeedsDrop => (ending_deploy(4), UNABLE),
        Rule::AbandonNeedsOff => (ending(4), MISSING),
        Rule::AdmissionNeedsSchema => (ending(4), MISSING),
        Rule::ForgetNeedsNoDeclaration => (Protocol { operations: 0, ..ending(8) }, EPOCHS),
    }
}

#[test]
fn without_any_one_rule_there_is_damage() {
    for rule in Rule::ALL {
        let (protocol, property) = damage(rule);
        let until = HasDiscoveries::AllOf(BTreeSet::from([property]));
        let found =
            explore(&format!("without {rule:?}"), Protocol { without: Some(rule), ..protocol }, until);
        let path = found.iter().find(|(name, _)| *name == property).map(|(_, path)| path);
        let path = path.unwrap_or_else(|| panic!("without {rule:?}: not found: {property}"));
        println!("  violates {property:?} after {} steps", path.len());
    }
}

/// A limit of the promise: a read has no fence. After a failover that lost epochs, an instance reads by a lost epoch
/// until the database answers it again.
#[test]
fn a_read_right_after_a_failover_may_be_stale() {
    let protocol = Protocol { judges_before_contact: true, ..failover(4) };
    let found = explore("reads before contact", protocol, HasDiscoveries::AllOf(BTreeSet::from([STALE])));
    assert!(
        found.iter().any(|(name, path)| *name == STALE && path.contains(&Action::FailOver)),
        "{found:#?}"
    );
}
