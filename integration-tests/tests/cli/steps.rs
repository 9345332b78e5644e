//! A migration from `off` to `contract` through the command line, with an instance that does the work.

use std::time::Duration;

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::PhaseRange;
use cutover::migration::{Agent, DriverOptions, MigrationSpec};
use cutover::migration::{ColumnMigration, ColumnMigrationBuilder};
use cutover::release::Release;
use serde_json::Value;
use sqlx::PgPool;

use crate::{Outcome, Said, database, done, execute, refused, run};

pub(crate) async fn described(url: &str) -> Result<ColumnMigrationBuilder, Box<dyn std::error::Error>> {
    Ok(ColumnMigration::new(PgPool::connect(url).await?, "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .without_guard_trigger())
}

pub(crate) async fn column(url: &str) -> Result<ColumnMigration, Box<dyn std::error::Error>> {
    Ok(described(url).await?.build()?)
}

/// An instance whose name is its version.
pub(crate) async fn instance(
    url: &str,
    version: &str,
    spec: MigrationSpec,
) -> Result<Agent, Box<dyn std::error::Error>> {
    let health = Health::new();
    let release = Release::new("shop", version)?.with_instance(version)?;
    let fleet =
        Fleet::join(Ledger::open(url.parse()?).await?, &release, FleetOptions::default(), &health).await?;
    Ok(Agent::start(fleet, vec![spec.soak(Duration::ZERO)], DriverOptions::default(), &health).await?)
}

/// A table of 3,000 orders, the ledger, and an instance that declares the migration `status`.
pub(crate) async fn shop(url: &str) -> Result<Agent, Box<dyn std::error::Error>> {
    execute(
        url,
        "create table orders (id bigint primary key, old_status text); \
         insert into orders select g, 'PAID' from generate_series(1, 3000) g",
    )
    .await?;
    done(url, &["install"], &[]).await;
    let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(column(url).await?);
    instance(url, "stable", spec).await
}

pub(crate) async fn went(url: &str, arguments: &[&str]) -> Said {
    let said = run(url, arguments).await;
    assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
    said
}

#[tokio::test]
async fn a_migration_can_be_run_step_by_step() -> Outcome {
    let url = &database().await?;
    let _agent = shop(url).await?;

    let parts = [
        "shop/status is in `off`",
        "statements published by version stable",
        "off → expand",
        "alter table \"orders\" add column if not exists \"new_status\" text",
        "no   the new side is complete",
        "update \"orders\" set \"new_status\" = (lower(old_status))",
        "retire → contract",
        "drop column if exists \"old_status\"",
    ];
    done(url, &["plan", "status"], &parts).await;
    let json: Value =
        serde_json::from_str(&done(url, &["plan", "status", "--to", "verify", "--json"], &[]).await)?;
    assert_eq!(json["steps"].as_array().map(Vec::len), Some(3));
    assert_eq!(json["steps"][2]["task"], "backfill");

    refused(
        url,
        &["backfill", "status"],
        1,
        &["is in `off`; before `backfill`, run `cutover expand status`"],
    )
    .await;
    done(url, &["expand", "status", "--dry-run"], &["dry run: nothing is changed", "add column"]).await;
    done(url, &["status"], &["shop/status  off"]).await;
    went(url, &["expand", "status"]).await;
    went(url, &["expand", "status"]).await;
    let json: Value = serde_json::from_str(&went(url, &["backfill", "status", "--json"]).await.out)?;
    assert_eq!((&json["done"], &json["phase"]), (&true.into(), &"backfill".into()));
    let copied = "select count(*) from orders where new_status = 'paid'";
    let pool = PgPool::connect(url).await?;
    assert_eq!(sqlx::query_scalar::<_, i64>(copied).fetch_one(&pool).await?, 3_000);
    refused(
        url,
        &["expand", "status"],
        1,
        &["is in `backfill`, past `expand`", "cutover set-phase status expand"],
    )
    .await;

    execute(url, "update orders set new_status = 'forged' where id = 7").await?;
    let said = run(url, &["verify", "status"]).await;
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert!(said.out.contains("the sides differ") && said.out.contains("forged"), "{}", said.out);
    execute(url, "update orders set new_status = 'paid' where id = 7").await?;
    went(url, &["verify", "status"]).await;
    done(
        url,
        &["plan", "status"],
        &["yes  a scan of both sides since the last backfill found no difference"],
    )
    .await;

    refused(url, &["contract", "status"], 1, &["before `contract`, run `cutover ramp status`"]).await;
    done(url, &["set-phase", "status", "retire"], &[]).await;
    let ahead = ["retire → contract", "no   a person has approved the drop"];
    cutover_testkit::wait_until("retire", Duration::from_secs(60), async || {
        let status = run(url, &["status"]).await.out;
        if status.contains("shop/status  retire") { Ok(true) } else { Err(status) }
    })
    .await?;
    done(url, &["contract", "status", "--dry-run"], &ahead).await;
    went(url, &["contract", "status", "--reason", "quiet for a week"]).await;
    done(url, &["history"], &["contract approved", "quiet for a week", "old side dropped"]).await;
    assert!(pool.acquire().await.is_ok());
    let there =
        "select count(*) from pg_attribute where attrelid = 'orders'::regclass and attname = 'old_status'";
    assert_eq!(sqlx::query_scalar::<_, i64>(there).fetch_one(&pool).await?, 0);
    done(url, &["plan", "status"], &["no step is left"]).await;
    Ok(())
}

#[tokio::test]
async fn a_wait_without_a_driver_says_so_and_ends_in_time() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(
        url,
        "insert into cutover.fleets values ('shop'); \
         insert into cutover.migrations (fleet, name) values ('shop', 'status'); \
         insert into cutover.epochs (migration_id, epoch, phase, actor, reason) select id, 1, 'off', 'me', 'test' \
             from cutover.migrations",
    )
    .await?;
    let said = run(url, &["expand", "status", "--timeout", "1s"]).await;
    assert_eq!(said.code, 4, "{}{}", said.out, said.err);
    assert!(
        said.err.contains("no instance drives it") && said.out.contains("not done yet"),
        "{}{}",
        said.out,
        said.err
    );
    // The desired phase is set nevertheless, as it is with --no-wait.
    done(url, &["status"], &["desired   expand"]).await;
    done(url, &["expand", "status", "--no-wait"], &["desired phase set to expand"]).await;
    Ok(())
}

/// What an owner runs for a service whose role may not change the schema.
#[tokio::test]
async fn the_statements_of_a_plan_run_as_they_are_shown() -> Outcome {
    let url = &database().await?;
    execute(url, "create table orders (id bigint primary key, old_status text)").await?;
    done(url, &["install"], &[]).await;
    let plan = ColumnMigration::new(PgPool::connect(url).await?, "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .build()?;
    let _agent = instance(url, "stable", MigrationSpec::new("status", PhaseRange::FULL).plan(plan)).await?;
    let shown = done(url, &["plan", "status"], &["to unblock: `cutover approve shop/status`"]).await;
    assert!(!shown.contains(":migration") && !shown.contains("<migration>"), "{shown}");
    let json: Value = serde_json::from_str(&done(url, &["plan", "status", "--json"], &[]).await)?;
    for task in ["expand", "contract"] {
        let steps = json["steps"].as_array().ok_or("steps")?;
        let step = steps.iter().find(|step| step["task"] == task).ok_or("the step")?;
        execute(url, step["sql"].as_str().ok_or("statements")?)
            .await
            .map_err(|error| format!("{task}: {error}"))?;
    }
    Ok(())
}
