use std::sync::Barrier;
use std::time::Instant;

use super::table::Table;

/// The quantile of the values; `share` is between 0 and 1.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// An operation that takes nanoseconds: a name, and a function that repeats it so many times.
pub(crate) type Work<'a> = (&'static str, Box<dyn Fn(u32) + Sync + 'a>);

/// Repeats an operation without an indirect call each time.
pub(crate) fn repeat<'a, T>(name: &'static str, work: impl Fn() -> T + Sync + 'a) -> Work<'a> {
    let many = move |times| {
        for _ in 0..times {
            std::hint::black_box(work());
        }
    };
    (name, Box::new(many))
}

/// Measures nanoseconds per call on one thread and on two, and allocations per call. The variants take turns.
pub(crate) fn compare(title: &'static str, works: &[Work<'_>], quick: bool) -> Table {
    // Short enough that many rounds are undisturbed on a busy machine.
    const TIMES: u32 = 10_000;
    let rounds = if quick { 11 } else { 51 };
    let mut one = vec![Vec::new(); works.len()];
    let mut two = one.clone();
    for _ in 0..rounds {
        for (index, (_, work)) in works.iter().enumerate() {
            let began = Instant::now();
            work(TIMES);
            one[index].push(began.elapsed().as_nanos() as f64 / f64::from(TIMES));
            two[index].push(on_two_threads(work, TIMES));
        }
    }
    let mut table = Table::new(title, &["ns", "ns, best", "ns, 2 threads", "2 thr., best", "allocations"]);
    for (index, (name, work)) in works.iter().enumerate() {
        let counted = allocation_counter::measure(|| work(1_000)).count_total as f64 / 1_000.0;
        let (one, two) = (&mut one[index], &mut two[index]);
        table.row(
            *name,
            vec![quantile(one, 0.5), quantile(one, 0.0), quantile(two, 0.5), quantile(two, 0.0), counted],
        );
    }
    table
}

fn on_two_threads(work: &(dyn Fn(u32) + Sync), times: u32) -> f64 {
    let start = Barrier::new(2);
    let timed = || {
        start.wait();
        let began = Instant::now();
        work(times);
        began.elapsed().as_nanos() as f64 / f64::from(times)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(timed);
        let mine = timed();
        (mine + other.join().unwrap_or(f64::NAN)) / 2.0
    })
}
