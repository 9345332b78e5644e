//! A new side that cannot be written while it is not read: the row is recorded and repaired later, and `ramp` waits.

use crate::deadpool::pool_of_one;
use crate::world::{Fleet, Outcome, World};
use cutover::ledger::Ledger;
use cutover::migration::Phase;
use cutover::migration::admin::{repairs, retry_repairs};
use cutover::migration::{ColumnMigration, DeadpoolTx, Error, Isolation, PinnedTx};
use cutover::migration::{DualWrite, Key, Repaired, Rows};
use sqlx::Executor;

pub(crate) type Sides = DualWrite<(), ()>;

const SET_OLD: &str = "update orders set old_status = upper($2) where id = $1 returning old_status";
const SET_NEW: &str = "update orders set new_status = $2 where id = $1 returning new_status";

async fn run(tx: &mut PinnedTx, statement: &'static str, id: i64, status: &str) -> Result<String, Error> {
    Ok(sqlx::query_scalar(statement).bind(id).bind(status).fetch_one(&mut **tx).await?)
}

pub(crate) async fn set(sides: &Sides, tx: &mut PinnedTx, id: i64, status: &str) -> Result<String, Error> {
    sides
        .write_with(
            tx,
            Rows::one(&id),
            async |_, tx| run(tx, SET_OLD, id, status).await,
            async |_, tx| run(tx, SET_NEW, id, status).await,
        )
        .await
}

/// A world in `phase` whose new column refuses `bad`, and sides that repair later.
async fn picky(phase: &str) -> Outcome<(World, Fleet, Sides)> {
    let world = World::new(20).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    world.go(phase).await?;
    world.pool.execute("alter table orders add constraint picky check (new_status <> 'bad')").await?;
    let sides = DualWrite::new(fleet.migration.clone(), (), ()).repair_later();
    Ok((world, fleet, sides))
}

pub(crate) async fn noted(world: &World) -> Outcome<Vec<String>> {
    let keys = "select key::text from cutover.repairs where side = 'new' order by key";
    Ok(sqlx::query_scalar(keys).fetch_all(&world.pool).await?)
}

pub(crate) async fn scanned(world: &World) -> Outcome {
    let query = "select exists (select from cutover.jobs where kind = 'scan' and finished_at is not null)";
    let ask = async || sqlx::query_scalar(query).fetch_one(&world.pool).await.unwrap_or(false);
    Ok(world.until("the scan has ended", ask).await?)
}

