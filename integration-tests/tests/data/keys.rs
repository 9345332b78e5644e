//! Rows are visited by any unique key that a table has, once each.

use crate::world::{Outcome, World};
use cutover::migration::{BatchOptions, ColumnMigration, TableMigration};
use cutover::migration::{Plan, Task};
use sqlx::{AssertSqlSafe, Executor};

/// Statements that create a table of 5,000 rows with `a text` and without `b`, and the key's columns if they are named.
const TABLES: [(&str, &str, &[&str]); 9] = [
    (
        "composite",
        "create table composite (r text, n int, a text, primary key (r, n)); \
        insert into composite select 'r' || g % 7, g, ' A' || g from generate_series(1, 5000) g",
        &[],
    ),
    // Words that the collation and the bytes order differently, some with quotes and backslashes.
    (
        "words",
        r#"create table words (k text primary key, a text); insert into words
        select (array['a', 'B', '_', 'ä', '''', '\'])[1 + g % 6] || g, ' A' || g from generate_series(1, 5000) g"#,
        &["k"],
    ),
    (
        "bytes",
        "create table bytes (k text not null, a text); create unique index on bytes (k collate \"C\"); \
        insert into bytes select (array['a', 'B', '_', 'ä'])[1 + g % 4] || g, ' A' || g from generate_series(1, 5000) g",
        &[],
    ),
    (
        "uuids",
        "create table uuids (k uuid primary key, a text); \
        insert into uuids select md5(g::text)::uuid, ' A' || g from generate_series(1, 5000) g",
        &[],
    ),
    (
        "times",
        "create table times (at timestamptz, n smallint, a text, primary key (at, n)); \
        insert into times select '2024-02-29 23:59:59.999999+05'::timestamptz + g / 3 * interval '1 us', g % 3, ' A' || g \
        from generate_series(1, 5000) g",
        &["n", "at"],
    ),
    (
        "backwards",
        "create table backwards (x numeric not null, y date not null, a text); \
        create unique index on backwards (x desc, y desc); insert into backwards \
        select (g % 100) / 3.0, date '2024-01-01' + g, ' A' || g from generate_series(1, 5000) g",
        &[],
    ),
    (
        "halves",
        "create table halves (r int, n int, a text, primary key (r, n)) partition by list (r); \
        create table halves_0 partition of halves for values in (0); \
        create table halves_1 partition of halves for values in (1); \
        insert into halves select g % 2, g, ' A' || g from generate_series(1, 5000) g",
        &[],
    ),
    (
        "busy",
        "create table tags (id int primary key); insert into tags select generate_series(0, 9); \
        create table busy (id int primary key, tag int references tags, a text, \
            twice text generated always as (a || a) stored, touched int default 0); \
        create function touch() returns trigger language plpgsql as 'begin new.touched = new.touched + 1; return new; end'; \
        insert into busy (id, tag, a) select g, g % 10, ' A' || g from generate_series(1, 5000) g; \
        create trigger touch before update on busy for each row execute function touch()",
        &[],
    ),
    (
        "referred",
        "create table referred (k bigint primary key, a text); \
        insert into referred select g::bigint * 1000000007 % 100000, ' A' || g from generate_series(1, 5000) g; \
        create table refers (k bigint references referred); insert into refers select k from referred",
        &[],
    ),
];

fn plan(world: &World, table: &str, key: &[&str]) -> Outcome<ColumnMigration> {
    let batches =
        BatchOptions { min_rows: 37, max_rows: 400, ranges: 5, workers: 3, ..BatchOptions::default() };
    let plan = ColumnMigration::new(world.pool.clone(), table)
        .column("a", "b", "text")
        .batches(batches)
        .without_guard_trigger()
        .let_triggers_fire();
    let plan = key.iter().fold(plan, |plan, column| plan.key(column));
    Ok(plan.forward("lower(trim(a))").backward("' ' || upper(b)").build()?)
}

#[tokio::test]
async fn each_row_is_visited_once_for_every_kind_of_key() -> Outcome {
    let world = World::new(1).await?;
    let a = world.instance("a", None).await?;
    for (table, create, key) in TABLES {
        world.pool.execute(AssertSqlSafe(create)).await?;
        world.go("off").await?;
        let plan = plan(&world, table, key)?;
        plan.run(Task::Expand, &a.migration).await.map_err(|error| format!("{table}: {error}"))?;
        world.go("backfill").await?;
        plan.run(Task::Backfill, &a.migration).await.map_err(|error| format!("{table}: {error}"))?;
        let ended: (i64, i64, i64) = sqlx::query_as(
            "select rows_done, rows_changed, (select count(*) from cutover.job_ranges r where r.job_id = j.id) \
             from cutover.jobs j where finished_at is not null and kind = 'backfill' order by id desc limit 1",
        )
        .fetch_one(&world.pool)
        .await?;
        assert_eq!(ended, (5_000, 5_000, 5), "{table}");
        world.go("verify").await?;
        plan.run(Task::Scan, &a.migration).await.map_err(|error| format!("{table}: {error}"))?;
        let query = format!("select count(*) from {table} where b is distinct from lower(trim(a))");
        assert_eq!(
            sqlx::query_scalar::<_, i64>(AssertSqlSafe(query)).fetch_one(&world.pool).await?,
            0,
            "{table}"
        );
    }
    let touched: i64 = sqlx::query_scalar("select sum(touched) from busy").fetch_one(&world.pool).await?;
    assert_eq!(touched, 5_000);
    Ok(())
}

#[tokio::test]
async fn a_table_without_a_usable_key_is_refused() -> Outcome {
    let world = World::new(1).await?;
    let a = world.instance("a", None).await?;
    for (create, key, reason) in [
        ("create table bare (k int, a text)", &[][..], "add a primary key"),
        ("create table empty (k int unique, a text)", &[], "can be null"),
        (
            "create table mixed (x int not null, y int not null, a text); create unique index on mixed (x, y desc)",
            &[],
            "opposite directions",
        ),
        (
            "create table partly (x int not null, a text); create unique index on partly (x) where x > 0",
            &["x"],
            "no unique index of its own",
        ),
        (
            "create table patterns (x text not null, a text); create unique index on patterns (x text_pattern_ops)",
            &[],
            "operator class",
        ),
    ] {
        world.pool.execute(AssertSqlSafe(create)).await?;
        let table = create.split_whitespace().nth(2).ok_or("a name")?;
        let error =
            plan(&world, table, key)?.run(Task::Expand, &a.migration).await.expect_err(table).to_string();
        assert!(error.contains(reason), "{table}: {error}");
    }
    Ok(())
}

/// The statement of the refusal, when it is run, gives the table a key by which the migration goes through.
#[tokio::test]
async fn the_statement_for_a_missing_key_works() -> Outcome {
    for (create, key) in [
        ("create table t1 (note text, k int, a text)", &[][..]),
        ("create table t2 (k int unique, a text)", &[]),
        (
            "create table t3 (k int, n int not null, a text, unique (k, n)); alter table t3 alter a set default 'x'",
            &[],
        ),
        ("create table t4 (k text not null, a text); create unique index on t4 (k text_pattern_ops)", &[]),
        ("create table t5 (k int, n int, a text, primary key (k, n) deferrable)", &[]),
        (
            "create table t6 (k int not null, n int not null, a text); create unique index on t6 (k, n desc)",
            &[],
        ),
        ("create table t7 (\"the \"\"key\"\"\" int, a text)", &[]),
        ("create table t8 (k int primary key, a text)", &["absent"]),
        ("create table t9 (k int, a text)", &["absent"]),
        (
            "create table ta (k int, a text) partition by hash (k); create table ta_0 partition of ta default",
            &[],
        ),
        ("create table tb (same int, a text default 'same')", &[]),
    ] {
        let create = create
            .replace("partition of ta default", "partition of ta for values with (modulus 1, remainder 0)");
        let world = World::new(0).await?;
        world.pool.execute(AssertSqlSafe(create.clone())).await?;
        let table = create.split_whitespace().nth(2).ok_or("a name")?;
        let columns = if create.contains("same int") { "same" } else { "" };
        fill(&world, table, columns).await?;
        let describe = |key: &[&str]| {
            let builder =
                ColumnMigration::new(world.pool.clone(), table).column("a", "b", "text").without("default");
            key.iter()
                .fold(builder, |builder, column| builder.key(column))
                .forward("lower(a)")
                .backward("upper(b)")
                .build()
        };
        let found = world.refusals(&describe(key)?).await?;
        assert_eq!(found.len(), 1, "{create}: {found:?}");
        let remedy = &found[0].remedy;
        let left_out = remedy.contains("leave `.key(…)` out");
        for statement in remedy.split('`').skip(1).step_by(2).filter(|text| !text.starts_with('.')) {
            world
                .pool
                .execute(AssertSqlSafe(statement))
                .await
                .map_err(|error| format!("{statement}: {error}"))?;
        }
        let plan = describe(if left_out { &[] } else { key })?;
        let left = world.refusals(&plan).await?;
        assert!(left.is_empty(), "{create}: {remedy}: {left:?}");
        let _a = world.instance_of("a", plan).await?;
        world.go("retire").await?;
    }
    Ok(())
}

/// Three rows that differ in every column without a default, or in none if `same` names a column.
async fn fill(world: &World, table: &str, same: &str) -> Outcome {
    let columns: Vec<String> = sqlx::query_scalar(
        "select quote_ident(attname) from pg_attribute where attrelid = $1::regclass and attnum > 0 and not atthasdef",
    )
    .bind(table)
    .fetch_all(&world.pool)
    .await?;
    let value = if same.is_empty() { "g::text" } else { "'1'" };
    let types: Vec<String> = columns.iter().map(|_| value.to_owned()).collect();
    let insert = format!(
        "do $$ declare g int; begin for g in 1..3 loop \
             execute format('insert into {table} ({}) values ({})', {}); end loop; end $$",
        columns.join(", "),
        columns.iter().map(|_| "%L").collect::<Vec<_>>().join(", "),
        types.join(", ")
    );
    world.pool.execute(AssertSqlSafe(insert)).await?;
    Ok(())
}

/// The planner takes a span between two keys of several columns for a large part of the table.
#[tokio::test]
async fn a_batch_reads_no_more_than_its_rows() -> Outcome {
    const ROWS: i64 = 50_000;
    let world = World::new(0).await?;
    let make = format!(
        "create table visits (id bigint, at date, page text, primary key (id, at)); \
         insert into visits select g, date '2026-01-01' + (g % 90)::int, 'p' from generate_series(1, {ROWS}) g; \
         analyze visits"
    );
    world.pool.execute(AssertSqlSafe(make)).await?;
    let plan = TableMigration::new(world.pool.clone(), "visits", "visits_2")
        .create("create table visits_2 (id bigint, at date, page text, primary key (id, at))")
        .same("page")
        .batches(BatchOptions { max_rows: 500, workers: 1, ..BatchOptions::default() })
        .build()?;
    let _a = world.instance_of("a", plan).await?;
    world.go("expand").await?;
    let read = "select seq_tup_read from pg_stat_user_tables where relname = 'visits'";
    let before: i64 = sqlx::query_scalar(read).fetch_one(&world.pool).await?;
    world.go("backfill").await?;
    world.filled().await?;
    // A session reports what it has read together with what it has written, some seconds later.
    let written = "select n_tup_ins from pg_stat_user_tables where relname = 'visits_2'";
    let is_reported =
        async || sqlx::query_scalar::<_, i64>(written).fetch_one(&world.pool).await.is_ok_and(|n| n >= ROWS);
    world.until("statistics of all batches", is_reported).await?;
    let after: i64 = sqlx::query_scalar(read).fetch_one(&world.pool).await?;
    assert!(after - before < 10 * ROWS, "{} rows were read one after the other", after - before);
    Ok(())
}
