use std::time::{Duration, Instant};

use anyhow::Result;
use cutover::ledger::Ledger;
use cutover::migration::{ColumnMigration, MigrationSpec, Phase, PhaseRange, TableMigration, WiderKey};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use super::table::Table;
use super::timing::quantile;
use super::world::{self, Instance};

/// A copy by the library, and the statement that does the same at once.
struct Shape {
    name: &'static str,
    spec: fn(MigrationSpec, PgPool) -> Result<MigrationSpec>,
    /// Before the statement, what `expand` has added.
    prepare: &'static str,
    statement: &'static str,
}

const BASE: &str = "create table base (id bigint, kind text, full_name text, at date, primary key (id)); \
    create unique index base_at on base (id, at); alter table base alter at set not null; \
    insert into base select g, case when g % 3 = 0 then 'audit' else 'other' end, 'First' || g || ' Last', \
        date '2026-01-01' + (g % 90)::int from generate_series(1, {rows}) g; \
    create table keys (id integer primary key, full_name text); \
    insert into keys select id, full_name from base";

const SHAPES: [Shape; 5] = [
    Shape {
        name: "two columns from one",
        spec: |spec, pool| {
            let plan = ColumnMigration::new(pool, "base")
                .new_column("first_name", "text", "split_part(full_name, ' ', 1)")
                .new_column("last_name", "text", "split_part(full_name, ' ', 2)")
                .old_column("full_name", "first_name || ' ' || last_name");
            Ok(spec.plan(plan.mirror_writes().build()?))
        },
        prepare: "alter table base add first_name text, add last_name text",
        statement: "update base set first_name = split_part(full_name, ' ', 1), last_name = split_part(full_name, ' ', 2)",
    },
    Shape {
        name: "a column to a table of its own",
        spec: |spec, pool| {
            let plan = TableMigration::new(pool, "base", "names")
                .create("create table names (id bigint primary key, full_name text)")
                .only_columns()
                .same("full_name");
            Ok(spec.plan(plan.build()?))
        },
        prepare: "create table names (id bigint primary key, full_name text)",
        statement: "insert into names select id, full_name from base where full_name is not null",
    },
    Shape {
        name: "one row in three to another table",
        spec: |spec, pool| {
            let plan = TableMigration::new(pool, "base", "audit")
                .create("create table audit (id bigint primary key, full_name text, at date)")
                .rows_where("kind = 'audit'")
                .same("full_name")
                .same("at")
                .column_back("kind", "'audit'");
            Ok(spec.plan(plan.build()?))
        },
        prepare: "create table audit (id bigint primary key, full_name text, at date)",
        statement: "insert into audit select id, full_name, at from base where kind = 'audit'",
    },
    Shape {
        name: "a table to a partitioned one",
        spec: |spec, pool| {
            let plan = TableMigration::new(pool, "base", "parts")
                .create("create table parts (id bigint, at date, kind text, full_name text, primary key (id, at)) partition by range (at)")
                .expand_sql("create table parts_1 partition of parts for values from (minvalue) to ('2026-02-01')")
                .expand_sql("create table parts_2 partition of parts default")
                .key("id")
                .key("at")
                .same("kind")
                .same("full_name");
            Ok(spec.plan(plan.build()?))
        },
        prepare: "create table parts (id bigint, at date, kind text, full_name text, primary key (id, at)) partition by range (at); \
            create table parts_1 partition of parts for values from (minvalue) to ('2026-02-01'); \
            create table parts_2 partition of parts default",
        statement: "insert into parts select id, at, kind, full_name from base",
    },
    Shape {
        name: "a key to bigint",
        spec: |spec, pool| Ok(spec.plan(WiderKey::new(pool, "keys", "id").build()?)),
        prepare: "alter table keys add id_bigint bigint",
        statement: "update keys set id_bigint = id",
    },
];

/// A database with the table, and an instance with the plan, in `expand`.
async fn expanded(
    shape: &Shape,
    rows: i64,
    server: &cutover_testkit::Postgres,
    name: &str,
) -> Result<(PgPool, Instance)> {
    let url = server.create_database(name).await?;
    let pool = PgPool::connect(&url).await?;
    pool.execute(AssertSqlSafe(BASE.replace("{rows}", &rows.to_string()))).await?;
    pool.execute("vacuum analyze").await?;
    let spec = MigrationSpec::new("bench", PhaseRange::FULL).soak(Duration::ZERO);
    let spec = (shape.spec)(spec, pool.clone())?;
    let instance = Instance::with(Ledger::open(url.parse()?).await?, name.into(), spec).await?;
    pool.execute("update cutover.migrations set desired = 'expand'").await?;
    instance.at(Phase::Expand).await?;
    Ok((pool, instance))
}

pub(crate) async fn run(quick: bool, rows: i64) -> Result<()> {
    let server = world::server(&[]).await?;
    let mut table = Table::new("Copies of shapes", &["rows/s", "rows/s of one statement", "ratio"]);
    for (number, shape) in SHAPES.iter().enumerate() {
        let (pool, instance) = expanded(shape, rows, &server, &format!("own{number}")).await?;
        let complete = "select new_complete from cutover.migrations where name = 'bench'";
        pool.execute("update cutover.migrations set desired = 'backfill'").await?;
        let filled = async || sqlx::query_scalar::<_, bool>(complete).fetch_one(&pool).await;
        cutover_testkit::wait_until("the end of the copy", world::LIMIT, filled).await?;
        // Without the wait until the fleet has changed the phase.
        let took = "select extract(epoch from finished_at - started_at)::float8 from cutover.jobs";
        let own = rows as f64 / sqlx::query_scalar::<_, f64>(took).fetch_one(&pool).await?;
        drop(instance);
        let other = PgPool::connect(&server.create_database(&format!("one{number}")).await?).await?;
        other.execute(AssertSqlSafe(BASE.replace("{rows}", &rows.to_string()))).await?;
        other.execute(shape.prepare).await?;
        other.execute("vacuum analyze").await?;
        let began = Instant::now();
        other.execute(shape.statement).await?;
        let one = rows as f64 / began.elapsed().as_secs_f64();
        table.row(shape.name, vec![own, one, own / one]);
    }
    table.publish("shapes")?;
    writes(quick, &server).await?;
    guard_trigger(quick, &server).await
}

