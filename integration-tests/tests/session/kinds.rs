//! Sessions in a Redis behind Sentinel, and in a cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cutover::session::{RedisStore, RedisStoreOptions};
use cutover_testkit::{KitError, Redis, RedisCluster, RedisSentinel, wait_until};
use deadpool_redis::sentinel::SentinelServerType;
use serde_json::json;
use tokio::task::JoinHandle;
use tower_sessions::SessionStore;
use tower_sessions::session::Id;

use super::{LIMIT, patient, raw, record};

fn behind_sentinel(sentinel: &RedisSentinel, options: RedisStoreOptions) -> RedisStore {
    let config = deadpool_redis::sentinel::Config::from_urls(
        vec![sentinel.url()],
        "primary".to_owned(),
        SentinelServerType::Master,
    );
    RedisStore::new(config.create_pool(None).unwrap(), options).unwrap()
}

fn in_cluster(cluster: &RedisCluster) -> RedisStore {
    let pool = deadpool_redis::cluster::Config::from_urls(cluster.urls()).create_pool(None).unwrap();
    RedisStore::new(pool, patient()).unwrap()
}

async fn create(store: &RedisStore) -> Id {
    let mut made = record(json!({"n": 0}));
    store.create(&mut made).await.unwrap();
    made.id
}

async fn set(store: &RedisStore, id: Id, value: u64) -> Result<(), tower_sessions::session_store::Error> {
    let mut record = store.load(&id).await?.unwrap();
    record.data.insert("n".into(), json!(value));
    store.save(&record).await
}

async fn get(store: &RedisStore, id: Id) -> Option<u64> {
    store.load(&id).await.ok()??.data.get("n")?.as_u64()
}

/// Four requests at a time that each set their session, until told to stop. Returns the number of sets, none of which failed.
fn requests(store: &RedisStore, ids: Vec<Id>) -> (Arc<AtomicBool>, Vec<JoinHandle<u64>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let run = |id| {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            let mut value = 0;
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                set(&store, id, value).await.unwrap();
            }
            value
        })
    };
    let tasks = ids.into_iter().map(run).collect();
    (stop, tasks)
}

/// Waits until the session has been set twice more.
async fn goes_on(store: &RedisStore, id: Id) {
    let at = get(store, id).await.unwrap_or_default();
    wait_until("two more requests", LIMIT, async || Ok::<_, KitError>(get(store, id).await > Some(at + 1)))
        .await
        .unwrap();
}

async fn sessions_per_owner(store: &RedisStore, any: &Redis) -> [Id; 3] {
    let mut found = [None; 3];
    while found.iter().any(Option::is_none) {
        let id = create(store).await;
        found[RedisCluster::first_owner(slot(any, id).await)] = Some(id);
    }
    found.map(Option::unwrap)
}