#[tokio::test]
async fn failed_new_sides_are_repaired_before_they_are_read() -> Outcome {
    let (world, fleet, sides) = picky("expand").await?;
    let ledger = Ledger::open(world.url.parse()?).await?;
    for (id, phase) in [(1, "expand"), (2, "backfill"), (3, "verify")] {
        world.go(phase).await?;
        let mut tx = fleet.migration.begin(&world.pool).await?;
        assert_eq!(set(&sides, &mut tx, 10, "good").await?, "GOOD");
        assert_eq!(set(&sides, &mut tx, id, "bad").await?, "BAD");
        // The savepoint is released: later writes belong to the transaction.
        assert_eq!(set(&sides, &mut tx, 11, "good").await?, "GOOD");
        tx.commit().await?;
        assert_eq!(world.row(id).await?.0.as_deref(), Some("BAD"), "{phase}");
        assert_ne!(world.row(id).await?.1.as_deref(), Some("bad"), "{phase}");
        assert_eq!(world.row(10).await?, (Some("GOOD".into()), Some("good".into())));
        assert_eq!(world.row(11).await?, (Some("GOOD".into()), Some("good".into())));
        if phase == "expand" {
            // The backfill would fail on the same constraint, so the row gets a valid value.
            assert_eq!(noted(&world).await?, ["1"]);
            let mut tx = fleet.migration.begin(&world.pool).await?;
            set(&sides, &mut tx, id, "good").await?;
            tx.commit().await?;
        }
        if phase == "backfill" {
            world.pool.execute("alter table orders drop constraint picky").await?;
            world.go("verify").await?;
            world
                .until("all rows are repaired", async || {
                    noted(&world).await.is_ok_and(|keys| keys.is_empty())
                })
                .await?;
            world
                .pool
                .execute("alter table orders add constraint picky check (new_status <> 'bad') not valid")
                .await?;
        }
    }
    world.ask("ramp").await?;
    world.waits_for("1 row whose sides differ").await?;
    world
        .until("the driver has tried a repair", async || {
            repairs(&ledger, Some("status"), 9)
                .await
                .is_ok_and(|rows| rows.iter().any(|row| row.attempts > 0))
        })
        .await?;
    let rows = repairs(&ledger, None, 9).await?;
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].side.as_str(), &rows[0].key), ("new", &serde_json::json!(3)));
    assert!(rows[0].error.contains("picky") && rows[0].next_try_seconds.is_some(), "{rows:?}");
    assert_eq!(fleet.migration.current().map(|at| at.1), Some(Phase::Verify));
    world.pool.execute("alter table orders drop constraint picky").await?;
    assert_eq!(retry_repairs(&ledger, "status", "test").await?, 1);
    world.go("ramp").await?;
    assert_eq!(world.row(3).await?, (Some("BAD".into()), Some("bad".into())));
    // From here on the new side is read, so it has to succeed.
    world
        .pool
        .execute("alter table orders add constraint picky check (new_status <> 'bad') not valid")
        .await?;
    let mut tx = fleet.migration.begin(&world.pool).await?;
    let refused = set(&sides, &mut tx, 4, "bad").await.expect_err("refused");
    assert!(matches!(refused, Error::Database(_)) && !refused.is_retryable(), "{refused}");
    assert!(matches!(tx.commit().await, Err(Error::Unfinished)));
    assert!(noted(&world).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_move_into_ramp_waits_for_recorded_repairs() -> Outcome {
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let (world, fleet, sides) = picky("verify").await?;
        scanned(&world).await?;
        // A recorded repair that is not committed: the move waits for the commit and then for the repair.
        let mut tx = fleet.migration.begin_isolated(&world.pool, isolation).await?;
        set(&sides, &mut tx, 1, "bad").await?;
        world.ask("ramp").await?;
        world.waits_for("a transaction that blocks the move").await?;
        assert_eq!(fleet.migration.current().map(|at| at.1), Some(Phase::Verify));
        tx.commit().await?;
        assert_eq!(noted(&world).await?, ["1"]);
        world.pool.execute("alter table orders drop constraint picky").await?;
        world.go("ramp").await?;
    }
    Ok(())
}

#[tokio::test]
async fn no_repair_is_recorded_once_ramp_has_begun() -> Outcome {
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead] {
        let (world, fleet, sides) = picky("verify").await?;
        scanned(&world).await?;
        let mut late = fleet.migration.begin_isolated(&world.pool, isolation).await?;
        assert_eq!(late.phase(), Phase::Verify);
        world.ask("ramp").await?;
        world.until("ramp", async || fleet.migration.current().is_some_and(|at| at.1 == Phase::Ramp)).await?;
        let refused = set(&sides, &mut late, 1, "bad").await.expect_err("the other epoch reads that side");
        assert!(matches!(refused, Error::Database(_)), "{refused}");
        assert!(matches!(late.commit().await, Err(Error::Unfinished)));
        assert!(noted(&world).await?.is_empty());
        world.go("ramp").await?;
    }
    Ok(())
}

#[tokio::test]
async fn no_repair_is_recorded_while_ramp_still_drains() -> Outcome {
    let (world, fleet, sides) = picky("ramp").await?;
    let reading = sides.read(Key::of(&1_i64))?;
    world.ask("verify").await?;
    world.until("verify", async || fleet.migration.current().is_some_and(|at| at.1 == Phase::Verify)).await?;
    let mut tx = fleet.migration.begin(&world.pool).await?;
    let refused = set(&sides, &mut tx, 1, "bad").await.expect_err("the epoch before reads that side");
    assert!(matches!(refused, Error::Database(_)), "{refused}");
    drop(tx);
    reading.finish::<_, Error>(())?;
    world.go("verify").await?;
    let mut tx = fleet.migration.begin(&world.pool).await?;
    set(&sides, &mut tx, 1, "bad").await?;
    tx.commit().await?;
    assert_eq!(noted(&world).await?, ["1"]);
    Ok(())
}

