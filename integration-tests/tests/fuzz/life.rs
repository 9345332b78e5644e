//! One table's migration from beginning to end, with a judgement after each phase.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cutover::migration::{Agent, Migration, Phase};
use fastrand::Rng;
use sqlx::Row as _;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Outcome;
use crate::shape::Shape;
use crate::world::{WRITERS, World, lock};
use crate::writers::Writer;

/// How long a step may take.
const STEP: Duration = Duration::from_secs(40);
/// For how long a refusal of a table without a flaw has to stand.
const STANDS: Duration = Duration::from_secs(8);
/// How long writers run between two judgements.
const BETWEEN: Duration = Duration::from_millis(90);

/// What became of a table.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    shape: String,
    /// How many phases were reached.
    pub(crate) phases: usize,
    /// Why it was refused before `expand`.
    pub(crate) refusal: Option<String>,
    pub(crate) damage: Vec<String>,
    pub(crate) writes: u64,
    pub(crate) refusals: u64,
    pub(crate) longest_hold: (Duration, String),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let damage = self.damage.join("\n    ");
        write!(
            f,
            "CUTOVER_FUZZ_SEED={} after {} phases: {damage}\n    {}",
            self.seed, self.phases, self.shape
        )
    }
}

/// Generates and migrates the table of this seed.
pub(crate) async fn live(seed: u64) -> Report {
    let mut rng = Rng::with_seed(seed);
    let shape = Shape::random(seed, &mut rng);
    let mut report = Report { seed, shape: format!("{shape:?}"), ..Report::default() };
    let world = match World::new(shape).await {
        Ok(Some(world)) => Arc::new(world),
        Ok(None) => return report,
        Err(error) => {
            report.damage.push(format!("the table could not be made: {error}"));
            return report;
        }
    };
    if let Err(error) = migrate(&world, &mut rng, &mut report).await {
        report.damage.push(error.to_string());
    }
    world.is_over.store(true, Ordering::Relaxed);
    report.damage.append(&mut lock(&world.damage));
    report.writes = world.writes.load(Ordering::Relaxed);
    report.refusals = world.refusals.load(Ordering::Relaxed);
    report.longest_hold = lock(&world.longest_hold).clone();
    report
}

/// The phases to visit, in a random order that the rules allow.
fn route(rng: &mut Rng) -> Vec<&'static str> {
    let mut route = vec!["expand", "backfill", "verify"];
    match rng.u8(..6) {
        0..=2 => route.extend(["off", "expand", "backfill", "verify"]),
        3 => route.extend(["ramp:50", "verify"]),
        4 => route.extend(["ramp:50", "switch", "ramp:50", "expand", "backfill", "verify"]),
        _ => {}
    }
    route.extend(["ramp:50", "switch", "retire"]);
    match rng.u8(..4) {
        0 => route.extend(["switch", "ramp:50", "switch", "retire"]),
        1 => route.extend(["switch", "verify", "off", "verify", "retire"]),
        _ => {}
    }
    route.push("contract");
    route
}

async fn migrate(world: &Arc<World>, rng: &mut Rng, report: &mut Report) -> Outcome {
    let (agent, migration) = world.instance("a").await?;
    let has_faults = world.shape.has_faults;
    let has_second = has_faults || rng.u8(..).is_multiple_of(4);
    let mut second = if has_second { Some(world.instance("b").await?) } else { None };
    let began = Instant::now();
    while migration.current().is_none() {
        if began.elapsed() > STEP {
            return Err("the instance is not admitted".into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    let mut writers = JoinSet::new();
    if world.shape.flaw.is_none() {
        for number in 0..WRITERS {
            let writer = Writer::new(world, number, rng.u64(..));
            match number % 2 {
                0 => writers.spawn(writer.external()),
                _ => writers.spawn(writer.pinned(migration.clone())),
            };
        }
    }
    let faults = has_faults.then(|| tokio::spawn(cut(Arc::clone(world), rng.u64(..))));
    // An instance that is killed says nothing. The fleet waits for its lease.
    let mut killed = second.take_if(|_| has_faults);
    let outcome = visit(world, rng, report, &mut killed).await;
    world.is_over.store(true, Ordering::Relaxed);
    while let Some(writer) = writers.join_next().await {
        if let Err(error) = writer? {
            world.fail(format!("a writer stopped: {error}"));
        }
    }
    agent.leave().await?;
    if let Some((second, _)) = second {
        second.leave().await?;
    }
    if let Some(faults) = faults {
        faults.await??;
    }
    outcome
}

/// Cuts a connection about every three seconds until the migration is over.
async fn cut(world: Arc<World>, seed: u64) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    while !world.is_over.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(100)).await;
        if rng.u8(..30) == 0 {
            world.cut().await?;
        }
    }
    Ok(())
}

