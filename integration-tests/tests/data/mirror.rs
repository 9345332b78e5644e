//! A new side in another database: a second Postgres, a Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cutover::ledger::Ledger;
use cutover::migration::admin::{repairs, retry_repairs};
use cutover::migration::mirror::{
    Mirror, MirrorMigration, MirrorSource, MirrorStore, PostgresMirror, RedisMirror,
};
use cutover_testkit::{Postgres, Proxy, Redis};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgConnection};
use tokio::task::JoinSet;

use crate::world::{Fleet, Outcome, World, interrupted};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) balance: i64,
}

/// The old side: the table of the service.
pub(crate) struct Accounts;

impl MirrorSource for Accounts {
    type Row = Account;

    async fn read(&self, connection: &mut PgConnection, key: &str) -> Result<Option<Account>, sqlx::Error> {
        let query = sqlx::query_scalar("select balance from accounts where name = $1").bind(key.to_owned());
        Ok(query.fetch_optional(connection).await?.map(|balance| Account { balance }))
    }

    async fn write(
        &self,
        connection: &mut PgConnection,
        key: &str,
        row: Option<&Account>,
    ) -> Result<(), sqlx::Error> {
        let key = key.to_owned();
        match row {
            Some(row) => {
                sqlx::query(
                    "insert into accounts values ($1, $2) on conflict (name) do update set balance = excluded.balance",
                )
                .bind(key)
                .bind(row.balance)
                .execute(connection)
                .await?
            }
            None => sqlx::query("delete from accounts where name = $1").bind(key).execute(connection).await?,
        };
        Ok(())
    }

    async fn keys(
        &self,
        connection: &mut PgConnection,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query_scalar(
            "select name from accounts where $1::text is null or name > $1 order by name limit $2",
        )
        .bind(after.map(str::to_owned))
        .bind(limit)
        .fetch_all(connection)
        .await
    }
}

/// The time limit of a store that is there, on a busy machine.
const PATIENT: Duration = Duration::from_secs(20);

pub(crate) type Plan<M> = MirrorMigration<Accounts, M>;

pub(crate) async fn world(rows: i64) -> Outcome<World> {
    let world = World::new(0).await?;
    world.pool.execute("create table accounts (name text collate \"C\" primary key, balance bigint)").await?;
    sqlx::query("insert into accounts select 'a' || g, 0 from generate_series(0, $1 - 1) g")
        .bind(rows)
        .execute(&world.pool)
        .await?;
    Ok(world)
}

/// A store in another database, behind a proxy if there is one.
pub(crate) async fn postgres_store(gate: Option<&Proxy>) -> Outcome<PostgresMirror> {
    let (mut url, mut limit) = (Postgres::fresh_database().await?, PATIENT);
    if let Some(gate) = gate {
        let port = Postgres::shared().await?.port();
        url = url.replace(&format!(":{port}/"), &format!(":{}/", gate.port()));
        limit = Duration::from_secs(2);
    }
    let pool = PgPoolOptions::new().acquire_timeout(limit).connect_lazy(&url)?;
    Ok(PostgresMirror::new(pool, "kept")?)
}

pub(crate) fn redis_store(url: &str, prefix: &str) -> Outcome<RedisMirror> {
    let pool = deadpool_redis::Config::from_url(url).create_pool(Some(deadpool_redis::Runtime::Tokio1))?;
    Ok(RedisMirror::new(pool, prefix, PATIENT))
}

pub(crate) async fn member<M: MirrorStore>(
    world: &World,
    name: &str,
    plan: &Plan<M>,
) -> Outcome<(Fleet, Mirror<Accounts, M>)> {
    let fleet = world.instance_of(name, plan.clone()).await?;
    let mirror = Mirror::new(fleet.migration.clone(), plan.clone());
    Ok((fleet, mirror))
}

pub(crate) async fn balance<M: MirrorStore>(mirror: &Mirror<Accounts, M>, key: &str) -> Outcome<Option<i64>> {
    Ok(mirror.read(key).await?.map(|row| row.balance))
}

pub(crate) async fn kept(store: &impl MirrorStore, key: &str) -> Outcome<Option<i64>> {
    let json = store.get(key).await?;
    Ok(json.map(|json| serde_json::from_str::<Account>(&json)).transpose()?.map(|row| row.balance))
}

