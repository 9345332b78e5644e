use std::borrow::Borrow;
use std::fmt;

use super::atomics::{AtomicU64, Ordering, thread_number};
use crate::fleet::Lease;
use crate::migration::phase::{Percent, Phase};

/// The state of a gate, packed so that one load reads all of it.
///
/// From the low end: 4 bits phase (15: shut), 8 bits ramp percentage, 20 bits generation, 32 bits epoch. The generation counts
/// how often the gate was shut: a pin of an earlier generation does not hold any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(u64);

const SHUT: u64 = 15;
pub(crate) const GENERATIONS: u64 = 1 << 20;

impl Word {
    pub(crate) fn new(epoch: i32, generation: u64, at: Option<(Phase, Percent)>) -> Self {
        let (phase, ramp) = at.map_or((SHUT, 0), |(phase, ramp)| (phase as u64, u64::from(ramp.get())));
        Word(u64::from(epoch.unsigned_abs()) << 32 | (generation % GENERATIONS) << 12 | ramp << 4 | phase)
    }

    #[inline]
    pub(crate) fn phase(self) -> Option<Phase> {
        Phase::from_index((self.0 & 15) as u8)
    }

    #[inline]
    pub(crate) fn ramp(self) -> Percent {
        Percent::new((self.0 >> 4) as u8).unwrap_or(Percent::ALL)
    }

    #[inline]
    pub(crate) fn generation(self) -> u64 {
        (self.0 >> 12) % GENERATIONS
    }

    #[inline]
    pub(crate) fn epoch(self) -> i32 {
        (self.0 >> 32) as i32
    }

    /// The index of its counter: two for the epochs, because at most two adjacent ones are in use, and two for the
    /// generations. An operation that was pinned before the gate was last shut does not hold any more and is not waited for.
    /// It may hang on a dead connection.
    #[inline]
    fn counter(self) -> usize {
        (self.0 >> 32 & 1 | self.generation() << 1 & 2) as usize
    }
}

/// The open operations of some of the threads, by [`Word::counter`]. It has cache lines of its own, so that two cores do not
/// share one.
#[repr(align(128))]
struct Shard([AtomicU64; 4]);

/// Where operations of this instance enter a migration, each at the epoch in use at that moment.
///
/// To enter is one load, one increment of a counter and one more load; to leave is one decrement. The second load makes the
/// count exact: an operation that incremented its counter before the agent read it is seen by the acknowledgement, and one
/// that did so afterwards finds the new epoch, goes back and enters there.
///
/// This holds because both the operation and the agent *modify* the counter, so the two modifications have an order. The
/// second one reads what the first one wrote, and with it everything that happened before: either the agent reads the
/// operation's count, or the operation reads the agent's new word. No stronger ordering is needed.
pub(crate) struct Gate {
    word: AtomicU64,
    shards: Box<[Shard]>,
    lease: Lease,
}

impl Gate {
    pub(crate) fn new(lease: Lease, shards: usize) -> Self {
        let shard = || Shard(std::array::from_fn(|_| AtomicU64::new(0)));
        Self {
            word: AtomicU64::new(Word::new(0, 0, None).0),
            // A power of two, so that the index of a shard needs no division.
            shards: (0..shards.next_power_of_two()).map(|_| shard()).collect(),
            lease,
        }
    }

    #[inline]
    fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// The epoch and phase at which operations enter; `None` while the gate is shut.
    #[inline]
    pub(crate) fn current(&self) -> Option<(i32, Phase)> {
        let word = self.word();
        word.phase().map(|phase| (word.epoch(), phase))
    }

    /// The share of keys that are read from the new side in `ramp`; `None` while the gate is shut.
    pub(crate) fn ramp(&self) -> Option<Percent> {
        let word = self.word();
        word.phase().map(|_| word.ramp())
    }

    /// Lets operations enter at this epoch from now on. Only the agent calls this.
    pub(crate) fn open(&self, epoch: i32, phase: Phase, ramp: Percent) {
        let generation = self.word().generation();
        self.word.store(Word::new(epoch, generation, Some((phase, ramp))).0, Ordering::Release);
    }

