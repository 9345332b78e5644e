//! Sessions on a real Redis, with several builds and concurrent requests.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{Request, StatusCode, header},
    routing::get,
};
use cutover::session::{ConflictPolicy, PreserveUnknown, RedisStore, RedisStoreOptions};
use cutover_testkit::{KitError, Proxy, Redis, wait_until};
use deadpool_redis::{Pool, redis::cmd};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::Barrier;
use tower::ServiceExt;
use tower_sessions::{
    Session, SessionManagerLayer, SessionStore,
    session::{Id, Record},
    session_store::Error,
};

const LIMIT: Duration = Duration::from_secs(10);

fn pool(redis: &Redis) -> Pool {
    let config = deadpool_redis::Config::from_url(redis.url());
    config.create_pool(None).unwrap()
}

fn store(redis: &Redis) -> RedisStore {
    RedisStore::new(pool(redis), RedisStoreOptions::default()).unwrap()
}

fn record(data: Value) -> Record {
    Record {
        id: Id::default(),
        data: serde_json::from_value(data).unwrap(),
        expiry_date: OffsetDateTime::now_utc() + Duration::from_secs(3600),
    }
}

async fn raw(redis: &Redis, id: &Id) -> Option<Value> {
    let mut connection = pool(redis).get().await.unwrap();
    let text: Option<String> =
        cmd("GET").arg(format!("session:{id}")).query_async(&mut connection).await.unwrap();
    text.map(|text| serde_json::from_str(&text).unwrap())
}

