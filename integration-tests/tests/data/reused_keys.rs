//! A key that one transaction inserts while another one deletes it, in two tables.

use std::sync::atomic::{AtomicBool, Ordering};

use cutover::migration::{DualWrite, Error, PinnedTx, Rows, TableMigration};
use sqlx::{AssertSqlSafe, Executor};
use tokio::sync::Notify;

use crate::world::{Outcome, World};

const KEY: i64 = 700;
const LOCK: &str = "select pg_advisory_xact_lock(hashtextextended('orders 700', 0))";

async fn run(tx: &mut PinnedTx, statement: String) -> Result<(), Error> {
    tx.execute(AssertSqlSafe(statement)).await?;
    Ok(())
}

/// What the guide says about such keys. Without the lock the tables differ.
#[tokio::test]
async fn a_key_is_locked_before_it_is_deleted_and_inserted_again() -> Outcome {
    let world = World::new(20).await?;
    let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, status text)")
        .without("orders_id_seq")
        .column("status", "lower(trim(old_status))")
        .column_back("old_status", "upper(status)");
    let fleet = world.instance_of("a", plan.build()?).await?;
    world.go("verify").await?;
    let sides = DualWrite::new(fleet.migration.clone(), ("orders", "old_status"), ("orders_2", "status"));
    for (lock, agree) in [(LOCK, true), ("select", false)] {
        let mut inserts = fleet.migration.begin(&world.pool).await?;
        inserts.execute(lock).await?;
        let insert = async |(table, column): &(&str, &str), tx: &mut PinnedTx| {
            let insert =
                format!("insert into {table} (id, {column}) overriding system value values ({KEY}, 'new')");
            run(tx, insert).await
        };
        sides.write_with(&mut inserts, Rows::one(&KEY), insert, insert).await?;
        let (found_nothing, committed) = (AtomicBool::new(false), Notify::new());
        let delete = async |(table, _): &(&str, &str), tx: &mut PinnedTx| {
            run(tx, format!("delete from {table} where id = {KEY}")).await?;
            if *table == "orders" && !agree {
                found_nothing.store(true, Ordering::SeqCst);
                committed.notified().await;
            }
            Ok::<_, Error>(())
        };
        let deletes = async {
            let mut tx = fleet.migration.begin(&world.pool).await?;
            tx.execute(lock).await?;
            sides.write_with(&mut tx, Rows::one(&KEY), delete, delete).await?;
            tx.commit().await?;
            Ok::<_, Error>(())
        };
        let commits = async {
            let waits = "select exists (select from pg_locks where locktype = 'advisory' and not granted)";
            let is_time = async || {
                let waits = sqlx::query_scalar::<_, bool>(waits).fetch_one(&world.pool).await;
                waits.is_ok_and(|waits| waits) || found_nothing.load(Ordering::SeqCst)
            };
            world.until("the delete", is_time).await?;
            inserts.commit().await?;
            committed.notify_one();
            Outcome::Ok(())
        };
        let (deleted, committed) = tokio::join!(deletes, commits);
        deleted?;
        committed?;
        let both = "select (select count(*) from orders where id = 700), (select count(*) from orders_2 where id = 700)";
        let (old, new): (i64, i64) = sqlx::query_as(both).fetch_one(&world.pool).await?;
        assert_eq!((old, new), if agree { (0, 0) } else { (1, 0) });
    }
    Ok(())
}
