//! The primary dies, and a standby that lags by two phases and many writes takes over.

use cutover_testkit::{Postgres, PostgresOptions, wait_until};

use super::instance::{KEYS, now};
use super::world::{BOUND, World, connect};
use super::{INSTALLED, Outcome, PLACES};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_loses_only_what_the_standby_had_not_received() -> Outcome {
    let _place = PLACES.acquire().await;
    let primary = Postgres::start(PostgresOptions::default()).await?;
    let mut world = World::new(&primary, "failover").await?;
    for name in ["a", "b", "c"] {
        world.start(&primary, name).await?;
    }
    world.until(INSTALLED).await?;
    world.serving(3).await?;
    world.go("ramp:50").await?;
    let standby = primary.standby().await?;
    caught_up(&primary, &standby).await?;

    // From here on the standby receives nothing.
    let apart = now();
    standby.execute("alter system set primary_conninfo = ''").await?;
    standby.execute("select pg_reload_conf()").await?;
    let alone = "select not exists (select from pg_stat_replication)";
    world.until(alone).await?;
    let alone = now();
    world.go("retire").await?;
    // The standby does not know an instance that joins now.
    world.start(&primary, "d").await?;
    world.serving(4).await?;
    for instance in 0..4 {
        world.busy(instance).await?;
    }

    for instance in &world.instances {
        instance.gate.hold();
    }
    let over = now();
    primary.kill9().await?;
    standby.promote().await?;
    world.pool = connect(&standby.url(&world.database)).await?;
    let epoch = world.epoch().await?;
    let start = world.values().await?;
    world.want("ramp:50").await?;
    let again = now();
    for instance in &world.instances {
        instance.gate.lead_to(standby.port());
        instance.gate.open();
    }
    world.serving(4).await?;
    for instance in 0..4 {
        world.busy(instance).await?;
    }
    assert_eq!(world.epoch().await?, epoch, "the epoch has not changed");
    world.go("retire").await?;
    for instance in 0..4 {
        world.busy(instance).await?;
    }
    world.go("switch").await?;

    let _ = world.judge().await?;
    // The history before the failover is consistent, including the part that is lost.
    let mut before = world.history(0, over, over);
    for key in 1..=KEYS {
        before.initial(key.unsigned_abs(), "initial");
    }
    let before = before.check();
    assert!(before.is_clean() && before.reads > 100, "{before:#?}");
    // The history after it starts from the state of the standby.
    let mut after = world.history(again, u64::MAX, u64::MAX);
    for (key, value) in &start {
        after.initial(key.unsigned_abs(), value);
    }
    for (key, value) in world.values().await? {
        after.last(key.unsigned_abs(), &value);
    }
    let after = after.check();
    assert!(after.is_clean() && after.reads > 100, "{after:#?}");
    // What was acknowledged while the standby replicated is still there.
    let mut kept = world.history(0, apart, alone);
    for key in 1..=KEYS {
        kept.initial(key.unsigned_abs(), "initial");
    }
    for (key, value) in &start {
        kept.last(key.unsigned_abs(), value);
    }
    let kept = kept.check();
    assert!(kept.is_clean() && kept.reads > 10, "{kept:#?}");
    Ok(())
}

/// Waits until the standby has replayed what the primary has written.
async fn caught_up(primary: &Postgres, standby: &Postgres) -> Outcome {
    let (primary, standby) = (connect(&primary.admin_url()).await?, connect(&standby.admin_url()).await?);
    let at: String = sqlx::query_scalar("select pg_current_wal_lsn()::text").fetch_one(&primary).await?;
    wait_until("the standby has caught up", BOUND, async || {
        sqlx::query_scalar::<_, bool>("select pg_last_wal_replay_lsn() >= $1::pg_lsn")
            .bind(&at)
            .fetch_one(&standby)
            .await
    })
    .await?;
    Ok(())
}