async fn put(redis: &Redis, id: &Id, value: &str) {
    let mut connection = pool(redis).get().await.unwrap();
    let () = cmd("SET").arg(format!("session:{id}")).arg(value).query_async(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_record_can_be_loaded_until_it_is_deleted() {
    let redis = Redis::start().await.unwrap();
    let store = store(&redis);
    let mut made = record(json!({"user": "u1", "n": 1}));
    store.create(&mut made).await.unwrap();
    let mut loaded = store.load(&made.id).await.unwrap().unwrap();
    assert_eq!(loaded.id, made.id);
    assert_eq!(loaded.data["user"], "u1");
    let lag = made.expiry_date - loaded.expiry_date;
    assert!(lag.abs() < Duration::from_millis(2), "{lag}");

    loaded.data.insert("n".into(), json!(2));
    loaded.data.remove("user");
    store.save(&loaded).await.unwrap();
    let kept = raw(&redis, &made.id).await.unwrap();
    assert_eq!((&kept["v"], &kept["rev"]), (&json!(1), &json!(2)));
    // The base of a loaded record is not stored.
    assert_eq!(kept["data"], json!({"n": 2}));

    store.delete(&made.id).await.unwrap();
    assert!(store.load(&made.id).await.unwrap().is_none());
    // After a log-out, a request that is still running does not bring the session back.
    let error = store.save(&loaded).await.unwrap_err();
    assert!(matches!(&error, Error::Backend(text) if text.contains("deleted")), "{error}");
    assert!(store.load(&made.id).await.unwrap().is_none());
}

#[tokio::test]
async fn an_expired_record_is_gone() {
    let redis = Redis::start().await.unwrap();
    let store = store(&redis);
    let mut short = record(json!({"k": 1}));
    short.expiry_date = OffsetDateTime::now_utc() + Duration::from_millis(300);
    let mut long = record(json!({"k": 1}));
    store.create(&mut short).await.unwrap();
    store.create(&mut long).await.unwrap();
    assert!(store.load(&short.id).await.unwrap().is_some());
    let gone = async || {
        let found = store.load(&short.id).await?;
        Ok::<_, Error>(found.is_none())
    };
    wait_until("the end of a session", LIMIT, gone).await.unwrap();

    // A save can shorten the lifetime too.
    let mut loaded = store.load(&long.id).await.unwrap().unwrap();
    loaded.expiry_date = OffsetDateTime::now_utc() - Duration::from_secs(1);
    store.save(&loaded).await.unwrap();
    let gone = async || {
        let found = store.load(&long.id).await?;
        Ok::<_, Error>(found.is_none())
    };
    wait_until("the end of a session", LIMIT, gone).await.unwrap();
}

#[tokio::test]
async fn creating_never_overwrites() {
    let redis = Redis::start().await.unwrap();
    let store = store(&redis);
    let mut first = record(json!({"owner": "first"}));
    store.create(&mut first).await.unwrap();
    let mut second = record(json!({"owner": "second"}));
    second.id = first.id;
    store.create(&mut second).await.unwrap();
    assert_ne!(second.id, first.id);
    for (made, owner) in [(&first, "first"), (&second, "second")] {
        let loaded = store.load(&made.id).await.unwrap().unwrap();
        assert_eq!(loaded.data["owner"], owner);
    }
}

#[tokio::test]
async fn concurrent_changes_of_different_keys_are_all_kept() {
    let redis = Redis::start().await.unwrap();
    let patient = RedisStoreOptions { time_limit: LIMIT, ..RedisStoreOptions::default() };
    let store = RedisStore::new(pool(&redis), patient).unwrap();
    let mut made = record(json!({}));
    store.create(&mut made).await.unwrap();
    let id = made.id;
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    let mut record = store.load(&id).await.unwrap().unwrap();
                    record.data.insert(format!("k{writer}"), json!(n));
                    store.save(&record).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let kept = raw(&redis, &id).await.unwrap();
    assert_eq!(kept["rev"], 1 + 8 * 20);
    let all: Value = (0..8).map(|writer| (format!("k{writer}"), json!(19))).collect();
    assert_eq!(kept["data"], all);
}

#[tokio::test]
async fn the_policy_decides_about_changes_of_one_key() {
    let redis = Redis::start().await.unwrap();
    let last_wins = store(&redis);
    let refuse = RedisStoreOptions { on_conflict: ConflictPolicy::Refuse, ..RedisStoreOptions::default() };
    let refuse = RedisStore::new(pool(&redis), refuse).unwrap();
    let mut made = record(json!({"visits": 1}));
    refuse.create(&mut made).await.unwrap();
    let mut one = refuse.load(&made.id).await.unwrap().unwrap();
    let mut two = refuse.load(&made.id).await.unwrap().unwrap();
    one.data.insert("visits".into(), json!(2));
    two.data.insert("visits".into(), json!(3));
    refuse.save(&one).await.unwrap();
    let error = refuse.save(&two).await.unwrap_err();
    assert!(error.to_string().contains("same key"), "{error}");
    assert_eq!(raw(&redis, &made.id).await.unwrap()["data"]["visits"], 2);
    last_wins.save(&two).await.unwrap();
    assert_eq!(raw(&redis, &made.id).await.unwrap()["data"]["visits"], 3);
}

#[tokio::test]
async fn concurrent_changes_of_one_key_all_succeed_and_are_counted() {
    const REQUESTS: u32 = 10;
    let redis = Redis::start().await.unwrap();
    let store = store(&redis);
    let registry = prometheus::Registry::new();
    store.register(&registry).unwrap();
    // All requests load the session before the first one changes it.
    let loaded = Arc::new(Barrier::new(REQUESTS as usize));
    let set = async move |session: Session, Path(value): Path<u32>| {
        session.get::<u32>("tab").await.unwrap();
        loaded.wait().await;
        session.insert("tab", value).await.unwrap();
    };
    let sessions = SessionManagerLayer::new(store).with_secure(false);
    let app = routes().route("/tab/{value}", get(set)).layer(sessions);
    let (_, cookie, _) = ask(&app, "/set", None).await;
    let requests = (0..REQUESTS).map(|value| {
        let (app, cookie) = (app.clone(), cookie.clone());
        tokio::spawn(async move { ask(&app, &format!("/tab/{value}"), cookie.as_deref()).await.0 })
    });
    for request in requests.collect::<Vec<_>>() {
        assert_eq!(request.await.unwrap(), StatusCode::OK);
    }
    let families = registry.gather();
    assert_eq!(families[0].name(), "cutover_session_conflicts_total");
    assert_eq!(families[0].get_metric()[0].get_counter().get_value(), f64::from(REQUESTS - 1));
}

#[tokio::test]
async fn a_log_out_wins_over_concurrent_saves() {
    let redis = Redis::start().await.unwrap();
    let store = store(&redis);
    let mut made = record(json!({"user": "ann"}));
    store.create(&mut made).await.unwrap();
    let save = |value: u32| {
        let (store, id) = (store.clone(), made.id);
        async move {
            let mut record = store.load(&id).await.unwrap()?;
            record.data.insert("user".into(), json!(value));
            Some(store.save(&record).await)
        }
    };
    let saves: Vec<_> = (0..20).map(|value| tokio::spawn(save(value))).collect();
    tokio::task::yield_now().await;
    store.delete(&made.id).await.unwrap();
    for save in saves {
        if let Some(Err(error)) = save.await.unwrap() {
            assert!(error.to_string().contains("deleted"), "{error}");
        }
    }
    assert_eq!(raw(&redis, &made.id).await, None);
}

#[derive(Debug, Serialize, Deserialize)]
struct OldCart {
    items: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct NewCart {
    items: u32,
    coupon: Option<String>,
}

#[tokio::test]
async fn an_older_build_keeps_fields_of_a_newer_one() {
    let redis = Redis::start().await.unwrap();
    let (newer, older) = (store(&redis), store(&redis));
    let session = |id, store: &RedisStore| Session::new(id, store.clone().into(), None);

    // Build N writes a field, a key, and a new field of the record.
    let at_n = session(None, &newer);
    let cart = NewCart { items: 1, coupon: Some("SPRING".into()) };
    at_n.insert("cart", PreserveUnknown::new(cart)).await.unwrap();
    at_n.insert("locale", "de").await.unwrap();
    at_n.save().await.unwrap();
    let id = at_n.id().unwrap();
    let mut stored = raw(&redis, &id).await.unwrap();
    stored["region"] = json!("eu");
    put(&redis, &id, &stored.to_string()).await;

    // Build N-1 knows neither, changes the cart and adds a key of its own.
    let at_old = session(Some(id), &older);
    let mut cart: PreserveUnknown<OldCart> = at_old.get("cart").await.unwrap().unwrap();
    cart.items += 1;
    at_old.insert("cart", cart).await.unwrap();
    at_old.insert("theme", "dark").await.unwrap();
    at_old.save().await.unwrap();

    // Build N finds everything.
    let at_n = session(Some(id), &newer);
    let cart: PreserveUnknown<NewCart> = at_n.get("cart").await.unwrap().unwrap();
    assert_eq!((cart.items, cart.coupon.as_deref()), (2, Some("SPRING")));
    assert_eq!(at_n.get("locale").await.unwrap(), Some("de".to_owned()));
    assert_eq!(at_n.get("theme").await.unwrap(), Some("dark".to_owned()));
    assert_eq!(raw(&redis, &id).await.unwrap()["region"], "eu");
}

/// The three builds that rename a field. Each runs beside the one before it.
#[derive(Serialize, Deserialize)]
struct Named {
    name: String,
}

#[derive(Serialize, Deserialize)]
struct NamedTwice {
    name: String,
    full_name: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Renamed {
    full_name: Option<String>,
}

#[tokio::test]
async fn fields_can_be_removed_and_renamed_between_builds() {
    let redis = Redis::start().await.unwrap();
    let store = store(&redis);
    let session = |id| Session::new(id, store.clone().into(), None);
    let first = session(None);
    first
        .insert("cart", PreserveUnknown::new(NewCart { items: 1, coupon: Some("SPRING".into()) }))
        .await
        .unwrap();
    first.insert("who", PreserveUnknown::new(Named { name: "Ann".into() })).await.unwrap();
    first.save().await.unwrap();
    let id = first.id();

    // The build that removed `coupon` and writes both names of the field.
    let second = session(id);
    let mut cart: PreserveUnknown<OldCart> = second.get("cart").await.unwrap().unwrap();
    cart.items = 5;
    second.insert("cart", cart).await.unwrap();
    let mut who: PreserveUnknown<NamedTwice> = second.get("who").await.unwrap().unwrap();
    assert_eq!((who.name.as_str(), who.full_name.as_deref()), ("Ann", None));
    (who.name, who.full_name) = ("Bea".into(), Some("Bea".into()));
    second.insert("who", who).await.unwrap();
    second.save().await.unwrap();

    // The first build again: it still has its field, and the new value under the old name.
    let first = session(id);
    let cart: PreserveUnknown<NewCart> = first.get("cart").await.unwrap().unwrap();
    assert_eq!((cart.items, cart.coupon.as_deref()), (5, Some("SPRING")));
    let mut who: PreserveUnknown<Named> = first.get("who").await.unwrap().unwrap();
    assert_eq!(who.name, "Bea");
    who.name = "Cid".into();
    first.insert("who", who).await.unwrap();
    first.save().await.unwrap();

    // The second build sees that an older build changed only the old name.
    let second = session(id);
    let mut who: PreserveUnknown<NamedTwice> = second.get("who").await.unwrap().unwrap();
    assert_eq!((who.name.as_str(), who.full_name.as_deref()), ("Cid", Some("Bea")));
    who.full_name = Some(who.name.clone());
    second.insert("who", who).await.unwrap();
    second.save().await.unwrap();

    // The third build knows only the new name, and the second one beside it loses nothing.
    let third = session(id);
    let mut who: PreserveUnknown<Renamed> = third.get("who").await.unwrap().unwrap();
    assert_eq!(who.full_name.as_deref(), Some("Cid"));
    who.full_name = Some("Dan".into());
    third.insert("who", who).await.unwrap();
    third.save().await.unwrap();
    let who: PreserveUnknown<NamedTwice> = session(id).get("who").await.unwrap().unwrap();
    assert_eq!((who.name.as_str(), who.full_name.as_deref()), ("Cid", Some("Dan")));
}

fn port(redis: &Redis) -> u16 {
    redis.url().trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn sessions_survive_a_failover_and_an_outage_is_an_error() {
    let (first, second) = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    let gate = Proxy::start(port(&first)).unwrap();
    let config = deadpool_redis::Config::from_url(format!("redis://127.0.0.1:{}/", gate.port()));
    let pool = config.create_pool(Some(deadpool_redis::Runtime::Tokio1)).unwrap();
    let store = RedisStore::new(pool, RedisStoreOptions::default()).unwrap();
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
    let () = cmd("REPLICAOF").arg("127.0.0.1").arg(port(&first)).query_async(&mut replica).await.unwrap();
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
    gate.lead_to(port(&second));
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
    gate.lead_to(port(&first));
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
    let gate = Proxy::start(port(&first)).unwrap();
    let config = deadpool_redis::Config::from_url(format!("redis://127.0.0.1:{}/", gate.port()));
    let store = RedisStore::new(
        config.create_pool(Some(deadpool_redis::Runtime::Tokio1)).unwrap(),
        RedisStoreOptions::default(),
    )
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
    replicate(&second, "127.0.0.1", &port(&first).to_string()).await;
    wait_until("the replica to have the session", LIMIT, async || {
        Ok::<_, KitError>(raw(&second, &made.id).await.is_some())
    })
    .await
    .unwrap();
    replicate(&second, "NO", "ONE").await;
    replicate(&first, "127.0.0.1", &port(&second).to_string()).await;
    let error = save(1).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("read") && error.contains("replica"), "{error}");

    // The address leads to the new primary now; connections to the old one stay open.
    gate.lead_to(port(&second));
    for value in 2..6 {
        save(value).await.unwrap();
    }
    assert_eq!(raw(&second, &made.id).await.unwrap()["data"]["k"], 5);
}

#[tokio::test]
async fn a_record_of_a_newer_format_is_refused_and_unchanged() {
    let redis = Redis::start().await.unwrap();
    let store = store(&redis);
    let mut made = record(json!({"k": 1}));
    store.create(&mut made).await.unwrap();
    let newer = json!({"v": 2, "sealed": "…"});
    put(&redis, &made.id, &newer.to_string()).await;
    for outcome in [store.load(&made.id).await.map(|_| ()), store.save(&made).await] {
        let error = outcome.unwrap_err();
        assert!(matches!(&error, Error::Decode(text) if text.contains("has format 2")), "{error}");
    }
    assert_eq!(raw(&redis, &made.id).await, Some(newer));
    // A log-out still works.
    store.delete(&made.id).await.unwrap();
    assert_eq!(raw(&redis, &made.id).await, None);
}

/// Counts visits through tower-sessions, as a service does.
fn app(store: RedisStore) -> Router {
    routes().layer(SessionManagerLayer::new(store).with_secure(false))
}

fn routes() -> Router {
    let visit = async |session: Session| {
        let visits = session.get::<u32>("visits").await.unwrap().unwrap_or(0) + 1;
        session.insert("visits", visits).await.unwrap();
        visits.to_string()
    };
    let set = async |session: Session| session.insert("x", 1).await.map_err(|_| StatusCode::BAD_GATEWAY);
    Router::new().route("/visit", get(visit)).route("/set", get(set))
}

async fn ask(app: &Router, path: &str, cookie: Option<&str>) -> (StatusCode, Option<String>, String) {
    let mut request = Request::get(path);
    if let Some(cookie) = cookie {
        request = request.header(header::COOKIE, cookie);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let cookie = response.headers().get(header::SET_COOKIE);
    let cookie = cookie.map(|cookie| {
        let cookie = cookie.to_str().unwrap();
        cookie.split(';').next().unwrap().to_owned()
    });
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, cookie, String::from_utf8(body.into()).unwrap())
}

#[tokio::test]
async fn a_failed_save_is_a_failed_response() {
    let redis = Redis::start().await.unwrap();
    let app = app(store(&redis));
    let (status, cookie, body) = ask(&app, "/visit", None).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "1"));
    let (status, _, body) = ask(&app, "/visit", cookie.as_deref()).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "2"));

    redis.process().kill().await.unwrap();
    let (status, cookie, _) = ask(&app, "/set", None).await;
    assert_eq!((status, cookie), (StatusCode::INTERNAL_SERVER_ERROR, None));
}

