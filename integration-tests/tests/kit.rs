//! The kit itself against the real servers.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use cutover_testkit::{
    Folder, KitError, Postgres, PostgresOptions, Process, Redis, Signal, wait_until,
};
use sqlx::{Connection, PgConnection};

const SOON: Duration = Duration::from_secs(20);

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[tokio::test]
async fn every_test_has_a_database_of_its_own() -> Outcome {
    let (mine, other) = tokio::join!(Postgres::fresh_database(), Postgres::fresh_database());
    let mut mine = PgConnection::connect(&mine?).await?;
    let mut other = PgConnection::connect(&other?).await?;
    for connection in [&mut mine, &mut other] {
        sqlx::query("create table t as select 7 as n")
            .execute(&mut *connection)
            .await?;
    }
    let n: i32 = sqlx::query_scalar("select n from t")
        .fetch_one(&mut mine)
        .await?;
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
async fn a_killed_postgres_keeps_what_was_committed() -> Outcome {
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let mut session = PgConnection::connect(&postgres.admin_url()).await?;
    sqlx::query("create table t as select 1 as n")
        .execute(&mut session)
        .await?;
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
    Ok(())
}

#[tokio::test]
async fn a_standby_replays_and_takes_over() -> Outcome {
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
async fn a_program_that_ends_early_is_told_with_its_log() -> Outcome {
    let folder = Folder::new("early")?;
    let mut command = Command::new("sh");
    command.args(["-c", "echo all is lost; exit 3"]);
    let process = Process::spawn(&folder, "early", Signal::TERM, &command)?;
    let error = process
        .wait_ready(SOON, async || Ok::<_, KitError>(false))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("all is lost"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_drop_leaves_nothing() -> Outcome {
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

/// Not a test of its own: what the tests below start, and end in a bad way.
#[tokio::test]
async fn victim() -> Outcome {
    let Ok(end) = std::env::var("KIT_VICTIM") else {
        return Ok(());
    };
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let redis = Redis::start().await?;
    Postgres::shared().await?;
    for process in [
        &*postgres.process(),
        redis.process(),
        &*Postgres::shared().await?.process(),
    ] {
        let folder = process
            .log_path()
            .parent()
            .unwrap_or(Path::new(""))
            .display();
        println!("\nstarted {} {folder}", process.pid());
    }
    println!("\nwaiting");
    match end.as_str() {
        "panic" => panic!("as the caller wishes"),
        "abort" => std::process::abort(),
        "kill -9 while Postgres is stopped" => postgres.pause()?,
        _ => {}
    }
    std::future::pending().await
}

#[test]
fn nothing_is_left_after_a_panic() {
    ends_without_a_trace("panic");
}

#[test]
fn nothing_is_left_after_an_abort() {
    ends_without_a_trace("abort");
}

#[test]
fn nothing_is_left_after_kill_9() {
    ends_without_a_trace("kill -9");
}

#[test]
fn nothing_is_left_after_kill_9_while_postgres_is_stopped() {
    ends_without_a_trace("kill -9 while Postgres is stopped");
}

fn ends_without_a_trace(end: &str) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture"])
        .env("KIT_VICTIM", end)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut started: Vec<(u32, PathBuf)> = Vec::new();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        if let Some((pid, folder)) = line
            .strip_prefix("started ")
            .and_then(|l| l.split_once(' '))
        {
            let pid = pid.parse().unwrap();
            started.push((pid, folder.into()));
            // A victim that ends by itself may be gone by now.
            started.extend(children_of(pid).map(|child| (child, folder.into())));
        }
        if line == "waiting" {
            break;
        }
    }
    assert!(
        started.len() >= 3,
        "the victim did not get far: {started:?}"
    );
    if end.starts_with("kill") {
        assert!(
            started
                .iter()
                .all(|(pid, folder)| runs(*pid) && folder.exists())
        );
        victim.kill().unwrap();
    }
    victim.wait().unwrap();
    let deadline = Instant::now() + SOON;
    while started
        .iter()
        .any(|(pid, folder)| runs(*pid) || folder.exists())
    {
        let left: Vec<_> = started
            .iter()
            .map(|(pid, folder)| (pid, runs(*pid), folder, folder.exists()))
            .collect();
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A zombie has no working folder and does not count.
fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/cwd")).exists()
}

fn children_of(pid: u32) -> impl Iterator<Item = u32> {
    let file = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(file).unwrap_or_default();
    let pids: Vec<u32> = text
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    pids.into_iter()
}

async fn show(postgres: &Postgres, setting: &str) -> Result<String, sqlx::Error> {
    let mut session = PgConnection::connect(&postgres.admin_url()).await?;
    sqlx::query_scalar("select current_setting($1)")
        .bind(setting)
        .fetch_one(&mut session)
        .await
}
