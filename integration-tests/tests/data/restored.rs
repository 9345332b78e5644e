//! A dump of the database is restored in the middle of a migration: every table and function has another oid there.

use cutover::migration::TableMigration;
use cutover_testkit::{Postgres, copy_by_dump, if_installed};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::world::{Fleet, Outcome, World};

async fn instance(world: &World, moves_columns: bool) -> Outcome<Fleet> {
    if moves_columns {
        return world.short_lived("a", world.describe().mirror_writes().build()?).await;
    }
    let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, new_status text)")
        .without("orders_id_seq")
        .column("new_status", "lower(trim(old_status))")
        .column_back("old_status", "upper(new_status)");
    world.short_lived("a", plan.build()?).await
}

/// Statuses by the key, of the side that is read.
async fn statuses(pool: &PgPool, moves_columns: bool, side: &str) -> Outcome<Vec<(i64, Option<String>)>> {
    let table = if moves_columns || side == "old_status" { "orders" } else { "orders_2" };
    let query = AssertSqlSafe(format!("select id, {side} from {table} order by id"));
    Ok(sqlx::query_as(query).fetch_all(pool).await?)
}

/// The database in this phase, restored elsewhere. The columns have other numbers there.
async fn restored(phase: &str, moves_columns: bool) -> Outcome<Option<World>> {
    let world = World::new(20).await?;
    world
        .pool
        .execute(
            "alter table orders add gone text; alter table orders drop gone; alter table orders drop note; \
            alter table orders add note text",
        )
        .await?;
    let a = instance(&world, moves_columns).await?;
    world.go(phase).await?;
    a.agent.leave().await?;
    let url = Postgres::fresh_database().await?;
    if if_installed(copy_by_dump(&world.url, &url).await)? != Some(true) {
        return Ok(None);
    }
    let pool = PgPoolOptions::new().max_connections(12).connect(&url).await?;
    Ok(Some(World { pool, url }))
}

#[tokio::test]
async fn a_restored_database_continues_where_it_was() -> Outcome {
    for (phase, moves_columns) in
        [("backfill", true), ("ramp", true), ("switch", true), ("verify", false), ("ramp", false)]
    {
        let Some(world) = restored(phase, moves_columns).await? else { return Ok(()) };
        let a = instance(&world, moves_columns).await?;
        if moves_columns {
            let mut tx = a.migration.begin(&world.pool).await?;
            let column = a.migration.columns(&tx)?;
            let update = format!("update orders set {column} = 'PINNED' where id = 3");
            tx.execute(AssertSqlSafe(update)).await?;
            tx.commit().await?;
        }
        world.external("update orders set old_status = ' External ' where id = 4").await?;
        world.go("retire").await?;
        let new = statuses(&world.pool, moves_columns, "new_status").await?;
        assert_eq!(new.len(), 20);
        assert_eq!(new[3], (4, Some("external".to_owned())), "{phase}");
        if moves_columns {
            let pinned = if phase == "switch" { "PINNED" } else { "pinned" };
            assert_eq!(new[2], (3, Some(pinned.to_owned())), "{phase}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_restored_database_drops_its_own_old_side() -> Outcome {
    for moves_columns in [true, false] {
        let Some(world) = restored("retire", moves_columns).await? else { return Ok(()) };
        let _a = instance(&world, moves_columns).await?;
        world.approve().await?;
        world.ask("contract").await?;
        world.ended().await?;
        let gone = match moves_columns {
            true => !world.has_column("old_status").await,
            false => {
                let query = "select to_regclass('orders') is null";
                sqlx::query_scalar(query).fetch_one(&world.pool).await?
            }
        };
        assert!(gone, "the old side is still there");
        assert_eq!(statuses(&world.pool, moves_columns, "new_status").await?.len(), 20);
    }
    Ok(())
}
