//! Which values count as the same on both sides, and what a mapping computes.

use cutover::ledger::Ledger;
use cutover::migration::admin::{bad_rows, differences};
use cutover::migration::{ColumnMigration, ColumnMigrationBuilder, Plan, Task, map_each};
use serde::{Serialize, Serializer};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Executor, FromRow, PgPool};

use crate::world::{Fleet, Outcome, World};

/// A description of a migration of `old_status` to a new column of this type.
fn describe(world: &World, new_type: &str) -> ColumnMigrationBuilder {
    ColumnMigration::new(world.pool.clone(), "orders")
        .column("old_status", "new_status", new_type)
        .forward(&format!("old_status::{new_type}"))
        .backward("new_status::text")
        .without_guard_trigger()
}

/// A table of one row with this old value, an instance whose driver leaves the work to the test, and the new column.
async fn one_row(old: &str) -> Outcome<(World, Fleet)> {
    let world = World::new(1).await?;
    set_old(&world, old).await?;
    let fleet = world.instance("a", None).await?;
    Ok((world, fleet))
}

async fn set_old(world: &World, value: &str) -> Outcome {
    sqlx::query("update orders set old_status = $1").bind(value).execute(&world.pool).await?;
    Ok(())
}

async fn new_value(world: &World) -> Outcome<Option<String>> {
    Ok(sqlx::query_scalar("select new_status::text from orders where id = 1").fetch_one(&world.pool).await?)
}

/// Rows that the last backfill changed.
async fn changed(world: &World) -> Outcome<i64> {
    let query = "select rows_changed from cutover.jobs where kind = 'backfill' order by id desc limit 1";
    Ok(sqlx::query_scalar(query).fetch_one(&world.pool).await?)
}

