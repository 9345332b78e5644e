//! The end of a migration through the command line.

use std::time::Duration;

use cutover::migration::{ColumnMigration, MigrationSpec, Phase, PhaseRange};
use cutover_testkit::wait_until;
use serde_json::Value;
use sqlx::PgPool;

use crate::steps::{instance, went};
use crate::{Outcome, database, done, execute, refused, run};

/// With a guard trigger.
async fn guarded(url: &str) -> Result<ColumnMigration, Box<dyn std::error::Error>> {
    Ok(ColumnMigration::new(PgPool::connect(url).await?, "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .build()?)
}

async fn orders(url: &str) -> Outcome {
    done(url, &["install"], &[]).await;
    execute(
        url,
        "create table orders (id bigint primary key, old_status text); \
         insert into orders select g, 'PAID' from generate_series(1, 50) g",
    )
    .await
}

async fn one<T>(url: &str, query: &'static str) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let pool = PgPool::connect(url).await.unwrap();
    sqlx::query_scalar(query).fetch_one(&pool).await.unwrap()
}

async fn is_in(url: &str, phase: &'static str) -> Outcome {
    wait_until(phase, Duration::from_secs(60), async || {
        let status = run(url, &["status"]).await.out;
        if status.contains(&format!("shop/status  {phase}")) { Ok(true) } else { Err(status) }
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn an_abandoned_migration_leaves_its_table_writable() -> Outcome {
    let url = &database().await?;
    orders(url).await?;
    let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(guarded(url).await?);
    let agent = instance(url, "stable", spec).await?;
    went(url, &["expand", "status"]).await;
    refused(url, &["abandon", "status"], 1, &["it is in `expand`", "cutover set-phase status off"]).await;
    done(url, &["set-phase", "status", "off"], &[]).await;
    is_in(url, "off").await?;
    wait_until("the drain", Duration::from_secs(60), async || {
        let said = run(url, &["abandon", "status", "--dry-run"]).await;
        if said.code == 0 { Ok(true) } else { Err(said.err) }
    })
    .await?;
    let triggers = "select count(*) from pg_trigger where tgname like 'zzz_cutover%'";
    assert_eq!(one::<i64>(url, triggers).await, 3);
    let parts = ["shop/status is abandoned", "drop trigger", "to remove it:", "drop column new_status"];
    done(url, &["abandon", "status", "--reason", "not needed"], &parts).await;
    assert_eq!(one::<i64>(url, triggers).await, 0);
    execute(url, "alter table orders drop column new_status; update orders set old_status = 'X'").await?;

    done(url, &["history"], &["abandoned", "not needed"]).await;
    done(url, &["status"], &["abandoned, ", "can be removed"]).await;
    refused(url, &["set-phase", "status", "expand"], 1, &["is abandoned and cannot be changed"]).await;
    refused(url, &["abandon", "status"], 1, &["is abandoned"]).await;
    refused(url, &["forget", "status"], 1, &["running instances declare it (stable)"]).await;
    agent.leave().await?;
    // Builds with and without it are admitted.
    let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(guarded(url).await?);
    let declares = instance(url, "declares", spec).await?;
    let admitted = "select coalesce(bool_and(admitted), false) from cutover.instances";
    wait_until("admission", Duration::from_secs(60), async || {
        Ok::<_, std::io::Error>(one::<bool>(url, admitted).await)
    })
    .await?;
    assert_eq!(one::<String>(url, "select phase from cutover.migrations").await, "off");
    declares.leave().await?;

    let json: Value = serde_json::from_str(
        &done(url, &["forget", "status", "--reason", "name needed", "--actor", "ada", "--json"], &[]).await,
    )?;
    let events = json["record"]["history"].as_array().ok_or("no history")?;
    let last = events.last().ok_or("an empty history")?;
    assert!(events.len() > 2, "{json}");
    assert_eq!(
        [&last["event"], &last["actor"], &last["reason"]],
        ["archived", "ada", "name needed"],
        "{json}"
    );
    assert_eq!(json["record"]["migration"]["ended_as"], "abandoned");
    let archived = "select count(*) from cutover.archive where name = 'status' and archived_by = 'ada' \
        and record->'history'->-1->>'reason' = 'name needed'";
    assert_eq!(one::<i64>(url, archived).await, 1);
    // The name is free.
    let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(guarded(url).await?);
    let _again = instance(url, "again", spec).await?;
    went(url, &["expand", "status"]).await;
    Ok(())
}

#[tokio::test]
async fn abandon_can_drop_the_new_side() -> Outcome {
    let url = &database().await?;
    orders(url).await?;
    let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(guarded(url).await?);
    let _agent = instance(url, "stable", spec).await?;
    went(url, &["expand", "status"]).await;
    done(url, &["set-phase", "status", "off"], &[]).await;
    is_in(url, "off").await?;
    wait_until("the end", Duration::from_secs(60), async || {
        let said = run(url, &["abandon", "status", "--drop-new-side"]).await;
        if said.code == 0 { Ok(true) } else { Err(said.err) }
    })
    .await?;
    let columns = "select count(*) from pg_attribute where attrelid = 'orders'::regclass \
        and attname = 'new_status'";
    assert_eq!(one::<i64>(url, columns).await, 0);
    Ok(())
}

#[tokio::test]
async fn a_database_in_the_new_shape_is_finished_from_the_start() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, "create table orders (id bigint primary key, new_status text)").await?;
    // A build that has no code for the old side.
    let spec = MigrationSpec::new("status", PhaseRange::from_phase(Phase::Retire)).plan(guarded(url).await?);
    let agent = instance(url, "new", spec).await?;
    let admitted = "select coalesce(bool_and(admitted), false) from cutover.instances";
    wait_until("admission", Duration::from_secs(60), async || {
        Ok::<_, std::io::Error>(one::<bool>(url, admitted).await)
    })
    .await?;
    done(url, &["history"], &["finished from the start"]).await;
    done(url, &["plan", "status"], &["no step is left: the migration is finished"]).await;
    agent.leave().await?;

    // Another migration by the same name is refused, the same one is not.
    let other = ColumnMigration::new(PgPool::connect(url).await?, "orders")
        .column("new_status", "newer_status", "text")
        .forward("lower(new_status)")
        .backward("upper(newer_status)")
        .build()?;
    let other = instance(url, "other", MigrationSpec::new("status", PhaseRange::FULL).plan(other)).await?;
    wait_until("the refusal", Duration::from_secs(60), async || {
        let status = run(url, &["status"]).await.out;
        let is_refused =
            status.contains("another one by that name") && status.contains("cutover forget status");
        if is_refused { Ok(true) } else { Err(status) }
    })
    .await?;
    other.leave().await?;
    Ok(())
}

/// A plan that takes over `new_status`, whose old column's name may be wrong.
async fn takes_over(url: &str, old: &str) -> Result<MigrationSpec, Box<dyn std::error::Error>> {
    let plan = ColumnMigration::new(PgPool::connect(url).await?, "orders")
        .column(old, "new_status", "text")
        .forward(&format!("lower({old})"))
        .backward("upper(new_status)")
        .use_existing_column()
        .build()?;
    Ok(MigrationSpec::new("status", PhaseRange::FULL).plan(plan))
}

#[tokio::test]
async fn a_misspelt_old_column_does_not_finish_a_migration() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    // The driver finds the tables after its start; then an instance that starts finds them.
    let early = instance(url, "early", takes_over(url, "old_statuss").await?).await?;
    is_in(url, "off").await?;
    execute(
        url,
        "create table orders (id bigint primary key, old_status text, new_status text); \
         insert into orders select g, 'PAID', 'paid' from generate_series(1, 50) g",
    )
    .await?;
    let reasons = ["did you mean \"old_status\"?", "`cutover baseline status`", "use_existing_column"];
    let says = async |command: &'static str| {
        wait_until("the reason", Duration::from_secs(60), async || {
            let said = run(url, &[command, "status"]).await.out;
            let says_all = reasons.iter().all(|reason| said.contains(reason));
            if says_all { Ok(true) } else { Err(said) }
        })
        .await
    };
    says("explain").await?;
    early.leave().await?;
    let late = instance(url, "late", takes_over(url, "old_statuss").await?).await?;
    says("status").await?;
    late.leave().await?;
    let state = "select phase || coalesce(ended_as, '') || epoch from cutover.migrations";
    assert_eq!(one::<String>(url, state).await, "off1");

    // With the name corrected it is an ordinary migration.
    let corrected = instance(url, "corrected", takes_over(url, "old_status").await?).await?;
    went(url, &["expand", "status"]).await;
    corrected.leave().await?;
    Ok(())
}

#[tokio::test]
async fn a_new_column_in_use_needs_a_baseline_by_a_person() -> Outcome {
    for (rows, needs_person) in [(0, false), (50, true)] {
        let url = &database().await?;
        done(url, &["install"], &[]).await;
        execute(
            url,
            &format!(
                "create table orders (id bigint primary key, new_status text); \
                 insert into orders select g, 'paid' from generate_series(1, {rows}) g"
            ),
        )
        .await?;
        let agent = instance(url, "new", takes_over(url, "old_status").await?).await?;
        if needs_person {
            wait_until("the refusal", Duration::from_secs(60), async || {
                let status = run(url, &["status"]).await.out;
                if status.contains("cutover baseline status") { Ok(true) } else { Err(status) }
            })
            .await?;
            done(url, &["baseline", "status"], &["shop/status is finished"]).await;
        }
        is_in(url, "contract").await?;
        let admitted = "select coalesce(bool_and(admitted), false) from cutover.instances";
        wait_until("admission", Duration::from_secs(60), async || {
            Ok::<_, std::io::Error>(one::<bool>(url, admitted).await)
        })
        .await?;
        agent.leave().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_schema_made_after_the_start_is_recognised() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(guarded(url).await?);
    let _agent = instance(url, "early", spec).await?;
    is_in(url, "off").await?;
    execute(url, "create table orders (id bigint primary key, new_status text)").await?;
    is_in(url, "contract").await?;
    let at_work = "select coalesce(bool_and(i.admitted and a.epoch = 1), false) from cutover.instances i \
        join cutover.acknowledgements a on a.instance_id = i.id";
    wait_until("the instance", Duration::from_secs(60), async || {
        Ok::<_, std::io::Error>(one::<bool>(url, at_work).await)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_baseline_is_recorded_before_the_first_start() -> Outcome {
    let url = &database().await?;
    orders(url).await?;
    let dry = ["baseline", "shop/status", "--dry-run"];
    done(url, &dry, &["dry run", "would be finished"]).await;
    done(url, &["status"], &["the ledger has no migration"]).await;
    done(url, &["baseline", "shop/status"], &["shop/status is finished"]).await;
    refused(url, &["baseline", "shop/status"], 1, &["is finished"]).await;
    let _agent =
        instance(url, "bare", MigrationSpec::new("status", PhaseRange::from_phase(Phase::Retire))).await?;
    let admitted = "select coalesce(bool_and(admitted), false) from cutover.instances";
    wait_until("admission", Duration::from_secs(60), async || {
        Ok::<_, std::io::Error>(one::<bool>(url, admitted).await)
    })
    .await?;

    // Where a build has published its plan, the old side is looked for.
    let spec = MigrationSpec::new("second", PhaseRange::FULL).plan(guarded(url).await?);
    let _second = instance(url, "second", spec).await?;
    refused(url, &["baseline", "second"], 1, &["the old side exists (\"orders\".old_status)"]).await;
    Ok(())
}

#[tokio::test]
async fn finish_refuses_while_the_old_side_exists() -> Outcome {
    let url = &database().await?;
    orders(url).await?;
    let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(guarded(url).await?);
    let agent = instance(url, "stable", spec).await?;
    refused(url, &["finish", "status"], 1, &["it is in `off`", "cutover contract status"]).await;
    // The text does not say that a side in use can be dropped.
    let said = run(url, &["finish", "status"]).await.err;
    assert!(!said.contains("drop column"), "{said}");
    for step in ["expand", "backfill", "verify"] {
        went(url, &[step, "status"]).await;
    }
    went(url, &["ramp", "status", "--percent", "25"]).await;
    let percent = "select ramp_percent from cutover.migrations";
    assert_eq!(one::<i16>(url, percent).await, 25);
    assert!(went(url, &["status"]).await.out.contains("ramp:25 (epoch"));
    went(url, &["ramp", "status", "--percent", "100"]).await;
    assert_eq!(one::<i16>(url, percent).await, 100);
    went(url, &["switch", "status"]).await;
    went(url, &["retire", "status"]).await;
    agent.leave().await?;
    execute(
        url,
        "update cutover.epochs set closed_at = now(), drained_at = now(); \
         insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason) \
             select id, epoch + 1, 'contract', 'retire', 'me', 'test' from cutover.migrations; \
         update cutover.epochs set closed_at = now(), drained_at = now() where phase = 'retire'; \
         update cutover.migrations set epoch = epoch + 1, phase = 'contract'",
    )
    .await?;
    let remedy = "alter table public.orders drop column \"old_status\"";
    refused(url, &["finish", "status"], 1, &["the old side still exists", remedy]).await;
    execute(url, "alter table public.orders drop column old_status cascade").await?;
    done(url, &["finish", "status", "--dry-run"], &["would be finished"]).await;
    done(url, &["finish", "status"], &["shop/status is finished"]).await;
    done(url, &["status"], &["finished, ", "`DualWrite` and the code of the old side can be removed"]).await;
    Ok(())
}
