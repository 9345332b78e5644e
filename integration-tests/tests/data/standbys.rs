//! Reads that go to standbys: a side is there only when they have it.

use cutover_testkit::{Postgres, PostgresOptions};
use sqlx::{Executor, PgPool};

use crate::world::{Outcome, World};

#[tokio::test]
async fn nothing_is_read_or_dropped_before_every_standby_is_that_far() -> Outcome {
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
    world.waits_for(&format!("standby {} has yet to replay", standby.name())).await?;
    // There it is: on the standby the new side is not old but empty.
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
    world.waits_for("has yet to replay").await?;
    reader.execute("select pg_wal_replay_resume()").await?;
    world.go("contract").await?;
    Ok(())
}

#[tokio::test]
async fn a_standby_that_is_not_there_holds_and_is_named() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.reading("a", world.plan()?, &["reader_7".to_owned()]).await?;
    world.go("verify").await?;
    world.ask("ramp:50").await?;
    world.waits_for("standby reader_7 is not connected").await?;
    Ok(())
}
