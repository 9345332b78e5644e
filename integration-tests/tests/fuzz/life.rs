//! One table's migration from beginning to end, with a judgement after each phase.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cutover::migration::{Agent, Migration, MigrationSpec, Phase, PhaseRange};
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Outcome;
use crate::base::{Base, lock};
use crate::beside::walk;
use crate::builds::come_and_go;
use crate::changes::ChangeWorld;
use crate::chosen::Chosen;
use crate::damage::{Damage, Kind};
use crate::keys::KeyWorld;
use crate::world::World;

/// How long a step may take. One that takes longer does not end, also where other suites run beside.
pub(crate) const STEP: Duration = Duration::from_secs(80);
/// For how long a refusal of a table without a flaw has to stand.
const STANDS: Duration = Duration::from_secs(8);
/// How long writers run between two judgements.
pub(crate) const BETWEEN: Duration = Duration::from_millis(90);

/// What became of a table.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    shape: String,
    /// How many phases were reached.
    pub(crate) phases: usize,
    /// Why it was refused before `expand`.
    pub(crate) refusal: Option<String>,
    pub(crate) damage: Vec<Damage>,
    pub(crate) writes: u64,
    pub(crate) refusals: u64,
    pub(crate) longest_hold: (Duration, String),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let damage: Vec<String> = self.damage.iter().map(Damage::to_string).collect();
        write!(
            f,
            "CUTOVER_FUZZ_SEED={} after {} phases: {}\n    {}",
            self.seed,
            self.phases,
            damage.join("\n    "),
            self.shape
        )
    }
}

/// What migrates: a table with its writers and its judge.
pub(crate) trait Subject: Deref<Target = Base> + Send + Sync + 'static {
    /// Only a flaw is a reason for a refusal.
    const HAS_FLAWS_ONLY: bool = false;

    /// What makes the plan impossible.
    fn flaw(&self) -> Option<String>;

    /// The migration as a build with this range declares it. `is_earlier`: an earlier build, whose mapping has another text.
    fn spec(&self, range: PhaseRange, is_earlier: bool) -> Outcome<MigrationSpec>;

    /// A second migration of the table.
    fn beside(&self) -> Outcome<Option<MigrationSpec>> {
        Ok(None)
    }

    /// Starts the writers.
    fn spawn(self: &Arc<Self>, writers: &mut JoinSet<Outcome>, rng: &mut Rng, migration: &Migration);

    /// What happens before the next phase is asked for.
    fn before(&self, last: &str, wish: &str) -> impl Future<Output = Outcome> + Send;

    /// What happens while the fleet moves.
    fn during(&self, wish: &str, is_chosen: bool) -> impl Future<Output = Outcome> + Send;

    /// What keeps the fleet from a phase that it does not reach, as far as the writers know.
    fn left(&self) -> String {
        String::new()
    }

    /// Compares all rows with what is known, in this phase.
    fn judge(&self, wish: &str) -> impl Future<Output = Outcome> + Send;
}

/// Generates and migrates the table of this seed.
pub(crate) async fn live(seed: u64) -> Report {
    let mut rng = Rng::with_seed(seed);
    let subject = Chosen::of_seed(seed, &mut rng);
    let mut report = Report { seed, shape: subject.to_string(), ..Report::default() };
    let outcome = match subject {
        Chosen::Sides(shape) => lead(World::new(*shape).await, &mut rng, &mut report).await,
        Chosen::Key(shape) => lead(KeyWorld::new(shape).await, &mut rng, &mut report).await,
        Chosen::Change(shape) => {
            let made = ChangeWorld::new(shape, &mut rng).await;
            lead(made, &mut rng, &mut report).await
        }
    };
    if let Err(error) = outcome {
        report.damage.push(error.into());
    }
    report
}