#[tokio::test]
async fn a_stale_value_that_only_compares_equal_is_replaced() -> Outcome {
    for (new_type, before, after) in [
        ("interval", "1 mon", "30 days"),
        ("numeric", "1.0", "1.000"),
        ("json", "{\"a\": 1}", "{\"a\":1}"),
        ("char(3)[]", "{a}", "{b}"),
    ] {
        let (world, a) = one_row(before).await?;
        let plan = describe(&world, new_type).build()?;
        plan.run(Task::Expand, &a.migration).await?;
        world.go("backfill").await?;
        plan.run(Task::Backfill, &a.migration).await?;
        // Given up, written on the old side only, and taken up again.
        world.go("off").await?;
        set_old(&world, after).await?;
        world.go("backfill").await?;
        plan.run(Task::Backfill, &a.migration).await?;
        world.go("verify").await?;
        let expected: String =
            sqlx::query_scalar(AssertSqlSafe(format!("select '{after}'::{new_type}::text")))
                .fetch_one(&world.pool)
                .await?;
        assert_eq!(new_value(&world).await?, Some(expected), "{new_type}");
        plan.run(Task::Scan, &a.migration).await?;
        // The scan tells them apart too.
        let forge = format!("update orders set new_status = '{before}'::{new_type}");
        world.pool.execute(AssertSqlSafe(forge)).await?;
        let error = plan.run(Task::Scan, &a.migration).await.expect_err(new_type).to_string();
        assert!(error.contains("1 row "), "{new_type}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn values_are_compared_as_the_column_stores_them() -> Outcome {
    for (new_type, old) in [
        ("timestamp(3)", "2024-01-31 12:00:00.123456"),
        ("numeric(12,2)", "1.23456"),
        ("char(5)", "abc"),
        ("varchar(3)", "abc  "),
        ("bit(3)", "101"),
    ] {
        let (world, a) = one_row(old).await?;
        // The type without its modifier: `forward` gives finer values than the column holds.
        let base = new_type.split('(').next().unwrap_or(new_type);
        let base = if base == "bit" { "varbit" } else { base };
        let base = if base == "char" { "text" } else { base };
        let plan = describe(&world, new_type)
            .forward(&format!("old_status::{base}"))
            .backward("new_status::text")
            .build()?;
        plan.run(Task::Expand, &a.migration).await?;
        world.go("backfill").await?;
        plan.run(Task::Backfill, &a.migration).await?;
        assert_eq!(changed(&world).await?, 1, "{new_type}");
        world.go("verify").await?;
        plan.run(Task::Scan, &a.migration).await.map_err(|error| format!("{new_type}: {error}"))?;
        world.go("expand").await?;
        world.go("backfill").await?;
        plan.run(Task::Backfill, &a.migration).await?;
        assert_eq!(changed(&world).await?, 0, "{new_type}: the second copy changed the row");
    }
    Ok(())
}

#[tokio::test]
async fn a_value_too_long_for_its_column_is_not_truncated() -> Outcome {
    for new_type in ["varchar(3)", "short", "varchar(3)[]"] {
        let (world, a) = one_row("abc").await?;
        world.pool.execute("create domain short as varchar(3)").await?;
        let is_array = new_type.ends_with("[]");
        let forward = if is_array { "array[old_status]" } else { "old_status" };
        let backward = if is_array { "new_status[1]" } else { "new_status::text" };
        let plan = describe(&world, new_type).forward(forward).backward(backward).build()?;
        plan.run(Task::Expand, &a.migration).await?;
        world.go("backfill").await?;
        plan.run(Task::Backfill, &a.migration).await?;
        world.go("off").await?;
        // Truncated it would be the value that the new side holds.
        set_old(&world, "abcd").await?;
        world.go("backfill").await?;
        let error = plan.run(Task::Backfill, &a.migration).await.expect_err(new_type).to_string();
        assert!(error.contains("1: ") && error.contains("too long"), "{new_type}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn batches_do_not_depend_on_the_settings_of_the_session() -> Outcome {
    let (world, a) = one_row("2024-01-31 20:00:00+00").await?;
    let settings = [
        ("timezone", "Asia/Tokyo"),
        ("datestyle", "German"),
        ("intervalstyle", "sql_standard"),
        ("bytea_output", "escape"),
        ("extra_float_digits", "-3"),
    ];
    let options = world.url.parse::<PgConnectOptions>()?.options(settings);
    let pool = PgPool::connect_with(options).await?;
    let plan = ColumnMigration::new(pool, "orders")
        .column("old_status", "new_status", "text")
        .forward(
            "concat_ws('|', old_status::timestamptz, old_status::timestamptz::date, '1 day 2 hours'::interval, \
             '\\x01'::bytea, 0.1::float8 + 0.2)",
        )
        .backward("new_status")
        .without_guard_trigger()
        .build()?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    plan.run(Task::Backfill, &a.migration).await?;
    assert_eq!(
        new_value(&world).await?.as_deref(),
        Some("2024-01-31 20:00:00+00|2024-01-31|1 day 02:00:00|\\x01|0.30000000000000004")
    );
    Ok(())
}

#[derive(FromRow)]
struct Row {
    id: i64,
}

/// What a mapping in Rust returns for a row.
#[derive(Clone)]
enum Value {
    Float(f64),
    Bytes(Vec<u8>),
    Json(serde_json::Value),
    Missing,
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Float(value) => value.serialize(serializer),
            Value::Bytes(bytes) => bytes.serialize(serializer),
            Value::Json(value) => value.serialize(serializer),
            Value::Missing => serializer.serialize_none(),
        }
    }
}

/// A column's type, and values with the text that the column holds then; `None` for SQL NULL.
type Case = (&'static str, Vec<(Value, Option<&'static str>)>);

#[tokio::test]
async fn values_of_a_mapping_in_rust_arrive_unchanged() -> Outcome {
    let cases: [Case; 3] = [
        (
            "float8",
            vec![
                (Value::Float(f64::NAN), Some("NaN")),
                (Value::Float(f64::INFINITY), Some("Infinity")),
                (Value::Float(-0.0), Some("-0")),
                (Value::Float(0.1), Some("0.1")),
                (Value::Missing, None),
            ],
        ),
        (
            "bytea",
            vec![
                (Value::Bytes(vec![1, 255]), Some("\\x01ff")),
                (Value::Bytes(Vec::new()), Some("\\x")),
                (Value::Missing, None),
            ],
        ),
        (
            "jsonb",
            vec![
                (Value::Json(serde_json::Value::Null), Some("null")),
                (Value::Json(serde_json::json!("a")), Some("\"a\"")),
                (Value::Missing, None),
            ],
        ),
    ];
    for (new_type, values) in cases {
        let world = World::new(i64::try_from(values.len())?).await?;
        let a = world.instance("a", None).await?;
        let results: Vec<Value> = values.iter().map(|(value, _)| value.clone()).collect();
        let plan = describe(&world, new_type)
            .forward_rows(map_each(move |row: Row| {
                let index = usize::try_from(row.id - 1).map_err(|error| error.to_string())?;
                results.get(index).cloned().ok_or_else(|| "no such row".to_owned())
            }))
            .build()?;
        plan.run(Task::Expand, &a.migration).await?;
        world.go("backfill").await?;
        plan.run(Task::Backfill, &a.migration).await.map_err(|error| format!("{new_type}: {error}"))?;
        let found: Vec<Option<String>> =
            sqlx::query_scalar("select new_status::text from orders order by id")
                .fetch_all(&world.pool)
                .await?;
        let expected: Vec<Option<String>> =
            values.iter().map(|(_, text)| text.map(ToOwned::to_owned)).collect();
        assert_eq!(found, expected, "{new_type}");
    }
    Ok(())
}

#[tokio::test]
async fn a_value_that_a_type_cannot_hold_sets_its_row_aside() -> Outcome {
    for (new_type, value, reason) in [
        ("jsonb", Value::Float(f64::NAN), "NaN cannot be stored as JSON"),
        ("text", Value::Bytes(vec![1, 2]), "a list cannot be stored in a column of type text"),
    ] {
        let world = World::new(3).await?;
        let a = world.instance("a", None).await?;
        let plan = describe(&world, new_type)
            .forward_rows(map_each(move |row: Row| {
                Ok::<_, String>(if row.id == 2 { value.clone() } else { Value::Missing })
            }))
            .build()?;
        plan.run(Task::Expand, &a.migration).await?;
        world.go("backfill").await?;
        let error = plan.run(Task::Backfill, &a.migration).await.expect_err("row 2").to_string();
        assert!(error.contains("1 row could not be mapped: 2: ") && error.contains(reason), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_row_on_which_a_mapping_panics_is_set_aside() -> Outcome {
    let world = World::new(2_000).await?;
    let a = world.instance("a", None).await?;
    let plan = describe(&world, "text")
        .forward_rows(map_each(|row: Row| {
            assert!(row.id != 777 && row.id != 1_500, "no mapping of {}", row.id);
            Ok::<_, String>(format!("row {}", row.id))
        }))
        .build()?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    let error = plan.run(Task::Backfill, &a.migration).await.expect_err("two rows").to_string();
    assert!(error.contains("777: the mapping panicked: no mapping of 777"), "{error}");
    let ledger = Ledger::open(world.url.parse()?).await?;
    let keys: Vec<String> =
        bad_rows(&ledger, "status", 10).await?.into_iter().map(|row| row.key.concat()).collect();
    assert_eq!(keys, ["777", "1500"]);
    let copied = "select count(*) from orders where new_status = 'row ' || id";
    assert_eq!(sqlx::query_scalar::<_, i64>(copied).fetch_one(&world.pool).await?, 1_998);
    Ok(())
}

#[tokio::test]
async fn a_row_that_exceeds_a_limit_of_the_server_is_set_aside() -> Outcome {
    let world = World::new(2_001).await?;
    let a = world.instance("a", None).await?;
    // More than the 1 MB that a `tsvector` holds: SQLSTATE 54000.
    let huge = "update orders set old_status = (select string_agg(md5(n::text), ' ') from generate_series(1, 60000) n) \
        where id = 1234";
    world.pool.execute(huge).await?;
    let plan = describe(&world, "tsvector").forward("to_tsvector('simple', old_status)").build()?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    let error = plan.run(Task::Backfill, &a.migration).await.expect_err("one row").to_string();
    assert!(error.contains("1 row could not be mapped: 1234: ") && error.contains("too long"), "{error}");
    let copied = "select count(*) from orders where new_status is not null";
    assert_eq!(sqlx::query_scalar::<_, i64>(copied).fetch_one(&world.pool).await?, 2_000);
    let complete = "select new_complete from cutover.migrations where name = 'status'";
    assert!(!sqlx::query_scalar::<_, bool>(complete).fetch_one(&world.pool).await?, "verify is blocked");
    Ok(())
}

#[tokio::test]
async fn a_report_shows_values_as_the_column_stores_them() -> Outcome {
    let (world, a) = one_row("1.23456").await?;
    let plan = describe(&world, "numeric(12,2)").forward("old_status::numeric").build()?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    plan.run(Task::Backfill, &a.migration).await?;
    world.go("verify").await?;
    world.pool.execute("update orders set new_status = 7").await?;
    plan.run(Task::Scan, &a.migration).await.expect_err("forged");
    let ledger = Ledger::open(world.url.parse()?).await?;
    let found = differences(&ledger, "status", 10).await?;
    assert_eq!(found[0].expected.as_deref(), Some("{\"new_status\": 1.23}"));
    assert_eq!(found[0].found.as_deref(), Some("{\"new_status\": 7.00}"));
    Ok(())
}
