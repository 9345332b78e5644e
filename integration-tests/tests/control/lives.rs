//! Several whole migrations in one service: one after the other, and at once, while rows are written and read. A checker
//! that knows nothing of migrations judges what was seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cutover::fleet::FleetOptions;
use cutover::migration::{
    ColumnMigration, DriverOptions, DualWrite, Error, Key, Migration, MigrationSpec, Phase, PhaseRange, Side,
    is_retryable,
};
use cutover_checker::Recorder;
use cutover_testkit::{Postgres, wait_until};
use sqlx::{AssertSqlSafe, Executor, PgPool};
use tokio::task::JoinHandle;

use super::Instance;

const ROWS: i64 = 21;
const WORKERS: usize = 4;
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

/// The migrations, and how far a chain of them has come.
#[derive(Clone)]
struct Load {
    pool: PgPool,
    moved: Arc<[Moved]>,
    /// In a chain, the migration that is running. Its new column is the old column of the next one.
    current: Option<Arc<AtomicUsize>>,
    recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn new(pool: &PgPool, moved: Arc<[Moved]>, is_chain: bool) -> Self {
        Self {
            pool: pool.clone(),
            moved,
            current: is_chain.then(Arc::default),
            recorder: Arc::new(Recorder::new(WORKERS, str::to_owned)),
            stop: Arc::default(),
        }
    }

    /// The workers: half of them write, half of them read.
    fn start(&self) -> Vec<JoinHandle<()>> {
        let workers = (0..WORKERS).map(|worker| {
            let load = self.clone();
            tokio::spawn(async move {
                let mut number = worker;
                while !load.stop.load(Ordering::Relaxed) {
                    number += WORKERS;
                    match worker % 2 {
                        0 => load.write(worker, number).await,
                        _ => load.read(worker, number).await,
                    }
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            })
        });
        workers.collect()
    }

    /// Ends the workers, and judges what they saw against the values that the rows hold now in the new column of each register.
    async fn judge(self, workers: Vec<JoinHandle<()>>) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.await.unwrap();
        }
        let mut history = self.recorder.history();
        let registers = if self.current.is_some() { 1 } else { self.moved.len() };
        for (register, moved) in self.moved[self.moved.len() - registers..].iter().enumerate() {
            let query = format!("select id, {} from orders", moved.new);
            let rows: Vec<(i64, String)> =
                sqlx::query_as(AssertSqlSafe(query)).fetch_all(&self.pool).await.unwrap();
            for (id, value) in rows {
                history.initial(key(register, id), "first");
                history.last(key(register, id), &value);
            }
        }
        let verdict = history.check();
        assert!(verdict.is_clean(), "{verdict:#?}");
        assert!(verdict.writes > 50 && verdict.reads > 50 && verdict.unknown_writes == 0, "{verdict:?}");
    }

    /// Sets a row, in one transaction under every migration that is concerned.
    async fn write(&self, worker: usize, number: usize) {
        let (id, value) = (row(number), format!("v{number}"));
        let range = match &self.current {
            None => 0..self.moved.len(),
            Some(current) => {
                let first = current.load(Ordering::Relaxed).min(self.moved.len() - 1);
                first..(first + 2).min(self.moved.len())
            }
        };
        let used = &self.moved[range];
        let mut all = used[0].migration.and(&used[0].migration);
        for one in &used[1..] {
            all = all.and(&one.migration);
        }
        let start = self.recorder.now();
        let tx = all.begin(&self.pool).await;
        if tx.as_ref().is_err_and(|error| is_retryable(error)) {
            return;
        }
        let mut tx = tx.expect("begin");
        let phases: Vec<Phase> =
            used.iter().map(|one| tx.phase_of(&one.migration).expect("pinned")).collect();
        // In a chain, the second one has an old side only after the first one has ended.
        let counted = if self.current.is_some() && phases[0] != Phase::Contract { 1 } else { used.len() };
        let mut columns: Vec<&str> =
            used.iter().zip(&phases).take(counted).flat_map(|(one, phase)| one.written(*phase)).collect();
        columns.sort_unstable();
        columns.dedup();
        let set: Vec<String> = columns.iter().map(|column| format!("{column} = $2")).collect();
        let update = format!("update orders set {} where id = $1", set.join(", "));
        sqlx::query(AssertSqlSafe(update)).bind(id).bind(&value).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let end = Some(self.recorder.now());
        for register in 0..if self.current.is_some() { 1 } else { used.len() } {
            self.recorder.write(worker, key(register, id), &value, start, end);
        }
    }

    /// Reads a row by one migration, at the side that its phase reads.
    async fn read(&self, worker: usize, number: usize) {
        let id = row(number);
        let (register, moved) = match &self.current {
            Some(current) => (0, &self.moved[current.load(Ordering::Relaxed).min(self.moved.len() - 1)]),
            None => (number % self.moved.len(), &self.moved[number % self.moved.len()]),
        };
        let get = async |column: &String| {
            let query = format!("select {column} from orders where id = $1");
            let value: String =
                sqlx::query_scalar(AssertSqlSafe(query)).bind(id).fetch_one(&self.pool).await?;
            Ok::<_, Error>(value)
        };
        let sides = DualWrite::new(moved.migration.clone(), moved.old.clone(), moved.new.clone());
        let start = self.recorder.now();
        match sides.read_with(Key::of(&id), get, get).await {
            Ok(value) => self.recorder.read(worker, key(register, id), &value, start, self.recorder.now()),
            Err(error) => assert!(is_retryable(&error), "{}: {error}", moved.old),
        }
    }
}

fn row(number: usize) -> i64 {
    // Not a multiple of the workers, so that each worker comes to all rows.
    i64::try_from(number).unwrap_or(0) % ROWS
}

/// The checker's name of a row in one of the columns.
fn key(register: usize, id: i64) -> u64 {
    u64::try_from(id).unwrap_or(0) + 1_000 * register as u64
}

async fn orders(columns: &[&str]) -> (String, PgPool) {
    let url = Postgres::fresh_database().await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    let described: Vec<String> = columns.iter().map(|column| format!("{column} text")).collect();
    let make = format!(
        "create table orders (id bigint primary key, {}); insert into orders select id, {} from generate_series(0, {}) as id",
        described.join(", "),
        columns.iter().map(|_| "'first'").collect::<Vec<_>>().join(", "),
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
    let load = Load::new(&pool, moved, true);
    let (workers, current) = (load.start(), load.current.clone().expect("a chain"));
    for (number, (old, _)) in columns.iter().enumerate() {
        finish(&pool, &[format!("of_{old}")]).await;
        current.store(number + 1, Ordering::Relaxed);
    }
    load.judge(workers).await;
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
    let load = Load::new(&pool, moved, false);
    let workers = load.start();
    let names: Vec<String> = columns.iter().map(|(old, _)| format!("of_{old}")).collect();
    finish(&pool, &names).await;
    load.judge(workers).await;
}
