//! Repositories and a router that `cutover::testing` takes through every phase.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::routing::{get, put};
use cutover::ConfigError;
use cutover::migration::{
    ColumnMigration, DualWrite, Error, Migration, MigrationSpec, Phase, PhaseRange, PinnedTx, TableMigration,
};
use cutover::testing::{Direction, EveryPhase, TestFailures, Visit};
use cutover_testkit::Postgres;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tower::ServiceExt;

use crate::world::Outcome;

#[cutover::dual_write]
trait Orders {
    #[insert(key = id)]
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, status: &str) -> Result<i64, Error>;

    #[write(key = id)]
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<bool, Error>;

    #[read(key = id)]
    async fn status(&self, id: i64) -> Result<Option<String>, Error>;
}

/// One side, by its statements. Every status is in lower case for the caller.
#[derive(Clone)]
struct Side {
    pool: PgPool,
    add: &'static str,
    set: &'static str,
    get: &'static str,
}

impl Orders for Side {
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, status: &str) -> Result<i64, Error> {
        Ok(sqlx::query_scalar(self.add).bind(id).bind(status).fetch_one(&mut **tx).await?)
    }

    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<bool, Error> {
        Ok(sqlx::query(self.set).bind(id).bind(status).execute(&mut **tx).await?.rows_affected() == 1)
    }

    async fn status(&self, id: i64) -> Result<Option<String>, Error> {
        Ok(sqlx::query_scalar(self.get).bind(id).fetch_optional(&self.pool).await?)
    }
}

async fn database() -> Outcome<PgPool> {
    let pool = PgPool::connect(&Postgres::fresh_database().await?).await?;
    pool.execute(
        "create table orders (id bigserial primary key, old_status text); \
         insert into orders (old_status) select 'OPEN' from generate_series(1, 500)",
    )
    .await?;
    Ok(pool)
}

fn column(pool: &PgPool) -> Result<MigrationSpec, ConfigError> {
    column_in(pool, PhaseRange::FULL)
}

fn column_in(pool: &PgPool, range: PhaseRange) -> Result<MigrationSpec, ConfigError> {
    let plan = ColumnMigration::new(pool.clone(), "orders")
        .key("id")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .build()?;
    Ok(MigrationSpec::new("status", range).plan(plan))
}

fn old_column(pool: &PgPool) -> Side {
    Side {
        pool: pool.clone(),
        add: "insert into orders (id, old_status) \
            values (coalesce($1, nextval('orders_id_seq')), upper($2)) returning id",
        set: "update orders set old_status = upper($2) where id = $1",
        get: "select lower(old_status) from orders where id = $1",
    }
}

fn new_column(pool: &PgPool) -> Side {
    Side {
        pool: pool.clone(),
        add: "insert into orders (id, new_status) values (coalesce($1, nextval('orders_id_seq')), $2) \
            on conflict (id) do update set new_status = excluded.new_status returning id",
        set: "update orders set new_status = $2 where id = $1",
        get: "select new_status from orders where id = $1",
    }
}

/// What a test of a repository does in each phase.
async fn use_orders(visit: &Visit<i64>, old: &Side, new: &Side) -> Result<i64, Error> {
    let orders = DualWrite::new(visit.migration().clone(), old.clone(), new.clone());
    let mut tx = visit.migration().begin(&old.pool).await?;
    let id = orders.add(&mut tx, None, "open").await?;
    for earlier in visit.earlier() {
        assert!(orders.set(&mut tx, *earlier, "paid").await?, "order {earlier} is there");
    }
    assert!(orders.set(&mut tx, 1, visit.phase().name()).await?, "a row from before the migration");
    tx.commit().await?;
    for (id, status) in
        visit.earlier().iter().map(|id| (*id, "paid")).chain([(id, "open"), (1, visit.phase().name())])
    {
        assert_eq!(orders.status(id).await?.as_deref(), Some(status), "order {id}");
    }
    Ok(id)
}

/// More than a step needs on a busy machine.
const PATIENT: Duration = Duration::from_secs(120);

async fn in_every_phase(
    pool: &PgPool,
    spec: MigrationSpec,
    old: Side,
    new: Side,
) -> Result<(), TestFailures> {
    in_every_phase_within(PATIENT, pool, spec, old, new).await
}

async fn in_every_phase_within(
    limit: Duration,
    pool: &PgPool,
    spec: MigrationSpec,
    old: Side,
    new: Side,
) -> Result<(), TestFailures> {
    let every_phase = EveryPhase::new(pool, spec).limit(limit);
    every_phase.run(async |visit| use_orders(visit, &old, &new).await).await
}