async fn slot(any: &Redis, id: Id) -> u16 {
    any.command(&format!("CLUSTER KEYSLOT session:{id}")).await.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_follow_sentinel_when_the_primary_dies() {
    let sentinel = RedisSentinel::start().await.unwrap();
    let store = behind_sentinel(&sentinel, patient());
    let id = create(&store).await;
    set(&store, id, 7).await.unwrap();
    let [first, second] = sentinel.servers();
    wait_until("the replica to have the session", LIMIT, async || {
        Ok::<_, KitError>(raw(second, &id).await.is_some_and(|stored| stored["data"]["n"] == 7))
    })
    .await
    .unwrap();

    first.process().kill().await.unwrap();
    let hasty = behind_sentinel(&sentinel, RedisStoreOptions::default());
    assert_eq!(get(&hasty, id).await, None, "no primary, and that is an error");
    sentinel.wait_for(second).await.unwrap();
    assert_eq!(get(&store, id).await, Some(7));
    set(&store, id, 8).await.unwrap();
    assert_eq!(raw(second, &id).await.unwrap()["data"]["n"], 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_when_sentinel_changes_the_primary() {
    let sentinel = RedisSentinel::start().await.unwrap();
    let store = behind_sentinel(&sentinel, patient());
    let ids = [create(&store).await, create(&store).await, create(&store).await, create(&store).await];
    let [first, second] = sentinel.servers();
    wait_until("the replica to have the sessions", LIMIT, async || {
        Ok::<_, KitError>(second.command("DBSIZE").await? == "4")
    })
    .await
    .unwrap();
    let (stop, tasks) = requests(&store, ids.to_vec());
    sentinel.fail_over().await.unwrap();
    // Connections to the former primary stay open, and it refuses writes from here on.
    first.command(&format!("REPLICAOF 127.0.0.1 {}", second.port())).await.unwrap();
    for id in ids {
        goes_on(&store, id).await;
    }
    stop.store(true, Ordering::Relaxed);
    for (task, id) in tasks.into_iter().zip(ids) {
        let last = task.await.unwrap();
        assert_eq!(raw(second, &id).await.unwrap()["data"]["n"], last);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_survive_the_move_of_a_cluster_slot() {
    let cluster = RedisCluster::start().await.unwrap();
    let store = in_cluster(&cluster);
    let [from, to, _] = cluster.primaries();
    let [id, _, _] = sessions_per_owner(&store, from).await;
    let slot = slot(from, id).await;
    let (stop, tasks) = requests(&store, vec![id]);
    let ids = [from.command("CLUSTER MYID").await.unwrap(), to.command("CLUSTER MYID").await.unwrap()];
    to.command(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", ids[0])).await.unwrap();
    from.command(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", ids[1])).await.unwrap();
    let moved = from.command(&format!("MIGRATE 127.0.0.1 {} session:{id} 0 5000", to.port())).await.unwrap();
    assert_eq!(moved, "OK");
    // The first server answers ASK now.
    set(&store, id, 0).await.unwrap();
    goes_on(&store, id).await;
    for server in [to, from] {
        server.command(&format!("CLUSTER SETSLOT {slot} NODE {}", ids[1])).await.unwrap();
    }
    // And MOVED.
    goes_on(&store, id).await;
    stop.store(true, Ordering::Relaxed);
    let last = tasks.into_iter().next().unwrap().await.unwrap();
    assert_eq!(get(&store, id).await, Some(last));
    assert_eq!(to.command(&format!("EXISTS session:{id}")).await.unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_when_a_cluster_replica_takes_over() {
    let cluster = RedisCluster::start().await.unwrap();
    let store = in_cluster(&cluster);
    let ids = sessions_per_owner(&store, &cluster.primaries()[0]).await;
    let (stop, tasks) = requests(&store, ids.to_vec());
    cluster.replica().command("CLUSTER FAILOVER").await.unwrap();
    cluster.wait_for_replica().await.unwrap();
    goes_on(&store, ids[0]).await;
    stop.store(true, Ordering::Relaxed);
    for (task, id) in tasks.into_iter().zip(ids) {
        let last = task.await.unwrap();
        assert_eq!(get(&store, id).await, Some(last));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_survive_the_death_of_a_cluster_primary() {
    let cluster = RedisCluster::start().await.unwrap();
    let store = in_cluster(&cluster);
    let ids = sessions_per_owner(&store, &cluster.primaries()[0]).await;
    wait_until("the replica to have the session", LIMIT, async || {
        let keys = cluster.replica().command("DBSIZE").await?;
        Ok::<_, KitError>(keys == cluster.primaries()[0].command("DBSIZE").await?)
    })
    .await
    .unwrap();
    cluster.primaries()[0].process().kill().await.unwrap();
    cluster.wait_for_replica().await.unwrap();
    for (value, id) in (1..).zip(ids) {
        wait_until("a session to work", LIMIT, async || {
            Ok::<_, KitError>(set(&store, id, value).await.is_ok())
        })
        .await
        .unwrap();
        assert_eq!(get(&store, id).await, Some(value));
    }
}
