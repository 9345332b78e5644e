//! Strangers: whoever writes a migrating table past the library.

use crate::world::{Outcome, World};
use cutover::fleet::Ledger;
use cutover::migration::control::{Error, StrangerReport, strangers};
use cutover::migration::data::{TableMigration, each};
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection};

/// A session of its own, as a job of the night has one.
async fn stranger(world: &World) -> Outcome<PgConnection> {
    let options = world.url.parse::<sqlx::postgres::PgConnectOptions>()?;
    Ok(PgConnection::connect_with(&options.application_name("nightly job")).await?)
}

async fn seen(world: &World) -> Outcome<Vec<StrangerReport>> {
    Ok(strangers(&Ledger::existing(world.url.parse()?).await?, Some("status"), 10).await?)
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

const COPIED: [&str; 5] = ["expand", "backfill", "verify", "ramp:50", "switch"];

#[tokio::test]
async fn what_a_stranger_writes_is_copied_on_the_spot_and_refused_when_nobody_reads_it() -> Outcome {
    let world = World::new(100).await?;
    let a = world.instance("a", Some(world.describe().build()?)).await?;
    let mut job = stranger(&world).await?;
    for (id, phase) in (1_i64..).zip(COPIED) {
        world.go(phase).await?;
        let update = format!("update orders set old_status = ' PAID{id} ' where id = {id}");
        job.execute(AssertSqlSafe(update)).await?;
        assert_eq!(
            world.row(id).await?,
            (text(&format!(" PAID{id} ")), text(&format!("paid{id}"))),
            "{phase}"
        );
        let insert = "insert into orders (old_status) values (' NEW ') returning id";
        let inserted: i64 = sqlx::query_scalar(insert).fetch_one(&mut job).await?;
        assert_eq!(world.row(inserted).await?.1, text("new"), "{phase}");
        // Somebody who knows the new column only.
        let update = format!("update orders set new_status = 'void' where id = {}", id + 50);
        job.execute(AssertSqlSafe(update)).await?;
        assert_eq!(world.row(id + 50).await?, (text("VOID"), text("void")), "{phase}");
    }
    // A transaction counts once, however many rows it writes, and one of another column not at all.
    job.execute("update orders set old_status = old_status || 'x' where id < 50").await?;
    job.execute("update orders set note = 'read' where id < 50").await?;
    let reports = seen(&world).await?;
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!((reports[0].application.as_str(), reports[0].role.as_str()), ("nightly job", "postgres"));
    assert_eq!((reports[0].transactions, reports[0].unmended), (3 * 5 + 1, 0));

    world.go("retire").await?;
    for statement in [
        "update orders set old_status = 'LATE' where id = 1",
        "insert into orders (old_status) values ('LATE')",
    ] {
        let error = job.execute(statement).await.expect_err(statement);
        let error = error.as_database_error().ok_or("the database's")?;
        assert_eq!(error.code().as_deref(), Some("ZC003"));
        assert!(error.message().contains("is in `retire`"), "{error}");
    }
    // What does not touch the old side is nobody's business.
    job.execute("update orders set new_status = 'kept', note = 'n' where id = 1").await?;
    job.execute("insert into orders (new_status) values ('kept')").await?;
    assert_eq!(world.row(1).await?.1, text("kept"));
    world.approve().await?;
    world.go("contract").await?;
    world.until("the old column to go", async || !world.has_column("old_status").await).await?;
    job.execute("insert into orders (new_status) values ('free')").await?;
    a.agent.leave().await?;
    Ok(())
}

#[tokio::test]
async fn the_fleet_is_no_stranger_and_a_pin_ends_with_its_transaction() -> Outcome {
    let world = World::new(10).await?;
    let a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("expand").await?;
    // One connection, so that a setting that stayed would show.
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&world.url).await?;
    for ends_well in [true, false] {
        let mut tx = a.migration.begin(&pool).await?;
        tx.execute("update orders set old_status = 'PINNED', new_status = 'as it says' where id = 1").await?;
        if ends_well {
            tx.commit().await?
        } else {
            tx.rollback().await?
        }
        assert_eq!(world.row(1).await?, (text("PINNED"), text("as it says")));
        assert!(seen(&world).await?.is_empty() || !ends_well);
        // The same session, without a pin.
        pool.execute("update orders set old_status = 'LOOSE' where id = 2").await?;
        assert_eq!(world.row(2).await?.1, text("loose"));
        pool.execute("update orders set old_status = 'AGAIN' where id = 2").await?;
        assert_eq!(seen(&world).await?.len(), 1);
        // A transaction of another migration is a stranger's too.
        let other = a.agent.migration("other").ok_or("declared")?;
        let mut tx = other.begin(&pool).await?;
        tx.execute("update orders set old_status = 'OTHER' where id = 3").await?;
        tx.commit().await?;
        assert_eq!(world.row(3).await?.1, text("other"));
    }
    Ok::<_, Error>(())?;
    Ok(())
}

