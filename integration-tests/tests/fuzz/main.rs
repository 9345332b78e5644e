//! Random tables, migrated under random writers, and judged by an oracle that shares no code with the library.
//!
//! `CUTOVER_FUZZ_SEED=…` runs one table again. `SECONDS=3600` sets for how long new tables begin (`make fuzz`);
//! `CUTOVER_FUZZ_FIRST=1` stops at the first table that goes wrong, and `CUTOVER_FUZZ_FIRST="lost wrong"` at the first one with
//! damage of these kinds. `CUTOVER_FUZZ_TABLE=…` takes only tables whose
//! description contains this text, for example `flaw: Some(Clock)`; ` & ` separates several. A refusal
//! before `expand` that names the problem is a correct outcome. Damage, a migration that does not move on, and a problem
//! that is first found after `expand` are not.

mod attached;
mod base;
mod beside;
mod builds;
mod changes;
mod chosen;
mod damage;
mod judge;
mod key;
mod keys;
mod life;
mod oracle;
mod pairs;
mod plan;
mod probe;
mod rust_pairs;
mod shape;
mod sides;
mod world;
mod writers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::task::JoinSet;

use crate::chosen::Chosen;
use crate::damage::Damage;
use crate::life::{Report, live};

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How many tables are migrated at a time.
const AT_ONCE: usize = 3;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_tables_lose_nothing_under_random_writers() -> Outcome {
    let (seed, is_replay) = match variable("CUTOVER_FUZZ_SEED") {
        Some(seed) => (seed, true),
        None => (fastrand::u64(..1_000_000_000), false),
    };
    let limit = Duration::from_secs(variable("SECONDS").unwrap_or(60));
    let [table, first] =
        ["CUTOVER_FUZZ_TABLE", "CUTOVER_FUZZ_FIRST"].map(|name| std::env::var(name).unwrap_or_default());
    println!("seed {seed}: each table has the seed of this run plus its number");
    let began = Instant::now();
    let (mut running, mut next) = (JoinSet::new(), seed);
    let mut reports: Vec<Report> = Vec::new();
    loop {
        let begins = if is_replay { next == seed } else { began.elapsed() < limit };
        if begins && running.len() < AT_ONCE {
            let description = Chosen::of_seed(next, &mut Rng::with_seed(next)).to_string();
            if is_replay {
                println!("{description}");
            }
            if is_replay || table.split(" & ").all(|part| description.contains(part)) {
                running.spawn(live(next));
            }
            next += 1;
            continue;
        }
        let Some(report) = running.join_next().await else { break };
        let report = report?;
        if !report.damage.is_empty() {
            println!("{report}");
        }
        let ends = |damage: &Damage| first.split(' ').any(|one| one == "1" || one == damage.kind.name());
        let is_last = report.damage.iter().any(ends);
        reports.push(report);
        if is_last {
            break;
        }
    }
    println!("{}", summary(&reports));
    let failed: Vec<String> =
        reports.iter().filter(|report| !report.damage.is_empty()).map(ToString::to_string).collect();
    assert!(
        failed.is_empty(),
        "{} of {} tables went wrong:\n{}",
        failed.len(),
        reports.len(),
        failed.join("\n")
    );
    Ok(())
}

fn summary(reports: &[Report]) -> String {
    let mut refusals: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reports.iter().filter_map(|report| report.refusal.as_deref()) {
        *refusals.entry(reason).or_default() += 1;
    }
    let mut text: String = refusals
        .iter()
        .map(|(reason, count)| format!("refused before expand {count} times: {reason}\n"))
        .collect();
    let count = |is: fn(&&Report) -> bool| reports.iter().filter(is).count();
    text += &format!(
        "{} tables: {} migrated, {} refused before expand, {} without sense; {} writes, {} refused or to be repeated; \
         longest external statement: {:?}",
        reports.len(),
        count(|report| report.phases > 0),
        count(|report| report.refusal.is_some()),
        count(|report| report.phases == 0 && report.refusal.is_none() && report.damage.is_empty()),
        reports.iter().map(|report| report.writes).sum::<u64>(),
        reports.iter().map(|report| report.refusals).sum::<u64>(),
        reports.iter().map(|report| &report.longest_hold).max(),
    );
    text
}
