//! What the guard trigger does where a mapping is in Rust, which it cannot run.

use std::sync::atomic::{AtomicUsize, Ordering};

use cutover::migration::{MappedValue, Plan, TableMigration, Task, map_each};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection, Row};

use crate::world::{Outcome, World};

#[derive(FromRow)]
struct Old {
    old_status: Option<String>,
}

#[derive(FromRow)]
struct New {
    new_status: Option<String>,
}

/// A write that only the mapping could bring to the other side would be read on one side only.
#[tokio::test]
async fn what_only_rust_could_mirror_is_refused_from_ramp_on() -> Outcome {
    for is_back_in_rust in [true, false] {
        let world = World::new(50).await?;
        let lower =
            map_each(|row: Old| Ok::<_, String>(row.old_status.map(|text| text.trim().to_lowercase())));
        let upper = map_each(|row: New| Ok::<_, String>(row.new_status.map(|text| text.to_uppercase())));
        let plan = world.describe().forward_rows(lower);
        let plan = if is_back_in_rust { plan.backward_rows(upper) } else { plan };
        let _a = world.brief("a", plan.build()?).await?;
        let mut job = PgConnection::connect(&world.url).await?;
        for phase in ["ramp:50", "switch"] {
            world.go(phase).await?;
            for (statement, is_refused) in [
                ("update orders set old_status = 'LATE' where id = 7", true),
                ("update orders set new_status = 'late' where id = 7", is_back_in_rust),
                ("insert into orders (new_status) values ('late')", is_back_in_rust),
                ("insert into orders (note) values ('n')", is_back_in_rust || phase != "switch"),
                ("update orders set note = 'n' where id = 8", false),
                ("update orders set id = default where id = 9", false),
            ] {
                let outcome = job.execute(AssertSqlSafe(format!("begin; {statement}; rollback"))).await;
                let error = outcome.as_ref().err().and_then(sqlx::Error::as_database_error);
                let found = error.and_then(|error| error.code());
                assert_eq!(found.as_deref(), is_refused.then_some("ZC003"), "{phase}: {statement}");
                job.execute("rollback").await?;
            }
            // It is repaired, so no scan has to come again.
            job.execute("update orders set id = default where id = 10").await?;
            let unmirrored = "select count(*) from cutover.external_write_events where not mirrored";
            assert_eq!(sqlx::query_scalar::<_, i64>(unmirrored).fetch_one(&world.pool).await?, 0, "{phase}");
            let unmirrored = "select coalesce(sum(unmirrored), 0)::bigint from cutover.external_writes";
            assert_eq!(sqlx::query_scalar::<_, i64>(unmirrored).fetch_one(&world.pool).await?, 0, "{phase}");
        }
    }
    Ok(())
}

#[derive(FromRow)]
struct OldOrder {
    old_status: Option<String>,
    customer: Option<i64>,
}

#[derive(serde::Serialize)]
struct NewOrder {
    status: Option<String>,
    customer: Option<i64>,
}

/// Neither is refused in any phase.
#[tokio::test]
async fn what_a_foreign_key_does_reaches_a_table_mapped_in_rust() -> Outcome {
    let world = World::new(50).await?;
    world
        .pool
        .execute(
            "create table customers (id bigint primary key); insert into customers select generate_series(1, 50); \
             create table owners (id bigint primary key); insert into owners select generate_series(1, 50); \
             alter table orders add customer bigint references customers on delete cascade; \
             update orders set customer = id; \
             create table orders_2 (id bigint primary key, status text, customer bigint); \
             alter table orders add owner bigint references owners on delete set null; update orders set owner = id",
        )
        .await?;
    let forward = map_each(|old: OldOrder| {
        let status = old.old_status.map(|text| text.trim().to_lowercase());
        Ok::<_, String>(NewOrder { status, customer: old.customer })
    });
    let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .forward_rows(&["status", "customer"], forward)
        .column_back("old_status", "upper(status)")
        .column_back("customer", "customer")
        .without("orders_customer_fkey")
        .without("orders_owner_fkey")
        .without("orders_id_seq")
        .build()?;
    let _a = world.brief("a", plan).await?;
    let mut job = PgConnection::connect(&world.url).await?;
    // The server writes the statement of an action with more quotes then.
    job.execute("set quote_all_identifiers = on").await?;
    for (number, phase) in ["verify", "ramp:50", "switch"].into_iter().enumerate() {
        world.go(phase).await?;
        let (gone, unowned) = (10 + number, 20 + number);
        let deletes =
            format!("delete from customers where id = {gone}; delete from owners where id = {unowned}");
        job.execute(AssertSqlSafe(deletes)).await?;
        let left = "select count(*) from orders_2 o where not exists (select from orders where id = o.id)";
        assert_eq!(sqlx::query_scalar::<_, i64>(left).fetch_one(&world.pool).await?, 0, "{phase}");
        let repaired = async || {
            let left = "select count(*) = 0 from cutover.repairs";
            sqlx::query_scalar(left).fetch_one(&world.pool).await.unwrap_or(false)
        };
        world.until("the repair of a row that a foreign key changed", repaired).await?;
    }
    Ok(())
}

