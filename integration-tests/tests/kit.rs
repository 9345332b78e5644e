//! The test kit against the real servers.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, http::StatusCode, routing::get};
use cutover_testkit::{
    Cluster, Endpoint, Envoy, Folder, KitError, PgBouncer, Postgres, PostgresOptions, Process, Prometheus,
    Redis, Signal, Unleash, if_installed, wait_until,
};
use sqlx::{Connection, PgConnection, Row};

const SOON: Duration = Duration::from_secs(60);

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[tokio::test]
async fn fresh_databases_are_separate() -> Outcome {
    let (mine, other) = tokio::join!(Postgres::fresh_database(), Postgres::fresh_database());
    let mut mine = PgConnection::connect(&mine?).await?;
    let mut other = PgConnection::connect(&other?).await?;
    for connection in [&mut mine, &mut other] {
        sqlx::query("create table t as select 7 as n").execute(&mut *connection).await?;
    }
    let n: i32 = sqlx::query_scalar("select n from t").fetch_one(&mut mine).await?;
    assert_eq!(n, 7);
    Ok(())
}

#[tokio::test]
async fn settings_reach_postgres() -> Outcome {
    let postgres = Postgres::start(PostgresOptions {
        fsync: true,
        settings: vec![("max_connections".into(), "17".into())],
    })
    .await?;
    assert_eq!(show(&postgres, "max_connections").await?, "17");
    assert_eq!(show(&postgres, "fsync").await?, "on");
    let wrong = Postgres::start(PostgresOptions {
        settings: vec![("no_such_setting".into(), "1".into())],
        ..PostgresOptions::default()
    })
    .await;
    let Err(KitError::Exited { log, .. }) = wrong else {
        panic!("a setting that does not exist was taken: {wrong:?}");
    };
    assert!(log.contains("no_such_setting"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_killed_postgres_keeps_commits() -> Outcome {
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let mut session = PgConnection::connect(&postgres.admin_url()).await?;
    sqlx::query("create table t as select 1 as n").execute(&mut session).await?;
    postgres.kill9().await?;
    assert!(session.ping().await.is_err());
    postgres.restart().await?;
    postgres.execute("insert into t values (2)").await?;
    Ok(())
}

#[tokio::test]
async fn a_paused_postgres_keeps_sessions_waiting() -> Outcome {
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let mut session = PgConnection::connect(&postgres.admin_url()).await?;
    session.ping().await?;
    postgres.pause()?;
    let silent = tokio::time::timeout(Duration::from_millis(300), session.ping()).await;
    assert!(silent.is_err(), "it answered: {silent:?}");
    postgres.resume()?;
    let mut session = PgConnection::connect(&postgres.admin_url()).await?;
    session.ping().await?;
    postgres.pause()?;
    let pid = postgres.process().pid();
    let sessions: Vec<_> = children_of(pid).collect();
    drop(postgres);
    assert!(!sessions.into_iter().chain([pid]).any(runs));
    Ok(())
}

#[tokio::test]
async fn a_standby_replays_and_is_promoted() -> Outcome {
    let primary = Postgres::start(PostgresOptions::default()).await?;
    let standby = primary.standby().await?;
    primary.execute("create table t as select 1 as n").await?;
    assert!(standby.execute("insert into t values (2)").await.is_err());
    wait_until("replayed", SOON, async || {
        standby.execute("select n from t").await?;
        Ok::<_, KitError>(true)
    })
    .await?;
    primary.kill9().await?;
    standby.promote().await?;
    standby.execute("insert into t values (2)").await?;
    Ok(())
}

#[tokio::test]
async fn redis_answers() -> Outcome {
    let redis = Redis::start().await?;
    assert!(redis.url().starts_with("redis://127.0.0.1:"));
    assert!(redis.process().exited().is_none());
    Ok(())
}

#[tokio::test]
async fn a_changed_flag_is_visible_on_the_client_api() -> Outcome {
    let unleash = Unleash::start(Postgres::shared().await?).await;
    let Some(unleash) = if_installed(unleash)? else {
        return Ok(());
    };
    assert!(!format!("{unleash:?}").contains(unleash.admin_token()));
    let admin = unleash.admin()?;
    for _ in 0..2 {
        admin.ensure_flag("flow").await?;
        admin.set_rollout("flow", 25).await?;
        admin.enable("flow").await?;
    }
    let shows = async |what: &str, is: fn(&serde_json::Value) -> bool| {
        wait_until(what, SOON, async || {
            let answer = reqwest::Client::new()
                .get(format!("{}/api/client/features", unleash.url()))
                .header("Authorization", unleash.backend_token())
                .send()
                .await?;
            let state: serde_json::Value = answer.json().await?;
            let flag = state["features"].as_array().into_iter().flatten().next();
            Ok::<_, reqwest::Error>(flag.is_some_and(is))
        })
        .await
    };
    shows("25 %", |flag| {
        let strategies = &flag["strategies"];
        flag["enabled"] == true
            && strategies.as_array().is_some_and(|all| all.len() == 1)
            && strategies[0]["parameters"]["rollout"] == "25"
            && strategies[0]["parameters"]["stickiness"] == "userId"
    })
    .await?;
    admin.set_variant("flow", "ramp:25").await?;
    shows("variant", |flag| {
        let strategy = &flag["strategies"][0];
        strategy["variants"][0]["payload"]["value"] == "ramp:25" && strategy["parameters"]["rollout"] == "100"
    })
    .await?;
    admin.disable("flow").await?;
    shows("off", |flag| flag["enabled"] == false).await?;
    unleash.restart().await?;
    shows("off after a restart", |flag| flag["enabled"] == false).await?;
    admin.remove("flow").await?;
    let gone = admin.enable("flow").await;
    assert!(matches!(gone, Err(KitError::Refused { status: 404, .. })), "{gone:?}");
    Ok(())
}

#[tokio::test]
async fn weights_change_under_load_without_an_error() -> Outcome {
    let (stable, canary) = (Backend::start("stable").await?, Backend::start("canary").await?);
    let envoy = Envoy::start(vec![stable.cluster(), canary.cluster()]).await;
    let Some(envoy) = if_installed(envoy)? else {
        return Ok(());
    };
    let healthy = async |cluster: &str, wanted: &[SocketAddr]| {
        wait_until("healthy endpoints", SOON, async || {
            Ok::<_, KitError>(envoy.healthy(cluster).await? == wanted)
        })
        .await
    };
    healthy("stable", &[stable.endpoint.addr]).await?;
    healthy("canary", &[canary.endpoint.addr]).await?;

    let client = reqwest::Client::new();
    let who = async |header: Option<&str>| {
        let mut request = client.get(envoy.url());
        if let Some(value) = header {
            request = request.header("x-canary", value);
        }
        request.send().await?.error_for_status()?.text().await
    };
    assert_eq!(who(None).await?, "stable");
    assert_eq!(who(Some("1")).await?, "canary", "the header goes before the weights");

    let (over, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    let load = async {
        while !over.load(Ordering::Relaxed) {
            who(None).await?;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<_, reqwest::Error>(())
    };
    let flips = async {
        for wanted in ["canary", "stable"].repeat(10) {
            envoy.set_weights(&[(wanted, 1)]).await?;
            let seen = answered.load(Ordering::Relaxed);
            wait_until("requests answered by the other cluster", SOON, async || {
                let enough = answered.load(Ordering::Relaxed) > seen + 20;
                Ok::<_, reqwest::Error>(who(None).await? == wanted && enough)
            })
            .await?;
        }
        over.store(true, Ordering::Relaxed);
        Ok::<_, KitError>(())
    };
    let (loaded, flipped) = tokio::join!(load, flips);
    loaded?;
    flipped?;

    let second = Backend::start("second").await?;
    envoy.set_endpoints("stable", vec![stable.endpoint.clone(), second.endpoint.clone()]).await?;
    let mut both = [stable.endpoint.addr, second.endpoint.addr];
    if envoy.healthy("stable").await?.first() == Some(&second.endpoint.addr) {
        both.reverse();
    }
    healthy("stable", &both).await?;
    stable.ready.store(false, Ordering::Relaxed);
    healthy("stable", &[second.endpoint.addr]).await?;
    for _ in 0..10 {
        assert_eq!(who(None).await?, "second");
    }
    assert!(envoy.set_weights(&[("nobody", 1)]).await.is_err());
    Ok(())
}

#[tokio::test]
async fn prometheus_scrapes_and_answers_queries() -> Outcome {
    let backend = Backend::start("scraped").await?;
    let prometheus = Prometheus::start(Vec::new(), Duration::from_millis(200)).await;
    let Some(prometheus) = if_installed(prometheus)? else {
        return Ok(());
    };
    prometheus.set_targets(&[backend.endpoint.addr])?;
    wait_until("first scrape", SOON, async || {
        let samples = prometheus.query("kit_answer").await?;
        Ok::<_, KitError>(samples.first().is_some_and(|sample| sample.value == 42.0))
    })
    .await?;
    assert_eq!(prometheus.query("1 + 1").await?[0].value, 2.0);
    assert!(prometheus.query("scalar(nothing)").await?[0].value.is_nan());
    let wrong = prometheus.query("sum(").await;
    assert!(matches!(wrong, Err(KitError::Refused { status: 400, .. })), "{wrong:?}");
    Ok(())
}

#[tokio::test]
async fn pgbouncer_serves_two_clients_with_one_session() -> Outcome {
    let postgres = Postgres::shared().await?;
    let Some(pooler) = if_installed(PgBouncer::start(postgres, 1).await)? else {
        return Ok(());
    };
    let mut pids = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = PgConnection::connect(&pooler.url("postgres")).await?;
        let row = sqlx::raw_sql("select pg_backend_pid()").fetch_one(&mut client).await?;
        pids.push(row.try_get::<i32, _>(0)?);
        clients.push(client);
    }
    assert_eq!(pids[0], pids[1]);
    Ok(())
}

#[tokio::test]
async fn an_early_exit_is_reported_with_the_log() -> Outcome {
    let folder = Folder::new("early")?;
    let mut command = Command::new("sh");
    command.args(["-c", "echo all is lost; exit 3"]);
    let process = Process::spawn(&folder, "early", Signal::TERM, &command)?;
    let error = process.wait_ready(SOON, async || Ok::<_, KitError>(false)).await.unwrap_err();
    assert!(error.to_string().contains("all is lost"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_drop_removes_processes_and_folder() -> Outcome {
    let folder = Folder::new("dropped")?;
    let mut command = Command::new("sleep");
    command.arg("1000");
    let process = Process::spawn(&folder, "sleep", Signal::TERM, &command)?;
    let (path, pid) = (folder.path().to_owned(), process.pid());
    assert!(path.exists() && runs(pid));
    drop(folder);
    assert!(path.exists() && runs(pid), "a process holds its folder");
    drop(process);
    assert!(!path.exists() && !runs(pid));
    Ok(())
}

/// So that a test can move the servers into a task.
#[test]
fn futures_are_send() {
    fn send<T: Send>(_: impl FnOnce() -> T) {}
    send(|| async {
        let postgres = Postgres::start(PostgresOptions::default()).await?;
        let standby = postgres.standby().await?;
        standby.promote().await?;
        postgres.kill9().await?;
        postgres.restart().await?;
        Redis::start().await?.restart().await?;
        let unleash = Unleash::start(&postgres).await?;
        unleash.admin()?.set_variant("flag", "value").await?;
        unleash.restart().await?;
        let envoy = Envoy::start(Vec::new()).await?;
        envoy.set_weights(&[]).await?;
        envoy.set_endpoints("stable", Vec::new()).await?;
        PgBouncer::start(&postgres, 1).await?;
        Prometheus::start(Vec::new(), SOON).await?.query("up").await
    });
}

/// Not a test of its own: what the tests below start, and end in a bad way.
#[tokio::test]
async fn victim() -> Outcome {
    let Ok(end) = std::env::var("KIT_VICTIM") else {
        return Ok(());
    };
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let redis = Redis::start().await?;
    let shared = Postgres::shared().await?;
    for process in [postgres.process(), redis.process(), shared.process()] {
        let folder = process.log_path().parent().unwrap_or(Path::new("")).display();
        println!("\nstarted {} {folder}", process.pid());
    }
    println!("\nwaiting");
    match end.as_str() {
        "panic" => panic!("as the caller wishes"),
        "abort" => std::process::abort(),
        "kill -9 while Postgres is stopped" => postgres.pause()?,
        _ => {}
    }
    // Ends in order if the caller is gone first.
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}

#[test]
fn a_panic_leaves_nothing_behind() -> Outcome {
    leaves_nothing_behind("panic")
}

#[test]
fn an_abort_leaves_nothing_behind() -> Outcome {
    leaves_nothing_behind("abort")
}

#[test]
fn a_kill_leaves_nothing_behind() -> Outcome {
    leaves_nothing_behind("kill -9")
}

#[test]
fn a_kill_with_stopped_postgres_leaves_nothing_behind() -> Outcome {
    leaves_nothing_behind("kill -9 while Postgres is stopped")
}

fn leaves_nothing_behind(end: &str) -> Outcome {
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "victim", "--nocapture"])
        .env("KIT_VICTIM", end)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut started: Vec<(u32, PathBuf)> = Vec::new();
    let lines = BufReader::new(victim.stdout.take().ok_or("no output")?).lines();
    for line in lines.map_while(Result::ok) {
        if let Some((pid, folder)) = line.strip_prefix("started ").and_then(|l| l.split_once(' ')) {
            let pid = pid.parse()?;
            started.push((pid, folder.into()));
            // A victim that ends by itself may be gone by now.
            started.extend(children_of(pid).map(|child| (child, folder.into())));
        }
        if line == "waiting" {
            break;
        }
    }
    assert!(started.len() >= 3, "the victim did not get far: {started:?}");
    if end.starts_with("kill") {
        // Sessions end by themselves, so only those that are running now count.
        started.retain(|(pid, _)| runs(*pid));
        assert!(started.len() > 3, "nothing to kill: {started:?}");
        victim.kill()?;
    }
    victim.wait()?;
    let deadline = Instant::now() + SOON;
    while started.iter().any(|(pid, folder)| runs(*pid) || folder.exists()) {
        let left: Vec<_> =
            started.iter().map(|(pid, folder)| (pid, runs(*pid), folder, folder.exists())).collect();
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A zombie has no working folder and does not count.
fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/cwd")).exists()
}

fn children_of(pid: u32) -> impl Iterator<Item = u32> {
    let file = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(file).unwrap_or_default();
    let pids: Vec<u32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    pids.into_iter()
}

async fn show(postgres: &Postgres, setting: &str) -> Result<String, sqlx::Error> {
    let mut session = PgConnection::connect(&postgres.admin_url()).await?;
    sqlx::query_scalar("select current_setting($1)").bind(setting).fetch_one(&mut session).await
}

/// An HTTP server that says its name, is ready or not, and has one metric.
struct Backend {
    endpoint: Endpoint,
    ready: Arc<AtomicBool>,
}

impl Backend {
    async fn start(name: &'static str) -> Result<Self, std::io::Error> {
        let ready = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&ready);
        let readyz = move || async move {
            match asked.load(Ordering::Relaxed) {
                true => StatusCode::OK,
                false => StatusCode::SERVICE_UNAVAILABLE,
            }
        };
        let app = Router::new()
            .route("/", get(move || async move { name }))
            .route("/metrics", get(|| async { "kit_answer 42\n" }));
        let addr = serve(app).await?;
        // Health on a port of its own, as services do.
        let health = serve(Router::new().route("/readyz", get(readyz))).await?;
        let name = name.to_owned();
        Ok(Self { endpoint: Endpoint { name, addr, health }, ready })
    }

    fn cluster(&self) -> Cluster {
        Cluster { name: self.endpoint.name.clone(), endpoints: vec![self.endpoint.clone()] }
    }
}

async fn serve(app: Router) -> Result<SocketAddr, std::io::Error> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(addr)
}
