//! A whole service behind PgBouncer, of the system and of the program that `TESTKIT_PGBOUNCER_CURRENT` names, in both modes.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as it does, by panicking")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::mirror::{MirrorStore, PostgresMirror};
use cutover::migration::{ColumnMigration, MigrationSpec, PhaseRange, SchemaChange};
use cutover::pool::{ConnectionShare, ShareError, ShareOptions};
use cutover::release::Release;
use cutover::{Cutover, Instance};
use cutover_testkit::{PgBouncer, PgBouncerOptions, Postgres, PostgresOptions, if_installed, wait_until};
use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::task::JoinSet;
use tower::ServiceExt;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const LIMIT: Duration = Duration::from_secs(60);

/// A current PgBouncer, which may be another one than the system's: that is 1.18 on Debian 12.
fn current() -> Option<PathBuf> {
    if_installed(PgBouncer::current()).unwrap()
}

fn keeping_statements() -> PgBouncerOptions {
    let settings = vec!["max_prepared_statements = 200".to_owned()];
    PgBouncerOptions { pool_size: 6, settings, program: current(), ..PgBouncerOptions::default() }
}

struct Pooled {
    postgres: Postgres,
    pooler: PgBouncer,
    direct: PgPool,
}

impl Pooled {
    async fn start(options: &PgBouncerOptions) -> Option<Self> {
        let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
        let direct = PgPool::connect(&postgres.create_database("pooled").await.unwrap()).await.unwrap();
        let pooler = if_installed(PgBouncer::start_with(&postgres, options).await).unwrap()?;
        Some(Self { postgres, pooler, direct })
    }

    fn service(&self, instance: &str) -> Cutover {
        self.shop(instance).migration(MigrationSpec::new("status", PhaseRange::FULL))
    }

    /// The service without its migration.
    fn shop(&self, instance: &str) -> Cutover {
        let release = Release::new("shop", "1").unwrap().with_instance(instance).unwrap();
        let pool = PgPoolOptions::new().max_connections(5).acquire_timeout(LIMIT);
        let options: PgConnectOptions = self.pooler.url("pooled").parse().unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        Cutover::service("shop")
            .release(release)
            .listen(address)
            .admin(address)
            .fleet(FleetOptions { renew_every: Duration::from_millis(500), ..FleetOptions::default() })
            .postgres(pool.connect_lazy_with(options))
    }

    async fn move_to(&self, phase: &str) -> Outcome {
        let ask = format!("update cutover.migrations set desired = '{phase}'");
        sqlx::raw_sql(sqlx::AssertSqlSafe(ask)).execute(&self.direct).await?;
        wait_until(phase, LIMIT, async || {
            let state = "select phase = desired and waits_for is null, concat(phase, ' waits for ', waits_for) \
                         from cutover.migrations";
            match sqlx::query_as::<_, (bool, String)>(state).fetch_one(&self.direct).await {
                Ok((true, _)) => Ok(true),
                Ok((false, state)) => Err(state),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        Ok(())
    }

    /// Sessions that were ended, and not by their client, as the server says: the pooler ends some of its own.
    fn ended_sessions(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.postgres.process().log_path()).unwrap();
        log.lines().filter(|line| line.contains("terminating connection")).map(str::to_owned).collect()
    }
}

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// Reads and pinned writes as a service does them, with named statements.
fn load(instance: &Instance, stop: &Arc<AtomicBool>, counts: &Arc<Counts>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for task in 0..8_i64 {
        let (pool, migration) = (instance.postgres().unwrap(), instance.migration("status").unwrap());
        let (stop, counts) = (Arc::clone(stop), Arc::clone(counts));
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let outcome = async {
                    sqlx::query_scalar::<_, i64>("select $1 + 1").bind(task).fetch_one(&pool).await?;
                    let mut tx = migration.begin(&pool).await?;
                    let insert = sqlx::query("insert into public.orders (task) values ($1)");
                    insert.bind(task).execute(&mut *tx).await?;
                    tx.commit().await
                };
                match outcome.await {
                    Ok(()) => counts.done.fetch_add(1, Ordering::Relaxed),
                    Err(error) => {
                        counts.last_error.lock().unwrap().replace(error.to_string());
                        counts.failed.fetch_add(1, Ordering::Relaxed)
                    }
                };
            }
        });
    }
    tasks
}