async fn lead<S: Subject>(made: Outcome<Option<S>>, rng: &mut Rng, report: &mut Report) -> Outcome {
    let Some(subject) = made? else { return Ok(()) };
    let subject = Arc::new(subject);
    let outcome = migrate(&subject, rng, report).await;
    subject.is_over.store(true, Ordering::Relaxed);
    report.damage.append(&mut lock(&subject.damage));
    report.writes = subject.writes.load(Ordering::Relaxed);
    report.refusals = subject.refusals.load(Ordering::Relaxed);
    report.longest_hold = lock(&subject.longest_hold).clone();
    outcome
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

async fn migrate<S: Subject>(subject: &Arc<S>, rng: &mut Rng, report: &mut Report) -> Outcome {
    let specs = || {
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
            [subject.spec(PhaseRange::FULL, false)?].into_iter().chain(subject.beside()?).collect::<Vec<_>>(),
        )
    };
    let (agent, migration) = subject.join("a", specs()?).await?;
    let has_faults = subject.has_faults;
    let has_second = has_faults || rng.u8(..).is_multiple_of(4);
    let mut second = if has_second { Some(subject.join("b", specs()?).await?) } else { None };
    let began = Instant::now();
    while migration.current().is_none() {
        if began.elapsed() > STEP {
            return Err(Kind::Stuck.of("the instance is not admitted").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    let mut writers = JoinSet::new();
    if subject.flaw().is_none() {
        subject.spawn(&mut writers, rng, &migration);
    }
    let faults = has_faults.then(|| tokio::spawn(cut(Arc::clone(subject), rng.u64(..))));
    let beside = match subject.beside()? {
        Some(_) => Some(tokio::spawn(walk(Arc::clone(subject), rng.u64(..)))),
        None => None,
    };
    let guests = subject.has_guests.then(|| tokio::spawn(come_and_go(Arc::clone(subject), rng.u64(..))));
    // An instance that is killed says nothing. The fleet waits for its lease.
    let mut killed = second.take_if(|_| has_faults);
    let outcome = visit(&**subject, rng, report, &mut killed).await;
    subject.is_over.store(true, Ordering::Relaxed);
    while let Some(writer) = writers.join_next().await {
        if let Err(error) = writer? {
            subject.fail(Kind::Harness, format!("a writer stopped: {error}"));
        }
    }
    agent.leave().await?;
    if let Some((second, _)) = second {
        second.leave().await?;
    }
    for task in [faults, beside, guests].into_iter().flatten() {
        task.await??;
    }
    outcome
}

/// Cuts a connection about every three seconds until the migration is over.
async fn cut<S: Subject>(world: Arc<S>, seed: u64) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    while !world.is_over.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(100)).await;
        if rng.u8(..30) == 0 {
            world.cut().await?;
        }
    }
    Ok(())
}

async fn visit<S: Subject>(
    subject: &S,
    rng: &mut Rng,
    report: &mut Report,
    killed: &mut Option<(Agent, Migration)>,
) -> Outcome {
    sleep(BETWEEN).await;
    let mut last = "off";
    for wish in route(rng) {
        subject.before(last, wish).await?;
        last = wish;
        if rng.u8(..).is_multiple_of(4) {
            *killed = None;
        }
        if wish == "contract" {
            subject.ends.store(true, Ordering::Relaxed);
            // A writer in the middle of something has not seen it.
            drop(subject.quiet.write().await);
            subject.approve().await?;
        }
        subject.desire(wish).await?;
        let is_chosen = rng.bool();
        let (arrived, during) =
            tokio::join!(arrive(subject, wish, report.phases == 0), subject.during(wish, is_chosen));
        during?;
        if arrived.is_err() {
            let left = subject.left();
            if !left.is_empty() {
                subject.fail(Kind::Stuck, left);
            }
        }
        if let Some(refusal) = arrived? {
            if subject.flaw().is_none() && (S::HAS_FLAWS_ONLY || passes_in_quiet(subject).await?) {
                let text = format!("was refused for a reason that does not stand: {refusal}");
                subject.fail(Kind::Misjudged, text);
            }
            report.refusal = Some(refusal);
            return Ok(());
        }
        if let Some(flaw) = subject.flaw() {
            return Err(Kind::Misjudged.of(format!("the flaw {flaw} was not found before `expand`")).into());
        }
        report.phases += 1;
        subject.judge(wish).await?;
        if !lock(&subject.damage).is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether a refused `expand` succeeds a little later, while no writer is in the middle of anything.
async fn passes_in_quiet(world: &Base) -> Outcome<bool> {
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
pub(crate) async fn arrive(world: &Base, wish: &str, is_first: bool) -> Outcome<Option<String>> {
    let target: Phase = wish.split(':').next().unwrap_or(wish).parse()?;
    let began = Instant::now();
    let (mut last, mut retried) = (None, began);
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
        // As a person who has corrected rows does, because the pauses between two tries grow to two minutes.
        if world.corrects.load(Ordering::Relaxed) && retried.elapsed() > Duration::from_secs(5) {
            world.retry_repairs().await?;
            retried = Instant::now();
        }
        if !lock(&world.damage).is_empty() {
            return Ok(None);
        }
        if began.elapsed() > world.step {
            let repairs = world.pending_repairs().await?;
            let text = format!(
                "{wish} was not reached: in {phase}, waits for {waits_for:?}, before: {last:?}; repairs: {repairs}"
            );
            return Err(Kind::Stuck.of(text).into());
        }
        last = waits_for.or(last);
        sleep(Duration::from_millis(15)).await;
    }
}
