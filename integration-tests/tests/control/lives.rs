//! Several whole migrations in one service: one after the other, and at once, while rows are written.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cutover::fleet::FleetOptions;
use cutover::migration::{
    ColumnMigration, DriverOptions, Migration, MigrationSpec, Phase, PhaseRange, Side, is_retryable,
};
use cutover_testkit::{Postgres, wait_until};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use super::Instance;

const ROWS: i64 = 20;
/// The short form runs in every suite. Much longer than needed, for a loaded machine.
const LIMIT: Duration = Duration::from_secs(180);

/// A migration of one column of `orders`.
struct Moved {
    migration: Migration,
    old: String,
    new: String,
}

impl Moved {
    /// The columns that a write in this phase has to set.
    fn written(&self, phase: Phase) -> impl Iterator<Item = &str> {
        let sides = [(Side::Old, &self.old), (Side::New, &self.new)];
        sides.into_iter().filter(move |(side, _)| phase.writes(*side)).map(|(_, column)| column.as_str())
    }
}

/// An instance that declares a migration of each pair of columns.
async fn service(url: &str, pool: &PgPool, columns: &[(String, String)]) -> (Instance, Arc<[Moved]>) {
    let name = |old: &str| format!("of_{old}");
    let specs = columns.iter().map(|(old, new)| {
        let plan = ColumnMigration::new(pool.clone(), "orders")
            .column(old, new, "text")
            .forward(old)
            .backward(new)
            .build()
            .unwrap();
        MigrationSpec::new(name(old), PhaseRange::FULL).plan(plan).soak(Duration::ZERO)
    });
    let specs = specs.collect();
    let instance = Instance::with(url, "a", specs, FleetOptions::default(), DriverOptions::default()).await;
    let moved = columns.iter().map(|(old, new)| Moved {
        migration: instance.agent.migration(&name(old)).expect("declared"),
        old: old.clone(),
        new: new.clone(),
    });
    let moved = moved.collect();
    instance.ready(true).await;
    (instance, moved)
}

/// Desires `contract`, approves it, and waits until the migrations are finished.
async fn finish(pool: &PgPool, names: &[String]) {
    for name in names {
        sqlx::query("update cutover.migrations set desired = 'contract' where name = $1")
            .bind(name)
            .execute(pool)
            .await
            .unwrap();
        sqlx::query(
            "insert into cutover.approvals (migration_id, phase, actor) \
             select id, 'contract', 'me' from cutover.migrations where name = $1",
        )
        .bind(name)
        .execute(pool)
        .await
        .unwrap();
    }
    wait_until(&format!("the end of {names:?}"), LIMIT, async || {
        let ended = sqlx::query_scalar::<_, i64>(
            "select count(*) from cutover.migrations where name = any($1) and ended_as = 'finished'",
        );
        let ended = ended.bind(names).fetch_one(pool).await?;
        Ok::<_, sqlx::Error>(usize::try_from(ended).is_ok_and(|ended| ended == names.len()))
    })
    .await
    .unwrap();
}

/// What a row was set to last, by row. A failed commit may or may not have been applied, so none may fail unexpectedly.
type Acknowledged = HashMap<i64, String>;

/// Sets one row after the other until `stop`, with the columns that `columns` names for a transaction.
async fn write_rows(
    pool: PgPool,
    moved: Arc<[Moved]>,
    current: Option<Arc<AtomicUsize>>,
    stop: Arc<AtomicBool>,
) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    let mut number = 0_i64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let (id, value) = (number % ROWS, format!("v{number}"));
        let range = match &current {
            None => 0..moved.len(),
            Some(current) => {
                let first = current.load(Ordering::Relaxed).min(moved.len() - 1);
                first..(first + 2).min(moved.len())
            }
        };
        let used = &moved[range];
        let mut all = used[0].migration.and(&used[0].migration);
        for one in &used[1..] {
            all = all.and(&one.migration);
        }
        let tx = all.begin(&pool).await;
        if tx.as_ref().is_err_and(|error| is_retryable(error)) {
            continue;
        }
        let mut tx = tx.expect("begin");
        let phases: Vec<Phase> =
            used.iter().map(|one| tx.phase_of(&one.migration).expect("pinned")).collect();
        // In a chain, the second one has an old side only after the first one has ended.
        let counted = if current.is_some() && phases[0] != Phase::Contract { 1 } else { used.len() };
        let mut columns: Vec<&str> =
            used.iter().zip(&phases).take(counted).flat_map(|(one, phase)| one.written(*phase)).collect();
        columns.sort_unstable();
        columns.dedup();
        let set: Vec<String> = columns.iter().map(|column| format!("{column} = $2")).collect();
        let update = format!("update orders set {} where id = $1", set.join(", "));
        sqlx::query(AssertSqlSafe(update)).bind(id).bind(&value).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        acknowledged.insert(id, value);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    acknowledged
}

async fn values(pool: &PgPool, column: &str) -> Acknowledged {
    let query = format!("select id, {column} from orders where {column} <> 'first'");
    sqlx::query_as::<_, (i64, String)>(AssertSqlSafe(query))
        .fetch_all(pool)
        .await
        .unwrap()
        .into_iter()
        .collect()
}

async fn orders(columns: &[&str]) -> (String, PgPool) {
    let url = Postgres::fresh_database().await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    let columns: Vec<String> =
        columns.iter().map(|column| format!("{column} text default 'first'")).collect();
    let make = format!(
        "create table orders (id bigint primary key, {}); insert into orders (id) select generate_series(0, {})",
        columns.join(", "),
        ROWS - 1
    );
    pool.execute(AssertSqlSafe(make)).await.unwrap();
    (url, pool)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_migrations_run_one_after_the_other() {
    let (url, pool) = orders(&["s0"]).await;
    let columns: Vec<(String, String)> =
        (0..10).map(|number| (format!("s{number}"), format!("s{}", number + 1))).collect();
    let (_instance, moved) = service(&url, &pool, &columns).await;
    let (current, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = tokio::spawn(write_rows(pool.clone(), moved.clone(), Some(current.clone()), stop.clone()));
    for (number, (old, _)) in columns.iter().enumerate() {
        finish(&pool, &[format!("of_{old}")]).await;
        current.store(number + 1, Ordering::Relaxed);
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.await.unwrap();
    assert!(acknowledged.len() > 5, "{} rows were written", acknowledged.len());
    assert_eq!(values(&pool, "s10").await, acknowledged);
    let left: i64 = sqlx::query_scalar(
        "select count(*) from pg_attribute where attrelid = 'orders'::regclass and attnum > 0 and not attisdropped",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(left, 2, "id and s10 are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_migrations_of_one_table_run_at_once() {
    let (url, pool) = orders(&["a", "b", "c", "d"]).await;
    let columns: Vec<(String, String)> =
        ["a", "b", "c", "d"].iter().map(|old| ((*old).to_owned(), format!("new_{old}"))).collect();
    let (_instance, moved) = service(&url, &pool, &columns).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write_rows(pool.clone(), moved.clone(), None, stop.clone()));
    let names: Vec<String> = columns.iter().map(|(old, _)| format!("of_{old}")).collect();
    finish(&pool, &names).await;
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.await.unwrap();
    assert!(acknowledged.len() > 5, "{} rows were written", acknowledged.len());
    for (_, new) in &columns {
        assert_eq!(values(&pool, new).await, acknowledged, "{new}");
    }
}