async fn visit(
    world: &World,
    rng: &mut Rng,
    report: &mut Report,
    killed: &mut Option<(Agent, Migration)>,
) -> Outcome {
    sleep(BETWEEN).await;
    let mut last = "off";
    for wish in route(rng) {
        if (last, wish) == ("retire", "switch") {
            world.is_turning.store(true, Ordering::Relaxed);
            sleep(BETWEEN).await;
        }
        last = wish;
        if world.shape.rust_pair.is_some() {
            let quiet = world.quiet.write().await;
            let (phase, _) = world.phase().await?;
            let is_copied = ["off", "expand", "backfill"].contains(&wish);
            let is_scanned = !is_copied && (wish == "verify" || phase < Phase::Ramp);
            world.rests.store(is_scanned, Ordering::Relaxed);
            drop(quiet);
            if wish == "verify" && phase == Phase::Backfill {
                // What the copy has passed before the writers rested is copied again.
                world.desire("expand").await?;
                arrive(world, "expand", false).await?;
            }
        }
        if rng.u8(..).is_multiple_of(4) {
            *killed = None;
        }
        if wish == "contract" {
            sqlx::query(
                "insert into cutover.approvals (migration_id, phase, actor, reason) \
                 select id, 'contract', 'test', 'test' from cutover.migrations where name = 'subject'",
            )
            .execute(&world.control)
            .await?;
        }
        world.desire(wish).await?;
        let disturbs = wish == "backfill" && rng.bool();
        let (arrived, disturbed) = tokio::join!(arrive(world, wish, report.phases == 0), async {
            if disturbs { world.disturb_a_copy().await } else { Ok(()) }
        });
        disturbed?;
        world.is_turning.store(false, Ordering::Relaxed);
        if let Some(refusal) = arrived? {
            if world.shape.flaw.is_none() && passes_in_quiet(world).await? {
                world.fail(format!("was refused for a reason that does not stand: {refusal}"));
            }
            report.refusal = Some(refusal);
            return Ok(());
        }
        if world.shape.flaw.is_some() {
            return Err(format!("the flaw {:?} was not found before `expand`", world.shape.flaw).into());
        }
        report.phases += 1;
        // From `ramp` on, the guard trigger refuses what it cannot map.
        world.rests.store(world.rests.load(Ordering::Relaxed) && wish == "verify", Ordering::Relaxed);
        sleep(BETWEEN).await;
        judge(world, wish).await?;
        if !lock(&world.damage).is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether a refused `expand` succeeds a little later, while no writer is in the middle of anything.
async fn passes_in_quiet(world: &World) -> Outcome<bool> {
    let _quiet = world.quiet.write().await;
    let began = Instant::now();
    while began.elapsed() < STANDS {
        if world.phase().await?.0 == Phase::Expand {
            return Ok(true);
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(false)
}

/// Waits until the fleet is in a phase. Returns the reason if `expand` is refused.
async fn arrive(world: &World, wish: &str, is_first: bool) -> Outcome<Option<String>> {
    let target: Phase = wish.split(':').next().unwrap_or(wish).parse()?;
    let began = Instant::now();
    // What a fault stops is retried after growing pauses.
    let limit = if world.shape.has_faults { STEP * 2 } else { STEP };
    let mut last = None;
    world.corrects.store(false, Ordering::Relaxed);
    loop {
        let (phase, waits_for) = world.phase().await?;
        let open: i64 = sqlx::query_scalar(
            "select count(*) from cutover.epochs e join cutover.migrations m on m.id = e.migration_id \
             where m.name = 'subject' and e.epoch < m.epoch and e.drained_at is null",
        )
        .fetch_one(&world.control)
        .await?;
        if phase == target && open == 0 {
            return Ok(None);
        }
        if is_first && let Some(reason) = waits_for.as_deref().filter(|reason| reason.contains("to fix: ")) {
            return Ok(Some(reason.to_owned()));
        }
        // Values that cannot be mapped hold the migration with a reason, and then they are corrected. A copy has to name
        // their keys.
        if began.elapsed() > Duration::from_secs(2) && waits_for.is_some() {
            let is_named = phase != Phase::Backfill || world.has_bad_rows().await?;
            world.corrects.store(is_named, Ordering::Relaxed);
        }
        if !lock(&world.damage).is_empty() {
            return Ok(None);
        }
        if began.elapsed() > limit {
            return Err(format!(
                "{wish} was not reached: in {phase}, waits for {waits_for:?}, before: {last:?}"
            )
            .into());
        }
        last = waits_for.or(last);
        sleep(Duration::from_millis(15)).await;
    }
}

/// Compares all rows of both sides with what is known, while no writer is in the middle of anything.
async fn judge(world: &World, wish: &str) -> Outcome {
    let _quiet = world.quiet.write().await;
    let (phase, _) = world.phase().await?;
    let row = sqlx::query("select old_complete, new_complete from cutover.migrations where name = 'subject'")
        .fetch_one(&world.control)
        .await?;
    let (old_complete, new_complete): (bool, bool) = (row.get(0), row.get(1));
    let numbers: Vec<usize> = lock(&world.rows).keys().copied().collect();
    let keys = world.key_texts(&numbers).await?;
    if phase >= Phase::Verify {
        lock(&world.stale).clear();
    }
    let stale: Vec<usize> = lock(&world.stale).iter().copied().collect();
    let stale = world.key_texts(&stale).await?;
    let has_old = phase != Phase::Contract;
    let [old_columns, new_columns] = world.shape.columns();
    let old = if has_old { world.all("subject", old_columns).await? } else { BTreeMap::new() };
    let has_new = !matches!(phase, Phase::Off);
    let new = if has_new { world.all(&world.shape.new_rows(), new_columns).await? } else { BTreeMap::new() };
    let mut rows = lock(&world.rows).clone();
    let old_leads = phase < Phase::Switch;
    let leading = if old_leads { &old } else { &new };
    for key in leading.keys().filter(|key| !keys.contains_key(*key)) {
        world.fail(format!("at {wish}: key {key} exists and should not"));
    }
    for (key, number) in &keys {
        let Some(row) = rows.get_mut(number) else { continue };
        let (o, n) = (old.get(key), new.get(key));
        let wrong = |side: &str, found: Option<&String>, expected: &String, row: &crate::oracle::Row| {
            world.fail(format!(
                "at {wish}: {side} side of key {key} holds {found:?} instead of {expected}; {row:?}"
            ));
        };
        let values = &world.values;
        if row.is_unmappable && row.phase <= Phase::Verify && phase >= Phase::Ramp {
            world.fail(format!("at {wish}: key {key} holds a value that cannot be mapped; {row:?}"));
        }
        if has_old && row.old_behind && phase < Phase::Retire && old_complete {
            let keeps = values.forward_of(&row.old).as_ref() == Some(&row.new) && o == Some(&row.old);
            let is_mapped = o.is_some_and(|o| {
                values.back_of(&row.new).as_ref() == Some(o)
                    || values.forward_of(o).as_ref() == Some(&row.new)
            });
            if !keeps && !is_mapped {
                wrong("old", o, &row.old, row);
            }
            if let Some(o) = o {
                row.old.clone_from(o);
                row.old_behind = false;
            }
        }
        let checks_old = has_old && !row.old_behind && phase < Phase::Retire;
        if checks_old && o != Some(&row.old) {
            wrong("old", o, &row.old, row);
        }
        let promises_new = has_new
            && !row.is_unmappable
            && !stale.contains_key(key)
            && (phase >= Phase::Switch || new_complete || row.new_written);
        if promises_new && n != Some(&row.new) {
            wrong("new", n, &row.new, row);
        }
        if phase == Phase::Off {
            row.new_written = false;
        }
    }
    if world.shape.is_table && new_complete && phase < Phase::Retire {
        let trailing = if old_leads { &new } else { &old };
        if old_leads || old_complete {
            let is_known = |key: &&String| keys.contains_key(*key) || stale.contains_key(*key);
            for key in trailing.keys().filter(|key| !is_known(key)) {
                world.fail(format!("at {wish}: key {key} exists on the other side and should not"));
            }
        }
    }
    if world.shape.is_apart && new_complete && phase <= Phase::Retire {
        world.wait_for_repairs().await?;
        let left = world.rows_apart_alone().await?;
        if left > 0 {
            world.fail(format!("at {wish}: {left} rows of the columns' own table belong to no row"));
        }
    }
    *lock(&world.rows) = rows;
    Ok(())
}
