//! A Redis that fails over, or is demoted alive.

use std::time::Duration;

use cutover::session::{PreserveUnknown, RedisStore, RedisStoreOptions};
use cutover_testkit::{KitError, Proxy, Redis, wait_until};

use deadpool_redis::redis::cmd;
use serde_json::json;
use tower_sessions::{Session, SessionStore};

use super::builds::{NewCart, OldCart};
use super::{LIMIT, patient, pool, raw, record};

/// An outage is an error after this time, which a busy machine does not need for an answer.
fn outlasting() -> RedisStoreOptions {
    RedisStoreOptions { time_limit: Duration::from_secs(5), ..patient() }
}

#[tokio::test]
async fn sessions_survive_a_failover_and_an_outage_is_an_error() {
    let (first, second) = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    let gate = Proxy::start(first.port()).unwrap();
    let config = deadpool_redis::Config::from_url(format!("redis://127.0.0.1:{}/", gate.port()));
    let pool = config.create_pool(Some(deadpool_redis::Runtime::Tokio1)).unwrap();
    let store = RedisStore::new(pool, outlasting()).unwrap();
    let session = |id| Session::new(id, store.clone().into(), None);
    let newer = session(None);
    newer
        .insert("cart", PreserveUnknown::new(NewCart { items: 1, coupon: Some("SPRING".into()) }))
        .await
        .unwrap();
    newer.save().await.unwrap();
    let id = newer.id();

    // A replica follows, the primary dies, and the replica is promoted.
    let mut replica = self::pool(&second).get().await.unwrap();
    let () = cmd("REPLICAOF").arg("127.0.0.1").arg(first.port()).query_async(&mut replica).await.unwrap();
    wait_until("the replica to be in step", LIMIT, async || {
        let mut replica = self::pool(&second).get().await.unwrap();
        let info: String = cmd("INFO").arg("replication").query_async(&mut replica).await.unwrap();
        Ok::<_, KitError>(info.contains("master_link_status:up"))
    })
    .await
    .unwrap();
    first.process().kill().await.unwrap();
    let away = session(id);
    assert!(
        away.get::<PreserveUnknown<OldCart>>("cart").await.is_err(),
        "Redis is away, and that is an error"
    );
    let () = cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut replica).await.unwrap();
    gate.lead_to(second.port());
    gate.cut();

    // The pool reconnects by itself, and the older build keeps the field of the newer one.
    wait_until("the store to find the new primary", LIMIT, async || {
        Ok::<_, KitError>(session(id).get::<PreserveUnknown<OldCart>>("cart").await.is_ok())
    })
    .await
    .unwrap();
    let older = session(id);
    let mut cart: PreserveUnknown<OldCart> = older.get("cart").await.unwrap().unwrap();
    cart.items += 1;
    older.insert("cart", cart).await.unwrap();
    older.save().await.unwrap();
    let cart: PreserveUnknown<NewCart> = session(id).get("cart").await.unwrap().unwrap();
    assert_eq!((cart.items, cart.coupon.as_deref()), (2, Some("SPRING")));

    // A restarted Redis is empty: sessions are gone, and the next login is stored.
    first.restart().await.unwrap();
    gate.lead_to(first.port());
    gate.cut();
    wait_until("the store to find Redis again", LIMIT, async || {
        Ok::<_, KitError>(store.load(&id.unwrap()).await.is_ok())
    })
    .await
    .unwrap();
    assert!(store.load(&id.unwrap()).await.unwrap().is_none());
    let again = session(None);
    again.insert("user", "ann").await.unwrap();
    again.save().await.unwrap();
    assert_eq!(session(again.id()).get("user").await.unwrap(), Some("ann".to_owned()));
}

#[tokio::test]
async fn sessions_recover_after_the_primary_was_demoted_alive() {
    let (first, second) = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    let gate = Proxy::start(first.port()).unwrap();
    let config = deadpool_redis::Config::from_url(format!("redis://127.0.0.1:{}/", gate.port()));
    let store =
        RedisStore::new(config.create_pool(Some(deadpool_redis::Runtime::Tokio1)).unwrap(), outlasting())
            .unwrap();
    let mut made = record(json!({"k": 0}));
    store.create(&mut made).await.unwrap();
    // Several idle connections lead to the server that will be demoted.
    let loads = (0..5).map(|_| {
        tokio::spawn({
            let (store, id) = (store.clone(), made.id);
            async move { store.load(&id).await }
        })
    });
    for load in loads.collect::<Vec<_>>() {
        load.await.unwrap().unwrap();
    }
    let save = async |value: u32| {
        let mut record = store.load(&made.id).await?.unwrap();
        record.data.insert("k".into(), json!(value));
        store.save(&record).await
    };

    let replicate = async |of: &Redis, host: &str, port: &str| {
        let mut connection = self::pool(of).get().await.unwrap();
        let () = cmd("REPLICAOF").arg(host).arg(port).query_async(&mut connection).await.unwrap();
    };
    replicate(&second, "127.0.0.1", &first.port().to_string()).await;
    wait_until("the replica to have the session", LIMIT, async || {
        Ok::<_, KitError>(raw(&second, &made.id).await.is_some())
    })
    .await
    .unwrap();
    replicate(&second, "NO", "ONE").await;
    replicate(&first, "127.0.0.1", &second.port().to_string()).await;
    let error = save(1).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("read") && error.contains("replica"), "{error}");

    // The address leads to the new primary now; connections to the old one stay open.
    gate.lead_to(second.port());
    for value in 2..6 {
        save(value).await.unwrap();
    }
    assert_eq!(raw(&second, &made.id).await.unwrap()["data"]["k"], 5);
}

#[tokio::test]
async fn a_deletion_is_repeated_when_its_connection_breaks() {
    let redis = Redis::start().await.unwrap();
    let store = RedisStore::new(pool(&redis), patient()).unwrap();
    let mut made = record(json!({}));
    store.create(&mut made).await.unwrap();
    // Reads are answered, and the command waits on the server.
    redis.command("CLIENT PAUSE 60000 WRITE").await.unwrap();
    let deletion = tokio::spawn({
        let store = store.clone();
        async move { store.delete(&made.id).await }
    });
    let waiting = async || {
        let clients = redis.command("CLIENT LIST").await?;
        let waiting = clients.lines().find(|client| client.contains("cmd=del "));
        Ok::<_, KitError>(waiting.and_then(|client| client.split(' ').next()).map(str::to_owned))
    };
    wait_until("the command to reach the server", LIMIT, async || {
        Ok::<_, KitError>(waiting().await?.is_some())
    })
    .await
    .unwrap();
    let client = waiting().await.unwrap().unwrap();
    redis.command(&format!("CLIENT KILL {}", client.replacen('=', " ", 1))).await.unwrap();
    redis.command("CLIENT UNPAUSE").await.unwrap();
    deletion.await.unwrap().unwrap();
    assert_eq!(raw(&redis, &made.id).await, None);
}
