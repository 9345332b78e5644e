//! Other builds of the service that come and go while the table migrates, as in a rollback and a second deploy.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cutover::fleet::FleetOptions;
use cutover::migration::{Migration, Phase, PhaseRange};
use fastrand::Rng;
use sqlx::Row as _;
use tokio::time::sleep;

use crate::Outcome;
use crate::base::{Base, lock};
use crate::damage::Kind;
use crate::life::Subject;

/// For how long an instance of another build waits to be admitted.
const PATIENCE: Duration = Duration::from_secs(2);

/// How an instance renews its lease that may be killed.
const SHORT: FleetOptions =
    FleetOptions { name: None, lease: Duration::from_secs(4), renew_every: Duration::from_millis(800) };

/// A build of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    Same,
    /// Its mapping has another text.
    Earlier,
    /// It cannot read the new side.
    Early,
    /// It no longer writes the old side.
    Late,
    /// It knows nothing of the migration.
    Unaware,
}

const BUILDS: [Build; 7] =
    [Build::Same, Build::Same, Build::Earlier, Build::Earlier, Build::Early, Build::Late, Build::Unaware];

impl Build {
    fn range(self) -> PhaseRange {
        match self {
            Self::Same | Self::Earlier => PhaseRange::FULL,
            Self::Early => PhaseRange::new(Phase::Off..=Phase::Verify).unwrap_or(PhaseRange::FULL),
            Self::Late => PhaseRange::from_phase(Phase::Retire),
            Self::Unaware => PhaseRange::UNAWARE,
        }
    }
}

impl Base {
    /// An instance for the next write: its own, or one of another build.
    pub(crate) fn instance(&self, own: &Migration, rng: &mut Rng) -> Migration {
        let guests = lock(&self.guests);
        if guests.is_empty() || rng.bool() { own.clone() } else { guests[rng.usize(..guests.len())].clone() }
    }
}

/// Instances of other builds come and go until the migration is over.
pub(crate) async fn come_and_go<S: Subject>(subject: Arc<S>, seed: u64) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    let mut number = 0;
    while !subject.is_over.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(rng.u64(100..1_200))).await;
        number += 1;
        stay(&*subject, BUILDS[rng.usize(..BUILDS.len())], &format!("guest-{number}"), &mut rng).await?;
    }
    Ok(())
}

async fn stay<S: Subject>(subject: &S, build: Build, name: &str, rng: &mut Rng) -> Outcome {
    let specs = match build {
        Build::Unaware => Vec::new(),
        _ => {
            let spec = subject.spec(build.range(), build == Build::Earlier)?;
            [spec].into_iter().chain(subject.beside()?).collect()
        }
    };
    let agent = match subject.member(name, specs, SHORT).await {
        Ok(agent) => agent,
        // A connection was cut.
        Err(_) if subject.has_faults => return Ok(()),
        Err(error) => return Err(error),
    };
    let (began, stays) = (Instant::now(), Duration::from_millis(rng.u64(50..1_500)));
    let mut admitted_at = None;
    let mut migration = None;
    while !subject.is_over.load(Ordering::Relaxed) {
        let is_admitted = watch(subject, build, name).await?;
        if is_admitted && admitted_at.is_none() {
            admitted_at = Some(Instant::now());
            migration = agent.migration("subject").filter(|_| build.range() == PhaseRange::FULL);
        }
        if let Some(one) = migration.take_if(|one| one.current().is_some()) {
            lock(&subject.guests).push(one);
        }
        let is_done = match admitted_at {
            Some(at) => at.elapsed() > stays,
            None => began.elapsed() > PATIENCE,
        };
        if is_done {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    lock(&subject.guests).clear();
    // One that is killed says nothing. The fleet waits for its lease.
    if !rng.u8(..).is_multiple_of(6) {
        // None of its transactions is running.
        drop(subject.quiet.write().await);
        // A connection may have been cut. Then its lease ends.
        agent.leave().await.ok();
    }
    Ok(())
}

/// Whether the instance is admitted, which it must not be in a phase that its build cannot run.
async fn watch(base: &Base, build: Build, name: &str) -> Outcome<bool> {
    let query = "select m.phase, coalesce(bool_or(i.admitted), false) from cutover.migrations m \
        left join cutover.instances i on i.name = $1 and i.lease_until > clock_timestamp() where m.name = 'subject' and m.ended_at is null \
        group by 1";
    // Every build is admitted once the migration has ended.
    let row = sqlx::query(query).bind(name).fetch_optional(&base.control).await?;
    let Some(row) = row else { return Ok(true) };
    let (phase, is_admitted): (Phase, bool) = (row.get::<String, _>(0).parse()?, row.get(1));
    if is_admitted && !build.range().contains(phase) {
        base.fail(Kind::Misjudged, format!("an instance of build {build:?} is admitted in {phase}"));
    }
    Ok(is_admitted)
}
