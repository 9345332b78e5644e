//! A mapping means the same in every session, whatever the settings of the database, the writer or the service's pool are.

use std::time::{Duration, Instant};

use cutover::migration::ColumnMigration;
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
