//! The full search for an order of a key's operations that explains every result.
//!
//! Just-in-time linearization (Wing and Gong 1993, Lowe 2017) of one register: walk through the starts
//! and ends in time, keeping every state that the register may be in. A write is placed only when the end of an
//! operation requires it. A read changes nothing, so it is placed as soon as a state has its value.

use std::collections::HashSet;

use crate::{history::Op, verdict::Finding};

/// With more possible states than this, the key gets the simple check.
const MOST_STATES: usize = 1024;

/// One way the key may look: its value, and which open operations have taken place (a bit for each).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    value: u32,
    done: u128,
}

struct Search<'a> {
    ops: &'a [Op],
    states: Vec<State>,
    /// Operations that began and did not end, with their bit. Writes of unknown outcome stay open to the end.
    open: Vec<(usize, u128)>,
}

/// `None` if the key has too many simultaneous operations for the search.
pub(crate) fn check(ops: &[Op], initial: u32, last: Option<u32>) -> Option<Finding> {
    let mut search = Search { ops, states: vec![State { value: initial, done: 0 }], open: Vec::new() };
    let mut finding = Finding::default();
    for (at, is_end) in events(ops) {
        if !is_end {
            search.begin(at)?;
        } else if !search.end(at)? {
            finding.stale.push(at);
        }
    }
    if let Some(last) = last {
        let explained = !search.reach(|state| state.value == last)?.is_empty();
        finding.lost = (!explained).then_some(last);
    }
    Some(finding)
}

/// Starts and ends in the order of time. Of two at the same moment the start comes first: then they
/// count as simultaneous, which never adds a finding.
fn events(ops: &[Op]) -> Vec<(usize, bool)> {
    let starts = ops.iter().enumerate().map(|(at, op)| (op.start, false, at));
    let ended = ops.iter().enumerate().filter(|(_, op)| op.is_acknowledged());
    let mut events: Vec<_> = starts.chain(ended.map(|(at, op)| (op.end, true, at))).collect();
    events.sort_unstable();
    events.into_iter().map(|(_, is_end, at)| (at, is_end)).collect()
}

impl Search<'_> {
    fn begin(&mut self, at: usize) -> Option<()> {
        let taken = self.open.iter().fold(0, |bits, (_, bit)| bits | bit);
        let bit = 1u128.checked_shl((!taken).trailing_zeros())?;
        self.open.push((at, bit));
        let op = self.ops[at];
        if !op.is_write {
            self.states
                .iter_mut()
                .filter(|state| state.value == op.value)
                .for_each(|state| state.done |= bit);
        }
        Some(())
    }

    /// Keeps the states in which the operation took place. Returns false if there is none. The operation is then
    /// ignored.
    fn end(&mut self, at: usize) -> Option<bool> {
        let bit = self.open.iter().find(|(open, _)| *open == at)?.1;
        let explained = self.reach(|state| state.done & bit != 0)?;
        let is_explained = !explained.is_empty();
        if is_explained {
            self.states = explained;
        }
        self.open.retain(|(open, _)| *open != at);
        self.states.iter_mut().for_each(|state| state.done &= !bit);
        self.prune();
        Some(is_explained)
    }

    /// Every state that satisfies `goal`, reached from the present ones by as few open writes as it takes.
    fn reach(&self, goal: impl Fn(State) -> bool) -> Option<Vec<State>> {
        let mut seen: HashSet<State> = self.states.iter().copied().collect();
        let mut todo = self.states.clone();
        let mut reached = Vec::new();
        while let Some(state) = todo.pop() {
            if goal(state) {
                reached.push(state);
                continue;
            }
            let next = self.applicable(state).map(|(write, bit)| self.apply(state, write, bit));
            todo.extend(next.filter(|state| seen.insert(*state)));
            if seen.len() > MOST_STATES {
                return None;
            }
        }
        Some(reached)
    }

    /// Open writes that may take place now. Of several with unknown outcome and the same value the first
    /// stands for all, because later steps do not depend on which one it was.
    fn applicable(&self, state: State) -> impl Iterator<Item = (Op, u128)> {
        let writes = self.open.iter().map(|&(at, bit)| (self.ops[at], bit));
        let waiting = writes.filter(move |(op, bit)| op.is_write && state.done & bit == 0);
        let mut unknown = HashSet::new();
        waiting.filter(move |(op, _)| {
            op.is_acknowledged() || (op.value != state.value && unknown.insert(op.value))
        })
    }

    fn apply(&self, state: State, write: Op, bit: u128) -> State {
        let answered =
            |(at, _): &&(usize, u128)| !self.ops[*at].is_write && self.ops[*at].value == write.value;
        let done = self.open.iter().filter(answered).fold(state.done | bit, |done, (_, bit)| done | bit);
        State { value: write.value, done }
    }

    /// Drops states that another state covers: same value and same acknowledged writes, but
    /// fewer reads answered or more writes of unknown outcome used up.
    fn prune(&mut self) {
        let bits = |of: fn(&Op) -> bool| {
            self.open.iter().filter(|(at, _)| of(&self.ops[*at])).fold(0u128, |bits, (_, bit)| bits | bit)
        };
        let reads = bits(|op| !op.is_write);
        let unknown = bits(|op| op.is_write && !op.is_acknowledged());
        // The rank of a state: the reads it has explained, and the unknown writes that it has not used.
        let worth = |state: &State| state.done & reads | !state.done & unknown;
        let same = |a: &State, b: &State| a.value == b.value && (a.done ^ b.done) & !(reads | unknown) == 0;
        let mut kept: Vec<State> = Vec::with_capacity(self.states.len());
        for state in self.states.drain(..) {
            let beats = |a: &State, b: &State| same(a, b) && worth(a) | worth(b) == worth(a);
            if !kept.iter().any(|other| beats(other, &state)) {
                kept.retain(|other| !beats(&state, other));
                kept.push(state);
            }
        }
        self.states = kept;
    }
}