/// The old side is incomplete by then, and a copy of all rows repairs it before it is read again.
#[tokio::test]
async fn a_row_that_is_behind_at_the_move_to_retire_holds_nothing() -> Outcome {
    let world = World::new(50).await?;
    let lower = map_each(|row: Old| Ok::<_, String>(row.old_status.map(|text| text.trim().to_lowercase())));
    let a = world.brief("a", world.describe().forward_rows(lower).build()?).await?;
    world.go("switch").await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute("update orders set id = default where id = 9").await?;
    world.ask("retire").await?;
    let has_moved = async || {
        let query = "select phase = 'retire' from cutover.migrations where name = 'status'";
        sqlx::query_scalar(query).fetch_one(&world.pool).await.unwrap_or(false)
    };
    world.until("the move", has_moved).await?;
    tx.commit().await?;
    let behind = "select count(*) from cutover.repairs where side = 'old'";
    assert_eq!(sqlx::query_scalar::<_, i64>(behind).fetch_one(&world.pool).await?, 1);
    world.go("retire").await?;
    world.approve().await?;
    world.go("contract").await
}

/// The mapping in Rust runs before the statement that writes, so the row must not change between.
#[tokio::test]
async fn a_copy_back_keeps_what_is_written_beside_it() -> Outcome {
    let world = World::new(50).await?;
    let lower = map_each(|row: Old| Ok::<_, String>(row.old_status.map(|text| text.trim().to_lowercase())));
    let upper = map_each(|row: New| Ok::<_, String>(row.new_status.map(|text| text.to_uppercase())));
    let plan = world.describe().forward_rows(lower).backward_rows(upper).build()?;
    let a = world.instance("a", None).await?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    plan.run(Task::Backfill, &a.migration).await?;
    world.go("verify").await?;
    plan.run(Task::Scan, &a.migration).await?;
    world.go("switch").await?;
    world.pool.execute("update cutover.migrations set old_complete = false where name = 'status'").await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute("update orders set old_status = ' Paid ', new_status = 'paid' where id = 7").await?;
    let is_waiting = async || {
        let query = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' \
            and datname = current_database() and query like '%orders%')";
        sqlx::query_scalar(query).fetch_one(&world.pool).await.unwrap_or(false)
    };
    let write = async {
        world.until("the copy to wait for the write", is_waiting).await?;
        Ok::<_, Box<dyn std::error::Error>>(tx.commit().await?)
    };
    let (copied, written) = tokio::join!(plan.run(Task::ReverseBackfill, &a.migration), write);
    copied?;
    written.map_err(|error| error.to_string())?;
    let row = world.row(7).await?;
    assert_eq!((row.0.as_deref(), row.1.as_deref()), (Some(" Paid "), Some("paid")));
    Ok(())
}

/// A batch of the least number of rows would not fit in the memory of a service.
#[tokio::test]
async fn large_rows_are_mapped_in_small_batches() -> Outcome {
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let lower = |rows: &[PgRow]| {
        let each = |row: &PgRow| {
            let text: Option<String> = row.try_get("old_status").map_err(|error| error.to_string())?;
            Ok((
                text.as_ref().map_or(0, String::len),
                MappedValue::new(&text.map(|text| text.to_lowercase()))?,
            ))
        };
        let mapped: Vec<Result<(usize, MappedValue), String>> = rows.iter().map(each).collect();
        MOST.fetch_max(mapped.iter().flatten().map(|(bytes, _)| bytes).sum(), Ordering::Relaxed);
        mapped.into_iter().map(|one| one.map(|(_, value)| value)).collect()
    };
    let upper = map_each(|row: New| Ok::<_, String>(row.new_status.map(|text| text.to_uppercase())));
    let world = World::new(0).await?;
    // The sixth is larger than a batch may be.
    world
        .external(
            "insert into orders (old_status) select repeat(upper(md5(g::text)), case g when 6 then 300000 else 30000 end) \
             from generate_series(1, 20) g",
        )
        .await?;
    let plan = world.describe().forward_rows(lower).backward_rows(upper);
    let _a = world.brief("a", plan.without_guard_trigger().build()?).await?;
    world.go("backfill").await?;
    world.filled().await?;
    // A report would have to hold both values of each row.
    world.external("update orders set new_status = new_status || '!'").await?;
    world.ask("ramp").await?;
    world.waits_for("20 rows of").await?;
    let longest =
        "select max(greatest(length(expected::text), length(found::text))) from cutover.differences";
    let longest: i32 = sqlx::query_scalar(longest).fetch_one(&world.pool).await?;
    assert!(longest < 100, "{longest}");
    assert_eq!(MOST.load(Ordering::Relaxed), 32 * 300_000 + 1);
    Ok(())
}