#[tokio::test]
async fn a_correct_repository_passes_in_every_phase() -> Outcome {
    let pool = database().await?;
    let began = Instant::now();
    let mut visited = Vec::new();
    let seen = std::sync::Mutex::new(&mut visited);
    let (old, new) = (old_column(&pool), new_column(&pool));
    EveryPhase::new(&pool, column(&pool)?)
        .limit(PATIENT)
        .run(async |visit| {
            seen.lock().expect("not poisoned").push((visit.phase(), visit.direction()));
            use_orders(visit, &old, &new).await
        })
        .await?;
    let seconds = began.elapsed().as_secs_f64();
    for phase in Phase::ALL {
        assert!(visited.contains(&(phase, Direction::Forward)), "{phase}");
        let goes_back = phase < Phase::Retire;
        assert_eq!(visited.contains(&(phase, Direction::Back)), goes_back, "{phase}");
    }
    assert!(seconds < 300.0, "{seconds} s");
    // Nothing stays connected: `#[sqlx::test]` drops the database in this way.
    let options = (*pool.connect_options()).clone();
    let name = options.get_database().ok_or("a database")?.to_owned();
    pool.close().await;
    let mut server = PgConnection::connect_with(&options.database("postgres")).await?;
    server.execute(AssertSqlSafe(format!("drop database \"{name}\""))).await?;
    Ok(())
}

/// The text of the failures, and the places in which they occurred.
fn failures(outcome: Result<(), TestFailures>) -> Outcome<(String, Vec<(Phase, Direction)>)> {
    let failures = outcome.err().ok_or("the mistake was not found")?;
    Ok((failures.to_string(), failures.failures.iter().filter_map(|failure| failure.at).collect()))
}

#[tokio::test]
async fn a_column_that_is_named_too_early_is_found() -> Outcome {
    let pool = database().await?;
    let old = Side {
        get: "select lower(coalesce(old_status, new_status)) from orders where id = $1",
        ..old_column(&pool)
    };
    let (text, places) = failures(in_every_phase(&pool, column(&pool)?, old, new_column(&pool)).await)?;
    assert!(text.contains("`off`") && text.contains("\"new_status\" does not exist"), "{text}");
    assert_eq!(places, [(Phase::Off, Direction::Forward)], "{text}");
    Ok(())
}

#[tokio::test]
async fn a_read_of_the_dropped_column_is_found() -> Outcome {
    let pool = database().await?;
    let new = Side {
        get: "select coalesce(new_status, old_status) from orders where id = $1",
        ..new_column(&pool)
    };
    let (text, places) = failures(in_every_phase(&pool, column(&pool)?, old_column(&pool), new).await)?;
    assert!(
        text.contains("`contract`") && text.contains("old_status") && text.contains("does not exist"),
        "{text}"
    );
    assert_eq!(places, [(Phase::Contract, Direction::Forward)], "{text}");
    Ok(())
}

#[tokio::test]
async fn an_insert_that_is_no_upsert_is_found() -> Outcome {
    let pool = database().await?;
    let add = "insert into orders (id, new_status) values (coalesce($1, nextval('orders_id_seq')), $2) returning id";
    let new = Side { add, ..new_column(&pool) };
    let (text, places) = failures(in_every_phase(&pool, column(&pool)?, old_column(&pool), new).await)?;
    assert!(text.contains("`expand`") && text.contains("on conflict"), "{text}");
    assert!(
        places.contains(&(Phase::Switch, Direction::Forward))
            && !places.contains(&(Phase::Off, Direction::Forward))
    );
    Ok(())
}

fn table(pool: &PgPool) -> Result<MigrationSpec, ConfigError> {
    let plan = TableMigration::new(pool.clone(), "orders", "new_orders")
        .create("create table if not exists new_orders (id bigint primary key default nextval('orders_id_seq'), status text)")
        .column("status", "lower(old_status)")
        .column_back("old_status", "upper(status)")
        .build()?;
    Ok(MigrationSpec::new("status", PhaseRange::FULL).plan(plan))
}

/// `set` inserts the row if it has not been copied yet.
fn new_table(pool: &PgPool) -> Side {
    Side {
        pool: pool.clone(),
        add: "insert into new_orders (id, status) values (coalesce($1, nextval('orders_id_seq')), $2) \
            on conflict (id) do update set status = excluded.status returning id",
        set: "insert into new_orders (id, status) values ($1, $2) \
            on conflict (id) do update set status = excluded.status",
        get: "select status from new_orders where id = $1",
    }
}

