use std::collections::HashSet;

use crate::{
    Recorder, Verdict,
    history::{History, Op},
    search, simple,
    verdict::Finding,
};

const A: u32 = 0;
const B: u32 = 1;
const C: u32 = 2;

fn w(value: u32, start: u64, end: u64) -> Op {
    Op::write(1, value, start, Some(end))
}

fn unknown(value: u32, start: u64) -> Op {
    Op::write(1, value, start, None)
}

fn r(value: u32, start: u64, end: u64) -> Op {
    Op::read(1, value, start, end)
}

/// Name, operations, last value, reads that are stale, whether a write is lost. Every key begins as `A`.
type Case = (&'static str, Vec<Op>, u32, Vec<usize>, bool);

fn cases() -> Vec<Case> {
    vec![
        ("untouched", vec![r(A, 1, 2)], A, vec![], false),
        ("read your write", vec![w(B, 1, 2), r(B, 3, 4)], B, vec![], false),
        ("old value after an acknowledged write", vec![w(B, 1, 2), r(A, 3, 4)], B, vec![1], false),
        ("old value beside the write", vec![w(B, 1, 4), r(A, 2, 3)], B, vec![], false),
        ("new value beside the write", vec![w(B, 1, 4), r(B, 2, 3)], B, vec![], false),
        ("same moment counts as beside", vec![w(B, 1, 4), r(A, 4, 5)], B, vec![], false),
        ("value from nowhere", vec![r(C, 1, 2)], A, vec![0], false),
        ("value from the future", vec![r(B, 1, 2), w(B, 3, 4)], B, vec![0], false),
        ("back and forth during one write", vec![w(B, 1, 9), r(B, 2, 3), r(A, 4, 5)], B, vec![2], false),
        ("two readers at once may differ", vec![w(B, 1, 9), r(B, 2, 5), r(A, 3, 6)], B, vec![], false),
        ("write that vanished", vec![w(B, 1, 2)], A, vec![], true),
        ("last value from nowhere", vec![w(B, 1, 2)], C, vec![], true),
        ("either of two at once may win", vec![w(B, 1, 4), w(C, 2, 3)], B, vec![], false),
        ("a reader saw which one won", vec![w(B, 1, 4), w(C, 2, 3), r(B, 5, 6)], C, vec![], true),
        ("unknown write may have happened", vec![unknown(B, 1), r(B, 5, 6)], B, vec![], false),
        ("unknown write may never have happened", vec![unknown(B, 1), r(A, 5, 6)], A, vec![], false),
        (
            "unknown write happens once, and late",
            vec![unknown(B, 1), r(A, 2, 3), r(B, 4, 5)],
            B,
            vec![],
            false,
        ),
        (
            "unknown write does not come undone",
            vec![unknown(B, 1), r(B, 2, 3), r(A, 4, 5)],
            B,
            vec![2],
            false,
        ),
        (
            "unknown write may overwrite a later one",
            vec![unknown(B, 1), w(C, 2, 3), r(B, 4, 5)],
            B,
            vec![],
            false,
        ),
        (
            "two unknown writes of one value are two",
            vec![unknown(B, 1), unknown(B, 1), r(B, 2, 3), w(C, 4, 5), r(B, 6, 7)],
            B,
            vec![],
            false,
        ),
        (
            "one unknown write is one",
            vec![unknown(B, 1), r(B, 2, 3), w(C, 4, 5), r(B, 6, 7)],
            C,
            vec![3],
            false,
        ),
        ("same value written twice", vec![w(B, 1, 2), w(A, 3, 4), w(B, 5, 6), r(B, 7, 8)], B, vec![], false),
        (
            "a stale read doesn't taint the next one",
            vec![w(B, 1, 2), r(A, 3, 4), r(B, 5, 6)],
            B,
            vec![1],
            false,
        ),
    ]
}

#[test]
fn known_histories() {
    for (name, ops, last, stale, is_lost) in cases() {
        let expected = Finding { stale, lost: is_lost.then_some(last) };
        assert_eq!(search::check(&ops, A, Some(last)), Some(expected), "{name}");
        assert_eq!(has_an_order(&ops, last), search_is_clean(&ops, last), "{name}: by trying every order");
    }
}

#[test]
fn the_simple_check_reports_only_values_surely_overwritten() {
    let finds = ["old value after an acknowledged write", "value from nowhere", "value from the future"];
    let finds_lost = ["write that vanished", "last value from nowhere"];
    for (name, ops, last, stale, is_lost) in cases() {
        let finding = simple::check(&ops, A, Some(last));
        assert!(finding.stale.iter().all(|at| stale.contains(at)), "{name}: a false alarm");
        assert!(is_lost || finding.lost.is_none(), "{name}: a false alarm");
        assert!(!finds.contains(&name) || finding.stale == stale, "{name}");
        assert!(!finds_lost.contains(&name) || finding.lost.is_some(), "{name}");
    }
}

/// A brute-force check as reference: it tries every order of the operations.
fn has_an_order(ops: &[Op], last: u32) -> bool {
    fn go(ops: &[Op], last: u32, done: u32, value: u32, dead: &mut HashSet<(u32, u32)>) -> bool {
        let is_left = |at: usize| done & (1 << at) == 0;
        let left = || (0..ops.len()).filter(|&at| is_left(at));
        if left().all(|at| !ops[at].is_acknowledged()) && value == last {
            return true;
        }
        if dead.contains(&(done, value)) {
            return false;
        }
        // An operation may come next if no other remaining operation ended before it began.
        let earliest_end = left().map(|at| ops[at].end).min().unwrap_or(Op::NEVER);
        let found = left().filter(|&at| ops[at].start <= earliest_end).any(|at| {
            let fits = ops[at].is_write || ops[at].value == value;
            fits && go(ops, last, done | 1 << at, ops[at].value, dead)
        });
        if !found {
            dead.insert((done, value));
        }
        found
    }
    go(ops, last, 0, A, &mut HashSet::new())
}

fn search_is_clean(ops: &[Op], last: u32) -> bool {
    search::check(ops, A, Some(last)).unwrap() == Finding::default()
}

/// Up to ten random operations on a correct register. Each takes place between its start and its end. Some writes
/// get no acknowledgement and take place late or never.
fn simulate(rng: &mut fastrand::Rng) -> (Vec<Op>, u32) {
    let mut planned: Vec<(u64, Op)> = (0..rng.u64(1..=10))
        .map(|_| {
            let start = rng.u64(0..40);
            let moment = start + rng.u64(0..12);
            let end = moment + rng.u64(0..12);
            let value = rng.u32(A..=C);
            match rng.u8(0..10) {
                0..5 => (moment, r(A, start, end)),
                5 => (if rng.bool() { moment + 30 } else { Op::NEVER }, unknown(value, start)),
                _ => (moment, w(value, start, end)),
            }
        })
        .collect();
    planned.sort_by_key(|(moment, _)| *moment);
    let mut value = A;
    for (moment, op) in &mut planned {
        match op.is_write {
            true if *moment != Op::NEVER => value = op.value,
            true => {}
            false => op.value = value,
        }
    }
    let mut ops: Vec<Op> = planned.into_iter().map(|(_, op)| op).collect();
    ops.sort_by_key(|op| op.start);
    (ops, value)
}

#[test]
fn a_correct_register_is_never_reported() {
    for seed in 0..10_000 {
        let (ops, last) = simulate(&mut fastrand::Rng::with_seed(seed));
        assert!(search_is_clean(&ops, last), "seed {seed}: {ops:?}");
        assert_eq!(simple::check(&ops, A, Some(last)), Finding::default(), "seed {seed}: {ops:?}");
    }
}

#[test]
fn a_fault_is_reported_if_and_only_if_no_order_explains_it() {
    let mut observable = 0;
    for seed in 0..10_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut ops, mut last) = simulate(&mut rng);
        // A read with another value, an old last value, or the value of a write that did not happen.
        match rng.u8(0..3) {
            0 => last = rng.u32(A..=C),
            1 => ops
                .iter_mut()
                .filter(|op| !op.is_write)
                .for_each(|op| op.value = (op.value + rng.u32(0..2)) % 3),
            _ => ops.retain(|op| !op.is_write || op.value != B),
        }
        let explained = has_an_order(&ops, last);
        observable += u32::from(!explained);
        assert_eq!(search_is_clean(&ops, last), explained, "seed {seed}: {ops:?} last {last}");
        let simple = simple::check(&ops, A, Some(last));
        assert!(!explained || simple == Finding::default(), "seed {seed}: a false alarm of the simple check");
    }
    assert!(observable > 2_000, "only {observable} of the faults could be seen at all");
}

