use super::gate::{GENERATIONS, Gate, Pin, Word};
use crate::fleet::Lease;
use crate::migration::phase::{Percent, Phase};

fn gate() -> Gate {
    Gate::new(Lease::unlimited(), 4)
}

#[test]
fn a_word_holds_what_was_packed() {
    for phase in Phase::ALL {
        let word = Word::new(i32::MAX, GENERATIONS + 5, Some((phase, Percent::new(37).unwrap())));
        assert_eq!((word.phase(), word.ramp().get()), (Some(phase), 37));
        assert_eq!((word.epoch(), word.generation()), (i32::MAX, 5));
    }
    assert_eq!(Word::new(3, 0, None).phase(), None);
}

#[test]
fn a_shut_gate_admits_no_operation() {
    let gate = gate();
    assert!(Pin::enter(&gate).is_none());
    gate.open(1, Phase::Off, Percent::ALL);
    assert_eq!(Pin::enter(&gate).expect("open").phase(), Phase::Off);
    gate.shut();
    assert!(Pin::enter(&gate).is_none());
}

#[test]
fn operations_at_the_older_epoch_are_counted_until_they_end() {
    let gate = gate();
    gate.open(1, Phase::Off, Percent::ALL);
    let old = Pin::enter(&gate).expect("open");
    gate.open(2, Phase::Expand, Percent::ALL);
    let new = Pin::enter(&gate).expect("open");
    assert_eq!((old.phase(), new.phase()), (Phase::Off, Phase::Expand));
    assert_eq!(gate.older_open(), 1);
    drop(new);
    assert_eq!(gate.older_open(), 1);
    drop(old);
    assert_eq!(gate.older_open(), 0);
}

#[test]
fn a_pin_does_not_hold_after_the_lease_expired() {
    let gate = gate();
    gate.open(1, Phase::Off, Percent::ALL);
    let pin = Pin::enter(&gate).expect("open");
    assert!(pin.holds());
    gate.shut();
    gate.open(1, Phase::Off, Percent::ALL);
    assert!(!pin.holds());
    assert!(Pin::enter(&gate).expect("open").holds());
}

#[test]
fn a_pin_of_an_expired_lease_is_not_waited_for() {
    let gate = gate();
    gate.open(1, Phase::Off, Percent::ALL);
    let hangs = Pin::enter(&gate).expect("open");
    gate.shut();
    gate.open(2, Phase::Expand, Percent::ALL);
    assert_eq!(gate.older_open(), 0);
    let old = Pin::enter(&gate).expect("open");
    gate.open(3, Phase::Backfill, Percent::ALL);
    assert_eq!(gate.older_open(), 1);
    drop((hangs, old));
    assert_eq!(gate.older_open(), 0);
}