pub(crate) async fn put<M: MirrorStore>(
    mirror: &Mirror<Accounts, M>,
    key: &str,
    balance: Option<i64>,
) -> Outcome {
    let mut tx = mirror.begin().await?;
    tx.put(key, balance.map(|balance| Account { balance }).as_ref()).await?;
    Ok(tx.commit().await?)
}

pub(crate) async fn notes(world: &World) -> i64 {
    sqlx::query_scalar("select count(*) from cutover.repairs").fetch_one(&world.pool).await.unwrap_or(-1)
}

/// Writes a key through one instance and reads it through the other, repeatedly. Each read has to return the last write.
async fn write_and_read<M: MirrorStore>(
    key: String,
    mirrors: [Mirror<Accounts, M>; 2],
    stop: Arc<AtomicBool>,
) -> Result<Option<i64>, String> {
    let (mut last, mut number) = (Some(0), 0);
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        number += 1;
        let [one, other] =
            if number % 2 == 0 { [&mirrors[0], &mirrors[1]] } else { [&mirrors[1], &mirrors[0]] };
        let value = (number % 7 != 0).then_some(number);
        let written = put(one, &key, value).await;
        let read = balance(other, &key).await;
        match (&written, read) {
            (Ok(()), Ok(read)) if read == value => last = value,
            // The outcome is unknown.
            (Err(_), Ok(read)) if read == value || read == last => last = read,
            (_, Err(error)) => return Err(format!("{key} can't be read: {error}")),
            (_, Ok(read)) => {
                return Err(format!(
                    "{key} was read as {read:?}; written: {value:?} ({written:?}) after {last:?}"
                ));
            }
        }
    }
    Ok(last)
}

