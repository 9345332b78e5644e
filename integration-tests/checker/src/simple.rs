//! The check for keys with too many simultaneous operations for the search. It builds no order, so it is fast.

use crate::{history::Op, verdict::Finding};

/// Reports a read (or the last value) only if every write of its value had certainly been overwritten,
/// or not been sent: another write began after it was acknowledged, and ended before the read began.
pub(crate) fn check(ops: &[Op], initial: u32, last: Option<u32>) -> Finding {
    let possible = |value: u32, start: u64, end: u64| {
        let writes = || ops.iter().filter(|op| op.is_write);
        let overwrites = writes().filter(|op| op.is_acknowledged() && op.end < start);
        let overwritten_until = overwrites.map(|op| op.start).max();
        let current = |op: &Op| op.start <= end && overwritten_until.is_none_or(|until| op.end >= until);
        (value == initial && overwritten_until.is_none())
            || writes().any(|op| op.value == value && current(op))
    };
    let impossible = |op: &Op| !op.is_write && !possible(op.value, op.start, op.end);
    Finding {
        stale: (0..ops.len()).filter(|&at| impossible(&ops[at])).collect(),
        lost: last.filter(|&value| !possible(value, Op::NEVER, Op::NEVER)),
    }
}