    /// Lets no operation enter, and ends every pin that is held. Only the agent calls this.
    pub(crate) fn shut(&self) {
        let now = self.word();
        if now.phase().is_none() {
            // Nothing has entered since. Another generation would give the next membership the counters of the last one.
            return;
        }
        self.word.store(Word::new(now.epoch(), now.generation() + 1, None).0, Ordering::Release);
    }

    /// How many operations of this generation are running at epochs older than the current one.
    pub(crate) fn older_open(&self) -> u64 {
        let other = self.word().counter() ^ 1;
        // Adds zero: a load would have no order with the operations' own modifications.
        self.shards.iter().map(|shard| shard.0[other].fetch_add(0, Ordering::AcqRel)).sum()
    }

    /// Counts the operation; `None` while the gate is shut.
    #[inline]
    fn enter(&self, shard: usize) -> Option<Ticket> {
        // Never out of bounds: the length is a power of two.
        let shard = shard & (self.shards.len() - 1);
        loop {
            let word = self.word();
            let phase = word.phase()?;
            let count = &self.shards[shard].0[word.counter()];
            count.fetch_add(1, Ordering::AcqRel);
            if self.word() == word {
                return Some(Ticket { word, phase, shard });
            }
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    #[inline]
    fn leave(&self, ticket: &Ticket) {
        self.shards[ticket.shard].0[ticket.word.counter()].fetch_sub(1, Ordering::Release);
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("current", &self.current()).finish_non_exhaustive()
    }
}

struct Ticket {
    word: Word,
    phase: Phase,
    shard: usize,
}

/// The epoch that one operation runs at, from its beginning to its end.
///
/// While a pin is held, its instance does not acknowledge the next epoch, so the pin's phase stays valid for the whole
/// operation. Hold it no longer than the operation, because a migration waits for it.
///
/// A read must end with a check of [`Pin::holds`], or go through [`Migration::read`](super::Migration::read), which makes
/// that check. The fleet may have moved on while the process was paused, and then the value that was read must not be
/// returned.
#[must_use = "an operation is pinned only while this is held"]
#[derive(Debug)]
pub struct Pin<'m>(Held<&'m Gate>);

impl<'m> Pin<'m> {
    #[inline]
    pub(crate) fn enter(gate: &'m Gate) -> Option<Self> {
        Held::enter(gate).map(Self)
    }

    /// The gate through which the operation entered.
    #[inline]
    pub(crate) fn gate(&self) -> &'m Gate {
        self.0.gate
    }

    /// The epoch's phase.
    #[inline]
    pub fn phase(&self) -> Phase {
        self.0.phase()
    }

    /// The epoch.
    pub fn epoch(&self) -> i32 {
        self.0.epoch()
    }

    /// The share of keys to read from the new side in [`Phase::Ramp`].
    #[inline]
    pub fn ramp(&self) -> Percent {
        self.0.ramp()
    }

    /// Whether this instance was a member of the fleet all the time, so that a value that was read may be returned.
    #[inline]
    pub fn holds(&self) -> bool {
        self.0.holds()
    }
}

/// The inside of a pin, with any kind of reference to the gate.
pub(crate) struct Held<G: Borrow<Gate>> {
    gate: G,
    ticket: Ticket,
}

impl<G: Borrow<Gate>> Held<G> {
    /// Enters through `gate`; `None` while it is shut.
    #[inline]
    pub(crate) fn enter(gate: G) -> Option<Self> {
        let ticket = gate.borrow().enter(thread_number())?;
        Some(Self { gate, ticket })
    }

    /// Whose gate it is.
    pub(crate) fn gate_owner(&self) -> &G {
        &self.gate
    }

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        self.ticket.phase
    }

    pub(crate) fn epoch(&self) -> i32 {
        self.ticket.word.epoch()
    }

    #[inline]
    pub(crate) fn ramp(&self) -> Percent {
        self.ticket.word.ramp()
    }

    #[inline]
    pub(crate) fn holds(&self) -> bool {
        let gate = self.gate.borrow();
        gate.lease.holds() && gate.word().generation() == self.ticket.word.generation()
    }
}

impl<G: Borrow<Gate>> Drop for Held<G> {
    #[inline]
    fn drop(&mut self) {
        self.gate.borrow().leave(&self.ticket);
    }
}

impl<G: Borrow<Gate>> fmt::Debug for Held<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("epoch", &self.epoch()).field("phase", &self.phase()).finish()
    }
}
