//! Row-level security on a table whose rows are copied and compared.

use cutover::migration::ColumnMigration;
use cutover::migration::mirror::{Mirror, MirrorMigration};
use cutover::migration::{DualWrite, Error, Plan, PlanError, Repaired, Rows, Task};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::mirror::{self, Accounts};
use crate::world::{Fleet, Outcome, World};

/// Hides rows of a table from its owner by a policy with this condition. Returns a pool of the owner, which is a new role.
async fn restrict(world: &World, table: &str, condition: &str) -> Outcome<PgPool> {
    let role = format!("service_{}", world.url.rsplit('/').next().unwrap_or_default());
    world
        .pool
        .execute(AssertSqlSafe(format!(
            "create role {role} login; grant all on schema public to {role}; alter table {table} owner to {role}; \
             grant usage on schema cutover to {role}; \
             grant all on all tables in schema cutover to {role}; \
             grant all on all sequences in schema cutover to {role}; \
             grant execute on all functions in schema cutover to {role}; \
             alter table {table} enable row level security; alter table {table} force row level security; \
             create policy hide on {table} using ({condition})"
        )))
        .await?;
    let options = world.url.parse::<PgConnectOptions>()?.username(&role);
    Ok(PgPoolOptions::new().max_connections(4).connect_with(options).await?)
}

/// A table whose rows a policy hides from its owner, an instance, and a pool of the owner.
async fn restricted(rows: i64, tenant: &str) -> Outcome<(World, Fleet, PgPool)> {
    let world = World::new(rows).await?;
    let fleet = world.instance("a", None).await?;
    let pool = restrict(&world, "orders", &format!("note = {tenant}")).await?;
    Ok((world, fleet, pool))
}

fn plan_on(pool: &PgPool) -> Outcome<ColumnMigration> {
    Ok(ColumnMigration::new(pool.clone(), "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(trim(old_status))")
        .backward("upper(new_status)")
        .without_guard_trigger()
        .build()?)
}

async fn role_of(pool: &PgPool) -> Outcome<String> {
    Ok(sqlx::query_scalar("select current_user::text").fetch_one(pool).await?)
}

#[tokio::test]
async fn rows_that_a_policy_hides_are_not_skipped() -> Outcome {
    // One policy filters, the other one raises an error of its own when it is evaluated.
    for tenant in ["nullif(current_setting('app.tenant', true), '')", "current_setting('app.tenant')"] {
        let (world, a, pool) = restricted(2_000, tenant).await?;
        plan_on(&world.pool)?.run(Task::Expand, &a.migration).await?;
        let plan = plan_on(&pool)?;
        world.go("backfill").await?;
        let role = role_of(&pool).await?;
        let error = plan.run(Task::Backfill, &a.migration).await.expect_err("hidden rows");
        assert!(matches!(error, PlanError::Refused(_)), "{error:?}");
        let error = error.to_string();
        let advice = format!("alter role {role} bypassrls");
        assert!(error.contains("\"orders\"") && error.contains(&advice), "{error}");
        let jobs = "select count(*) from cutover.jobs where finished_at is not null";
        assert_eq!(sqlx::query_scalar::<_, i64>(jobs).fetch_one(&world.pool).await?, 0);
        // The advice works.
        world.pool.execute(AssertSqlSafe(advice)).await?;
        plan.run(Task::Backfill, &a.migration).await?;
        let copied = "select count(*) from orders where new_status = lower(trim(old_status))";
        assert_eq!(sqlx::query_scalar::<_, i64>(copied).fetch_one(&world.pool).await?, 2_000);
        // A scan does not skip them either.
        world.go("verify").await?;
        world.pool.execute(AssertSqlSafe(format!("alter role {role} nobypassrls"))).await?;
        let error = plan.run(Task::Scan, &a.migration).await.expect_err("hidden rows").to_string();
        assert!(error.contains("row-level security"), "{error}");
        world.pool.execute("alter table orders no force row level security").await?;
        plan.run(Task::Scan, &a.migration).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_repair_does_not_take_a_hidden_row_for_a_deleted_one() -> Outcome {
    let (world, a, pool) = restricted(2, "nullif(current_setting('app.tenant', true), '')").await?;
    plan_on(&world.pool)?.run(Task::Expand, &a.migration).await?;
    world.go("expand").await?;
    let sides = DualWrite::new(a.migration.clone(), (), ()).repair_later();
    let mut tx = a.migration.begin(&world.pool).await?;
    sides
        .write_with(
            &mut tx,
            Rows::one(&1),
            async |_, _| Ok::<_, Error>(()),
            async |_, tx| Ok(tx.execute("select 1 / 0").await.map(|_| ())?),
        )
        .await?;
    tx.commit().await?;
    let repair = async |_: &(), _: &(), tx: &mut cutover::migration::PinnedTx, _: &serde_json::Value| {
        tx.execute("update orders set new_status = lower(trim(old_status)) where id = 1").await?;
        Ok::<_, Error>(())
    };
    assert_eq!(sides.repair_with(&pool, repair).await?, Repaired { repaired: 0, failed: 1 });
    let error: String =
        sqlx::query_scalar("select error from cutover.repairs").fetch_one(&world.pool).await?;
    assert!(error.contains("row-level security"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_hidden_row_is_not_deleted_from_the_other_store() -> Outcome {
    let (world, store) = (mirror::world(1).await?, mirror::postgres_store(None).await?);
    let plan = MirrorMigration::new(world.pool.clone(), Accounts, store.clone());
    let (a, sides) = mirror::member(&world, "a", &plan).await?;
    world.go("switch").await?;
    mirror::put(&sides, "a0", Some(7)).await?;
    assert_eq!(mirror::kept(&store, "a0").await?, Some(7));
    let pool = restrict(&world, "accounts", "current_setting('app.tenant', true) = name").await?;
    let hidden = Mirror::new(a.migration.clone(), MirrorMigration::new(pool, Accounts, store.clone()));
    let record = "insert into cutover.repairs (migration_id, side, key, error) \
        select id, 'new', '\"a0\"', '' from cutover.migrations where name = 'status'";
    world.pool.execute(record).await?;
    assert_eq!(hidden.deliver().await?, Repaired { repaired: 0, failed: 1 });
    assert_eq!(mirror::kept(&store, "a0").await?, Some(7), "the store lost a row that was only hidden");
    Ok(())
}