#[tokio::test]
async fn a_row_that_falls_behind_during_repair_stays_recorded() -> Outcome {
    // In `expand` the driver does not repair.
    let (world, fleet, sides) = picky("expand").await?;
    let leave_behind = async |id: i64, status: &str| {
        let mut tx = fleet.migration.begin(&world.pool).await?;
        set(&sides, &mut tx, id, status).await?;
        tx.commit().await
    };
    leave_behind(1, "bad").await?;
    leave_behind(2, "bad").await?;
    let statement = "with locked as (select id, old_status from orders where id = $1 for no key update) \
        update orders set new_status = lower(old_status) || '!' where id = (select id from locked)";
    let done = sides
        .repair_with(&world.pool, async |_, _, tx, key| {
            let key = key.as_i64().unwrap_or_default();
            if key == 2 {
                // During the repair, before it locks the row.
                leave_behind(2, "bad").await?;
            }
            sqlx::query(statement).bind(key).execute(&mut **tx).await?;
            Ok::<_, Error>(())
        })
        .await?;
    assert_eq!(done, Repaired { repaired: 2, failed: 0 });
    assert_eq!(noted(&world).await?, ["2"]);
    assert_eq!(world.row(1).await?.1.as_deref(), Some("bad!"));
    // A failed repair is delayed, with its error, and given up after ten attempts.
    let fails = async |_: &(), _: &(), _: &mut PinnedTx, _: &serde_json::Value| Err(Error::NotInFleet);
    assert_eq!(sides.repair_with(&world.pool, fails).await?, Repaired { repaired: 0, failed: 1 });
    assert_eq!(sides.repair_with(&world.pool, fails).await?, Repaired::default(), "it is not due");
    let due = "update cutover.repairs set next_try_at = clock_timestamp(), attempts = 9";
    world.pool.execute(due).await?;
    assert_eq!(sides.repair_with(&world.pool, fails).await?.failed, 1);
    let ledger = Ledger::open(world.url.parse()?).await?;
    let rows = repairs(&ledger, Some("status"), 9).await?;
    assert_eq!((rows[0].attempts, rows[0].next_try_seconds), (10, None), "given up");
    assert!(rows[0].error.contains("not in the fleet"), "{rows:?}");
    // Without a new side there is nothing to repair.
    world.go("off").await?;
    assert!(noted(&world).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn repairs_work_on_deadpool() -> Outcome {
    let (world, fleet, sides) = picky("expand").await?;
    let pool = pool_of_one(&world)?;
    let update = async |tx: &mut PinnedTx<DeadpoolTx>, column: &str, ids: &[i64]| {
        let statement = format!("update orders set {column} = 'bad' where id = any($1)");
        Ok::<_, Error>(tx.execute(&statement, &[&ids]).await?)
    };
    let ids = [3, 1, 2];
    let mut tx = fleet.migration.begin(&pool).await?;
    let rows = sides
        .write_with(
            &mut tx,
            Rows::many(&ids),
            async |_, tx| update(tx, "old_status", &ids).await,
            async |_, tx| update(tx, "new_status", &ids).await,
        )
        .await?;
    assert_eq!(rows, 3);
    tx.commit().await?;
    assert_eq!(noted(&world).await?, ["1", "2", "3"]);
    let done = sides
        .repair_with(&pool, async |_, _, tx, key| {
            let key = key.as_i64().unwrap_or_default();
            let statement = "with locked as (select from orders where id = $1 for no key update) \
                update orders set new_status = 'repaired' where id = $1 and exists (select from locked)";
            tx.execute(statement, &[&key]).await?;
            Ok::<_, Error>(())
        })
        .await?;
    assert_eq!(done, Repaired { repaired: 3, failed: 0 });
    assert!(noted(&world).await?.is_empty());
    Ok(())
}

/// A plan whose mappings fail for the values of table `bad`.
async fn plan_with_bad_values(world: &World) -> Outcome<ColumnMigration> {
    world.pool.execute("create table bad (value text primary key)").await?;
    world
        .pool
        .execute(
            "create function must_map(value text) returns text immutable language plpgsql as $$ begin \
                 if exists (select from public.bad where bad.value = $1) then raise 'no mapping'; end if; \
                 return value; end $$",
        )
        .await?;
    Ok(ColumnMigration::new(world.pool.clone(), "orders")
        .column("old_status", "new_status", "text")
        .forward("must_map(old_status)")
        .backward("must_map(new_status)")
        .build()?)
}

/// The guard trigger cannot map a write in `ramp` and in `switch`: the row is repaired without a scan.
#[tokio::test]
async fn unmapped_external_writes_are_repaired_in_ramp_and_switch() -> Outcome {
    let world = World::new(5).await?;
    let plan = plan_with_bad_values(&world).await?;
    let _a = world.instance("a", Some(plan)).await?;
    let recorded = async || -> Outcome<Vec<String>> {
        Ok(sqlx::query_scalar("select side from cutover.repairs").fetch_all(&world.pool).await?)
    };
    let repaired = async |side: &str, id: i64, value: &str| -> Outcome {
        assert_eq!(recorded().await?, [side]);
        world.pool.execute("delete from bad").await?;
        world.until("the repair", async || recorded().await.is_ok_and(|rows| rows.is_empty())).await?;
        let value = Some(value.to_owned());
        assert_eq!(world.row(id).await?, (value.clone(), value));
        Ok(())
    };
    for (phase, id) in [("ramp", 1), ("switch", 3)] {
        world.go(phase).await?;
        world.pool.execute("insert into bad values ('BAD')").await?;
        sqlx::query("update orders set old_status = 'BAD' where id = $1")
            .bind(id)
            .execute(&world.pool)
            .await?;
        if phase == "ramp" {
            world.ask("switch").await?;
            world.waits_for("the repair of 1 row").await?;
            world.ask("ramp").await?;
        }
        repaired("new", id, "BAD").await?;
    }
    world.pool.execute("insert into bad values ('WORSE')").await?;
    world.pool.execute("update orders set new_status = 'WORSE' where id = 2").await?;
    // The old side is behind, so no phase that reads it may begin.
    world.ask("ramp").await?;
    world.waits_for("the repair of 1 row").await?;
    repaired("old", 2, "WORSE").await?;
    world.go("ramp").await?;
    Ok(())
}

/// Of two failed writes of one row, the later one decides which side is behind.
#[tokio::test]
async fn a_repair_does_not_undo_a_later_write_of_the_other_side() -> Outcome {
    let world = World::new(5).await?;
    let plan = plan_with_bad_values(&world).await?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("switch").await?;
    world.pool.execute("insert into bad values ('FIRST'), ('SECOND')").await?;
    world.pool.execute("update orders set old_status = 'FIRST' where id = 1").await?;
    world.pool.execute("update orders set new_status = 'SECOND' where id = 1").await?;
    world.pool.execute("delete from bad").await?;
    let none = "select count(*) = 0 from cutover.repairs";
    world
        .until("the repair", async || sqlx::query_scalar(none).fetch_one(&world.pool).await.unwrap_or(false))
        .await?;
    let second = Some("SECOND".to_owned());
    assert_eq!(world.row(1).await?, (second.clone(), second));
    Ok(())
}

/// An external transaction has left a row to be repaired and is still open when the move to `ramp` is due.
#[tokio::test]
async fn ramp_sees_the_repair_of_an_external_transaction_that_is_open() -> Outcome {
    let world = World::new(5).await?;
    let plan = ColumnMigration::new(world.pool.clone(), "orders")
        .column("note", "number", "integer")
        .forward("note::integer")
        .backward("number::text")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("verify").await?;
    let scanned = "select count(*) = 1 from cutover.jobs where kind = 'scan' and finished_at is not null";
    world
        .until("the scan", async || sqlx::query_scalar(scanned).fetch_one(&world.pool).await.unwrap_or(false))
        .await?;
    let mut external = world.pool.begin().await?;
    external.execute("update orders set note = 'n/a' where id = 3").await?;
    world.ask("ramp").await?;
    world.waits_for("a transaction of an external writer").await?;
    external.commit().await?;
    world.waits_for("the repair of 1 row").await?;
    assert!(world.is_at("verify").await?);
    world.pool.execute("update orders set note = '7' where id = 3").await?;
    world.pool.execute("update cutover.repairs set next_try_at = clock_timestamp()").await?;
    world.go("ramp").await?;
    Ok(())
}
