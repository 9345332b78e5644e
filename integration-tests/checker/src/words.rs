use crate::history::{Op, Values};

/// Describes findings about one key in words.
pub(crate) struct Words<'a> {
    pub(crate) ops: &'a [Op],
    pub(crate) initial: u32,
    pub(crate) values: &'a Values,
}

impl Words<'_> {
    pub(crate) fn lost(&self, last: u32) -> String {
        let found = self.values.name(last);
        let key = self.ops[0].key;
        match self.acknowledged_before(Op::NEVER) {
            Some(write) => format!(
                "key {key}: the last value is '{found}', but {} was acknowledged and nothing sent later explains it",
                self.describe(write)
            ),
            None => format!(
                "key {key}: the last value is '{found}', but it began as '{}' and no write was acknowledged",
                self.values.name(self.initial)
            ),
        }
    }

    pub(crate) fn stale(&self, read: &Op) -> String {
        let found = self.values.name(read.value);
        let what = format!("key {}: read '{found}' ({})", read.key, span(read));
        let written = |op: &&Op| op.is_write && op.value == read.value && op.start <= read.end;
        if self.initial != read.value && !self.ops.iter().any(|op| written(&op)) {
            return format!("{what}, which had not been written by then");
        }
        match self.acknowledged_before(read.start) {
            Some(write) if write.value != read.value => {
                format!("{what}, but {} had been acknowledged before", self.describe(write))
            }
            _ => {
                format!("{what}, but an operation that ended before had seen or made a newer value")
            }
        }
    }

    fn acknowledged_before(&self, time: u64) -> Option<&Op> {
        let writes = self.ops.iter().filter(|op| op.is_write && op.is_acknowledged());
        writes.filter(|op| op.end < time).max_by_key(|op| op.end)
    }

    fn describe(&self, write: &Op) -> String {
        format!("the write of '{}' ({})", self.values.name(write.value), span(write))
    }
}

fn span(op: &Op) -> String {
    let seconds = |ns: u64| ns as f64 / 1e9;
    format!("{:.4}–{:.4} s", seconds(op.start), seconds(op.end))
}
