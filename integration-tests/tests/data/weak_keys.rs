//! Keys of types in which equal values can be written differently, or whose operators belong to an extension.

use cutover::migration::{BatchOptions, ColumnMigration, TableMigration};
use sqlx::{AssertSqlSafe, Executor};

use crate::world::{Outcome, World};

/// Runs what the type needs. `false`: this server does not have it.
#[expect(clippy::print_stderr, reason = "says what is not tested")]
async fn has(world: &World, setup: &str) -> Outcome<bool> {
    let Err(error) = world.pool.execute(AssertSqlSafe(setup)).await else { return Ok(true) };
    // An extension that is not installed, and a server without ICU.
    let code = error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
    if !matches!(code.as_deref(), Some("58P01" | "0A000")) {
        return Err(error.into());
    }
    eprintln!("skipped: {setup}: {error}");
    Ok(false)
}

#[tokio::test]
async fn a_key_that_is_written_differently_is_copied() -> Outcome {
    for (setup, key_type, one, other) in [
        ("select", "numeric", "1.0", "1.00"),
        ("create schema ext; create extension citext schema ext", "ext.citext", "Ann@x", "ann@X"),
        (
            "create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
            "text collate loose",
            "Ann",
            "ANN",
        ),
    ] {
        let world = World::new(0).await?;
        if !has(&world, setup).await? {
            continue;
        }
        let run = async |sql: String| world.pool.execute(AssertSqlSafe(sql)).await;
        run(format!("create table people (email {key_type} primary key, name text)")).await?;
        run(format!("insert into people values ('{one}', 'n')")).await?;
        let plan = TableMigration::new(world.pool.clone(), "people", "people_2")
            .create(&format!("create table people_2 (email {key_type} primary key, name text)"))
            .same("name")
            .build()?;
        let _a = world.instance_of("a", plan).await?;
        let keys = async || -> Outcome<(String, String)> {
            let both = "select (select email::text from people), (select email::text from people_2)";
            Ok(sqlx::query_as(both).fetch_one(&world.pool).await?)
        };
        let same = |key: &str| (key.to_owned(), key.to_owned());
        world.go("backfill").await?;
        world.filled().await?;
        run(format!("update people set email = '{other}'")).await?;
        assert_eq!(keys().await?, same(other), "{key_type}: an external write");
        // As after a return to `off`: the new table has the key of an earlier time.
        run(format!("update people_2 set email = '{one}'")).await?;
        world.ask("ramp").await?;
        world.waits_for(r#"of "people" and "people_2" differ"#).await?;
        world.go("expand").await?;
        world.go("retire").await?;
        assert_eq!(keys().await?, same(other), "{key_type}: a copy");
        run(format!("update people_2 set email = '{one}'")).await?;
        world.go("switch").await?;
        world.go("ramp:50").await?;
        assert_eq!(keys().await?, same(one), "{key_type}: a copy back");
    }
    Ok(())
}

/// `citext` and `text` order differently, and the operators of the former are not on the `search_path`.
#[tokio::test]
async fn rows_are_visited_in_the_order_of_an_extension() -> Outcome {
    for (key, make) in [
        ("email", "primary key (email)"),
        ("email, n", "primary key (email, n)"),
        ("n, email", "primary key (n, email)"),
    ] {
        let world = World::new(0).await?;
        if !has(&world, "create schema ext; create extension citext schema ext").await? {
            return Ok(());
        }
        let make =
            format!("create table people (email ext.citext, n integer default 1, old_name text, {make})");
        world.pool.execute(AssertSqlSafe(make)).await?;
        // Upper and lower letters alternate: aa, BA, ca, DA and so on.
        let fill = "insert into people (email, old_name) select case g % 2 when 0 then lower(l) else l end || 'a', ' N' || g \
            from generate_series(0, 25) g cross join lateral (select chr(65 + g)) as letter (l)";
        world.pool.execute(fill).await?;
        let few = BatchOptions { min_rows: 3, max_rows: 3, ranges: 1, workers: 1, ..BatchOptions::default() };
        let plan = ColumnMigration::new(world.pool.clone(), "people")
            .column("old_name", "new_name", "text")
            .forward("lower(trim(old_name))")
            .backward("upper(new_name)")
            .batches(few)
            .build()?;
        let _a = world.instance("a", Some(plan)).await?;
        world.go("ramp").await?;
        let missed = "select count(*) from people where new_name is distinct from lower(trim(old_name))";
        let missed: i64 = sqlx::query_scalar(missed).fetch_one(&world.pool).await?;
        assert_eq!(missed, 0, "{key}");
    }
    Ok(())
}
