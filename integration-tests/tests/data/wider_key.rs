//! A primary key that outgrows `integer`, exchanged for a `bigint` while the service writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cutover::fleet::FleetOptions;
use cutover::migration::{MigrationSpec, PhaseRange, Plan, WiderKey};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tokio::time::sleep;

use crate::world::{Fleet, Outcome, PACE, World};

/// `TESTKIT_ROWS` makes the table large.
fn rows() -> i64 {
    std::env::var("TESTKIT_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(20_000)
}

pub(crate) async fn instance(world: &World, table: &str) -> Outcome<Fleet> {
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
pub(crate) async fn load(
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
        sleep(PACE).await;
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
            world.go_within(phase, Duration::from_secs(600)).await?;
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
        assert!(slowest < Duration::from_secs(10), "{slowest:?}");
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
                "index by_both names",
                "check keys_check names",
                "view public.seen names",
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

/// Tables that refer to a key: one with an index and an action, one that must have a value, one that is `bigint` already,
/// and the table itself.
pub(crate) const REFERRING: &str = "create table nodes (id integer generated by default as identity primary key, \
        parent integer references nodes on delete set null, note text); \
    create index nodes_by_parent on nodes (parent); create index nodes_with_note on nodes (parent, note) where note <> ''; \
    create table lines (id bigserial primary key, node integer not null default 1, amount integer, \
        constraint lines_node_fkey foreign key (node) references nodes on delete cascade); \
    create index lines_by_node on lines (node, amount); \
    create table logs (id bigserial primary key, node bigint constraint logs_node_fkey references nodes deferrable); \
    create index logs_by_node on logs (node)";

/// The type of each referring column, its foreign key and its indexes, as the catalog has them.
async fn referring(pool: &PgPool) -> Outcome<Vec<String>> {
    let query = "select format('%s.%s %s %s%s: %s', k.conrelid::regclass, a.attname, format_type(a.atttypid, -1), \
            case when a.attnotnull then 'not null ' end, k.conname, pg_get_constraintdef(k.oid)) || coalesce((select \
            string_agg(' ' || regexp_replace(pg_get_indexdef(i.indexrelid), '.* USING', ''), ',' order by i.indexrelid::regclass::text) \
            from pg_index i where i.indrelid = a.attrelid and a.attnum = any (i.indkey::int2[])), '') \
        from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1] \
        where k.contype = 'f' and k.confrelid = 'nodes'::regclass order by 1";
    Ok(sqlx::query_scalar(query).fetch_all(pool).await?)
}

/// Writes rows of all tables, and deletes some with what refers to them.
async fn referring_load(pool: PgPool, is_over: Arc<AtomicBool>) -> Outcome<(Vec<i64>, Duration)> {
    let (mut kept, mut slowest, mut round) = (Vec::new(), Duration::ZERO, 0_u64);
    let mut parent: Option<i64> = None;
    while !is_over.load(Ordering::SeqCst) {
        round += 1;
        let began = Instant::now();
        let insert = "insert into nodes (parent, note) values ($1::bigint, 'n') returning id::bigint";
        let id: i64 = sqlx::query_scalar(insert).bind(parent).fetch_one(&pool).await?;
        let insert = "insert into lines (node, amount) values ($1::bigint, 7)";
        sqlx::query(insert).bind(id).execute(&pool).await?;
        sqlx::query("insert into logs (node) values ($1::bigint)").bind(id).execute(&pool).await?;
        let move_on =
            "update lines set node = $1::bigint where node = 1 and id % 100 = $1::bigint % 100 and id < 200";
        sqlx::query(move_on).bind(id).execute(&pool).await?;
        slowest = slowest.max(began.elapsed());
        if round % 3 == 0 {
            sqlx::query("delete from logs where node = $1::bigint").bind(id).execute(&pool).await?;
            sqlx::query("delete from nodes where id = $1::bigint").bind(id).execute(&pool).await?;
            let left: i64 = sqlx::query_scalar("select count(*) from lines where node = $1::bigint")
                .bind(id)
                .fetch_one(&pool)
                .await?;
            assert_eq!(left, 0, "lines of the deleted node {id}");
        } else {
            kept.push(id);
            parent = Some(id);
        }
        sleep(PACE).await;
    }
    Ok((kept, slowest))
}

#[tokio::test]
async fn columns_that_refer_to_a_key_move_with_it_under_load() -> Outcome {
    let world = World::new(1).await?;
    world.pool.execute(REFERRING).await?;
    let fill = format!(
        "insert into nodes (parent, note) select case when g > 1 then g / 2 end, 'n' from generate_series(1, {rows}) g; \
         insert into lines (node, amount) select 1 + g % {rows}, g from generate_series(1, {rows}) g; \
         insert into logs (node) select 1 + g % {rows} from generate_series(1, {rows}) g",
        rows = rows()
    );
    world.pool.execute(AssertSqlSafe(fill)).await?;
    let before = referring(&world.pool).await?;
    let _a = instance(&world, "nodes").await?;
    let busy = PgPoolOptions::new().max_connections(3).connect(&world.url).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..3).map(|_| tokio::spawn(referring_load(busy.clone(), Arc::clone(&is_over)))).collect();
    let wide: Vec<String> = before.iter().map(|line| line.replacen(" integer ", " bigint ", 1)).collect();
    for (phase, expected) in [("switch", &before), ("retire", &wide), ("ramp:50", &before), ("retire", &wide)]
    {
        world.go_within(phase, Duration::from_secs(600)).await?;
        assert_eq!(&referring(&world.pool).await?, expected, "{phase}");
    }
    is_over.store(true, Ordering::SeqCst);
    let mut slowest = Duration::ZERO;
    for writer in writers {
        let (kept, longest) = writer.await??;
        assert!(kept.len() > 10, "{} rows are no load", kept.len());
        slowest = slowest.max(longest);
        for id in kept {
            let there = "select (select count(*) from lines where node = $1 and node_old = $1 and amount = 7) \
                * (select count(*) from logs where node = $1) from nodes where id = $1";
            let there: i64 = sqlx::query_scalar(there).bind(id).fetch_one(&world.pool).await?;
            assert!(there > 0, "what refers to node {id}");
        }
    }
    eprintln!("slowest round of a writer {slowest:?}");
    world.approve().await?;
    world.go("contract").await?;
    let left = "select count(*) from pg_attribute where attrelid in ('nodes'::regclass, 'lines'::regclass) \
        and attname like '%\\_old' and not attisdropped";
    let is_gone =
        async || sqlx::query_scalar::<_, i64>(left).fetch_one(&world.pool).await.is_ok_and(|left| left == 0);
    world.until("the old columns to go", is_gone).await?;
    assert_eq!(referring(&world.pool).await?, wide);
    let dangling = "insert into lines (node) values (2000000000)";
    assert!(world.pool.execute(dangling).await.is_err(), "the foreign key holds");
    Ok(())
}

#[tokio::test]
async fn a_foreign_key_that_cannot_move_is_refused_before_expand() -> Outcome {
    let world = World::new(1).await?;
    world
        .pool
        .execute(
            "create table a (id integer primary key); create table b (id integer primary key references a); \
             alter table a add constraint a_id_fkey foreign key (id) references b; \
             create table pairs (a integer references a, b integer, c integer, unique (b), unique (a, c)); \
             create table parts (a integer references a) partition by range (a); \
             create table texts (id integer primary key, a integer references a, a_bigint text check (a_bigint <> '')); \
             create view seen as select a from texts; \
             drop role if exists stranger_of_keys; create role stranger_of_keys; \
             create table theirs (a integer constraint theirs_fkey references a); \
             alter table theirs owner to stranger_of_keys",
        )
        .await?;
    let user = format!("user_of_keys_{}", std::process::id());
    world
        .pool
        .execute(AssertSqlSafe(format!(
            "create role {user} login; grant create, usage on schema public to {user}; \
             grant all on all tables in schema public to {user}; \
             alter table a owner to {user}; alter table b owner to {user}; alter table pairs owner to {user}; \
             alter table parts owner to {user}; alter table texts owner to {user}; alter view seen owner to {user}"
        )))
        .await?;
    let options = world.pool.connect_options().as_ref().clone().username(&user);
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await?;
    let plan = WiderKey::new(pool.clone(), "a", "id").build()?;
    let mut ledger = PgConnection::connect(&world.url).await?;
    let texts = async |ledger: &mut PgConnection| -> Outcome<Vec<String>> {
        Ok(plan.problems(None, ledger).await?.iter().map(ToString::to_string).collect())
    };
    let found = texts(&mut ledger).await?;
    for part in [
        "foreign key a_id_fkey of a names column \"id\" of \"a\"",
        "foreign key \"b_id_fkey\" of public.b has a column that is part of another key",
        "foreign key \"pairs_a_fkey\" of public.pairs has a column that is part of another key",
        "foreign key \"parts_a_fkey\" of public.parts belongs to a partitioned table",
        "foreign key \"texts_a_fkey\" of public.texts has a table with a column \"a_bigint\"",
        "view public.seen names",
        "`grant stranger_of_keys to ",
    ] {
        assert!(found.iter().any(|text| text.contains(part)), "{part}: {found:#?}");
    }
    // What each of them proposes works.
    for text in found.iter().filter(|text| text.contains("foreign key")) {
        let statements =
            text.split('`').skip(1).step_by(2).filter(|statement| statement.starts_with("alter table"));
        for statement in statements {
            let statement = statement.replace('…', "a_text");
            world.pool.execute(AssertSqlSafe(statement)).await?;
        }
    }
    world.pool.execute("drop view seen").await?;
    assert_eq!(texts(&mut ledger).await?, [""; 0]);
    world.pool.execute(AssertSqlSafe(format!("drop owned by {user} cascade; drop role {user}"))).await?;
    Ok(())
}

#[tokio::test]
async fn what_comes_to_name_a_key_holds_the_exchange() -> Outcome {
    let world = World::new(1).await?;
    world.pool.execute(REFERRING).await?;
    world.pool.execute("insert into nodes (note) select 'n' from generate_series(1, 9)").await?;
    world.pool.execute("insert into lines (node) select id from nodes").await?;
    let _a = instance(&world, "nodes").await?;
    world.go("backfill").await?;
    world.filled().await?;
    let past_the_trigger = "do $$ declare name text := (select tgname from pg_trigger \
            where tgrelid = 'lines'::regclass and tgname like 'zzz%'); begin \
        execute format('alter table lines disable trigger %I', name); \
        update lines set node_bigint = 1 where node in (2, 3); \
        execute format('alter table lines enable always trigger %I', name); end $$";
    world.pool.execute(past_the_trigger).await?;
    world.ask("switch").await?;
    world.waits_for("2 rows of public.lines differ in").await?;
    world.pool.execute("update lines set node_bigint = node").await?;
    world.go("switch").await?;
    for (make, part, drop) in [
        ("create view seen as select id from nodes", "view public.seen names", "drop view seen"),
        (
            "create table late (node integer constraint late_fkey references nodes)",
            "foreign key \"late_fkey\" of public.late was added while the key moves",
            "drop table late",
        ),
    ] {
        world.pool.execute(make).await?;
        world.ask("retire").await?;
        world.waits_for(part).await?;
        assert_eq!(key_type(&world.pool, "nodes").await?, "integer");
        world.pool.execute(drop).await?;
    }
    world.go("retire").await?;
    Ok(())
}
