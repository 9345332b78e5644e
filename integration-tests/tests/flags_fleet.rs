//! One instance polls the flag server for its fleet.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use cutover::flags::{Flag, Flags, FleetPolling, Subject, Switch, UnleashOptions};
use cutover::ledger::Ledger;
use cutover_testkit::{KitError, Postgres, PostgresOptions, Proxy, wait_until};
use sqlx::{Connection, PgConnection};
use tokio::runtime::{Builder, Runtime};

const FLAG: Flag = Flag::new("kill-switch", false);
const LIMIT: Duration = Duration::from_secs(60);
/// From a toggle to the decision of the last instance: a poll and a notification, on a busy machine. An instance that polls by
/// itself may need [`UnleashOptions::direct_interval`], 15 s.
const SOON: Duration = Duration::from_secs(8);

/// A flag server with one flag that counts its polls by instance.
#[derive(Clone, Default)]
struct Server {
    on: Arc<Mutex<bool>>,
    is_away: Arc<Mutex<bool>>,
    polls: Arc<Mutex<HashMap<String, usize>>>,
}

impl Server {
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = self.clone();
        let app = Router::new().fallback(async move |request| server.answer(&request));
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }

    fn answer(&self, request: &Request) -> Response {
        if request.uri().path() != "/api/client/features" {
            return StatusCode::ACCEPTED.into_response();
        }
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let instance = header("unleash-instanceid").unwrap_or_default().to_owned();
        *self.polls.lock().unwrap().entry(instance).or_default() += 1;
        if *self.is_away.lock().unwrap() {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let on = *self.on.lock().unwrap();
        let etag = format!("\"{on}\"");
        if header("if-none-match") == Some(&*etag) {
            return StatusCode::NOT_MODIFIED.into_response();
        }
        let state = format!(
            r#"{{"version":2,"features":[{{"name":"kill-switch","enabled":{on},"strategies":[{{"name":"default"}}]}}]}}"#
        );
        ([(header::ETAG, etag)], state).into_response()
    }

    /// The polls in a time, by instance.
    async fn polls_within(&self, time: Duration) -> HashMap<String, usize> {
        self.polls.lock().unwrap().clear();
        tokio::time::sleep(time).await;
        self.polls.lock().unwrap().clone()
    }

    /// Toggles the flag, and returns the time until all instances decide by it.
    async fn toggle(&self, fleet: &[Flags]) -> Duration {
        let on = {
            let mut on = self.on.lock().unwrap();
            *on = !*on;
            *on
        };
        let begin = Instant::now();
        until("all instances decide", || {
            fleet.iter().all(|flags| flags.decide(&FLAG, &Subject::new()) == on)
        })
        .await;
        begin.elapsed()
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    wait_until(what, LIMIT, async || Ok::<_, KitError>(done())).await.unwrap();
}

fn options(url: &str, instance: usize, fleet: FleetPolling) -> UnleashOptions {
    UnleashOptions {
        fleet: Some(fleet),
        ..UnleashOptions::new(url, "token", "payments", format!("payments-{instance}"))
    }
}

/// A fleet on one ledger, after it has elected an instance.
async fn fleet(url: &str, ledger: &Ledger, size: usize) -> Vec<Flags> {
    let start =
        |instance| Flags::unleash(options(url, instance, FleetPolling::new(ledger.clone(), "payments")));
    let fleet: Vec<_> = (0..size).map(|instance| start(instance).unwrap()).collect();
    for flags in &fleet {
        tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    fleet
}

async fn ledger() -> (Postgres, Ledger) {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = postgres.create_database("flags").await.unwrap();
    (postgres, Ledger::open(url.parse().unwrap()).await.unwrap())
}

#[tokio::test]
async fn requests_do_not_grow_with_the_fleet() {
    const TIME: Duration = Duration::from_secs(15);
    let (_postgres, ledger) = ledger().await;
    for size in [3, 20, 100] {
        let server = Server::default();
        let url = server.start().await;
        let fleet = fleet(&url, &ledger, size).await;
        // While the ledger of a busy machine does not answer in time, instances poll by themselves.
        let (mut polls, mut sum) = (HashMap::new(), usize::MAX);
        for _ in 0..4 {
            polls = server.polls_within(TIME).await;
            sum = polls.values().sum();
            if sum <= 18 + size * 2 {
                break;
            }
        }
        let toggles = [server.toggle(&fleet).await, server.toggle(&fleet).await];
        println!("{size} instances: {:.2} requests/s, toggles {toggles:?}", sum as f64 / TIME.as_secs_f64());
        // The elected instance polls every 0.9 to 1.1 s. In 15 s, the others poll once or twice.
        assert!(sum <= 18 + size * 2, "{size} instances sent {sum} requests in {TIME:?}");
        // If the elected instance loses its lease on a busy machine, another one continues in its place.
        let often: usize = polls.values().map(|polls| polls.saturating_sub(2)).sum();
        assert!(often <= 18, "one instance at a time polls often: {polls:?}");
        assert!(toggles.iter().all(|time| *time < SOON), "{size} instances: {toggles:?}");
    }
}

fn instance_that_polls_most(polls: &HashMap<String, usize>) -> usize {
    let (name, _) = polls.iter().max_by_key(|(_, polls)| **polls).unwrap();
    name.rsplit('-').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_takes_over_from_a_dead_one() {
    let (postgres, _) = ledger().await;
    let url = postgres.url("flags");
    let server = Server::default();
    let flag_server = server.start().await;
    // A runtime of its own for each, so that one can end without saying goodbye.
    let mut runtimes: Vec<Option<Runtime>> = Vec::new();
    let mut fleet = Vec::new();
    for instance in 0..3 {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (flag_server, url) = (flag_server.clone(), url.clone());
        let start = async move {
            let ledger = Ledger::open(url.parse().unwrap()).await.unwrap();
            Flags::unleash(options(&flag_server, instance, FleetPolling::new(ledger, "payments"))).unwrap()
        };
        fleet.push(runtime.spawn(start).await.unwrap());
        runtimes.push(Some(runtime));
    }
    for flags in &fleet {
        tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    let leader = instance_that_polls_most(&server.polls_within(Duration::from_secs(4)).await);
    runtimes[leader].take().unwrap().shutdown_background();
    std::mem::forget(fleet.remove(leader));
    let time = server.toggle(&fleet).await;
    println!("toggle to last decision with a dead leader: {time:?}");
    // The lease of 3 s, the next look at the ledger, and a poll: less than until each has polled by itself.
    assert!(time < Duration::from_secs(12), "{time:?}");
    assert!(fleet.iter().all(Flags::is_fresh));
    for runtime in runtimes.into_iter().flatten() {
        runtime.shutdown_background();
    }
    std::mem::forget(fleet);
}

#[tokio::test]
async fn an_instance_that_stops_hands_over_at_once() {
    let (postgres, ledger) = ledger().await;
    let server = Server::default();
    let url = server.start().await;
    let mut fleet = fleet(&url, &ledger, 3).await;
    let leader = instance_that_polls_most(&server.polls_within(Duration::from_secs(4)).await);
    let mut session = PgConnection::connect(&postgres.url("flags")).await.unwrap();
    let elected = sqlx::query_scalar::<_, i64>("select leader from cutover.flag_polls");
    let elected = elected.fetch_one(&mut session).await.unwrap();
    tokio::time::timeout(LIMIT, fleet.remove(leader).close()).await.unwrap();
    let is_free = "select leader <> $1 or leader_until <= clock_timestamp() from cutover.flag_polls";
    let is_free = sqlx::query_scalar::<_, bool>(is_free).bind(elected);
    assert!(is_free.fetch_one(&mut session).await.unwrap(), "its lease has not ended");
    let time = server.toggle(&fleet).await;
    println!("toggle to last decision after a handover: {time:?}");
    assert!(time < SOON, "{time:?}");
}

#[tokio::test]
async fn instances_poll_alone_while_the_ledger_is_unreachable() {
    let (postgres, ledger) = ledger().await;
    let server = Server::default();
    let url = server.start().await;
    let fleet = fleet(&url, &ledger, 3).await;
    postgres.kill9().await.unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    let time = server.toggle(&fleet).await;
    println!("toggle to last decision without a ledger: {time:?}");
    assert!(time < SOON, "{time:?}");

    postgres.restart().await.unwrap();
    wait_until("one instance that polls often", LIMIT, async || {
        let polls = server.polls_within(Duration::from_secs(6)).await;
        let often = polls.values().filter(|polls| **polls > 2).count();
        if often == 1 { Ok(true) } else { Err(format!("{polls:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_outage_of_the_flag_server_ends_for_the_whole_fleet() {
    let (_postgres, ledger) = ledger().await;
    let server = Server::default();
    let url = server.start().await;
    let fleet = fleet(&url, &ledger, 3).await;
    *server.is_away.lock().unwrap() = true;
    until("stale", || fleet.iter().all(|flags| !flags.is_fresh())).await;
    *server.is_away.lock().unwrap() = false;
    let time = server.toggle(&fleet).await;
    println!("outage to last decision: {time:?}");
    // As without a fleet: the pause between attempts is at most half of `stale_after`.
    assert!(time < Duration::from_secs(30), "{time:?}");
    until("fresh", || fleet.iter().all(Flags::is_fresh)).await;
}

/// A fleet of one that has shared the current state, and has ended.
async fn former_fleet(url: &str, ledger: &Ledger) {
    for flags in fleet(url, ledger, 1).await {
        tokio::time::timeout(LIMIT, flags.close()).await.unwrap();
    }
}

#[tokio::test]
async fn an_older_state_in_the_ledger_does_not_replace_a_later_answer() {
    let (postgres, ledger) = ledger().await;
    let server = Server::default();
    let url = server.start().await;
    former_fleet(&url, &ledger).await;
    *server.on.lock().unwrap() = true;
    // The instance polls before it can read the ledger.
    let gate = Proxy::start(postgres.port()).unwrap();
    let through_gate = format!("postgres://postgres@127.0.0.1:{}/flags", gate.port());
    let ledger = Ledger::open(through_gate.parse().unwrap()).await.unwrap();
    gate.hold();
    let flags = Flags::unleash(options(&url, 1, FleetPolling::new(ledger, "payments"))).unwrap();
    until("the answer of the server", || flags.decide(&FLAG, &Subject::new())).await;
    gate.open();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        assert!(flags.decide(&FLAG, &Subject::new()), "after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_old_state_in_the_ledger_is_not_fresh() {
    const STALE_AFTER: Duration = Duration::from_secs(6);
    let (_postgres, ledger) = ledger().await;
    let server = Server::default();
    let url = server.start().await;
    former_fleet(&url, &ledger).await;
    *server.is_away.lock().unwrap() = true;
    tokio::time::sleep(STALE_AFTER + Duration::from_millis(100)).await;
    let options = UnleashOptions {
        interval: Duration::from_millis(500),
        direct_interval: Duration::from_millis(500),
        time_limit: Duration::from_secs(4),
        stale_after: STALE_AFTER,
        ..options(&url, 1, FleetPolling::new(ledger, "payments"))
    };
    let flags = Flags::unleash(options).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    let began = Instant::now();
    while began.elapsed() < STALE_AFTER {
        assert!(!flags.is_fresh(), "after {:?}", began.elapsed());
        assert!(matches!(flags.switch("kill-switch"), Switch::Unknown(_)));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// "Not modified" is about the state that this instance has received, not about the one that the ledger brought since.
#[tokio::test(flavor = "multi_thread")]
async fn not_modified_is_about_the_state_that_was_polled() {
    let (postgres, first) = ledger().await;
    let server = Server::default();
    let url = server.start().await;
    let leader_runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let leader = leader_runtime
        .spawn({
            let (url, database) = (url.clone(), postgres.url("flags"));
            async move {
                let ledger = Ledger::open(database.parse().unwrap()).await.unwrap();
                Flags::unleash(options(&url, 0, FleetPolling::new(ledger, "payments"))).unwrap()
            }
        })
        .await
        .unwrap();
    tokio::time::timeout(LIMIT, leader.ready()).await.unwrap();
    until("a leader", || server.polls.lock().unwrap().values().sum::<usize>() > 3).await;
    let follower = Flags::unleash(options(&url, 1, FleetPolling::new(first, "payments"))).unwrap();
    tokio::time::timeout(LIMIT, follower.ready()).await.unwrap();
    until("a poll of its own", || server.polls.lock().unwrap().contains_key("payments-1")).await;
    // This change reaches it through the ledger, and the next one does not.
    *server.on.lock().unwrap() = true;
    until("the shared change", || follower.decide(&FLAG, &Subject::new())).await;
    *server.is_away.lock().unwrap() = true;
    leader_runtime.shutdown_background();
    std::mem::forget(leader);
    *server.on.lock().unwrap() = false;
    *server.is_away.lock().unwrap() = false;
    until("the state of the server", || !follower.decide(&FLAG, &Subject::new())).await;
}