/// What the guard trigger costs for each row of a statement that updates many.
async fn guard_trigger(quick: bool, server: &cutover_testkit::Postgres) -> Result<()> {
    const ROWS: i64 = 100_000;
    const VARIANTS: [(&str, &str, bool); 3] = [
        ("a table without guard trigger", "plain", false),
        ("the guard trigger, in a pinned transaction", "base", true),
        ("the guard trigger, which maps an external write", "base", false),
    ];
    let (pool, _instance) = expanded(&SHAPES[0], ROWS, server, "guarded").await?;
    pool.execute("create table plain (like base including all); insert into plain select * from base")
        .await?;
    let mut times: [Vec<f64>; 3] = Default::default();
    for round in 0..if quick { 1 } else { 9 } {
        let mut order = [0, 1, 2];
        fastrand::shuffle(&mut order);
        for variant in order {
            let (_, table, is_pinned) = VARIANTS[variant];
            pool.execute("vacuum base, plain").await?;
            let mut tx = pool.begin().await?;
            if is_pinned {
                tx.execute(PASSES).await?;
            }
            let update = format!("update {table} set full_name = 'First' || id || ' Last{round}'");
            let began = Instant::now();
            tx.execute(AssertSqlSafe(update)).await?;
            times[variant].push(began.elapsed().as_secs_f64() * 1e6 / ROWS as f64);
            tx.commit().await?;
        }
    }
    let mut table = Table::new("An update of 100,000 rows (µs per row)", &["p50", "lowest", "p50 ratio"]);
    let plain = quantile(&mut times[0], 0.5);
    for ((name, ..), times) in VARIANTS.into_iter().zip(&mut times) {
        let (p50, lowest) = (quantile(times, 0.5), quantile(times, 0.0));
        table.row(name, vec![p50, lowest, p50 / plain]);
    }
    table.publish("guard-trigger")
}

/// What the pinned transaction of a build without `mirror_writes` sets.
const PASSES: &str = "select set_config('cutover.pin_' || id, 'on', true) from cutover.migrations";

/// One write of a row with two columns on the new side, in a pinned transaction.
async fn writes(quick: bool, server: &cutover_testkit::Postgres) -> Result<()> {
    const VARIANTS: [(&str, &[&str], bool); 4] = [
        ("the old column alone, without trigger", &["update base set full_name = $2 where id = $1"], true),
        ("the old column, mirrored by the trigger", &["update base set full_name = $2 where id = $1"], false),
        (
            "both sides in one statement",
            &[
                "update base set full_name = $2, first_name = split_part($2, ' ', 1), last_name = split_part($2, ' ', 2) where id = $1",
            ],
            true,
        ),
        (
            "both sides in two statements",
            &[
                "update base set full_name = $2 where id = $1",
                "update base set first_name = split_part($2, ' ', 1), last_name = split_part($2, ' ', 2) where id = $1",
            ],
            true,
        ),
    ];
    const ROWS: i64 = 100_000;
    let (pool, instance) = expanded(&SHAPES[0], ROWS, server, "mirrored").await?;
    let mut times: [Vec<f64>; 4] = Default::default();
    let end = Instant::now() + Duration::from_secs(if quick { 2 } else { 20 });
    while Instant::now() < end {
        let mut order = [0, 1, 2, 3];
        fastrand::shuffle(&mut order);
        for variant in order {
            let (_, statements, passes) = VARIANTS[variant];
            let id = fastrand::i64(1..=ROWS);
            let began = Instant::now();
            let mut tx = instance.migration.begin(&pool).await?;
            if passes {
                // As in a build without `mirror_writes`. Its round trip is not counted.
                let waited = Instant::now();
                tx.execute(PASSES).await?;
                let waited = waited.elapsed().as_secs_f64() * 1e6;
                run_all(&mut tx, statements, id).await?;
                tx.commit().await?;
                times[variant].push(began.elapsed().as_secs_f64().mul_add(1e6, -waited));
                continue;
            }
            run_all(&mut tx, statements, id).await?;
            tx.commit().await?;
            times[variant].push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    let mut table = Table::new("A write of a row whose column is split (µs)", &["p50", "p99", "p50 ratio"]);
    let alone = quantile(&mut times[0], 0.5);
    for ((name, ..), times) in VARIANTS.into_iter().zip(&mut times) {
        let (p50, p99) = (quantile(times, 0.5), quantile(times, 0.99));
        table.row(name, vec![p50, p99, p50 / alone]);
    }
    table.publish("mirrored")
}

async fn run_all(tx: &mut cutover::migration::PinnedTx, statements: &[&'static str], id: i64) -> Result<()> {
    for statement in statements {
        sqlx::query(*statement).bind(id).bind("First Last").execute(&mut **tx).await?;
    }
    Ok(())
}
