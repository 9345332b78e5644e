//! Changes that move no data: constraints, and drops of unused objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cutover::fleet::FleetOptions;
use cutover::migration::{MigrationSpec, Phase, PhaseRange, Plan, SchemaChange, SchemaChangeBuilder};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tokio::time::sleep;

use crate::world::{Fleet, Outcome, PACE, World};

const QUIET: Duration = Duration::from_millis(400);

async fn instance(world: &World, name: &str, range: PhaseRange, change: SchemaChange) -> Outcome<Fleet> {
    let spec = MigrationSpec::new("status", range).plan(change).external_write_quiet_period(QUIET);
    world.join(vec![spec], name, FleetOptions::default()).await
}

fn change(world: &World) -> SchemaChangeBuilder {
    SchemaChange::new(world.pool.clone(), "orders").quiet_period(QUIET)
}

async fn is(pool: &PgPool, query: &str) -> Outcome<bool> {
    Ok(sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(pool).await?)
}

/// The SQLSTATE with which the server refuses a statement; `None` if it does not.
async fn refusal(connection: &mut PgConnection, statement: &str) -> Option<String> {
    let error = connection.execute(AssertSqlSafe(statement)).await.err()?;
    error.as_database_error().and_then(|error| error.code()).map(Into::into)
}

const LEFT: &str = "select exists (select from pg_trigger where tgname like 'zzz_cutover%') \
    or exists (select from pg_constraint where conname like 'cutover%') \
    or exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace \
        where n.nspname = 'cutover' and p.proname like 'guard\\_%\\_%')";

/// Writes rows that satisfy every constraint, and reads each back, until told to stop. Returns the slowest round.
async fn load(pool: PgPool, id: i64, is_over: Arc<AtomicBool>) -> Outcome<Duration> {
    let mut slowest = Duration::ZERO;
    let mut round = 0_i32;
    while !is_over.load(Ordering::SeqCst) {
        round += 1;
        let began = Instant::now();
        let update = sqlx::query("update orders set total = $2, note = note where id = $1");
        update.bind(id).bind(round).execute(&pool).await?;
        slowest = slowest.max(began.elapsed());
        let total: i32 =
            sqlx::query_scalar("select total from orders where id = $1").bind(id).fetch_one(&pool).await?;
        assert_eq!(total, round, "a write was lost");
        sleep(PACE).await;
    }
    assert!(round > 15, "{round} rounds are no load");
    Ok(slowest)
}

const VIOLATE: [(&str, &str); 4] = [
    ("insert into orders (note, total, number, customer) values (null, 1, null, 1)", "23514"),
    ("insert into orders (note, total, number, customer) values ('x', -1, null, 1)", "23514"),
    ("insert into orders (note, total, number, customer) values ('x', 1, 7, 1)", "23505"),
    ("insert into orders (note, total, number, customer) values ('x', 1, null, 99)", "23503"),
];

