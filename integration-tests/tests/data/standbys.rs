//! Reads that go to standbys: a side is complete only when they have replayed it.

use cutover::migration::DualWrite;
use cutover_testkit::{Postgres, PostgresOptions};
use sqlx::{Executor, PgPool};

use crate::repairs::{Sides, noted, scanned, set};
use crate::world::{Outcome, World};

#[tokio::test]
async fn reads_and_drops_wait_for_every_standby() -> Outcome {
    let primary = Postgres::start(PostgresOptions::default()).await?;
    let world = World::at(primary.create_database("shop").await?, 500).await?;
    let standby = primary.standby().await?;
    let reader = PgPool::connect(&standby.url("shop")).await?;
    let _a = world.reading("a", world.plan()?, &[standby.name()]).await?;
    world.go("expand").await?;
    let column = "select exists (select from pg_attribute where attrelid = 'orders'::regclass and attname = 'new_status')";
    let ask = async || sqlx::query_scalar(column).fetch_one(&reader).await.unwrap_or(false);
    world.until("the new column on the standby", ask).await?;
    reader.execute("select pg_wal_replay_pause()").await?;
    world.go("verify").await?;
    world.ask("ramp:50").await?;
    world.waits_for(&format!("standby {} to replay", standby.name())).await?;
    // Without the wait a standby would return an empty new side.
    let empty = "select count(*) filter (where new_status is not null) from orders";
    assert_eq!(sqlx::query_scalar::<_, i64>(empty).fetch_one(&reader).await?, 0);
    reader.execute("select pg_wal_replay_resume()").await?;
    world.go("ramp:50").await?;
    assert_eq!(sqlx::query_scalar::<_, i64>(empty).fetch_one(&reader).await?, 500);

    world.go("switch").await?;
    reader.execute("select pg_wal_replay_pause()").await?;
    world.go("retire").await?;
    world.approve().await?;
    world.ask("contract").await?;
    world.waits_for("to replay another").await?;
    reader.execute("select pg_wal_replay_resume()").await?;
    world.go("contract").await?;
    Ok(())
}

#[tokio::test]
async fn reads_wait_until_standbys_have_the_last_repair() -> Outcome {
    let primary = Postgres::start(PostgresOptions::default()).await?;
    let world = World::at(primary.create_database("shop").await?, 20).await?;
    let standby = primary.standby().await?;
    let reader = PgPool::connect(&standby.url("shop")).await?;
    let fleet = world.reading("a", world.plan()?, &[standby.name()]).await?;
    let sides: Sides = DualWrite::new(fleet.migration.clone(), (), ()).repair_later();
    world.go("verify").await?;
    scanned(&world).await?;
    world.pool.execute("alter table orders add constraint picky check (new_status <> 'bad')").await?;
    let there: String =
        sqlx::query_scalar("select pg_current_wal_lsn()::text").fetch_one(&world.pool).await?;
    let is_there = "select pg_last_wal_replay_lsn() >= $1::pg_lsn";
    let ask = async || sqlx::query_scalar(is_there).bind(&there).fetch_one(&reader).await.unwrap_or(false);
    world.until("the standby has the copy", ask).await?;
    reader.execute("select pg_wal_replay_pause()").await?;

    let mut tx = fleet.migration.begin(&world.pool).await?;
    set(&sides, &mut tx, 1, "bad").await?;
    tx.commit().await?;
    assert_eq!(noted(&world).await?, ["1"]);
    world.pool.execute("alter table orders drop constraint picky").await?;
    world
        .until("the row is repaired", async || noted(&world).await.is_ok_and(|keys| keys.is_empty()))
        .await?;

    world.ask("ramp:50").await?;
    world.waits_for(&format!("standby {} to replay", standby.name())).await?;
    // While the move waits no repair may be recorded. It may again when the move is no longer requested.
    let sealed = "select e.sealed_at is not null from cutover.epochs e join cutover.migrations m \
        on m.id = e.migration_id and m.epoch = e.epoch where m.name = 'status'";
    for (wish, is_sealed) in [("ramp:50", true), ("verify", false), ("ramp:50", true)] {
        world.ask(wish).await?;
        let ask = async || {
            sqlx::query_scalar::<_, bool>(sealed).fetch_one(&world.pool).await.is_ok_and(|is| is == is_sealed)
        };
        world.until(&format!("sealed: {is_sealed}"), ask).await?;
    }
    let new = "select new_status from orders where id = 1";
    assert_eq!(sqlx::query_scalar::<_, String>(new).fetch_one(&reader).await?, "legacy1");
    reader.execute("select pg_wal_replay_resume()").await?;
    world.go("ramp:50").await?;
    assert_eq!(sqlx::query_scalar::<_, String>(new).fetch_one(&reader).await?, "bad");
    Ok(())
}

#[tokio::test]
async fn an_unreachable_standby_holds_the_move_and_is_named() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.reading("a", world.plan()?, &["reader_7".to_owned()]).await?;
    world.go("verify").await?;
    world.ask("ramp:50").await?;
    world.waits_for("standby reader_7, which is not connected").await?;
    Ok(())
}

/// Some managed servers refuse the functions that tell WAL positions.
#[tokio::test]
async fn a_server_without_wal_positions_migrates_without_standbys() -> Outcome {
    let url = Postgres::fresh_database().await?;
    let role = format!("plain_{}", url.rsplit('/').next().unwrap_or_default());
    let owner = sqlx::PgPool::connect(&url).await?;
    for statement in [
        format!("create role {role} login"),
        format!("grant all on schema public to {role}"),
        format!("grant create on database {} to {role}", url.rsplit('/').next().unwrap_or_default()),
        "revoke execute on function pg_current_wal_insert_lsn(), pg_current_wal_lsn() from public".to_owned(),
    ] {
        owner.execute(sqlx::AssertSqlSafe(statement)).await?;
    }
    let world = World::at(url.replace("postgres@", &format!("{role}@")), 5).await?;
    let a = world.instance("a", Some(world.plan()?)).await?;
    world.go("switch").await?;
    world.go("expand").await?;
    a.agent.leave().await?;
    // Where reads go to standbys, nothing tells whether they have the copy.
    let _b = world.reading("b", world.plan()?, &["reader".to_owned()]).await?;
    world.ask("ramp").await?;
    world
        .waits_for("standby reader, which is not connected, or whose WAL position this role may not see")
        .await?;
    Ok(())
}
