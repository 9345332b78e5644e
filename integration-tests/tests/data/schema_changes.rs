//! What a plan changes in the schema beside its sides, one hazard at a time.

use cutover_testkit::wait_until;
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::world::{Outcome, World};

async fn waits_for(world: &World, part: &str) -> Outcome {
    let waits = "select coalesce(waits_for, '') from cutover.migrations where name = 'status'";
    let ask = async || {
        let waits: String =
            sqlx::query_scalar(waits).fetch_one(&world.pool).await.map_err(|error| error.to_string())?;
        if waits.contains(part) { Ok(true) } else { Err(waits) }
    };
    Ok(wait_until(&format!("the migration to wait for {part:?}"), std::time::Duration::from_secs(60), ask)
        .await?)
}

async fn is(world: &World, query: &str) -> Outcome<bool> {
    Ok(sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&world.pool).await?)
}

const VALID: &str =
    "select exists (select from pg_index where indexrelid = to_regclass('by_status') and indisvalid)";
const NOT_NULL: &str =
    "select attnotnull from pg_attribute where attrelid = 'orders'::regclass and attname = 'new_status'";

#[tokio::test]
async fn an_index_a_constraint_and_statements_of_ones_own_come_at_their_time() -> Outcome {
    let world = World::new(1_000).await?;
    world.pool.execute("create view old_orders as select id, old_status from orders").await?;
    let plan = world
        .describe()
        .expand_sql("comment on table orders is 'on its way'")
        .index("by_status", "(new_status) where new_status <> 'void'")
        .not_null()
        .contract_sql("drop view old_orders;")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("expand").await?;
    assert!(is(&world, "select obj_description('orders'::regclass) = 'on its way'").await?);
    world.go("backfill").await?;
    // What a build leaves that was killed.
    world.pool.execute("create index by_status on orders (note)").await?;
    world
        .pool
        .execute("update pg_index set indisvalid = false where indexrelid = 'by_status'::regclass")
        .await?;
    world.go("ramp:50").await?;
    assert!(is(&world, VALID).await?);
    assert!(is(&world, "select pg_get_indexdef('by_status'::regclass) like '%(new_status)%<>%'").await?);
    world.go("retire").await?;
    assert!(!is(&world, NOT_NULL).await?, "somebody may still leave it out");
    world.pool.execute("update orders set new_status = null where id = 7").await?;
    world.approve().await?;
    world.go("contract").await?;
    waits_for(&world, "is violated by some row").await?;
    assert!(world.has_column("old_status").await);
    world.pool.execute("update orders set new_status = 'void' where id = 7").await?;
    world.until("the old column to go", async || !world.has_column("old_status").await).await?;
    assert!(is(&world, NOT_NULL).await?);
    assert!(is(&world, "select not exists (select from pg_constraint where conname like 'cutover%')").await?);
    assert!(is(&world, "select to_regclass('old_orders') is null").await?);
    Ok(())
}

#[tokio::test]
async fn a_unique_index_that_can_not_be_holds_the_migration_and_leaves_nothing_invalid_for_good() -> Outcome {
    let world = World::new(100).await?;
    let plan = world.describe().unique_index("by_status", "(new_status)").build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("backfill").await?;
    world.pool.execute("update orders set old_status = 'SAME' where id in (1, 2)").await?;
    world.ask("ramp:50").await?;
    waits_for(&world, "could not create unique index").await?;
    world.pool.execute("update orders set old_status = 'OTHER' where id = 2").await?;
    world.go("ramp:50").await?;
    assert!(is(&world, VALID).await?);
    Ok(())
}

#[tokio::test]
async fn statements_that_can_not_run_where_they_would_are_refused_at_once() -> Outcome {
    let world = World::new(1).await?;
    let error = world
        .describe()
        .expand_sql("create index concurrently by_status on orders (note)")
        .index("by status", "new_status")
        .build()
        .expect_err("refused")
        .to_string();
    for part in ["describe indexes by `.index(…)`", "index:", "write what follows the table"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let error = world.describe().expand_sql("alter table orders rename column note to remark").build();
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("renaming-column") && error.contains(".allow("), "{error}");
    Ok(())
}

/// The server plans a statement once for a connection. A column more, and the plan of `select *` gives another type.
#[tokio::test]
async fn statements_prepared_before_a_change_of_the_schema_go_on_if_they_name_their_columns() -> Outcome {
    let world = World::new(100).await?;
    let a = world.instance("a", Some(world.plan()?)).await?;
    // One connection, so that it is the same one's plan.
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&world.url).await?;
    let named = "select id, note from orders where id = $1";
    let all = "select * from orders where id = $1";
    let update = "update orders set note = $2 where id = $1";
    let mut refused = Vec::new();
    for phase in ["off", "expand", "backfill", "verify", "ramp:50", "switch", "retire", "contract"] {
        if phase == "contract" {
            world.approve().await?;
        }
        world.go(phase).await?;
        if phase == "contract" {
            world.until("the old column to go", async || !world.has_column("old_status").await).await?;
        }
        // In a transaction and outside: within one the server's refusal spoils it.
        let mut tx = a.migration.begin(&pool).await?;
        sqlx::query(update).bind(1_i64).bind(phase).execute(&mut *tx).await?;
        tx.commit().await?;
        let row = sqlx::query(named).bind(1_i64).fetch_one(&pool).await?;
        assert_eq!(row.try_get::<String, _>("note")?, phase);
        if let Err(error) = sqlx::query(all).bind(1_i64).fetch_one(&pool).await {
            assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("0A000"));
            refused.push(phase);
        }
    }
    assert!(refused.contains(&"expand"), "a column more: {refused:?}");
    Ok(())
}