/// Behind a pooler in transaction mode strangers and the fleet share sessions.
#[tokio::test]
async fn a_strangers_role_needs_no_rights_on_the_ledger() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("expand").await?;
    let role = format!("job_{}", std::process::id());
    world.pool.execute(AssertSqlSafe(format!("create role {role} login"))).await?;
    world.pool.execute(AssertSqlSafe(format!("grant select, update on orders to {role}"))).await?;
    let mut job = PgConnection::connect(&world.url.replace("postgres@", &format!("{role}@"))).await?;
    job.execute("update orders set old_status = ' POOR ' where id = 1").await?;
    assert_eq!(world.row(1).await?.1, text("poor"));
    assert_eq!(seen(&world).await?[0].role, role);
    let refused = "select count(*) from cutover.strangers";
    assert!(job.execute(refused).await.is_err(), "the ledger is none of his business");
    Ok(())
}

#[derive(FromRow)]
struct Row {
    old_status: Option<String>,
}

#[tokio::test]
async fn a_mapping_in_rust_can_not_be_copied_so_strangers_hold_the_migration() -> Outcome {
    let world = World::new(50).await?;
    let lower = each(|row: Row| Ok::<_, String>(row.old_status.map(|text| text.trim().to_lowercase())));
    let plan = world.describe().forward_rows(lower).build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("backfill").await?;
    let mut job = stranger(&world).await?;
    job.execute("update orders set old_status = 'STALE' where id = 7").await?;
    world.ask("ramp:50").await?;
    world.waits_for("writes past the library").await?;
    assert_eq!(seen(&world).await?[0].unmended, 1);
    Ok(())
}

#[tokio::test]
async fn a_tables_trap_copies_inserts_updates_and_deletes() -> Outcome {
    let world = World::new(20).await?;
    let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, note text, status text)")
        .same("note")
        .column("status", "lower(trim(old_status))")
        .column_back("old_status", "upper(status)")
        .build()?;
    let a = world.instance_of("a", plan).await?;
    let mut job = stranger(&world).await?;
    for phase in COPIED {
        world.go(phase).await?;
        job.execute("insert into orders (note, old_status) values ('n', ' NEW ')").await?;
        job.execute("update orders set old_status = ' PAID ' where id = (select max(id) from orders)")
            .await?;
        job.execute("delete from orders where id = (select min(id) from orders)").await?;
        job.execute("update orders set note = note || '.' where id % 2 = 0").await?;
        if phase != "expand" {
            let apart: i64 = sqlx::query_scalar(
                "select count(*) from ((select id, note, lower(trim(old_status)) from orders \
                     except select id, note, status from orders_2) \
                     union all (select id, note, status from orders_2 \
                     except select id, note, lower(trim(old_status)) from orders)) as apart",
            )
            .fetch_one(&world.pool)
            .await?;
            let left = if phase == "backfill" { apart.min(20) } else { 0 };
            assert_eq!(apart, left, "{phase}");
        }
    }
    world.go("retire").await?;
    for statement in
        ["delete from orders", "update orders set note = ''", "insert into orders default values"]
    {
        let error = job.execute(statement).await.expect_err(statement);
        assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("ZC003"));
    }
    world.approve().await?;
    world.go("contract").await?;
    let gone = "select to_regclass('orders') is null and not exists (select from pg_proc where proname like 'trap_%')";
    world
        .until("the old table to go", async || {
            sqlx::query_scalar(gone).fetch_one(&world.pool).await.unwrap_or(false)
        })
        .await?;
    a.agent.leave().await?;
    Ok(())
}
