//! A primary key that outgrows `integer`, exchanged for a `bigint` while the service writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cutover::fleet::FleetOptions;
use cutover::migration::{MigrationSpec, PhaseRange, Plan, WiderKey};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use crate::world::{Fleet, Outcome, World};

/// `TESTKIT_ROWS` makes the table large.
fn rows() -> i64 {
    std::env::var("TESTKIT_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(20_000)
}

async fn instance(world: &World, table: &str) -> Outcome<Fleet> {
    let plan = WiderKey::new(world.pool.clone(), table, "id").build()?;
    let spec = MigrationSpec::new("status", PhaseRange::FULL)
        .plan(plan)
        .external_write_quiet_period(Duration::from_millis(300));
    world.join(vec![spec], "a", FleetOptions::default()).await
}

async fn key_type(pool: &PgPool, table: &str) -> Outcome<String> {
    let query = "select format_type(a.atttypid, -1) from pg_index i join pg_attribute a on a.attrelid = i.indrelid \
        and a.attnum = i.indkey[0] where i.indrelid = to_regclass($1) and i.indisprimary and a.attname = 'id'";
    Ok(sqlx::query_scalar(query).bind(table).fetch_one(pool).await?)
}

/// Inserts rows, reads each back by its key, changes and sometimes deletes it. Returns the keys that must exist, and the
/// slowest statement.
async fn load(
    pool: PgPool,
    table: &'static str,
    is_over: Arc<AtomicBool>,
) -> Outcome<(Vec<(i64, String)>, Duration)> {
    let (mut kept, mut slowest, mut round) = (Vec::new(), Duration::ZERO, 0_u64);
    while !is_over.load(Ordering::SeqCst) {
        round += 1;
        let note = format!("{round}");
        let began = Instant::now();
        let insert = AssertSqlSafe(format!("insert into {table} (note) values ($1) returning id::bigint"));
        let id: i64 = sqlx::query_scalar(insert).bind(&note).fetch_one(&pool).await?;
        slowest = slowest.max(began.elapsed());
        let began = Instant::now();
        let update = AssertSqlSafe(format!("update {table} set note = note || '!' where id = $1::bigint"));
        let updated = sqlx::query(update).bind(id).execute(&pool).await?.rows_affected();
        slowest = slowest.max(began.elapsed());
        assert_eq!(updated, 1, "row {id} is lost");
        let select = AssertSqlSafe(format!("select note from {table} where id = $1::bigint"));
        let found: String = sqlx::query_scalar(select).bind(id).fetch_one(&pool).await?;
        assert_eq!(found, note.clone() + "!");
        if round % 3 == 0 {
            let delete = AssertSqlSafe(format!("delete from {table} where id = $1::bigint"));
            sqlx::query(delete).bind(id).execute(&pool).await?;
        } else {
            kept.push((id, found));
        }
    }
    Ok((kept, slowest))
}

#[tokio::test]
async fn an_integer_key_becomes_bigint_and_back_under_load() -> Outcome {
    for (table, create) in [
        ("always", "create table always (id integer generated always as identity primary key, note text)"),
        ("serials", "create table serials (id serial primary key, note text)"),
    ] {
        let world = World::new(1).await?;
        world.pool.execute(create).await?;
        let fill = AssertSqlSafe(format!(
            "insert into {table} (note) select 'n' || g from generate_series(1, {}) g",
            rows()
        ));
        world.pool.execute(fill).await?;
        let _a = instance(&world, table).await?;
        let busy = PgPoolOptions::new().max_connections(3).connect(&world.url).await?;
        let is_over = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> =
            (0..3).map(|_| tokio::spawn(load(busy.clone(), table, Arc::clone(&is_over)))).collect();
        for (phase, key) in
            [("switch", "integer"), ("retire", "bigint"), ("ramp:50", "integer"), ("retire", "bigint")]
        {
            world.go(phase).await?;
            assert_eq!(key_type(&world.pool, table).await?, key, "{phase}");
        }
        is_over.store(true, Ordering::SeqCst);
        let (mut slowest, mut kept) = (Duration::ZERO, Vec::new());
        for writer in writers {
            let (mine, longest) = writer.await??;
            assert!(mine.len() > 20, "{} rows are no load", mine.len());
            slowest = slowest.max(longest);
            kept.extend(mine);
        }
        eprintln!("{table}: {} rows of the load, slowest statement {slowest:?}", kept.len());
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        let count = AssertSqlSafe(format!("select count(*) from {table}"));
        let count: i64 = sqlx::query_scalar(count).fetch_one(&world.pool).await?;
        assert_eq!(count, rows() + kept.len() as i64);
        for (id, note) in kept.iter().rev().take(50) {
            let select = AssertSqlSafe(format!("select note from {table} where id = $1 and id_old = $1"));
            let found: String = sqlx::query_scalar(select).bind(id).fetch_one(&world.pool).await?;
            assert_eq!(&found, note);
        }
        // Beyond the old type: accepted, and from then on there is no way back.
        let far =
            AssertSqlSafe(format!("select setval(pg_get_serial_sequence('{table}', 'id'), 3000000000)"));
        world.pool.execute(far).await?;
        let insert = AssertSqlSafe(format!("insert into {table} (note) values ('far') returning id"));
        let id: i64 = sqlx::query_scalar(insert).fetch_one(&world.pool).await?;
        assert_eq!(id, 3_000_000_001);
        world.ask("ramp:50").await?;
        world.waits_for("1 keys of public.").await?;
        world
            .pool
            .execute(AssertSqlSafe(format!("select setval(pg_get_serial_sequence('{table}', 'id'), 100)")))
            .await?;
        world.go("retire").await?;
        world.approve().await?;
        world.go("contract").await?;
        let gone = "select count(*) = 2 from pg_attribute \
            where attrelid = to_regclass($1) and attnum > 0 and not attisdropped";
        let is_gone =
            async || sqlx::query_scalar(gone).bind(table).fetch_one(&world.pool).await.unwrap_or(false);
        world.until("the old column to go", is_gone).await?;
        assert_eq!(key_type(&world.pool, table).await?, "bigint");
        let duplicate =
            AssertSqlSafe(format!("insert into {table} (id, note) overriding system value values (1, 'x')"));
        assert!(world.pool.execute(duplicate).await.is_err(), "the key is unique");
    }
    Ok(())
}

#[tokio::test]
async fn whatever_else_names_a_key_is_found_before_expand() -> Outcome {
    let world = World::new(1).await?;
    world
        .pool
        .execute(
            "create table keys (id integer primary key, parent integer references keys, note text check (id > 0 or note is null), \
                 id_old text); \
             create table lines (id bigint primary key, key integer references keys (id)); \
             create index by_both on keys (id, note); create view seen as select id from keys; \
             create table parts (id integer primary key) partition by range (id)",
        )
        .await?;
    let mut ledger = PgConnection::connect(&world.url).await?;
    for (table, column, parts) in [
        (
            "keys",
            "id",
            &[
                "foreign key keys_parent_fkey of keys names",
                "foreign key lines_key_fkey of lines names",
                "`alter table lines drop constraint lines_key_fkey`",
                "index by_both names",
                "check keys_check names",
                "object view seen names",
                "column \"id_old\" of \"keys\" exists",
            ][..],
        ),
        ("keys", "note", &["is not the primary key by itself", "has type text"]),
        ("parts", "id", &["is partitioned"]),
        ("absent", "id", &["does not exist"]),
    ] {
        let plan = WiderKey::new(world.pool.clone(), table, column).build()?;
        let found = plan.problems(None, &mut ledger).await?;
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        for part in parts {
            assert!(texts.iter().any(|text| text.contains(part)), "{part}: {texts:#?}");
        }
    }
    Ok(())
}