async fn page(instance: &Instance, path: &str) -> String {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let answer = instance.health().router().oneshot(request).await.unwrap();
    String::from_utf8(to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
}

/// Two instances under load, while a migration moves there and back.
async fn serves_without_a_failed_statement(options: PgBouncerOptions, named_in_health: &str) -> Outcome {
    let Some(pooled) = Pooled::start(&options).await else { return Ok(()) };
    sqlx::raw_sql("create table orders (task bigint)").execute(&pooled.direct).await?;
    let (a, b) = (pooled.service("a").start().await?, pooled.service("b").start().await?);
    let health = page(&a, "/healthz?verbose").await;
    assert!(health.contains(named_in_health), "{health}");
    assert!(a.admission().is_none(), "a share behind a pooler");
    wait_until("a pin", LIMIT, async || {
        Ok::<_, sqlx::Error>([&a, &b].iter().all(|i| i.migration("status").unwrap().pin().is_ok()))
    })
    .await?;
    let (stop, counts) = (Arc::default(), Arc::default());
    let loads = [load(&a, &stop, &counts), load(&b, &stop, &counts)];
    let is_loaded = async || Ok::<_, sqlx::Error>(counts.done.load(Ordering::Relaxed) > 50);
    wait_until("load", LIMIT, is_loaded).await?;
    for phase in ["backfill", "off"] {
        pooled.move_to(phase).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.join_all().await;
    }
    let (done, failed) = (counts.done.load(Ordering::Relaxed), counts.failed.load(Ordering::Relaxed));
    assert_eq!(failed, 0, "of {done}, the last with {:?}", counts.last_error.lock().unwrap());
    assert!(done > 50, "{done} rounds of statements are no load");
    assert_eq!(pooled.ended_sessions(), [""; 0]);
    drop((a, b, pooled.postgres));
    Ok(())
}

fn statuses(pool: PgPool) -> Result<MigrationSpec, cutover::ConfigError> {
    let plan = ColumnMigration::new(pool, "orders")
        .key("id")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .build()?;
    Ok(MigrationSpec::new("status", PhaseRange::FULL).plan(plan))
}

/// Another client of the pooler, whose statements have names. It leaves one in every session, and some of its own fail.
async fn client_with_names(url: String, stop: Arc<AtomicBool>) {
    let pool = PgPoolOptions::new().max_connections(12).connect(&url).await.unwrap();
    while !stop.load(Ordering::Relaxed) {
        let theirs = || sqlx::query("select 'theirs' where $1::text is not null").bind("x").execute(&pool);
        let _ = futures_util::future::join_all((0..12).map(|_| theirs())).await;
    }
}

/// Reads and pinned writes as a service does them that knows about the pooler.
async fn one_round_without_names(
    instance: &Instance,
    deadpool: &deadpool_postgres::Pool,
    store: &PostgresMirror,
    (task, round): (i64, i64),
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (pool, migration) = (instance.postgres()?, instance.migration("status").unwrap());
    sqlx::raw_sql("select 1").execute(&pool).await?;
    let mut tx = migration.begin(&pool).await?;
    let update = sqlx::query("update public.orders set note = 'sqlx' where id = $1");
    update.persistent(false).bind(task).execute(&mut *tx).await?;
    tx.commit().await?;
    let tx = migration.begin(deadpool).await?;
    tx.batch_execute(&format!("update public.orders set note = 'deadpool' where id = {task}")).await?;
    tx.commit().await?;
    let (key, row) = (task.to_string(), format!("{{\"n\": {round}}}"));
    store.put(&key, round, Some(&row)).await?;
    match store.get(&key).await? {
        Some(found) if found == row => Ok(()),
        found => Err(format!("the store has {found:?} instead of {row}").into()),
    }
}

/// A start that waits and says what to set, and a preflight that says the same.
async fn is_refused(options: PgBouncerOptions) -> Outcome {
    let Some(pooled) = Pooled::start(&options).await else { return Ok(()) };
    let report = pooled.service("preflight").preflight().await.to_string();
    assert!(report.contains("pooler") && report.contains("max_prepared_statements = 200"), "{report}");
    let started = tokio::time::timeout(Duration::from_secs(3), pooled.service("a").start()).await;
    assert!(started.is_err(), "the start waits");
    Ok(())
}

/// The guard of a share ends connections, which would be the pooler's.
#[tokio::test]
async fn a_share_behind_a_pooler_is_refused() -> Outcome {
    for session_mode in [false, true] {
        let options = PgBouncerOptions { pool_size: 6, session_mode, ..PgBouncerOptions::default() };
        let Some(pooled) = Pooled::start(&options).await else { return Ok(()) };
        let release = Release::new("shop", "1")?.with_instance("a")?;
        let health = Health::new();
        let join = async |url: &str| {
            let ledger = Ledger::open(url.parse()?).await?;
            Fleet::join(ledger, &release, FleetOptions::default(), &health).await
        };
        let refusal = |reason: &str| {
            assert!(
                reason.contains("connection shares are off") || reason.contains("max_prepared"),
                "{reason}"
            );
        };
        // Whatever pool would be made of it: the ledger shows the pooler.
        let pooled_fleet = join(&pooled.pooler.url("pooled")).await?;
        let leased = ConnectionShare::lease(&pooled_fleet, &ShareOptions::default()).await;
        let Err(ShareError::Pooler { reason }) = leased else { panic!("not refused") };
        refusal(&reason);
        // The ledger is direct, the pool is not.
        let fleet = join(&pooled.postgres.url("pooled")).await?;
        let share = ConnectionShare::lease(&fleet, &ShareOptions::default()).await?;
        let made = share.sqlx(PgPoolOptions::new(), pooled.pooler.url("pooled").parse()?).await;
        let Err(ShareError::Pooler { reason }) = made else { panic!("not refused") };
        refusal(&reason);
        assert_eq!(pooled.ended_sessions(), [""; 0]);
    }
    Ok(())
}

#[tokio::test]
async fn a_pooler_that_breaks_named_statements_is_refused() -> Outcome {
    is_refused(PgBouncerOptions { pool_size: 6, ..PgBouncerOptions::default() }).await?;
    if current().is_some() {
        let settings = vec!["max_prepared_statements = 0".to_owned()];
        is_refused(PgBouncerOptions { settings, ..keeping_statements() }).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_names_no_statement_fails_beside_named_ones() -> Outcome {
    let options = PgBouncerOptions { pool_size: 6, ..PgBouncerOptions::default() };
    let Some(pooled) = Pooled::start(&options).await else { return Ok(()) };
    let tables = "create table orders (id bigint generated always as identity primary key, note text, old_status text); \
                  insert into orders (old_status) select 'S' || g from generate_series(1, 2000) g";
    sqlx::raw_sql(tables).execute(&pooled.direct).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let other = tokio::spawn(client_with_names(pooled.pooler.url("pooled"), Arc::clone(&stop)));
    let service = |name| pooled.shop(name).migration(statuses).unnamed_statements();
    let report = service("preflight").preflight().await;
    assert!(report.passed && report.to_string().contains("does not keep prepared statements"), "{report}");
    let instance = Arc::new(service("a").start().await?);
    let health = page(&instance, "/healthz?verbose").await;
    assert!(health.contains("a statement of the service that has a name"), "{health}");
    wait_until("a pin", LIMIT, async || {
        Ok::<_, sqlx::Error>(instance.migration("status").unwrap().pin().is_ok())
    })
    .await?;

    let manager =
        deadpool_postgres::Manager::new(pooled.pooler.url("pooled").parse()?, tokio_postgres::NoTls);
    let deadpool = deadpool_postgres::Pool::builder(manager).max_size(5).build()?;
    let lazy = PgPoolOptions::new().max_connections(5).acquire_timeout(LIMIT);
    let store = PostgresMirror::new(lazy.connect_lazy(&pooled.pooler.url("pooled"))?, "kept")?;
    store.prepare().await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 1..=4_i64 {
        let (instance, deadpool, store, stop) =
            (Arc::clone(&instance), deadpool.clone(), store.clone(), Arc::clone(&stop));
        tasks.spawn(async move {
            let mut rounds = 0;
            while rounds <= 10 || !stop.load(Ordering::Relaxed) {
                rounds += 1;
                one_round_without_names(&instance, &deadpool, &store, (task, rounds)).await?;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(rounds)
        });
    }
    let moved = async {
        for phase in ["verify", "off"] {
            pooled.move_to(phase).await?;
        }
        Outcome::Ok(())
    };
    let moved = moved.await;
    stop.store(true, Ordering::Relaxed);
    for rounds in tasks.join_all().await {
        assert!(rounds.unwrap() > 10);
    }
    moved?;
    other.await?;
    drop((instance, pooled));
    Ok(())
}

/// The next client of a session would have its limits.
#[tokio::test(flavor = "multi_thread")]
async fn work_on_the_schema_leaves_sessions_as_they_were() -> Outcome {
    let options = PgBouncerOptions { pool_size: 6, ..PgBouncerOptions::default() };
    let Some(pooled) = Pooled::start(&options).await else { return Ok(()) };
    sqlx::raw_sql("create table orders (id bigint primary key, note text)").execute(&pooled.direct).await?;
    let quiet = Duration::from_millis(300);
    let change = move |pool| -> Result<MigrationSpec, cutover::ConfigError> {
        let plan = SchemaChange::new(pool, "orders").check("short", "length(note) < 99").quiet_period(quiet);
        let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(plan.build()?);
        Ok(spec.external_write_quiet_period(quiet))
    };
    let instance = pooled.shop("a").migration(change).unnamed_statements().start().await?;
    wait_until("a pin", LIMIT, async || {
        Ok::<_, sqlx::Error>(instance.migration("status").unwrap().pin().is_ok())
    })
    .await?;
    pooled.move_to("retire").await?;
    let pool = PgPoolOptions::new().max_connections(6).connect(&pooled.pooler.url("pooled")).await?;
    // The time keeps each client in a session of its own.
    let changed = "select concat((select string_agg(name, ' ') from pg_settings \
        where setting <> reset_val and name ~ '_timeout$|check_interval$'), pg_sleep(0.3))";
    let look = || async { sqlx::raw_sql(changed).fetch_one(&pool).await?.try_get::<String, _>(0) };
    for changed in futures_util::future::join_all((0..6).map(|_| look())).await {
        assert_eq!(changed?, "");
    }
    drop((instance, pooled));
    Ok(())
}

#[tokio::test]
async fn in_session_mode_no_statement_fails() -> Outcome {
    let session = PgBouncerOptions { pool_size: 40, session_mode: true, ..PgBouncerOptions::default() };
    serves_without_a_failed_statement(session.clone(), "a pooler in session mode").await?;
    if current().is_some() {
        let session = PgBouncerOptions { program: current(), ..session };
        serves_without_a_failed_statement(session, "a pooler in session mode").await?;
    }
    Ok(())
}

#[tokio::test]
async fn in_transaction_mode_no_statement_fails() -> Outcome {
    if current().is_none() {
        return Ok(());
    }
    serves_without_a_failed_statement(keeping_statements(), "a pooler in transaction mode").await
}
