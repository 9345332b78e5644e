//! External transactions whose snapshot is older than the row of a table of its own which belongs to the row that they write.

use crate::world::{Fleet, Outcome, World};
use cutover::migration::{TableMigration, TableMigrationBuilder, map_each};
use sqlx::{Connection, Executor, PgConnection};

/// The first ten users have a profile.
async fn users() -> Outcome<(World, Fleet)> {
    let (world, plan) = table().await?;
    let fleet = world.brief("a", plan.same("bio").build()?).await?;
    Ok((world, fleet))
}

async fn table() -> Outcome<(World, TableMigrationBuilder)> {
    let world = World::new(0).await?;
    world
        .external(
            "create table users (id bigint primary key, name text, bio text); \
             insert into users select g, 'n' || g, case when g <= 10 then 'b' || g end from generate_series(1, 20) g",
        )
        .await?;
    let plan = TableMigration::new(world.pool.clone(), "users", "profiles")
        .create("create table profiles (id bigint primary key, bio text)")
        .only_columns();
    Ok((world, plan))
}

/// A transaction that has its snapshot from now on.
async fn snapshot(world: &World) -> Outcome<PgConnection> {
    let mut session = PgConnection::connect(&world.url).await?;
    session.execute("begin isolation level repeatable read; select from users").await?;
    Ok(session)
}

async fn pinned(world: &World, fleet: &Fleet, statement: &'static str) -> Outcome {
    let mut tx = fleet.migration.begin(&world.pool).await?;
    tx.execute(statement).await?;
    Ok(tx.commit().await?)
}

async fn count(world: &World, query: &'static str) -> Outcome<i64> {
    Ok(sqlx::query_scalar(query).fetch_one(&world.pool).await?)
}

const ALONE: &str =
    "select count(*) from profiles p where not exists (select from users u where u.id = p.id)";

async fn to_the_end(world: &World) -> Outcome {
    world
        .external(
            "insert into cutover.approvals (migration_id, phase, actor, reason) \
             select id, 'contract', 'test', 'test' from cutover.migrations where name = 'status'",
        )
        .await?;
    world.ask("contract").await?;
    world.ended().await
}

#[tokio::test]
async fn a_value_removed_beside_its_copy_is_removed_in_verify() -> Outcome {
    let (world, _a) = users().await?;
    world.go("expand").await?;
    let mut stop = PgConnection::connect(&world.url).await?;
    stop.execute("begin; select from users where id = 1 for update").await?;
    world.ask("backfill").await?;
    world.until("the copy", async || world.is_at("backfill").await.is_ok_and(|is| is)).await?;
    let mut removing = snapshot(&world).await?;
    let mut deleting = snapshot(&world).await?;
    stop.execute("rollback").await?;
    world.filled().await?;
    removing
        .execute(
            "insert into users (id, bio) values (2, null) on conflict (id) do update set bio = null; commit",
        )
        .await?;
    deleting.execute("delete from users where id = 3; commit").await?;
    let left = "select count(*) from profiles where id in (2, 3)";
    assert_eq!(count(&world, left).await?, 2, "the transactions do not see the copies");
    assert_eq!(count(&world, "select count(*) from cutover.repairs where side = 'new'").await?, 2);
    world.go("verify").await?;
    world.until("the repair", async || count(&world, left).await.is_ok_and(|rows| rows == 0)).await?;
    world.go("ramp").await
}

/// The old column is outdated, so it does not tell whether there is a profile.
#[tokio::test]
async fn a_user_without_profile_is_deleted_in_retire() -> Outcome {
    let (world, a) = users().await?;
    world.go("retire").await?;
    pinned(&world, &a, "delete from profiles where id = 1").await?;
    snapshot(&world).await?.execute("delete from users where id = 1; commit").await?;
    to_the_end(&world).await
}

#[tokio::test]
async fn a_profile_of_retire_is_removed_with_its_user() -> Outcome {
    let (world, a) = users().await?;
    world.go("retire").await?;
    let mut deleting = snapshot(&world).await?;
    let mut again = snapshot(&world).await?;
    pinned(&world, &a, "insert into profiles values (15, 'late'), (16, 'late')").await?;
    deleting.execute("delete from users where id = 15; commit").await?;
    again.execute("delete from users where id = 16; insert into users values (16, 'n'); commit").await?;
    to_the_end(&world).await?;
    assert_eq!(count(&world, ALONE).await?, 0);
    assert_eq!(count(&world, "select count(*) from profiles where id = 16").await?, 1, "its user is there");
    Ok(())
}

#[tokio::test]
async fn a_key_whose_profile_may_be_newer_stays() -> Outcome {
    let (world, a) = users().await?;
    world.go("retire").await?;
    let mut moving = snapshot(&world).await?;
    pinned(&world, &a, "insert into profiles values (15, 'late')").await?;
    let update = "update users set id = 115 where id = 15";
    let error = moving.execute(update).await.expect_err("the profile would stay behind");
    assert!(error.to_string().contains("may be newer than the transaction's snapshot"), "{error}");
    moving.execute("rollback").await?;
    moving.execute("begin isolation level read committed").await?;
    moving.execute(update).await?;
    moving.execute("commit").await?;
    assert_eq!(count(&world, "select count(*) from profiles where id = 115").await?, 1);
    // A key whose profile is there follows, whatever the snapshot.
    snapshot(&world).await?.execute("update users set id = 102 where id = 2; commit").await?;
    assert_eq!(count(&world, ALONE).await?, 0);
    Ok(())
}

#[derive(sqlx::FromRow, serde::Serialize)]
struct Bio {
    bio: Option<String>,
}

/// The trigger cannot run the mapping. The profile of the old key would stay, and the new one would have none.
#[tokio::test]
async fn a_key_that_changes_beside_a_repair_keeps_its_profile() -> Outcome {
    let (world, plan) = table().await?;
    let plan = plan.column_back("bio", "bio").forward_rows(&["bio"], map_each(Ok::<Bio, String>));
    let _a = world.brief("a", plan.build()?).await?;
    for (phase, id) in [("ramp", 5), ("switch", 6)] {
        world.go(phase).await?;
        world.external(&format!("delete from profiles where id = {id}")).await?;
        let mut moving = snapshot(&world).await?;
        let record =
            format!("select cutover.record_external_repair({}, 'new', '{id}', 'test')", world.id().await?);
        world.external(&record).await?;
        let profile = async |id: i64| {
            let there = "select exists (select from profiles where id = $1)";
            sqlx::query_scalar::<_, bool>(there).bind(id).fetch_one(&world.pool).await.unwrap_or(false)
        };
        world.until("the repair", async || profile(id).await).await?;
        moving
            .execute(sqlx::AssertSqlSafe(format!("update users set id = {id} + 100 where id = {id}; commit")))
            .await?;
        let follows = async || profile(id + 100).await && !profile(id).await;
        world.until(&format!("the profile follows in {phase}"), follows).await?;
    }
    Ok(())
}
