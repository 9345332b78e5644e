//! Visits every state of two transactions under two migrations, and shows that each of its rules is needed.

use cutover_model::{Several, SeveralRule};
use stateright::{Checker, Model};

/// The names of the properties that were found to be violated or reached.
fn found(without: Option<SeveralRule>) -> Vec<&'static str> {
    let checker = Several { epochs: 4, without }.checker().spawn_bfs().join();
    let mut found: Vec<&str> = checker.discoveries().into_keys().collect();
    found.sort_unstable();
    found
}

const REACHED: [&str; 2] = ["a transaction waits for a driver", "every epoch is drained"];

#[test]
fn a_transaction_under_two_migrations_is_safe() {
    assert_eq!(found(None), REACHED);
}

#[test]
fn without_the_check_of_each_epoch_a_commit_is_late() {
    assert!(found(Some(SeveralRule::EachEpochIsChecked)).contains(&"no commit at a drained epoch"));
}

#[test]
fn without_one_order_of_locks_waits_form_a_circle() {
    assert!(found(Some(SeveralRule::OneOrderOfLocks)).contains(&"no circle of waits"));
}