#[tokio::test]
async fn constraints_are_in_force_from_switch_and_go_back() -> Outcome {
    let world = World::new(300).await?;
    world
        .pool
        .execute(
            "create table customers (id bigint primary key); insert into customers values (1), (2); \
             alter table orders add total integer, add number integer, add customer bigint; \
             update orders set note = 'n' || id, total = id, number = id, customer = 1; \
             update orders set note = null where id in (5, 6); update orders set total = -1 where id = 8; \
             update orders set number = 1 where id = 2; update orders set customer = 3 where id = 9",
        )
        .await?;
    let plan = change(&world)
        .not_null("note")
        .check("total_positive", "total >= 0")
        .unique("by_number", &["number"])
        .foreign_key("to_customer", &["customer"], "customers (id)")
        .build()?;
    let _a = instance(&world, "a", PhaseRange::FULL, plan).await?;
    world.ask("expand").await?;
    // All violations at once, each with its rows, and nothing has changed.
    for part in [
        "2 rows of public.orders hold a null in column \"note\": 5; 6",
        "1 row of public.orders violates check \"total_positive\" (total >= 0): 8",
        "1 value occurs in more than one row of public.orders",
        "1 row of public.orders violates foreign key \"to_customer\"",
    ] {
        world.waits_for(part).await?;
    }
    assert!(!is(&world.pool, LEFT).await?);
    let mend = "update orders set note = 'n' where note is null; update orders set total = 1 where total < 0; \
                delete from orders where id <> 7 and number = 7 or id = 2; \
                update orders set customer = 1 where customer not in (1, 2)";
    world.pool.execute(mend).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (20..23).map(|id| tokio::spawn(load(world.pool.clone(), id, Arc::clone(&is_over)))).collect();
    world.go("expand").await?;
    let mut job = PgConnection::connect(&world.url).await?;
    for (statement, _) in VIOLATE {
        assert_eq!(refusal(&mut job, statement).await, None, "{statement}");
    }
    world.go("backfill").await?;
    world.ask("verify").await?;
    world.waits_for("holds a null in column \"note\"").await?;
    let recorded = "select count(*) >= 1 from (select from cutover.external_writes \
        union all select from cutover.external_write_events) as seen";
    assert!(is(&world.pool, recorded).await?);
    world.pool.execute(mend).await?;
    world.go("switch").await?;
    assert_eq!(refusal(&mut job, VIOLATE[2].0).await, None, "not yet in force");
    world.ask("retire").await?;
    world.waits_for("1 value occurs in more than one row").await?;
    world.pool.execute(mend).await?;
    world.go("retire").await?;
    for (statement, state) in VIOLATE {
        assert_eq!(refusal(&mut job, statement).await.as_deref(), Some(state), "{statement}");
    }
    // Half way back: the refusals end, also those of the foreign key on the other table.
    world.go("ramp:50").await?;
    for (statement, _) in VIOLATE {
        assert_eq!(refusal(&mut job, statement).await, None, "{statement}");
    }
    assert_eq!(refusal(&mut job, "delete from customers where id = 2").await, None);
    world.pool.execute(mend).await?;
    world.go("retire").await?;
    assert!(
        !is(
            &world.pool,
            "select attnotnull from pg_attribute where attrelid = 'orders'::regclass and attname = 'note'"
        )
        .await?
    );
    world.approve().await?;
    world.go("contract").await?;
    world.ended().await?;
    for (statement, state) in VIOLATE {
        let state = if state == "23514" && statement.contains("null, 1, null") { "23502" } else { state };
        assert_eq!(refusal(&mut job, statement).await.as_deref(), Some(state), "{statement}");
    }
    assert!(!is(&world.pool, LEFT).await?);
    assert!(is(&world.pool, "select contype = 'u' from pg_constraint where conname = 'by_number'").await?);
    is_over.store(true, Ordering::SeqCst);
    for writer in writers {
        let slowest = writer.await??;
        assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_column_is_dropped_when_nobody_uses_it() -> Outcome {
    let world = World::new(50).await?;
    world.pool.execute("create view noted as select note from orders").await?;
    let build = || change(&world).drop_column("note").build();
    let a = instance(&world, "a", PhaseRange::FULL, build()?).await?;
    // A build that still needs the column.
    let needs = PhaseRange::new(Phase::Off..=Phase::Ramp).ok_or("a range")?;
    let b = instance(&world, "b", needs, build()?).await?;
    let mut job = PgConnection::connect(&world.url).await?;
    let write = "update orders set note = 'job' where id = 1";
    world.go("backfill").await?;
    assert_eq!(refusal(&mut job, write).await, None);
    world.go("ramp:50").await?;
    world.ask("contract").await?;
    world.waits_for("and not `switch`").await?;
    drop(b);
    world.until("retire", async || world.is_at("retire").await.unwrap_or(false)).await?;
    world.waits_for("other objects depend on").await?;
    assert_eq!(refusal(&mut job, write).await.as_deref(), Some("ZC003"));
    let insert = "insert into orders (note) values ('job')";
    assert_eq!(refusal(&mut job, insert).await.as_deref(), Some("ZC003"));
    assert_eq!(refusal(&mut job, "insert into orders (old_status) values ('x')").await, None);
    let mut tx = a.migration.begin(&world.pool).await?;
    assert_eq!(refusal(&mut tx, write).await.as_deref(), Some("ZC003"), "a pinned write is refused, too");
    tx.rollback().await?;
    // Back, and the column can be written again.
    world.go("switch").await?;
    assert_eq!(refusal(&mut job, write).await, None);
    world.ask("retire").await?;
    let keeps_writing = async {
        loop {
            job.execute(write).await?;
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        outcome = keeps_writing => outcome,
        outcome = world.waits_for("writes that the change refuses to stop") => outcome,
    }?;
    world.go("retire").await?;
    world.pool.execute("drop view noted").await?;
    world.approve().await?;
    world.go("contract").await?;
    world.until("the column to go", async || !world.has_column("note").await).await?;
    assert!(!is(&world.pool, LEFT).await?);
    assert!(world.has_column("old_status").await);
    Ok(())
}

#[tokio::test]
async fn tables_and_indexes_are_dropped_when_nobody_reads_them() -> Outcome {
    for (is_table, read) in
        [(true, "select count(*) from logs"), (false, "select 1 from logs where note = 'x'")]
    {
        let world = World::new(1).await?;
        world
            .pool
            .execute(
                "create table logs (id bigint primary key, note text); create index by_note on logs (note); \
                 insert into logs select g, 'n' || g from generate_series(1, 5000) g; analyze logs",
            )
            .await?;
        // A busy session publishes its counts once a second.
        let quiet = Duration::from_millis(2_500);
        let plan = SchemaChange::new(world.pool.clone(), "logs").quiet_period(quiet);
        let plan = if is_table { plan.drop_table() } else { plan.drop_index("by_note") };
        let _a = instance(&world, "a", PhaseRange::FULL, plan.build()?).await?;
        world.go("retire").await?;
        let mut job = PgConnection::connect(&world.url).await?;
        if is_table {
            assert_eq!(refusal(&mut job, "truncate logs").await.as_deref(), Some("ZC003"));
            assert_eq!(refusal(&mut job, "delete from logs").await.as_deref(), Some("ZC003"));
        }
        world.approve().await?;
        let is_over = Arc::new(AtomicBool::new(false));
        let reader = tokio::spawn({
            let is_over = Arc::clone(&is_over);
            async move {
                while !is_over.load(Ordering::SeqCst) {
                    job.execute(read).await?;
                    sleep(Duration::from_millis(100)).await;
                }
                Ok::<_, sqlx::Error>(())
            }
        });
        world.ask("contract").await?;
        world.waits_for("reads of ").await?;
        sleep(Duration::from_secs(4)).await;
        assert!(!world.is_at("contract").await?, "somebody still reads it");
        is_over.store(true, Ordering::SeqCst);
        reader.await??;
        world.go("contract").await?;
        let gone = if is_table {
            "select to_regclass('logs') is null"
        } else {
            "select to_regclass('by_note') is null"
        };
        world.until("the drop", async || is(&world.pool, gone).await.unwrap_or(false)).await?;
        assert!(is(&world.pool, "select to_regclass('orders') is not null").await?);
    }
    Ok(())
}

#[tokio::test]
async fn partitioned_tables_get_their_constraints() -> Outcome {
    let world = World::new(1).await?;
    world
        .pool
        .execute(
            "create table customers (id bigint primary key); insert into customers values (1); \
             create table parts (id bigint, customer bigint, note text) partition by range (id); \
             create table parts_1 partition of parts for values from (0) to (100); \
             create table parts_2 partition of parts for values from (100) to (200); \
             insert into parts select g, 1, 'n' from generate_series(1, 150) g",
        )
        .await?;
    let plan = SchemaChange::new(world.pool.clone(), "parts")
        .quiet_period(QUIET)
        .not_null("note")
        .check("short", "length(note) < 10")
        .unique("by_id", &["id"])
        .foreign_key("parts_customer", &["customer"], "customers (id)")
        .build()?;
    let _a = instance(&world, "a", PhaseRange::FULL, plan).await?;
    let mut job = PgConnection::connect(&world.url).await?;
    let violate = [
        ("insert into parts values (160, 1, null)", "23514"),
        ("insert into parts values (160, 1, 'much too long')", "23514"),
        ("insert into parts values (150, 1, 'x')", "23505"),
        ("insert into parts values (160, 9, 'x')", "23503"),
    ];
    for phase in ["retire", "ramp:50", "retire"] {
        world.go(phase).await?;
        for (statement, state) in violate {
            let expected = if phase == "retire" { Some(state) } else { None };
            assert_eq!(refusal(&mut job, statement).await.as_deref(), expected, "{phase}: {statement}");
        }
        world.pool.execute("delete from parts where id > 150 or ctid in (select max(ctid) from parts where id = 150 having count(*) > 1)").await?;
    }
    world.approve().await?;
    world.go("contract").await?;
    world.ended().await?;
    assert!(is(&world.pool, "select bool_and(attnotnull) from pg_attribute where attrelid in ('parts'::regclass, 'parts_1'::regclass) and attname = 'note'").await?);
    assert!(
        is(&world.pool, "select bool_and(convalidated) from pg_constraint where conname = 'parts_customer'")
            .await?
    );
    assert!(!is(&world.pool, LEFT).await?);
    Ok(())
}

#[tokio::test]
async fn what_stands_against_a_change_is_found_before_it() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "create table other (id bigint, code text); create index other_code on other (code); \
             alter table orders add constraint taken check (id > 0), add code text unique; \
             create view noted as select note from orders",
        )
        .await?;
    let cases: Vec<(SchemaChangeBuilder, &str)> = vec![
        (change(&world).not_null("nothing"), "column \"nothing\" of public.orders does not exist"),
        (change(&world).check("broken", "total >"), "cannot be added"),
        (change(&world).check("taken", "id > 1"), "is in use already"),
        (change(&world).unique("orders_pkey", &["note"]), "is in use already"),
        (change(&world).foreign_key("fk", &["note"], "other (code)"), "has no unique constraint over (code)"),
        (change(&world).drop_column("id"), "part of the primary key"),
        (change(&world).drop_column("gone"), "does not exist"),
        (change(&world).drop_index("orders_pkey"), "belongs to constraint \"orders_pkey\""),
        (change(&world).drop_index("other_code"), "belongs to another table"),
        (change(&world).drop_column("note"), "other objects depend on column \"note\""),
        (
            change(&world).not_null("note"),
            "5 rows of public.orders hold a null in column \"note\": 1; 2; 3; 4; 5",
        ),
        (SchemaChange::new(world.pool.clone(), "absent").drop_table(), "table \"absent\" does not exist"),
    ];
    let mut ledger = PgConnection::connect(&world.url).await?;
    for (builder, part) in cases {
        let plan = builder.build()?;
        let found = plan.problems(None, &mut ledger).await?;
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(texts.iter().any(|text| text.contains(part)), "{part}: {texts:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_writer_that_breaks_a_foreign_key_is_named_before_it_is_there() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "create table customers (id bigint primary key, note text); insert into customers values (1); \
             alter table orders add customer bigint default 1",
        )
        .await?;
    let plan = change(&world).foreign_key("to_customer", &["customer"], "customers (id)").build()?;
    let _a = instance(&world, "a", PhaseRange::FULL, plan).await?;
    world.go("verify").await?;
    let mut job = PgConnection::connect(&format!("{}?application_name=nightly", world.url)).await?;
    let seen = "select exists (select from (select application from cutover.external_writes \
        union all select application from cutover.external_write_events) as seen where application = 'nightly')";
    for statement in ["insert into orders (customer) values (1), (null)", "update orders set note = 'x'"] {
        assert_eq!(refusal(&mut job, statement).await, None, "{statement}");
    }
    assert!(!is(&world.pool, seen).await?, "nothing was broken");
    assert_eq!(refusal(&mut job, "update orders set customer = 99 where id = 1").await, None);
    assert!(is(&world.pool, seen).await?);
    Ok(())
}

#[tokio::test]
async fn no_constraint_comes_before_its_writers_have_stopped() -> Outcome {
    let world = World::new(3).await?;
    let plan = SchemaChange::new(world.pool.clone(), "orders")
        .quiet_period(Duration::from_secs(4))
        .check("no_bad_note", "note <> 'bad'")
        .build()?;
    let _a = instance(&world, "a", PhaseRange::FULL, plan).await?;
    world.go("switch").await?;
    let mut job = PgConnection::connect(&world.url).await?;
    let round = "update orders set note = 'bad' where id = 1; update orders set note = null where id = 1";
    assert_eq!(refusal(&mut job, round).await, None);
    world.ask("retire").await?;
    world.waits_for("writes that the change refuses to stop for").await?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(refusal(&mut job, round).await, None, "the job still runs");
    }
    world.go("retire").await?;
    assert_eq!(refusal(&mut job, round).await.as_deref(), Some("23514"));
    Ok(())
}
