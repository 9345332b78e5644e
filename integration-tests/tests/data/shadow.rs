//! Reads that are compared in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cutover::migration::{Compared, DualWrite, Shadow, ShadowOptions};
use cutover::migration::{Error, PinnedTx};
use prometheus::Registry;
use sqlx::Executor;
use tokio::sync::Semaphore;

use crate::world::{Fleet, Outcome, World};

/// A column whose reads can be made to fail.
#[derive(Clone)]
struct Column {
    query: &'static str,
    gate: Arc<Semaphore>,
    panics: Arc<AtomicBool>,
}

impl Column {
    fn new(query: &'static str) -> Self {
        Self { query, gate: Arc::new(Semaphore::new(1_000_000)), panics: Arc::default() }
    }
}

impl Compared<i64> for Column {
    type Value = Option<String>;

    async fn read(&self, tx: &mut PinnedTx, id: &i64) -> Result<Option<String>, Error> {
        let _passed = self.gate.acquire().await.map(|permit| permit.forget());
        assert!(!self.panics.load(Ordering::Relaxed), "the test asks for a panic");
        Ok(sqlx::query_scalar(self.query).bind(*id).fetch_one(&mut **tx).await?)
    }
}

struct Watched {
    world: World,
    fleet: Fleet,
    old: Column,
    shadow: Shadow<i64>,
    registry: Registry,
}

async fn watched(queue: usize) -> Outcome<Watched> {
    let world = World::new(50).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    let registry = Registry::new();
    fleet.agent.register(&registry)?;
    let old = Column::new("select lower(trim(old_status)) from orders where id = $1");
    let new = Column::new("select new_status from orders where id = $1");
    let sides = DualWrite::new(fleet.migration.clone(), old.clone(), new);
    let options = ShadowOptions { share: 1.0, queue, ..ShadowOptions::default() };
    let shadow = Shadow::start(sides, world.pool.clone(), options)?;
    Ok(Watched { world, fleet, old, shadow, registry })
}

impl Watched {
    fn count(&self, outcome: &str) -> u64 {
        let wanted = |metric: &&prometheus::proto::Metric| {
            let labels = metric.get_label();
            labels.iter().any(|label| label.value() == outcome)
                && labels.iter().any(|label| label.value() == "status")
        };
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == "cutover_migration_shadow_reads_total");
        let metric = family.and_then(|family| family.get_metric().iter().find(wanted));
        metric.map_or(0, |metric| metric.get_counter().get_value() as u64)
    }

    async fn counts(&self, outcome: &str, at_least: u64) -> Outcome {
        let ask = async || self.count(outcome) >= at_least;
        Ok(self.world.until(&format!("{at_least} {outcome}"), ask).await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shadow_reads_find_differences_but_not_writers() -> Outcome {
    let watched = watched(1_000).await?;
    for phase in ["expand", "backfill"] {
        watched.world.go(phase).await?;
        watched.shadow.observe(1);
    }
    watched.world.go("verify").await?;
    // One column after the other: in between they differ for every read except one in a snapshot.
    let (stop, pool, migration) =
        (Arc::new(AtomicBool::new(false)), watched.world.pool.clone(), watched.fleet.migration.clone());
    let stopped = Arc::clone(&stop);
    let writer = tokio::spawn(async move {
        let mut number = 0;
        while !stopped.load(Ordering::Relaxed) {
            number += 1;
            let mut tx = migration.begin(&pool).await?;
            sqlx::query("update orders set old_status = 'PAID' || $1 where id = 1")
                .bind(number)
                .execute(&mut *tx)
                .await?;
            sqlx::query("update orders set new_status = 'paid' || $1 where id = 1")
                .bind(number)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
        }
        Ok::<_, Error>(number)
    });
    for _ in 0..200 {
        watched.shadow.observe(1);
    }
    watched.counts("same", 200).await?;
    assert_eq!((watched.count("different"), watched.count("error"), watched.count("dropped")), (0, 0, 0));
    stop.store(true, Ordering::Relaxed);
    assert!(writer.await?? > 0);
    watched.world.pool.execute("update orders set new_status = 'forged' where id = 7").await?;
    watched.shadow.observe(7);
    watched.counts("different", 1).await?;
    // In a phase that need not write both sides nothing is compared.
    watched.world.pool.execute("update orders set new_status = lower(trim(old_status)) where id = 7").await?;
    watched.world.go("retire").await?;
    watched.shadow.observe(7);
    assert_eq!((watched.count("same"), watched.count("different")), (200, 1));
    Ok(())
}

#[tokio::test]
async fn shadow_reads_never_affect_requests() -> Outcome {
    let watched = watched(5).await?;
    watched.world.go("verify").await?;
    // The task hangs in the first comparison: the queue is full, and `observe` does not wait.
    watched.old.gate.forget_permits(2_000_000);
    for _ in 0..100 {
        watched.shadow.observe(1);
    }
    assert!(watched.count("dropped") >= 94, "{}", watched.count("dropped"));
    watched.old.gate.add_permits(1_000);
    watched.counts("same", 1).await?;
    watched.old.panics.store(true, Ordering::Relaxed);
    let before = watched.count("error");
    watched.shadow.observe(1);
    watched.counts("error", before + 1).await?;
    watched.old.panics.store(false, Ordering::Relaxed);
    let before = watched.count("same");
    watched.shadow.observe(1);
    watched.counts("same", before + 1).await?;
    // No pin is leaked.
    watched.world.go("switch").await?;
    Ok(())
}

#[tokio::test]
async fn all_problems_of_the_options_are_reported_at_once() -> Outcome {
    let world = World::new(1).await?;
    let a = world.instance("a", None).await?;
    let sides = DualWrite::new(a.migration.clone(), Column::new(""), Column::new(""));
    let options = ShadowOptions { share: 7.0, queue: 0, ..ShadowOptions::default() };
    let error = Shadow::start(sides, world.pool.clone(), options).expect_err("refused").to_string();
    assert!(error.contains("shadow.share") && error.contains("shadow.queue"), "{error}");
    Ok(())
}