#[test]
fn a_crowded_key_is_checked_simply() {
    let recorder = Recorder::new(1, str::to_owned);
    for at in 0..200 {
        recorder.write(0, 1, &format!("v{at}"), 1, Some(1_000));
    }
    recorder.read(0, 1, "v7", 2_000, 2_001);
    recorder.read(0, 1, "old", 2_000, 2_001);
    let mut history = recorder.history();
    history.initial(1, "old");
    let verdict = history.check();
    assert_eq!((verdict.keys_checked_simply, verdict.stale_reads), (1, 1), "{verdict:?}");
}

#[test]
fn threads_record_at_once_and_each_key_is_judged_alone() {
    let recorder = Recorder::new(4, |raw: &str| raw.to_lowercase());
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let recorder = &recorder;
            scope.spawn(move || {
                for key in 0..1_000 {
                    let key = key * 4 + worker as u64;
                    let start = recorder.now();
                    recorder.write(worker, key, "PAID", start, Some(recorder.now()));
                    let start = recorder.now() + 1;
                    recorder.read(worker, key, "paid", start, start + 1);
                }
            });
        }
    });
    assert_eq!(recorder.operations(), 8_000);
    let mut history = recorder.history();
    assert_eq!(history.keys().len(), 4_000);
    history.keys().into_iter().for_each(|key| history.last(key, "Paid"));
    history.last(8, "pending");
    history.last(9, History::ABSENT); // mapped, it would be another value
    let verdict = history.check();
    let expected = Verdict { lost_writes: 2, keys: 4_000, writes: 4_000, reads: 4_000, ..Verdict::default() };
    assert_eq!(Verdict { examples: Vec::new(), ..verdict.clone() }, expected);
    assert!(verdict.examples[0].starts_with("key 8: the last value is 'pending', but the write of 'paid' ("));
    assert!(verdict.examples[1].contains("(absent)"), "{verdict:?}");
}

