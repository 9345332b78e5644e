//! The gate's counters under a model checker, which runs every order that the memory model allows.
//!
//! The gate's own source is compiled on `loom`'s atomics, and twice on atomics that take a safety out, to show
//! that the checker would find it missing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up is a failed test")]

mod atomics;

/// Stands in for the instance's lease.
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

            #[expect(dead_code, unreachable_pub, reason = "a part of the library, of which a part is needed")]
            mod gate {
                include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/migration/runtime/gate.rs"));
            }

            #[allow(dead_code, reason = "not every one is run on every kind of atomics")]
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
fn nothing_of_an_epoch_runs_once_its_operations_are_counted_as_ended() {
    loom::model(|| faithful::scenarios::one_step_beside(1));
    // Every order of three threads takes too long; nearly all mistakes need two preemptions at most.
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(2);
    bounded.check(|| faithful::scenarios::one_step_beside(2));
}

#[test]
fn a_counter_can_be_used_again_two_epochs_later() {
    loom::model(faithful::scenarios::two_steps);
}

#[test]
fn a_pin_does_not_hold_once_the_gate_was_shut() {
    loom::model(faithful::scenarios::a_lapse);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_orderings_an_operation_is_overlooked() {
    loom::model(|| relaxed::scenarios::one_step_beside(1));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_second_look_an_operation_is_overlooked() {
    loom::model(|| forgetful::scenarios::one_step_beside(1));
}
