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
use cutover::session::{ConflictPolicy, RedisStore, RedisStoreOptions};
use cutover_testkit::{KitError, Redis, wait_until};
use deadpool_redis::{Pool, redis::cmd};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::Barrier;
use tower::ServiceExt;
use tower_sessions::{
    Session, SessionManagerLayer, SessionStore,
    session::{Id, Record},
    session_store::Error,
};

mod builds;
mod failover;
mod kinds;

const LIMIT: Duration = Duration::from_secs(60);

fn pool(redis: &Redis) -> Pool {
    let config = deadpool_redis::Config::from_url(redis.url());
    config.create_pool(None).unwrap()
}

fn store(redis: &Redis) -> RedisStore {
    RedisStore::new(pool(redis), patient()).unwrap()
}

/// With more time than a busy machine needs.
fn patient() -> RedisStoreOptions {
    RedisStoreOptions { time_limit: LIMIT, ..RedisStoreOptions::default() }
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
    short.expiry_date = OffsetDateTime::now_utc() + Duration::from_secs(3);
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
    let store = store(&redis);
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
    let refuse = RedisStoreOptions { on_conflict: ConflictPolicy::Refuse, ..patient() };
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
    let hasty = RedisStoreOptions { time_limit: Duration::from_millis(200), ..patient() };
    let (store, hasty) = (store(&redis), RedisStore::new(pool(&redis), hasty).unwrap());
    let mut made = record(json!({"k": 1}));
    store.create(&mut made).await.unwrap();
    let mut loaded = store.load(&made.id).await.unwrap().unwrap();
    loaded.data.insert("k".into(), json!(2));

    redis.process().signal(cutover_testkit::Signal::STOP).unwrap();
    let saved = tokio::time::timeout(LIMIT, hasty.save(&loaded)).await.unwrap();
    let error = saved.unwrap_err().to_string();
    assert!(error.contains("saving") && error.contains("200ms"), "{error}");
    assert!(!error.contains(&made.id.to_string()), "{error}");

    redis.process().signal(cutover_testkit::Signal::CONT).unwrap();
    let back = async || Ok::<_, KitError>(hasty.save(&loaded).await.is_ok());
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