#[tokio::test]
async fn a_write_that_is_no_upsert_is_found_in_a_table() -> Outcome {
    let pool = database().await?;
    pool.execute("alter sequence orders_id_seq owned by none").await?;
    let (spec, new) = (table(&pool)?, new_table(&pool));
    in_every_phase(&pool, spec, old_column(&pool), new).await?;
    let pool = database().await?;
    pool.execute("alter sequence orders_id_seq owned by none").await?;
    let new = Side { set: "insert into new_orders (id, status) values ($1, $2)", ..new_table(&pool) };
    let (text, places) = failures(in_every_phase(&pool, table(&pool)?, old_column(&pool), new).await)?;
    assert!(text.contains("duplicate key") || text.contains("23505"), "{text}");
    assert!(places.contains(&(Phase::Backfill, Direction::Forward)), "{text}");
    Ok(())
}

#[tokio::test]
async fn sides_that_differ_are_found_by_the_scan() -> Outcome {
    let pool = database().await?;
    // No phase before `ramp` reads the new side, so only the scan sees it.
    let new = Side { set: "update orders set new_status = initcap($2) where id = $1", ..new_column(&pool) };
    // The migration stays there until the time is over.
    let limit = Duration::from_secs(30);
    let (spec, old) = (column(&pool)?, old_column(&pool));
    let (text, places) = failures(in_every_phase_within(limit, &pool, spec, old, new).await)?;
    assert_eq!(places.first(), Some(&(Phase::Verify, Direction::Forward)), "{text}");
    assert!(text.contains("the two sides differ: row ") && text.contains("Backfill"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_hanging_or_unplannable_migration_ends_in_time() -> Outcome {
    let pool = database().await?;
    let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(
        ColumnMigration::new(pool.clone(), "missing")
            .key("id")
            .column("a", "b", "text")
            .forward("a")
            .backward("b")
            .build()?,
    );
    let outcome = EveryPhase::new(&pool, spec)
        .limit(Duration::from_secs(8))
        .run(async |visit| {
            if visit.phase() == Phase::Off {
                std::future::pending::<()>().await;
            }
            Ok::<_, Error>(())
        })
        .await;
    let (text, places) = failures(outcome)?;
    assert!(text.contains("`off`: did not end within 8s") && text.contains("missing"), "{text}");
    assert_eq!(places, [(Phase::Off, Direction::Forward), (Phase::Expand, Direction::Forward)], "{text}");
    Ok(())
}

/// A service with one route for reads and one for writes.
#[derive(Clone)]
struct Service {
    pool: PgPool,
    migration: Migration,
}

impl Service {
    fn orders(&self) -> DualWrite<Side, Side> {
        DualWrite::new(self.migration.clone(), old_column(&self.pool), new_column(&self.pool))
    }
}

fn router(pool: &PgPool, migration: &Migration) -> Router {
    async fn read(State(service): State<Service>, Path(id): Path<i64>) -> Result<String, Error> {
        Ok(service.orders().status(id).await?.unwrap_or_default())
    }
    async fn write(
        State(service): State<Service>,
        Path((id, status)): Path<(i64, String)>,
    ) -> Result<(), Error> {
        let mut tx = service.migration.begin(&service.pool).await?;
        service.orders().set(&mut tx, id, &status).await?;
        tx.commit().await
    }
    Router::new()
        .route("/orders/{id}", get(read))
        .route("/orders/{id}/{status}", put(write))
        .with_state(Service { pool: pool.clone(), migration: migration.clone() })
}

#[tokio::test]
async fn a_router_passes_in_every_phase() -> Outcome {
    let pool = database().await?;
    EveryPhase::new(&pool, column(&pool)?)
        .limit(PATIENT)
        .run(async |visit| {
            let app = router(&pool, visit.migration());
            let put = Request::put(format!("/orders/7/{}", visit.phase())).body(Body::empty())?;
            assert_eq!(app.clone().oneshot(put).await?.status(), StatusCode::OK);
            let answer = app.oneshot(Request::get("/orders/7").body(Body::empty())?).await?;
            let body = axum::body::to_bytes(answer.into_body(), 100).await?;
            assert_eq!(body, visit.phase().name());
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        })
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_later_build_is_called_in_its_phases_only() -> Outcome {
    let pool = database().await?;
    let visited = std::sync::Mutex::new(Vec::new());
    // It has no code for the old side.
    let orders = new_column(&pool);
    EveryPhase::new(&pool, column_in(&pool, PhaseRange::from_phase(Phase::Retire))?)
        .limit(PATIENT)
        .run(async |visit| {
            visited.lock().expect("not poisoned").push(visit.phase());
            let mut tx = visit.migration().begin(&pool).await?;
            let id = orders.add(&mut tx, None, "open").await?;
            tx.commit().await?;
            assert_eq!(orders.status(id).await?.as_deref(), Some("open"));
            Ok::<_, Error>(())
        })
        .await?;
    assert_eq!(visited.into_inner()?, [Phase::Retire, Phase::Retire, Phase::Contract]);
    Ok(())
}
