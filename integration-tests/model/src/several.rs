//! One transaction under two migrations: which locks it waits for, and which epochs it may commit at.
//!
//! Every instance has lost its lease here, so a driver closes an epoch at any time, whatever transactions are open.

use stateright::{Model, Property};

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeveralRule {
    /// The fence checks the epoch of each migration.
    EachEpochIsChecked,
    /// All transactions take the locks of the fence in the order of the migrations' ids.
    OneOrderOfLocks,
}

/// Two transactions, two migrations, and a driver for each migration.
#[derive(Debug, Clone, Copy)]
pub struct Several {
    /// The last epoch of each migration.
    pub epochs: u8,
    /// The rule that is left out.
    pub without: Option<SeveralRule>,
}

/// A transaction that has begun: its pins, and how many locks of the fence it holds, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Open {
    pins: [u8; 2],
    locks: usize,
}

/// The state of everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SeveralState {
    /// The current epoch of each migration.
    epochs: [u8; 2],
    /// The epoch whose exclusive lock the driver of the migration waits for.
    awaited: [Option<u8>; 2],
    /// The last epoch of each migration that is drained.
    drained: [u8; 2],
    transactions: [Option<Open>; 2],
    /// A transaction committed at an epoch that was drained before.
    late_commit: bool,
}

/// What may happen next. Numbers are places in the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeveralAction {
    /// A transaction takes its pins.
    Begin(usize),
    /// It takes the next lock of the fence and passes the check, or is refused.
    Lock(usize),
    /// It commits.
    Commit(usize),
    /// A driver closes the current epoch, opens the next one, and waits for the exclusive lock on the closed one.
    Close(usize),
    /// The driver gets it.
    Drain(usize),
}

impl Several {
    fn has(self, rule: SeveralRule) -> bool {
        self.without != Some(rule)
    }

    /// The migrations in the order in which this transaction locks them.
    fn order(self, transaction: usize) -> [usize; 2] {
        match transaction {
            1 if !self.has(SeveralRule::OneOrderOfLocks) => [1, 0],
            _ => [0, 1],
        }
    }

    /// Whether the transaction holds the shared lock on the epoch of its pin.
    fn holds(self, state: &SeveralState, transaction: usize, migration: usize, epoch: u8) -> bool {
        state.transactions[transaction].is_some_and(|open| {
            open.pins[migration] == epoch && self.order(transaction)[..open.locks].contains(&migration)
        })
    }

    fn may_drain(self, state: &SeveralState, migration: usize) -> bool {
        let is_held = |epoch| (0..2).any(|transaction| self.holds(state, transaction, migration, epoch));
        state.awaited[migration].is_some_and(|epoch| !is_held(epoch))
    }

    /// A shared lock waits behind an exclusive one that is waited for.
    fn may_lock(self, state: &SeveralState, transaction: usize) -> bool {
        state.transactions[transaction].is_some_and(|open| {
            let next = self.order(transaction).get(open.locks).copied();
            next.is_some_and(|migration| state.awaited[migration] != Some(open.pins[migration]))
        })
    }
}

impl Model for Several {
    type State = SeveralState;
    type Action = SeveralAction;

    fn init_states(&self) -> Vec<SeveralState> {
        vec![SeveralState {
            epochs: [1; 2],
            awaited: [None; 2],
            drained: [0; 2],
            transactions: [None; 2],
            late_commit: false,
        }]
    }

    fn actions(&self, state: &SeveralState, actions: &mut Vec<SeveralAction>) {
        for i in 0..2 {
            match state.transactions[i] {
                None => actions.push(SeveralAction::Begin(i)),
                Some(open) if open.locks == 2 => actions.push(SeveralAction::Commit(i)),
                Some(_) if self.may_lock(state, i) => actions.push(SeveralAction::Lock(i)),
                Some(_) => {}
            }
            if state.awaited[i].is_none() && state.epochs[i] < self.epochs {
                actions.push(SeveralAction::Close(i));
            }
            if self.may_drain(state, i) {
                actions.push(SeveralAction::Drain(i));
            }
        }
    }

    fn next_state(&self, last: &SeveralState, action: SeveralAction) -> Option<SeveralState> {
        let mut state = last.clone();
        match action {
            SeveralAction::Begin(i) => state.transactions[i] = Some(Open { pins: state.epochs, locks: 0 }),
            SeveralAction::Lock(i) => {
                let open = state.transactions[i]?;
                let migration = self.order(i)[open.locks];
                let is_open = open.pins[migration] == state.epochs[migration];
                let is_checked = open.locks == 0 || self.has(SeveralRule::EachEpochIsChecked);
                let passes = is_open || !is_checked;
                state.transactions[i] = passes.then_some(Open { locks: open.locks + 1, ..open });
            }
            SeveralAction::Commit(i) => {
                let open = state.transactions[i].take()?;
                state.late_commit |= (0..2).any(|migration| open.pins[migration] <= state.drained[migration]);
            }
            SeveralAction::Close(migration) => {
                state.awaited[migration] = Some(state.epochs[migration]);
                state.epochs[migration] += 1;
            }
            SeveralAction::Drain(migration) => {
                state.drained[migration] = state.awaited[migration].take()?;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no commit at a drained epoch", |_, state: &SeveralState| !state.late_commit),
            Property::always("no circle of waits", |model, state: &SeveralState| {
                let waits = |i: usize| {
                    state.transactions[i].is_some_and(|open| open.locks < 2) && !model.may_lock(state, i)
                };
                !waits(0) || !waits(1) || model.may_drain(state, 0) || model.may_drain(state, 1)
            }),
            Property::sometimes("a transaction waits for a driver", |model, state: &SeveralState| {
                state.transactions[0].is_some_and(|open| open.locks == 1) && !model.may_lock(state, 0)
            }),
            Property::sometimes("every epoch is drained", |model, state: &SeveralState| {
                state.drained == [model.epochs - 1; 2]
            }),
        ]
    }
}