#[test]
fn the_examples_are_few_and_name_the_mistake() {
    let recorder = Recorder::new(1, str::to_owned);
    recorder.write(0, 1, "paid", 1_000_000_000, Some(1_500_000_000));
    for at in 0..50 {
        recorder.read(0, 1, "pending", 2_000_000_000 + at, 2_000_000_001 + at);
    }
    (2..20).for_each(|key| recorder.read(0, key, "ghost", 1, 2));
    let mut history = recorder.history();
    history.initial(1, "pending");
    let verdict = history.check();
    assert_eq!((verdict.stale_reads, verdict.examples.len()), (68, 10));
    assert_eq!(
        verdict.examples[0],
        "key 1: read 'pending' (2.0000–2.0000 s), but the write of 'paid' (1.0000–1.5000 s) had been acknowledged before"
    );
    assert!(verdict.examples[2].starts_with("key 2: read 'ghost'"), "one key takes two places");
}

#[test]
fn writes_after_the_given_time_may_be_lost_or_present() {
    let recorder = Recorder::new(1, str::to_owned);
    recorder.write(0, 1, "paid", 10, Some(20));
    recorder.write(0, 1, "shipped", 30, Some(40));
    recorder.write(0, 1, "void", 50, Some(60));
    let whole = recorder.history();
    let lost = |last: &str| {
        let mut history = whole.unsure_after(25);
        history.initial(1, "pending");
        history.last(1, last);
        history.check().lost_writes
    };
    assert_eq!(["paid", "shipped", "void"].map(lost), [0; 3]);
    assert_eq!(lost("pending"), 1, "the first one was sure");
}

#[test]
fn a_million_operations_on_hot_keys_take_seconds() {
    let recorder = Recorder::new(1, str::to_owned);
    for at in 0..1_000_000_u64 {
        let (start, key) = (at * 10, at % 100);
        let end = start + 3_000;
        let value = if at / 100 % 2 == 0 { "paid" } else { "shipped" };
        if at % 3 == 0 {
            recorder.write(0, key, value, start, Some(end))
        } else {
            recorder.read(0, key, value, start, end)
        }
    }
    let began = std::time::Instant::now();
    let verdict = recorder.history().check();
    assert_eq!(
        (verdict.keys, verdict.writes + verdict.reads, verdict.keys_checked_simply),
        (100, 1_000_000, 0)
    );
    assert!(began.elapsed() < std::time::Duration::from_secs(60));
}
