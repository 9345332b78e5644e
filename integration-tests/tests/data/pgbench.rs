//! A migration under `pgbench`, whose writes are external writes.
//!
//! `TESTKIT_ROWS` sets the size of the tables. Releases are tested with 10000000.
#![expect(clippy::print_stdout, reason = "a large table shows how far it is")]

use std::time::{Duration, Instant};

use cutover::migration::{ColumnMigration, TableMigration};
use cutover_testkit::{PgBench, if_installed};
use sqlx::{AssertSqlSafe, Executor};

use crate::world::{Outcome, World};

/// Long enough for any size.
const LIMIT: Duration = Duration::from_secs(3_600);

fn rows() -> Result<i64, std::num::ParseIntError> {
    std::env::var("TESTKIT_ROWS").map_or(Ok(20_000), |rows| rows.parse())
}

/// Goes through the phases, and compares the sides after each phase in which both are complete.
async fn walk(world: &World, bench: &PgBench, complete: &[&str], apart: &str) -> Outcome {
    for phase in ["expand", "backfill", "verify", "ramp:50", "switch", "ramp:50", "verify", "switch"] {
        let began = Instant::now();
        world.go_within(phase, LIMIT).await?;
        // One statement sees one snapshot.
        if complete.contains(&phase) {
            let rows: i64 = sqlx::query_scalar(AssertSqlSafe(apart)).fetch_one(&world.pool).await?;
            assert_eq!(rows, 0, "rows that one side has and the other has not, in {phase}");
        }
        println!("{phase} after {:.1} s", began.elapsed().as_secs_f64());
        if let Some(log) = bench.aborted() {
            return Err(format!("an external statement failed in {phase}: {log}").into());
        }
    }
    Ok(())
}

/// The number of rows that only one of the two queries returns.
fn apart(query: &str, other: &str) -> String {
    format!("select count(*) from (({query} except {other}) union all ({other} except {query})) as apart")
}

#[tokio::test]
async fn external_writes_reach_both_columns() -> Outcome {
    let (world, rows) = (World::new(0).await?, rows()?);
    world.pool.execute("drop table orders").await?;
    world
        .pool
        .execute(AssertSqlSafe(format!(
            "create table orders (id bigint primary key, old_payment_status text); \
             insert into orders select g, ' LEGACY' || g from generate_series(1, {rows}) g; \
             create sequence new_orders start {}; analyze orders",
            rows + 1
        )))
        .await?;
    let script = format!(
        "\\set id random(1, {rows})\n\\set other random(1, {rows})\n\\set what random(1, 10)\n\
         \\if :what <= 7\n update orders set old_payment_status = ' PAID' || :other where id = :id;\n\
         \\elif :what <= 9\n insert into orders values (nextval('new_orders'), ' NEW' || :other);\n\
         \\else\n delete from orders where id = :id;\n\\endif\n"
    );
    let plan = ColumnMigration::new(world.pool.clone(), "orders")
        .column("old_payment_status", "new_payment_status", "text")
        .forward("lower(trim(old_payment_status))")
        .backward("' ' || upper(new_payment_status)")
        .build()?;
    let _a = world.instance("a", Some(plan.clone())).await?;
    let _b = world.instance("b", Some(plan)).await?;
    let Some(bench) = if_installed(PgBench::start(&world.url, &script, 4, Some(400)))? else { return Ok(()) };
    let apart = apart(
        "select id, lower(trim(old_payment_status)) from orders",
        "select id, new_payment_status from orders",
    );
    walk(&world, &bench, &["verify", "ramp:50", "switch"], &apart).await?;
    // The ledger names the external writer, and all of its writes were mirrored at once.
    let (who, writes, unmirrored): (String, i64, i64) = sqlx::query_as(
        "select max(application), sum(transactions)::bigint, sum(unmirrored)::bigint from cutover.external_writes",
    )
    .fetch_one(&world.pool)
    .await?;
    println!("{rows} rows, {writes} transactions of a stranger");
    assert_eq!((who.as_str(), unmirrored), ("pgbench", 0));
    assert!(writes > 0);
    Ok(())
}

#[tokio::test]
async fn pgbench_tables_migrate_under_pgbench() -> Outcome {
    let world = World::new(0).await?;
    let scale = u32::try_from(rows()? / 100_000)?.max(1);
    if if_installed(PgBench::initialise(&world.url, scale).await)?.is_none() {
        return Ok(());
    }
    world
        .pool
        .execute(
            "create table control as select aid, bid, abalance from pgbench_accounts; \
             alter table control add primary key (aid); analyze control",
        )
        .await?;
    // The standard transaction, and the same change on a table without a migration.
    let script = format!(
        "\\set aid random(1, 100000 * {scale})\n\\set bid random(1, {scale})\n\\set tid random(1, 10 * {scale})\n\
         \\set delta random(-5000, 5000)\n\
         begin;\n\
         update pgbench_accounts set abalance = abalance + :delta where aid = :aid;\n\
         select abalance from pgbench_accounts where aid = :aid;\n\
         update control set abalance = abalance + :delta where aid = :aid;\n\
         update pgbench_tellers set tbalance = tbalance + :delta where tid = :tid;\n\
         update pgbench_branches set bbalance = bbalance + :delta where bid = :bid;\n\
         insert into pgbench_history (tid, bid, aid, delta, mtime) \
             values (:tid, :bid, :aid, :delta, current_timestamp);\n\
         end;\n"
    );
    let plan = TableMigration::new(world.pool.clone(), "pgbench_accounts", "accounts")
        .create("create table accounts (aid int primary key, bid int, balance bigint, filler text)")
        .same("bid")
        .same("filler")
        .column("balance", "abalance::bigint")
        .column_back("abalance", "balance::int")
        .carry_over()
        .build()?;
    let _a = world.instance_of("a", plan.clone()).await?;
    let _b = world.instance_of("b", plan).await?;
    let Some(bench) = if_installed(PgBench::start(&world.url, &script, 4, Some(200)))? else { return Ok(()) };
    let apart =
        apart("select aid, bid, balance from accounts", "select aid, bid, abalance::bigint from control");
    walk(&world, &bench, &["verify", "ramp:50", "switch"], &apart).await?;
    let writes: i64 =
        sqlx::query_scalar("select count(*) from pgbench_history").fetch_one(&world.pool).await?;
    println!("{} rows, {writes} transactions of pgbench", i64::from(scale) * 100_000);
    assert!(writes > 0);
    Ok(())
}
