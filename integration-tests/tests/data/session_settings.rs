//! A mapping means the same in every session, whatever the settings of the database, the writer or the service's pool are.

use std::time::{Duration, Instant};

use cutover::migration::{ColumnMigration, TableMigration};
use cutover_testkit::{Postgres, PostgresOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::world::{Outcome, World};

/// They change what a string with a backslash and a time zone's abbreviation mean.
const ODD: [(&str, &str); 2] =
    [("standard_conforming_strings", "off"), ("timezone_abbreviations", "Australia")];

/// In New York, it is 17 o'clock in Greenwich. In Sydney, it is two in the night.
const NOTE: &str = "2024-01-31  12:00 EST";

#[tokio::test]
async fn backslashes_and_abbreviations_mean_the_same_everywhere() -> Outcome {
    let world = World::new(0).await?;
    world
        .pool
        .execute(
            "create table visits (id bigint primary key, old_at text); \
             insert into visits select g, '2024-01-31  12:00 EST' from generate_series(1, 4) g",
        )
        .await?;
    for (name, value) in ODD {
        let every = format!(
            "do $$ begin execute format('alter database %I set {name} = ''{value}''', current_database()); end $$"
        );
        world.pool.execute(AssertSqlSafe(every)).await?;
    }
    let odd = world.url.parse::<PgConnectOptions>()?.options(ODD);
    let pool = PgPoolOptions::new().max_connections(4).connect_with(odd.clone()).await?;
    let plan = ColumnMigration::new(pool, "visits")
        .column("old_at", "new_at", "text")
        .forward(r"regexp_replace(old_at, '\s+', '_', 'g') || ' ' || extract(hour from old_at::timestamptz)")
        .backward(r"translate(split_part(new_at, ' ', 1), '_', ' ')")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    let mut job = PgConnection::connect_with(&odd).await?;
    world.go("expand").await?;
    let insert = "insert into visits values ($1, $2)";
    sqlx::query(insert).bind(10_i64).bind(NOTE).execute(&mut job).await?;
    world.go("verify").await?;
    sqlx::query(insert).bind(11_i64).bind(NOTE).execute(&mut job).await?;
    world.go("ramp").await?;
    let values: Vec<Option<String>> =
        sqlx::query_scalar("select distinct new_at from visits").fetch_all(&world.pool).await?;
    assert_eq!(values, [Some("2024-01-31_12:00_EST 17".to_owned())]);
    Ok(())
}

/// A session that has written before the change has compiled the trigger's function for the former type.
#[tokio::test]
async fn an_external_session_writes_after_a_change_of_type() -> Outcome {
    let world = World::new(3).await?;
    let _a = world.brief("a", world.describe().build()?).await?;
    world.go("verify").await?;
    let mut job = PgConnection::connect(&world.url).await?;
    job.execute("update orders set old_status = ' A ' where id = 1").await?;
    world.pool.execute("alter table orders alter old_status type varchar(50)").await?;
    let write = "update orders set old_status = ' B ' where id = 1";
    let began = Instant::now();
    while let Err(error) = job.execute(write).await {
        assert!(began.elapsed() < Duration::from_secs(20), "{error}");
    }
    world.go("ramp").await?;
    assert_eq!(world.row(1).await?, (Some(" B ".to_owned()), Some("b".to_owned())));
    Ok(())
}

/// What others may have set for the database, or for the service's role.
const OF_THE_DATABASE: [&[(&str, &str)]; 4] = [
    &[
        ("standard_conforming_strings", "off"),
        ("quote_all_identifiers", "on"),
        ("transform_null_equals", "on"),
        ("datestyle", "German, DMY"),
        ("intervalstyle", "sql_standard"),
        ("bytea_output", "escape"),
        ("extra_float_digits", "-15"),
        ("timezone", "America/St_Johns"),
        ("xmlbinary", "hex"),
        ("array_nulls", "off"),
        ("check_function_bodies", "off"),
        ("backslash_quote", "off"),
    ],
    &[
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_deferrable", "on"),
        ("synchronous_commit", "off"),
        ("row_security", "off"),
        ("client_encoding", "LATIN1"),
        ("search_path", ""),
        ("temp_buffers", "800kB"),
    ],
    &[
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_seqscan", "off"),
        ("enable_indexscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_nestloop", "off"),
        ("enable_sort", "off"),
        ("jit", "off"),
        ("geqo_threshold", "2"),
        ("join_collapse_limit", "1"),
        ("from_collapse_limit", "1"),
        ("cursor_tuple_fraction", "0.001"),
        ("work_mem", "64kB"),
        ("max_parallel_workers_per_gather", "0"),
    ],
    &[
        ("idle_session_timeout", "400ms"),
        ("idle_in_transaction_session_timeout", "1s"),
        ("statement_timeout", "5s"),
        ("lock_timeout", "2s"),
        ("transaction_timeout", "5s"),
    ],
];

/// A migration of columns and one of tables, to the end.
#[tokio::test]
async fn settings_of_the_database_change_nothing() -> Outcome {
    for (settings, moves_columns) in OF_THE_DATABASE.into_iter().zip([true, false, true, false]) {
        let world = World::new(500).await?;
        for (name, value) in settings {
            let every = format!(
                "do $$ begin if exists (select from pg_settings where name = '{name}') then \
                     execute format('alter database %I set {name} = ''{value}''', current_database()); end if; end $$"
            );
            world.external(&every).await?;
        }
        let pool = PgPoolOptions::new().max_connections(8).connect(&world.url).await?;
        let world = World { pool, url: world.url };
        let [table, other] = match settings.iter().any(|(name, _)| *name == "search_path") {
            true => ["public.orders", "public.orders_2"],
            false => ["orders", "orders_2"],
        };
        let a = if moves_columns {
            let plan = ColumnMigration::new(world.pool.clone(), table)
                .column("old_status", "new_status", "text")
                .forward("lower(trim(old_status))")
                .backward("upper(new_status)")
                .build()?;
            world.brief("a", plan).await?
        } else {
            let plan = TableMigration::new(world.pool.clone(), table, other)
                .create(&format!("create table {other} (id bigint primary key, note text, new_status text)"))
                .without("orders_id_seq")
                .same("note")
                .column("new_status", "lower(trim(old_status))")
                .column_back("old_status", "upper(new_status)")
                .build()?;
            world.brief("a", plan).await?
        };
        let mut number = 0;
        for phase in ["expand", "verify", "ramp", "retire", "verify", "retire"] {
            world.go(phase).await.map_err(|error| format!("{settings:?} {moves_columns}: {error}"))?;
            number += 1;
            if phase != "retire" {
                let write =
                    format!("update {table} set old_status = E' Ext\\\\ern {phase}' where id = {number}");
                world.external(&write).await.map_err(|error| format!("{settings:?}: {error}"))?;
            }
        }
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
            "select new_status from {} where id <= 20 order by id",
            if moves_columns { table } else { other }
        )))
        .fetch_all(&world.pool)
        .await?;
        assert_eq!(rows.len(), 20, "{settings:?}");
        assert_eq!(rows[..3], ["ext\\ern expand", "ext\\ern verify", "ext\\ern ramp"], "{settings:?}");
        world.approve().await?;
        world.ask("contract").await?;
        world.ended().await.map_err(|error| format!("{settings:?} {moves_columns}: {error}"))?;
        drop(a);
    }
    Ok(())
}

/// With `synchronous_commit = off`, a crash takes back what was committed last.
#[tokio::test]
async fn a_move_survives_a_crash_whatever_the_database_sets() -> Outcome {
    let settings =
        [("synchronous_commit", "off"), ("wal_writer_delay", "10s"), ("wal_writer_flush_after", "1GB")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let server = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await?;
    let world = World::at(server.url("postgres"), 20).await?;
    let _a = world.brief("a", world.describe().build()?).await?;
    let last = "select max(opened_at)::text from cutover.epochs where migration_id = $1";
    for phase in ["verify", "ramp", "retire"] {
        world.go(phase).await?;
        let id = world.id().await?;
        let ask = || sqlx::query_scalar::<_, Option<String>>(last).bind(id);
        let opened = ask().fetch_one(&world.pool).await?;
        server.kill9().await?;
        server.restart().await?;
        let found = ask().fetch_one(&mut PgConnection::connect(&world.url).await?).await?;
        assert_eq!(found, opened, "{phase}");
    }
    Ok(())
}
