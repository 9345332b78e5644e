//! The gate's counters under a model checker, which runs every order that the memory model allows.
//!
//! The gate's own source is compiled on `loom`'s atomics, and twice on atomics that lack a safety, to show that the checker
//! finds what is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up is a failed test")]

mod atomics;

/// A stand-in for the instance's lease.
mod fleet {
    #[derive(Debug)]
    pub(crate) struct Lease;

    impl Lease {
        pub(crate) fn holds(&self) -> bool {
            true
        }
    }
}

mod migration {
    pub(crate) use cutover::migration::phase;
}

macro_rules! gate_on {
    ($atomics:ident) => {
        mod $atomics {
            use crate::atomics::$atomics as atomics;

            #[expect(dead_code, unreachable_pub, reason = "the tests use a part of this file")]
            mod gate {
                include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/migration/runtime/gate.rs"));
            }

            #[allow(dead_code, reason = "not every scenario runs on every kind of atomics")]
            pub(crate) mod scenarios {
                include!("scenarios.rs");
            }
        }
    };
}

gate_on!(faithful);
gate_on!(relaxed);
gate_on!(forgetful);

#[test]
fn no_operation_of_an_epoch_runs_after_the_count_is_zero() {
    loom::model(|| faithful::scenarios::one_step_with(1));
    // All orders of three threads take too long. Nearly every mistake needs two preemptions at most.
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(2);
    bounded.check(|| faithful::scenarios::one_step_with(2));
}

#[test]
fn a_counter_is_reusable_two_epochs_later() {
    loom::model(faithful::scenarios::two_steps);
}

#[test]
fn a_pin_does_not_hold_after_the_gate_was_shut() {
    loom::model(faithful::scenarios::an_expired_lease);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_orderings_an_operation_is_missed() {
    loom::model(|| relaxed::scenarios::one_step_with(1));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_second_load_an_operation_is_missed() {
    loom::model(|| forgetful::scenarios::one_step_with(1));
}
