//! Each example as a process of its own, on real servers: it becomes ready, answers, and exits on SIGTERM.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::process::Command;
use std::time::Duration;

use cutover_testkit::{Folder, Postgres, Process, Redis, Signal, free_port, wait_until};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const LIMIT: Duration = Duration::from_secs(60);

/// The example does not get the environment of the test runner.
fn command(program: &str, url: &str, redis: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("DATABASE_URL", url).env("REDIS_URL", redis);
    command
}

async fn text(url: &str) -> Result<(u16, String), reqwest::Error> {
    let answer = reqwest::get(url).await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

/// The status of the whole process, by gRPC's health service.
async fn grpc_health(public: u16) -> Result<i32, Box<dyn std::error::Error>> {
    let channel = Endpoint::new(format!("http://127.0.0.1:{public}"))?.connect().await?;
    Ok(HealthClient::new(channel).check(HealthCheckRequest::default()).await?.into_inner().status)
}

/// The protocols of an example, beside its admin pages.
#[derive(Clone, Copy)]
enum Speaks {
    Nothing,
    Http(&'static str),
    Grpc,
    Both(&'static str),
}

/// Waits until the example is ready, checks its answer and `metric`, and ends it. Returns its log.
async fn runs(program: &str, url: &str, redis: &str, speaks: Speaks, metric: &str) -> String {
    let (public, admin) = (free_port().unwrap(), free_port().unwrap());
    let folder = Folder::new("services").unwrap();
    let mut command = command(program, url, redis);
    command
        .env("LISTEN_ADDR", format!("127.0.0.1:{public}"))
        .env("ADMIN_ADDR", format!("127.0.0.1:{admin}"))
        .env("CUTOVER_GRACE_SECONDS", "20")
        .env("CUTOVER_PROPAGATION_SECONDS", "1")
        .env("NO_COLOR", "1");
    let process = Process::spawn(&folder, "example", Signal::TERM, &command).unwrap();
    let ready = wait_until("ready", LIMIT, async || {
        let answer = text(&format!("http://127.0.0.1:{admin}/readyz")).await;
        if let Some(status) = process.exited() {
            panic!("{program} ended with {status}: {}", process.log_tail());
        }
        answer.map(|(status, _)| status == 200)
    });
    ready.await.unwrap_or_else(|error| panic!("{program}: {error}: {}", process.log_tail()));
    if let Speaks::Grpc | Speaks::Both(_) = speaks {
        assert_eq!(grpc_health(public).await.unwrap(), ServingStatus::Serving as i32, "{program}");
    }
    if let Speaks::Http(says) | Speaks::Both(says) = speaks {
        let (status, said) = text(&format!("http://127.0.0.1:{public}/")).await.unwrap();
        assert_eq!((status, said.contains(says)), (200, true), "{program}: {said}");
    }
    let (_, page) = text(&format!("http://127.0.0.1:{admin}/metrics")).await.unwrap();
    assert!(page.contains(metric) && page.contains("cutover_config_info{"), "{program}: {page}");
    process.signal(Signal::TERM).unwrap();
    let status = process.wait(LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(0), "{program}: {}", process.log_tail());
    std::fs::read_to_string(process.log_path()).unwrap()
}

async fn preflight(
    program: &str,
    url: &str,
    redis: &str,
    extra: &[(&str, &str)],
) -> (i32, serde_json::Value) {
    let mut command = command(program, url, redis);
    command.env("CUTOVER_PREFLIGHT", "json").envs(extra.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The log comes before it.
    let json = text.find("{\n").map(|at| serde_json::from_str(&text[at..]).unwrap());
    (output.status.code().unwrap(), json.unwrap_or_else(|| panic!("{program}: {output:?}")))
}

/// A flag server that has these flags, turned off.
async fn flag_server(flags: &[&str]) -> String {
    let features = flags.iter().map(|name| serde_json::json!({ "name": name, "enabled": false }));
    let state = serde_json::json!({ "version": 2, "features": features.collect::<Vec<_>>() }).to_string();
    let app = axum::Router::new().fallback(async move || state.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

fn areas(report: &serde_json::Value, severity: &str) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    let such = findings.filter(|finding| finding["severity"] == severity);
    such.map(|finding| finding["area"].as_str().unwrap().to_owned()).collect()
}

async fn execute(url: &str, statements: &str) {
    let mut session = PgConnection::connect(url).await.unwrap();
    session.execute(AssertSqlSafe(statements)).await.unwrap();
    session.close().await.unwrap();
}

#[tokio::test]
async fn every_example_becomes_ready_answers_and_exits() {
    let url = Postgres::fresh_database().await.unwrap();
    let redis = Redis::start().await.unwrap();
    execute(&url, "create table orders (id bigint primary key, old_payment_status text)").await;
    let redis = redis.url();
    let http = "http_requests_total{";
    // A pool from the environment is limited to a share of the server's connections, which is given back at the end.
    let pool = "cutover_pool_waiters{pool=\"postgres\"";
    let log = runs(env!("CARGO_BIN_EXE_on_axum"), &url, &redis, Speaks::Http("hello"), pool).await;
    let greeted = log.lines().find(|line| line.contains("greeted")).unwrap();
    for part in
        ["request{", "method=GET", "route=\"/\"", "service=\"on-axum\"", "version=", "payment_status=off"]
    {
        assert!(greeted.contains(part), "{part} is not in {greeted}");
    }
    let mut session = PgConnection::connect(&url).await.unwrap();
    let shares: i64 = sqlx::query_scalar(
        "select coalesce(sum(granted), 0)::bigint from cutover.connection_shares where max_connections > 0",
    )
    .fetch_one(&mut session)
    .await
    .unwrap();
    assert_eq!(shares, 0);
    runs(env!("CARGO_BIN_EXE_on_tonic"), &url, &redis, Speaks::Grpc, http).await;
    runs(env!("CARGO_BIN_EXE_on_both"), &url, &redis, Speaks::Both("hello"), http).await;
    runs(env!("CARGO_BIN_EXE_worker"), &url, &redis, Speaks::Nothing, "build_info{").await;
    runs(env!("CARGO_BIN_EXE_own_parts"), &url, &redis, Speaks::Http("hello"), "hellos_total 1").await;
}

#[tokio::test]
async fn a_preflight_reports_every_problem_and_changes_nothing() {
    let url = Postgres::fresh_database().await.unwrap();
    let redis = Redis::start().await.unwrap();
    let redis = redis.url();
    execute(&url, "create table orders (id bigint primary key, old_payment_status text)").await;
    let program = env!("CARGO_BIN_EXE_on_axum");
    let flag_server = flag_server(&["polite", "payment-status"]).await;
    let flags = [("UNLEASH_URL", &*flag_server), ("UNLEASH_TOKEN", "token")];

    let (status, report) = preflight(program, &url, &redis, &[]).await;
    assert_eq!((status, areas(&report, "problem")), (1, vec!["flags".to_owned()]), "{report:#}");
    let (status, report) = preflight(program, &url, &redis, &flags).await;
    assert_eq!((status, areas(&report, "problem").len()), (0, 0), "{report:#}");
    assert_eq!(areas(&report, "warning"), ["ledger"], "{report:#}");
    let mut session = PgConnection::connect(&url).await.unwrap();
    let installed: bool = sqlx::query_scalar("select to_regnamespace('cutover') is not null")
        .fetch_one(&mut session)
        .await
        .unwrap();
    assert!(!installed, "a preflight changes nothing");

    // The schema is installed, the migration has begun, and the new column does not exist.
    runs(program, &url, &redis, Speaks::Nothing, "build_info{").await;
    let (status, _) = preflight(program, &url, &redis, &flags).await;
    assert_eq!(status, 0);
    execute(
        &url,
        "update cutover.epochs set closed_at = now(), drained_at = now();
         insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason)
             select id, 2, 'expand', 'off', 'test', 'test' from cutover.migrations;
         update cutover.migrations set epoch = 2, phase = 'expand';",
    )
    .await;
    let wrong = [
        ("CUTOVER_GRACE_SECONDS", "soon"),
        ("CUTOVER_VERSIN", "canary"),
        ("REDIS_URL", "redis://127.0.0.1:1"),
        flags[0],
        flags[1],
    ];
    let (status, report) = preflight(program, &url, &redis, &wrong).await;
    assert_eq!(status, 1);
    assert_eq!(
        areas(&report, "problem"),
        ["configuration", "configuration", "migrations", "redis"],
        "{report:#}"
    );
    let all = report.to_string();
    for part in ["did you mean CUTOVER_VERSION?", "whole number of seconds", "the new side does not exist"] {
        assert!(all.contains(part), "{part} is not in {report:#}");
    }

    // A build that does not know the migration.
    execute(&url, "insert into cutover.fleets values ('own-parts') on conflict do nothing; update cutover.migrations set fleet = 'own-parts'").await;
    let (status, report) = preflight(env!("CARGO_BIN_EXE_own_parts"), &url, &redis, &[]).await;
    assert_eq!((status, areas(&report, "problem")), (1, vec!["migrations".to_owned()]), "{report:#}");
    assert!(report.to_string().contains("does not declare it"), "{report:#}");
}

#[tokio::test]
async fn a_bad_configuration_is_one_report_and_status_2() {
    let mut command = command(env!("CARGO_BIN_EXE_on_axum"), "mysql://db/x", "redis://127.0.0.1:1");
    command
        .env("LISTEN_ADDR", "here")
        .env("CUTOVER_INSTANS", "a")
        .env("CUTOVER_VERSION", "")
        .env("CUTOVER_POOL_SIZE", "4294967295")
        .env("CUTOVER_PROPAGATION_SECONDS", "60")
        .env("CUTOVER_DRAIN_SECRET", "too-short");
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in [
        "DATABASE_URL: has to begin with postgres://",
        "LISTEN_ADDR: \"here\"",
        "CUTOVER_INSTANS: unknown variable",
        "CUTOVER_VERSION: is empty",
        "CUTOVER_POOL_SIZE: 4294967295 is out of range; use 1 to 1000",
        "drain.grace: 30s leaves no time",
        "CUTOVER_DRAIN_SECRET: has 9 bytes",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(!said.contains("too-short"), "a secret was printed: {said}");
}

/// Instances in the ledger, and connections that are granted to them. A share that was given back counts what the server still
/// has of it; the next instance looks.
async fn left_in_ledger(url: &str) -> i64 {
    let rows = "select (select count(*) from cutover.instances) \
                + (select coalesce(sum(granted), 0)::bigint from cutover.connection_shares where max_connections > 0)";
    let mut session = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(rows).fetch_one(&mut session).await.unwrap()
}

#[tokio::test]
async fn a_start_on_a_taken_port_leaves_nothing_in_the_ledger() {
    let url = Postgres::fresh_database().await.unwrap();
    let redis = Redis::start().await.unwrap();
    execute(&url, "create table orders (id bigint primary key, old_payment_status text)").await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (listen, admin) in [(taken.as_str(), "127.0.0.1:0"), ("127.0.0.1:0", taken.as_str())] {
        let mut command = command(env!("CARGO_BIN_EXE_on_axum"), &url, &redis.url());
        command.env("LISTEN_ADDR", listen).env("ADMIN_ADDR", admin);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(&format!("_ADDR: could not listen on {taken}")), "{said}");
        assert_eq!(left_in_ledger(&url).await, 0);
    }
}

#[tokio::test]
async fn a_start_without_its_database_is_live_and_waits() {
    let url = Postgres::fresh_database().await.unwrap();
    let redis = Redis::start().await.unwrap();
    execute(&url, "create table orders (id bigint primary key, old_payment_status text)").await;
    let server = url.split_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
    let (database, admin) = (free_port().unwrap(), free_port().unwrap());
    let database = format!("127.0.0.1:{database}");
    let folder = Folder::new("services").unwrap();
    let mut command = command(env!("CARGO_BIN_EXE_on_axum"), &url.replace(&server, &database), &redis.url());
    command
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .env("ADMIN_ADDR", format!("127.0.0.1:{admin}"))
        .env("CUTOVER_PROPAGATION_SECONDS", "1");
    let process = Process::spawn(&folder, "example", Signal::TERM, &command).unwrap();
    let page = async |path: &str| text(&format!("http://127.0.0.1:{admin}{path}")).await;
    wait_until("the reason", LIMIT, async || {
        page("/readyz").await.map(|(_, text)| text.contains("start: waiting for the ledger: "))
    })
    .await
    .unwrap();
    assert_eq!(page("/readyz").await.unwrap().0, 503);
    assert_eq!(page("/livez").await.unwrap().0, 200);

    // The database becomes reachable.
    let listener = tokio::net::TcpListener::bind(&database).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    wait_until("ready", LIMIT, async || page("/readyz").await.map(|(status, _)| status == 200))
        .await
        .unwrap();
    process.signal(Signal::TERM).unwrap();
    assert_eq!(process.wait(LIMIT).await.unwrap().code(), Some(0), "{}", process.log_tail());
    assert_eq!(left_in_ledger(&url).await, 0);
}

/// The first process of a container ignores a SIGTERM that it has no handler for; any other process is killed by it.
#[tokio::test]
async fn sigterm_during_the_start_ends_it_with_status_0() {
    // A database that accepts connections and never answers.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://postgres@{}/none", mute.local_addr().unwrap());
    let folder = Folder::new("services").unwrap();
    let mut command = command(env!("CARGO_BIN_EXE_on_axum"), &url, "redis://127.0.0.1:1");
    command.env("LISTEN_ADDR", "127.0.0.1:0").env("ADMIN_ADDR", "127.0.0.1:0");
    let process = Process::spawn(&folder, "example", Signal::TERM, &command).unwrap();
    let _connection = tokio::time::timeout(LIMIT, mute.accept()).await.unwrap().unwrap();
    process.signal(Signal::TERM).unwrap();
    let status = process.wait(LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", process.log_tail());
}

#[tokio::test]
async fn connections_are_kept_until_propagation_has_passed() {
    let url = Postgres::fresh_database().await.unwrap();
    let redis = Redis::start().await.unwrap();
    let admin = free_port().unwrap();
    let folder = Folder::new("services").unwrap();
    let mut command = command(env!("CARGO_BIN_EXE_on_axum"), &url, &redis.url());
    command
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .env("ADMIN_ADDR", format!("127.0.0.1:{admin}"))
        .env("CUTOVER_GRACE_SECONDS", "40")
        .env("CUTOVER_PROPAGATION_SECONDS", "20");
    let process = Process::spawn(&folder, "example", Signal::TERM, &command).unwrap();
    let readyz = format!("http://127.0.0.1:{admin}/readyz");
    let is = async |status: u16| text(&readyz).await.map(|(found, _)| found == status);
    wait_until("ready", LIMIT, async || is(200).await).await.unwrap();
    let mut session = PgConnection::connect(&url).await.unwrap();
    process.signal(Signal::TERM).unwrap();
    wait_until("not ready", LIMIT, async || is(503).await).await.unwrap();
    let renewals = "select lease_until::text, max_connections from cutover.connection_shares";
    let (before, _): (String, i64) = sqlx::query_as(renewals).fetch_one(&mut session).await.unwrap();
    wait_until("a renewal", LIMIT, async || {
        let mut session = PgConnection::connect(&url).await?;
        let (until, max): (String, i64) = sqlx::query_as(renewals).fetch_one(&mut session).await?;
        assert_eq!(max, 10, "connections that the pool may have");
        Ok::<_, sqlx::Error>(until != before)
    })
    .await
    .unwrap();
}
