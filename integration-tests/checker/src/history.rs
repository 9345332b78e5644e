use std::{collections::HashMap, sync::Arc};

use crate::{Verdict, search, simple, words::Words};

/// Maps a raw value to the one that is compared.
pub(crate) type Canonical = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// One operation in 32 bytes, so that millions fit in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) key: u64,
    pub(crate) start: u64,
    /// [`Op::NEVER`] for a write of unknown outcome.
    pub(crate) end: u64,
    pub(crate) value: u32,
    pub(crate) is_write: bool,
}

impl Op {
    pub(crate) const NEVER: u64 = u64::MAX;

    pub(crate) fn write(key: u64, value: u32, start: u64, end: Option<u64>) -> Self {
        let end = end.map_or(Self::NEVER, |end| end.max(start));
        Self { key, start, end, value, is_write: true }
    }

    pub(crate) fn read(key: u64, value: u32, start: u64, end: u64) -> Self {
        Self { key, start, end: end.max(start), value, is_write: false }
    }

    pub(crate) fn is_acknowledged(&self) -> bool {
        self.end != Self::NEVER
    }
}

/// The distinct canonical values, by number.
#[derive(Clone, Default)]
pub(crate) struct Values {
    numbers: HashMap<String, u32>,
    names: Vec<String>,
}

impl Values {
    pub(crate) fn get(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    pub(crate) fn intern(&mut self, name: &str) -> u32 {
        self.get(name).unwrap_or_else(|| {
            let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
            self.names.push(name.to_owned());
            self.numbers.insert(name.to_owned(), number);
            number
        })
    }

    pub(crate) fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("?", String::as_str)
    }
}

/// A history: operations, and the value of each key before the first and after the last of them.
pub struct History {
    ops: Vec<Op>,
    values: Values,
    canonical: Canonical,
    initial: HashMap<u64, u32>,
    last: HashMap<u64, u32>,
}

impl History {
    /// The value of a key without an [`initial`](Self::initial) value.
    pub const ABSENT: &str = "(absent)";

    pub(crate) fn from_parts(mut ops: Vec<Op>, values: Values, canonical: Canonical) -> Self {
        ops.sort_unstable_by_key(|op| (op.key, op.start, op.end));
        Self { ops, values, canonical, initial: HashMap::new(), last: HashMap::new() }
    }

    /// The keys of all operations, sorted, each once.
    pub fn keys(&self) -> Vec<u64> {
        self.of_each_key().map(|ops| ops[0].key).collect()
    }

    /// Sets the value of `key` before the first operation. It goes through the mapping, like every other value.
    pub fn initial(&mut self, key: u64, raw: &str) {
        let value = self.intern(raw);
        self.initial.insert(key, value);
    }

    /// The value of `key` after every operation had ended, raw. [`History::ABSENT`] for a deleted key.
    pub fn last(&mut self, key: u64, raw: &str) {
        let value = self.intern(raw);
        self.last.insert(key, value);
    }

    /// The part of the history between two times, in nanoseconds of [`Recorder::now`](crate::Recorder::now).
    ///
    /// Use it for a history that loses data in the middle, by a failover for example. A write that crosses either
    /// time has an unknown outcome. A read that crosses either time is left out. Initial and last values are not copied.
    pub fn between(&self, from: u64, to: u64) -> History {
        let within = |op: &Op| {
            if !op.is_write {
                return (op.start >= from && op.end <= to).then_some(*op);
            }
            let is_before = op.is_acknowledged() && op.end < from;
            let end = if op.end <= to && op.start >= from { op.end } else { Op::NEVER };
            (op.start <= to && !is_before).then_some(Op { end, ..*op })
        };
        let ops = self.ops.iter().filter_map(within).collect();
        History::from_parts(ops, self.values.clone(), Arc::clone(&self.canonical))
    }

    /// The history with all writes that were acknowledged after this moment as writes of unknown outcome: a failover
    /// may have lost any of them. Reads after it are left out. Initial and last values are not taken over.
    pub fn unsure_after(&self, moment: u64) -> History {
        let unsure = |op: &Op| {
            let is_sure = op.end <= moment;
            let end = if is_sure { op.end } else { Op::NEVER };
            (op.is_write || is_sure).then_some(Op { end, ..*op })
        };
        let ops = self.ops.iter().filter_map(unsure).collect();
        History::from_parts(ops, self.values.clone(), Arc::clone(&self.canonical))
    }

    /// Judges every key. Time grows with the number of operations, unless very many overlap on one key.
    pub fn check(&mut self) -> Verdict {
        let absent = self.values.intern(Self::ABSENT);
        let mut verdict = Verdict::default();
        for ops in self.of_each_key() {
            let key = ops[0].key;
            let initial = self.initial.get(&key).copied().unwrap_or(absent);
            let last = self.last.get(&key).copied();
            let finding = search::check(ops, initial, last).unwrap_or_else(|| {
                verdict.keys_checked_simply += 1;
                simple::check(ops, initial, last)
            });
            let words = Words { ops, initial, values: &self.values };
            verdict.add(ops, &finding, &words);
        }
        verdict
    }

    fn of_each_key(&self) -> impl Iterator<Item = &[Op]> {
        self.ops.chunk_by(|a, b| a.key == b.key)
    }

    fn intern(&mut self, raw: &str) -> u32 {
        self.values.intern(&canonical(&self.canonical, raw))
    }
}

/// [`History::ABSENT`] is not mapped.
pub(crate) fn canonical(map: &Canonical, raw: &str) -> String {
    if raw == History::ABSENT { raw.to_owned() } else { map(raw) }
}