/// Moves forwards, backwards and forwards again, while every key is written and read all the time.
async fn the_whole_way<M: MirrorStore>(plan: Plan<M>, world: World, store: impl MirrorStore) -> Outcome {
    let (a, one) = member(&world, "a", &plan).await?;
    let (_b, two) = member(&world, "b", &plan).await?;
    for mirror in [one.clone(), two.clone()] {
        tokio::spawn(async move { mirror.run_delivery().await });
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    let busy: Vec<String> = (0..5).map(|number| format!("a{number}")).collect();
    for key in busy.clone() {
        writers.spawn(write_and_read(key, [one.clone(), two.clone()], Arc::clone(&stop)));
    }
    for phase in [
        "expand", "backfill", "verify", "ramp:50", "switch", "retire", "switch", "ramp:50", "verify",
        "switch", "retire",
    ] {
        world.go(phase).await?;
        // Each phase gets some time under load.
        let before = notes(&world).await;
        let version = "select last_value from cutover.repair_versions";
        let from: i64 = sqlx::query_scalar(version).fetch_one(&world.pool).await?;
        let moved = async || {
            let now: i64 = sqlx::query_scalar(version).fetch_one(&world.pool).await.unwrap_or(from);
            now > from + 20
        };
        world.until(&format!("writes in {phase} ({before} notes)"), moved).await?;
        if writers.try_join_next().is_some_and(|ended| !matches!(ended, Ok(Ok(_)))) {
            return Err(format!("a writer ended in {phase}").into());
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    for key in &busy {
        assert_eq!(balance(&one, key).await?, kept(&store, key).await?, "{key}");
    }
    for number in 5..120 {
        assert_eq!(kept(&store, &format!("a{number}")).await?, Some(0), "a{number} is as it was copied");
    }
    assert_eq!(notes(&world).await, 0);
    world.approve().await?;
    world.go("contract").await?;
    drop(a);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_move_to_another_postgres_and_back_under_writers() -> Outcome {
    let (world, store) = (world(120).await?, postgres_store(None).await?);
    let plan = MirrorMigration::new(world.pool.clone(), Accounts, store.clone());
    the_whole_way(plan, world, store).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_move_to_a_redis_and_back_under_writers() -> Outcome {
    let redis = Redis::start().await?;
    let (world, store) = (world(120).await?, redis_store(&redis.url(), "acc*:")?);
    let plan = MirrorMigration::new(world.pool.clone(), Accounts, store.clone());
    the_whole_way(plan, world, store).await
}

#[tokio::test]
async fn an_unreachable_store_holds_the_migration() -> Outcome {
    let gate = Proxy::start(Postgres::shared().await?.port())?;
    let (world, store) = (world(10).await?, postgres_store(Some(&gate)).await?);
    let plan = MirrorMigration::new(world.pool.clone(), Accounts, store.clone());
    let (_a, mirror) = member(&world, "a", &plan).await?;
    world.go("switch").await?;
    gate.cut();
    gate.hold();
    // The other store has an older row, so the service's own database is read.
    put(&mirror, "a1", Some(7)).await?;
    put(&mirror, "a2", None).await?;
    assert_eq!((balance(&mirror, "a1").await?, balance(&mirror, "a2").await?), (Some(7), None));
    assert_eq!((notes(&world).await, mirror.deliver().await?.failed), (2, 2));
    world.ask("retire").await?;
    world.waits_for("rows whose sides differ").await?;
    gate.open();
    let ask = async || mirror.deliver().await.is_ok() && notes(&world).await == 0;
    world.until("the rows to arrive", ask).await?;
    assert_eq!((kept(&store, "a1").await?, kept(&store, "a2").await?), (Some(7), None));
    world.go("retire").await?;
    put(&mirror, "a1", Some(8)).await?;
    assert_eq!((balance(&mirror, "a1").await?, kept(&store, "a1").await?), (Some(8), Some(8)));
    // From here on a write has to arrive before the commit returns.
    gate.cut();
    gate.hold();
    assert!(put(&mirror, "a1", Some(9)).await.is_err());
    gate.open();
    assert_eq!(balance(&mirror, "a1").await?, Some(8));
    Ok(())
}

#[tokio::test]
async fn a_dropped_write_leaves_both_stores_equal() -> Outcome {
    let (world, store) = (world(1).await?, postgres_store(None).await?);
    let plan = MirrorMigration::new(world.pool.clone(), Accounts, store.clone());
    let (_a, mirror) = member(&world, "a", &plan).await?;
    for phase in ["switch", "retire"] {
        world.go(phase).await?;
        for polls in 1.. {
            let is_over = interrupted(polls, put(&mirror, "a0", Some(polls as i64))).await.is_some();
            let settled = async || mirror.deliver().await.is_ok() && notes(&world).await == 0;
            world.until("nothing on its way", settled).await?;
            let read = balance(&mirror, "a0").await?;
            assert_eq!(read, kept(&store, "a0").await?, "{phase}, dropped after {polls} polls");
            if phase == "switch" {
                let row = Accounts.read(&mut *world.pool.acquire().await?, "a0").await?;
                assert_eq!(row.map(|row| row.balance), read, "{phase}, dropped after {polls} polls");
            }
            if is_over {
                assert_eq!(read, Some(polls as i64));
                break;
            }
        }
    }
    Ok(())
}

async fn keeps_the_newest(store: impl MirrorStore) -> Outcome {
    store.prepare().await?;
    store.prepare().await?;
    assert!(store.is_prepared().await?);
    store.put("k", 5, Some("{\"balance\": 5}")).await?;
    store.put("k", 4, Some("{\"balance\": 4}")).await?;
    store.put("k", 5, Some("{\"balance\": 6}")).await?;
    assert_eq!(kept(&store, "k").await?, Some(5));
    store.put("k", 9, None).await?;
    store.put("k", 8, Some("{\"balance\": 8}")).await?;
    assert_eq!(kept(&store, "k").await?, None);
    store.put("k", 10, Some("{\"balance\": 10}")).await?;
    for number in 0..1_500 {
        store.put(&format!("n{number}"), 1, Some("{\"balance\": 0}")).await?;
    }
    let (mut keys, mut cursor) = (std::collections::BTreeSet::new(), None);
    loop {
        let (page, next) = store.keys(cursor.as_deref()).await?;
        keys.extend(page);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((keys.len(), keys.contains("k"), keys.contains("n1499")), (1_501, true, true));
    Ok(())
}

#[tokio::test]
async fn an_older_version_never_replaces_a_newer_one() -> Outcome {
    keeps_the_newest(postgres_store(None).await?).await?;
    let redis = Redis::start().await?;
    keeps_the_newest(redis_store(&redis.url(), "p[1]?:")?).await
}

#[tokio::test]
async fn a_refused_row_is_listed_and_can_be_retried() -> Outcome {
    let (world, store) = (world(3).await?, postgres_store(None).await?);
    let plan = MirrorMigration::new(world.pool.clone(), Accounts, store.clone());
    let (_a, mirror) = member(&world, "a", &plan).await?;
    world.go("backfill").await?;
    world.filled().await?;
    let other = store.pool();
    other.execute("alter table kept add constraint picky check (body ->> 'balance' <> '13')").await?;
    put(&mirror, "a1", Some(13)).await?;
    mirror.deliver().await?;
    let ledger = Ledger::existing(world.url.parse()?).await?;
    let listed = repairs(&ledger, Some("status"), 10).await?;
    assert_eq!((listed.len(), listed[0].key.as_str()), (1, Some("a1")));
    assert!(listed[0].error.contains("picky"), "{}", listed[0].error);
    other.execute("alter table kept drop constraint picky").await?;
    assert_eq!(retry_repairs(&ledger, "status", "ann").await?, 1);
    mirror.deliver().await?;
    assert_eq!((kept(&store, "a1").await?, notes(&world).await), (Some(13), 0));
    // The scan finds a difference that is not recorded.
    other.execute("update kept set body = '{\"balance\": 1}' where key = 'a2'").await?;
    world.ask("ramp:50").await?;
    world.waits_for("differ between the stores: different: a2").await?;
    put(&mirror, "a2", Some(0)).await?;
    world.go("ramp:50").await?;
    Ok(())
}

#[tokio::test]
async fn a_rolled_back_write_never_arrives() -> Outcome {
    let (world, store) = (world(3).await?, postgres_store(None).await?);
    let plan = MirrorMigration::new(world.pool.clone(), Accounts, store.clone());
    let (_a, mirror) = member(&world, "a", &plan).await?;
    for phase in ["switch", "retire"] {
        world.go(phase).await?;
        // A rollback to a savepoint.
        let mut tx = mirror.begin().await?;
        tx.put("a0", Some(&Account { balance: 1 })).await?;
        tx.execute("savepoint here").await?;
        tx.put("a0", Some(&Account { balance: 66 })).await?;
        tx.put("a1", Some(&Account { balance: 66 })).await?;
        tx.execute("rollback to savepoint here").await?;
        tx.commit().await?;
        mirror.deliver().await?;
        // A failed statement whose error is ignored.
        let mut tx = mirror.begin().await?;
        tx.put("a2", Some(&Account { balance: 66 })).await?;
        assert!(tx.execute("select 1 / 0").await.is_err());
        assert!(tx.commit().await.is_err(), "{phase}");
        let read =
            [balance(&mirror, "a0").await?, balance(&mirror, "a1").await?, balance(&mirror, "a2").await?];
        let there = [kept(&store, "a0").await?, kept(&store, "a1").await?, kept(&store, "a2").await?];
        assert_eq!(read, there, "{phase}");
        assert_eq!(read, [Some(1), Some(0), Some(0)], "{phase}");
    }
    Ok(())
}

#[tokio::test]
async fn no_key_is_mistaken_for_the_end_of_the_copy() -> Outcome {
    let (world, store) = (world(0).await?, postgres_store(None).await?);
    // `old` is the last key of a page, and others follow it.
    world
        .pool
        .execute(
            "insert into accounts select 'a' || lpad(g::text, 4, '0'), 7 from generate_series(1, 197) g; \
             insert into accounts values ('old', 7), ('new', 7), ('p', 7), ('q', 7), ('end:old', 7), ('z', 7)",
        )
        .await?;
    let plan = MirrorMigration::new(world.pool.clone(), Accounts, store.clone());
    let (_a, mirror) = member(&world, "a", &plan).await?;
    world.go("switch").await?;
    for key in ["a0001", "a0197", "new", "old", "p", "q", "end:old", "z"] {
        assert_eq!(balance(&mirror, key).await?, Some(7), "{key}");
    }
    Ok(())
}
