//! Backfills that a person pauses: no row is copied meanwhile, nothing is lost, and the reason names the person.

use crate::world::{Fleet, Outcome, World};
use cutover::ledger::Ledger;
use cutover::migration::admin::{pause_work, report, resume_work};
use cutover::migration::{BatchOptions, ColumnMigration};
use cutover::migration::{Plan, PlanError, Task};
use std::time::Duration;

const ROWS: i64 = 10_000;

/// A migration in `backfill` whose plan takes a thousand batches.
async fn in_backfill() -> Outcome<(World, Fleet, ColumnMigration, Ledger)> {
    let world = World::new(ROWS).await?;
    let a = world.instance("a", None).await?;
    let batches = BatchOptions { min_rows: 10, max_rows: 10, ..BatchOptions::default() };
    let plan = world.describe().without_guard_trigger().batches(batches).build()?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    let ledger = Ledger::open(world.url.parse()?).await?;
    Ok((world, a, plan, ledger))
}

async fn copied(world: &World) -> Outcome<i64> {
    let query = "select count(*) from orders where new_status is not null";
    Ok(sqlx::query_scalar(query).fetch_one(&world.pool).await?)
}

async fn until_said(world: &World, ledger: &Ledger) -> Outcome {
    let said = async || {
        let reports = report(ledger, Some("status")).await.unwrap_or_default();
        reports.iter().any(|one| {
            one.paused_by.as_deref() == Some("ann")
                && one.waits_for.as_ref().is_some_and(|waits| waits.contains("paused by ann"))
        })
    };
    Ok(world.until("it is said who paused it", said).await?)
}

#[tokio::test]
async fn a_paused_backfill_copies_no_row_and_resumes() -> Outcome {
    let (world, a, plan, ledger) = in_backfill().await?;
    let (running, migration) = (plan.clone(), a.migration.clone());
    let work = tokio::spawn(async move { running.run(Task::Backfill, &migration).await });
    world.until("rows are copied", async || copied(&world).await.unwrap_or(0) > 0).await?;
    pause_work(&ledger, "status", "ann").await?;
    pause_work(&ledger, "status", "bob").await?;
    until_said(&world, &ledger).await?;
    // A backfill that is not paused makes no progress only after its end.
    let stands = async || {
        let before = copied(&world).await.unwrap_or(-1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        copied(&world).await.unwrap_or(-2) == before
    };
    world.until("the work stands still", stands).await?;
    let moved = copied(&world).await?;
    assert!((1..ROWS).contains(&moved) && !work.is_finished(), "{moved} rows");
    resume_work(&ledger, "shop/status", "bob").await?;
    work.await??;
    assert_eq!(copied(&world).await?, ROWS);
    let events: Vec<(String, String)> = sqlx::query_as(
        "select event, actor from cutover.history where event like 'backfills and scans %' order by id",
    )
    .fetch_all(&world.pool)
    .await?;
    assert_eq!(
        events,
        [
            ("backfills and scans paused".into(), "ann".into()),
            ("backfills and scans resumed".into(), "bob".into())
        ]
    );
    let done: i64 = sqlx::query_scalar("select rows_done from cutover.jobs").fetch_one(&world.pool).await?;
    assert_eq!(done, ROWS);
    world.go("verify").await
}

#[tokio::test]
async fn a_paused_backfill_ends_with_its_phase() -> Outcome {
    let (world, a, plan, ledger) = in_backfill().await?;
    pause_work(&ledger, "status", "ann").await?;
    let (running, migration) = (plan.clone(), a.migration.clone());
    let work = tokio::spawn(async move { running.run(Task::Backfill, &migration).await });
    until_said(&world, &ledger).await?;
    world.go("expand").await?;
    let error = work.await?.expect_err("its phase was left");
    assert!(matches!(error, PlanError::PhaseLeft), "{error}");
    let jobs: i64 = sqlx::query_scalar("select count(*) from cutover.jobs").fetch_one(&world.pool).await?;
    assert_eq!((jobs, copied(&world).await?), (0, 0));
    Ok(())
}