#[tokio::test]
async fn a_redis_that_hangs_is_an_error_within_the_limit() {
    let redis = Redis::start().await.unwrap();
    let options =
        RedisStoreOptions { time_limit: Duration::from_millis(200), ..RedisStoreOptions::default() };
    let store = RedisStore::new(pool(&redis), options).unwrap();
    let mut made = record(json!({"k": 1}));
    store.create(&mut made).await.unwrap();
    let mut loaded = store.load(&made.id).await.unwrap().unwrap();
    loaded.data.insert("k".into(), json!(2));

    redis.process().signal(cutover_testkit::Signal::STOP).unwrap();
    let saved = tokio::time::timeout(LIMIT, store.save(&loaded)).await.unwrap();
    let error = saved.unwrap_err().to_string();
    assert!(error.contains("saving") && error.contains("200ms"), "{error}");
    assert!(!error.contains(&made.id.to_string()), "{error}");

    redis.process().signal(cutover_testkit::Signal::CONT).unwrap();
    let back = async || Ok::<_, KitError>(store.save(&loaded).await.is_ok());
    wait_until("Redis to go on", LIMIT, back).await.unwrap();
    assert_eq!(raw(&redis, &made.id).await.unwrap()["data"]["k"], 2);
}

#[tokio::test]
async fn all_unusable_options_are_reported_at_once() {
    let config = deadpool_redis::Config::from_url("redis://:s3cret@127.0.0.1/");
    let pool = config.create_pool(None).unwrap();
    let store = RedisStore::new(pool.clone(), RedisStoreOptions::default()).unwrap();
    assert!(!format!("{store:?}").contains("s3cret"));
    let options = RedisStoreOptions {
        prefix: String::new(),
        time_limit: Duration::ZERO,
        on_conflict: ConflictPolicy::Refuse,
    };
    let error = RedisStore::new(pool, options).unwrap_err();
    assert_eq!(error.problems.len(), 2, "{error}");
}
