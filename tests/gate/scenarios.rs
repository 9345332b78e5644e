use super::gate::{Gate, Pin};
use crate::fleet::Lease;
use crate::migration::phase::{Percent, Phase};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

/// A gate, and the data that operations of each epoch rely on. `loom` fails if an operation reads it while the agent removes
/// it.
struct Instance {
    gate: Gate,
    relied_on: [UnsafeCell<()>; 4],
}

impl Instance {
    fn new(shards: usize) -> Arc<Self> {
        let gate = Gate::new(Lease, shards);
        gate.open(1, Phase::Off, Percent::ALL);
        Arc::new(Self { gate, relied_on: std::array::from_fn(|_| UnsafeCell::new(())) })
    }

    fn operate(&self) {
        let pin = Pin::enter(&self.gate).expect("open");
        self.relied_on[pin.epoch() as usize].with(|_| ());
    }

    fn step(&self, epoch: i32, phase: Phase) {
        self.gate.open(epoch, phase, Percent::ALL);
        while self.gate.older_open() > 0 {
            thread::yield_now();
        }
        self.relied_on[epoch as usize - 1].with_mut(|_| ());
    }
}

pub(crate) fn one_step_with(operations: usize) {
    let instance = Instance::new(1);
    let threads: Vec<_> = (0..operations)
        .map(|_| {
            let instance = instance.clone();
            thread::spawn(move || instance.operate())
        })
        .collect();
    instance.step(2, Phase::Expand);
    for thread in threads {
        thread.join().expect("ended");
    }
}

pub(crate) fn two_steps() {
    let instance = Instance::new(2);
    let operating = instance.clone();
    let operations = thread::spawn(move || {
        operating.operate();
        operating.operate();
    });
    instance.step(2, Phase::Expand);
    instance.step(3, Phase::Backfill);
    operations.join().expect("ended");
}

/// The fleet moves on without the instance after its gate was shut, and the instance comes back at the same epoch.
pub(crate) fn an_expired_lease() {
    let instance = Instance::new(1);
    let value = Arc::new(AtomicU64::new(0));
    let pin = Pin::enter(&instance.gate).expect("open");
    let (expiring, written) = (instance.clone(), value.clone());
    let agent = thread::spawn(move || {
        expiring.gate.shut();
        written.store(1, Ordering::Release);
        expiring.gate.open(1, Phase::Off, Percent::ALL);
    });
    let read = value.load(Ordering::Acquire);
    assert!(read == 0 || !pin.holds(), "returned a value that the fleet wrote without this instance");
    drop(pin);
    agent.join().expect("ended");
    assert!(Pin::enter(&instance.gate).is_some_and(|pin| pin.holds()));
}
