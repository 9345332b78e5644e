//! The console in a real Chromium: what it shows, and what it does, on a fleet under load.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cutover::Cutover;
use cutover::migration::{ColumnMigration, Error, MigrationSpec, PhaseRange};
use cutover_testkit::{browser, free_port, if_installed};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::console::Console;
use crate::{Outcome, STATE, database, done, execute};

/// Takes these steps in Chromium, with pictures in `target/console`. `None` if no browser is installed.
async fn browse(steps: Value) -> Result<Option<Value>, Box<dyn std::error::Error>> {
    let Some((tools, chromium)) = if_installed(browser())? else { return Ok(None) };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/console");
    std::fs::create_dir_all(&folder)?;
    let mut command = Command::new(tools.join("bin/node"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/browser.mjs"));
    command.args([&tools, &chromium, &folder]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || {
        let mut node = command.spawn()?;
        serde_json::to_writer(node.stdin.take().expect("piped"), &steps)?;
        node.wait_with_output()
    });
    let output = output.await??;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}

fn assert_no_problem(found: &Value) {
    let problems: Vec<&str> =
        found["problems"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Every page, in two sizes and two colour schemes: the rules of the accessibility checker, the Tab key, no sideways scrolling.
#[tokio::test]
async fn every_page_is_accessible_in_a_browser() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, STATE).await?;
    execute(
        url,
        "insert into cutover.external_writes (migration_id, application, role, transactions, first_seen, last_seen) \
             values (1, 'nightly job', 'batch', 12, now() - interval '2 days', now() - interval '3 hours'); \
         insert into cutover.jobs (id, migration_id, kind, epoch, rows_total, rows_done, differences, finished_at) \
             overriding system value values (0, 1, 'scan', 2, 100, 100, 1, now()); \
         insert into cutover.differences (job_id, key, what, expected, found) \
             values (0, array['7'], 'different', '\"paid\"', '\"open\"')",
    )
    .await?;
    let with_token = "0123456789abcdef0123";
    let (console, locked) = (Console::start(url, &[]), Console::start(url, &["--token", with_token]));
    let read_only = Console::start(url, &["--read-only"]);
    let two = [format!("eu={url}"), "us=postgres://postgres@127.0.0.1:1/none".to_owned()];
    let several = Console::start("", &["--ledger", &two[0], "--ledger", &two[1]]);
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let public = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let service = Cutover::service("shop").admin(admin).listen(public).postgres(PgPool::connect(url).await?);
    let instance = service.start().await?;
    let page = "/migrations/shop/status";
    let mut steps = Vec::new();
    for (name, address) in [
        ("list", console.url("/")),
        ("migration", console.url(page)),
        ("unknown", console.url("/migrations/shop/nothing")),
        ("read-only", read_only.url(page)),
        ("ledgers", several.url("/")),
        ("login", locked.url("/")),
        ("instance-list", format!("http://{admin}/")),
        ("instance", format!("http://{admin}{page}")),
    ] {
        steps.extend([json!({"open": address}), json!({"audit": name})]);
    }
    let Some(found) = browse(json!(steps)).await? else { return Ok(()) };
    println!("{:#}", found["figures"]);
    assert_no_problem(&found);
    for page in found["figures"].as_array().unwrap() {
        // A page, its style and its script; a redirection to the login.
        assert!(page["requests"].as_u64() <= Some(4) && page["bytes"].as_u64() < Some(60_000), "{page}");
    }
    drop(instance);
    Ok(())
}

/// The keyboard alone takes a migration of a fleet under load through its life, with every action of the page.
#[tokio::test(flavor = "multi_thread")]
async fn every_action_works_in_a_browser_under_load() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    let console = Console::start(url, &[]);
    let pool = PgPool::connect(url).await?;
    pool.execute(
        "create table orders (id bigint primary key, old_status text); \
         insert into orders select g, 'PAID' from generate_series(1, 2000) g",
    )
    .await?;
    let mut instances = Vec::new();
    for _ in 0..2 {
        let [admin, public] =
            [free_port()?, free_port()?].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let service = Cutover::service("shop").admin(admin).listen(public).postgres(pool.clone());
        let service = service.migration(|pool| {
            let plan = ColumnMigration::new(pool, "orders")
                .column("old_status", "new_status", "text")
                .forward("lower(old_status)")
                .backward("upper(new_status)")
                .build()?;
            let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(plan);
            Ok::<_, cutover::ConfigError>(spec.soak(Duration::ZERO))
        });
        instances.push(service.start().await?);
    }
    let load = tokio::spawn(load(pool.clone(), instances[0].migration("status").ok_or("declared")?));
    let mut steps = vec![json!({"open": console.url("/migrations/shop/status")})];
    let mut act = |action: &str, phase: Option<&str>, shows: Value| {
        let mut fields = vec![("action", action)];
        fields.extend(phase.map(|phase| ("phase", phase)));
        fields.extend([("actor", "ann"), ("reason", "a test of the page"), ("confirm", "shop/status")]);
        // The order of the fields is that of the page.
        let fields = fields.into_iter().map(|(name, value)| json!([name, value])).collect::<Vec<_>>();
        steps.extend([json!({"fill": fields}), shows]);
    };
    let phase = |name: &str| json!({"phase": name});
    let text = |text: &str| json!({"text": text});
    act("set-phase", Some("expand"), phase("expand"));
    act("pause", None, text("paused by ann"));
    act("resume", None, text("backfills and scans resumed"));
    act("set-phase", Some("ramp:50"), phase("ramp"));
    act("retry-repairs", None, text("repairs"));
    act("rollback", None, phase("verify"));
    act("set-phase", Some("retire"), phase("retire"));
    act("approve", None, text("contract approved until"));
    act("set-phase", Some("off"), phase("off"));
    act("abandon-and-drop", None, text("The migration is abandoned"));
    steps.push(json!({"audit": "abandoned"}));
    let Some(found) = browse(json!(steps)).await? else { return Ok(()) };
    assert_no_problem(&found);
    load.abort();
    let writes = load.await.unwrap_err();
    assert!(writes.is_cancelled(), "a write failed: {writes}");
    let history =
        done(url, &["history", "status", "--limit", "100"], &["abandoned", "rollback: desired"]).await;
    assert_eq!(history.matches("a test of the page").count(), 10, "{history}");
    let left: i64 = sqlx::query_scalar(
        "select count(*) from information_schema.columns where table_name = 'orders' and column_name = 'new_status'",
    )
    .fetch_one(&pool)
    .await?;
    assert_eq!(left, 0);
    Ok(())
}

/// Writes the columns that the phase writes, until it is aborted.
async fn load(pool: PgPool, migration: cutover::migration::Migration) {
    for id in (1..=2_000_i64).cycle() {
        let written = async {
            let mut tx = migration.begin(&pool).await?;
            for (side, set) in [
                (cutover::migration::Side::Old, "old_status = 'OPEN'"),
                (cutover::migration::Side::New, "new_status = 'open'"),
            ] {
                if tx.phase().writes(side) {
                    let update = format!("update orders set {set} where id = {id}");
                    sqlx::query(AssertSqlSafe(update)).persistent(false).execute(&mut *tx).await?;
                }
            }
            tx.commit().await
        };
        let result: Result<(), Error> = written.await;
        // A machine that stands still for longer than a lease stops an instance.
        assert!(matches!(result, Ok(()) | Err(Error::NotInFleet)), "a write under load: {result:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
