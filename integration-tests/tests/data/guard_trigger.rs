//! The guard trigger: what happens to writes that do not go through the library.

use crate::world::{Outcome, World};
use cutover::ledger::Ledger;
use cutover::migration::Error;
use cutover::migration::admin::{ExternalWriteReport, external_writes};
use cutover::migration::{ColumnMigration, Plan, TableMigration, Task, map_each};
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection};

/// A session that does not go through the library.
async fn external(world: &World) -> Outcome<PgConnection> {
    let options = world.url.parse::<sqlx::postgres::PgConnectOptions>()?;
    Ok(PgConnection::connect_with(&options.application_name("nightly job")).await?)
}

async fn seen(world: &World) -> Outcome<Vec<ExternalWriteReport>> {
    Ok(external_writes(&Ledger::existing(world.url.parse()?).await?, Some("status"), 10).await?)
}

/// All of the table moves into another one, whose key has this type.
fn table_plan(world: &World, key: &str) -> Outcome<TableMigration> {
    Ok(TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create(&format!("create table orders_2 (id {key} primary key, note text, status text)"))
        .without("orders_id_seq")
        .without("privileges")
        .same("note")
        .column("status", "lower(trim(old_status))")
        .column_back("old_status", "upper(status)")
        .build()?)
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

const COPIED: [&str; 5] = ["expand", "backfill", "verify", "ramp:50", "switch"];

#[tokio::test]
async fn external_writes_are_mirrored_and_refused_from_retire() -> Outcome {
    let world = World::new(100).await?;
    let a = world.instance("a", Some(world.describe().build()?)).await?;
    let mut job = external(&world).await?;
    for (id, phase) in (1_i64..).zip(COPIED) {
        world.go(phase).await?;
        let update = format!("update orders set old_status = ' PAID{id} ' where id = {id}");
        job.execute(AssertSqlSafe(update)).await?;
        assert_eq!(
            world.row(id).await?,
            (text(&format!(" PAID{id} ")), text(&format!("paid{id}"))),
            "{phase}"
        );
        let insert = "insert into orders (old_status) values (' NEW ') returning id";
        let inserted: i64 = sqlx::query_scalar(insert).fetch_one(&mut job).await?;
        assert_eq!(world.row(inserted).await?.1, text("new"), "{phase}");
        // A writer that knows only the new column.
        let update = format!("update orders set new_status = 'void' where id = {}", id + 50);
        job.execute(AssertSqlSafe(update)).await?;
        assert_eq!(world.row(id + 50).await?, (text("VOID"), text("void")), "{phase}");
    }
    // A transaction counts once, however many rows it writes, and one of another column not at all.
    job.execute("update orders set old_status = old_status || 'x' where id < 50").await?;
    job.execute("update orders set note = 'read' where id < 50").await?;
    let reports = seen(&world).await?;
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!((reports[0].application.as_str(), reports[0].role.as_str()), ("nightly job", "postgres"));
    assert_eq!((reports[0].transactions, reports[0].unmirrored), (3 * 5 + 1, 0));

    world.go("retire").await?;
    for statement in [
        "update orders set old_status = 'LATE' where id = 1",
        "insert into orders (old_status) values ('LATE')",
    ] {
        let error = job.execute(statement).await.expect_err(statement);
        let error = error.as_database_error().ok_or("the database's")?;
        assert_eq!(error.code().as_deref(), Some("ZC003"));
        assert!(error.message().contains("migration shop/status is in `retire`"), "{error}");
    }
    // A write that leaves the old side alone passes.
    job.execute("update orders set new_status = 'kept', note = 'n' where id = 1").await?;
    job.execute("insert into orders (new_status) values ('kept')").await?;
    assert_eq!(world.row(1).await?.1, text("kept"));
    world.approve().await?;
    world.go("contract").await?;
    world.until("the old column to go", async || !world.has_column("old_status").await).await?;
    job.execute("insert into orders (new_status) values ('free')").await?;
    a.agent.leave().await?;
    Ok(())
}

#[tokio::test]
async fn pinned_writes_pass_and_a_pin_ends_with_its_transaction() -> Outcome {
    let world = World::new(10).await?;
    let a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("expand").await?;
    // One connection, so that a setting that outlives its transaction would show.
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&world.url).await?;
    for ends_well in [true, false] {
        let mut tx = a.migration.begin(&pool).await?;
        tx.execute("update orders set old_status = 'PINNED', new_status = 'as it says' where id = 1").await?;
        if ends_well {
            tx.commit().await?
        } else {
            tx.rollback().await?
        }
        assert_eq!(world.row(1).await?, (text("PINNED"), text("as it says")));
        assert!(seen(&world).await?.is_empty() || !ends_well);
        // The same session, without a pin.
        pool.execute("update orders set old_status = 'LOOSE' where id = 2").await?;
        assert_eq!(world.row(2).await?.1, text("loose"));
        pool.execute("update orders set old_status = 'AGAIN' where id = 2").await?;
        assert_eq!(seen(&world).await?.len(), 1);
        // A transaction pinned to another migration is external too.
        let other = a.agent.migration("other").ok_or("declared")?;
        let mut tx = other.begin(&pool).await?;
        tx.execute("update orders set old_status = 'OTHER' where id = 3").await?;
        tx.commit().await?;
        assert_eq!(world.row(3).await?.1, text("other"));
    }
    Ok::<_, Error>(())?;
    Ok(())
}

#[tokio::test]
async fn an_external_role_needs_no_rights_on_the_ledger() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("expand").await?;
    let role = format!("job_{}", std::process::id());
    world.pool.execute(AssertSqlSafe(format!("create role {role} login"))).await?;
    world.pool.execute(AssertSqlSafe(format!("grant select, update on orders to {role}"))).await?;
    let mut job = PgConnection::connect(&world.url.replace("postgres@", &format!("{role}@"))).await?;
    job.execute("update orders set old_status = ' POOR ' where id = 1").await?;
    assert_eq!(world.row(1).await?.1, text("poor"));
    assert_eq!(seen(&world).await?[0].role, role);
    let refused = "select count(*) from cutover.external_writes";
    assert!(job.execute(refused).await.is_err(), "the role could read the ledger");
    Ok(())
}

#[derive(FromRow)]
struct Row {
    old_status: Option<String>,
}

#[tokio::test]
async fn with_a_rust_mapping_external_writes_hold_the_migration() -> Outcome {
    let world = World::new(50).await?;
    let lower = map_each(|row: Row| Ok::<_, String>(row.old_status.map(|text| text.trim().to_lowercase())));
    let plan = world.describe().forward_rows(lower).build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("backfill").await?;
    let mut job = external(&world).await?;
    job.execute("update orders set old_status = 'STALE' where id = 7").await?;
    world.ask("ramp:50").await?;
    world.waits_for("without external writes").await?;
    assert_eq!(seen(&world).await?[0].unmirrored, 1);
    Ok(())
}

#[tokio::test]
async fn a_guard_of_rows_copies_inserts_updates_and_deletes() -> Outcome {
    let world = World::new(20).await?;
    let plan = table_plan(&world, "bigint")?;
    let a = world.instance_of("a", plan).await?;
    let mut job = external(&world).await?;
    for phase in COPIED {
        world.go(phase).await?;
        job.execute("insert into orders (note, old_status) values ('n', ' NEW ')").await?;
        job.execute("update orders set old_status = ' PAID ' where id = (select max(id) from orders)")
            .await?;
        job.execute("delete from orders where id = (select min(id) from orders)").await?;
        job.execute("update orders set note = note || '.' where id % 2 = 0").await?;
        if phase != "expand" {
            let apart: i64 = sqlx::query_scalar(
                "select count(*) from ((select id, note, lower(trim(old_status)) from orders \
                     except select id, note, status from orders_2) \
                     union all (select id, note, status from orders_2 \
                     except select id, note, lower(trim(old_status)) from orders)) as apart",
            )
            .fetch_one(&world.pool)
            .await?;
            let left = if phase == "backfill" { apart.min(20) } else { 0 };
            assert_eq!(apart, left, "{phase}");
        }
    }
    world.go("retire").await?;
    for statement in
        ["delete from orders", "update orders set note = ''", "insert into orders default values"]
    {
        let error = job.execute(statement).await.expect_err(statement);
        assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("ZC003"));
    }
    world.approve().await?;
    world.go("contract").await?;
    let gone = "select to_regclass('orders') is null and not exists (select from pg_proc where proname like 'guard\\_%')";
    world
        .until("the old table to go", async || {
            sqlx::query_scalar(gone).fetch_one(&world.pool).await.unwrap_or(false)
        })
        .await?;
    a.agent.leave().await?;
    Ok(())
}

/// A database's SQLSTATE.
fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

#[tokio::test]
async fn a_type_without_equality_does_not_fail_a_write() -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute("create table parcels (id bigint primary key, note text, spot json)").await?;
    world
        .pool
        .execute("insert into parcels select g, '', '{\"x\": 1}' from generate_series(1, 20) g")
        .await?;
    let plan = ColumnMigration::new(world.pool.clone(), "parcels")
        .column("spot", "place", "jsonb")
        .forward("spot::jsonb")
        .backward("place::json")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("verify").await?;
    let mut job = external(&world).await?;
    job.execute("update parcels set note = 'n' where id = 1").await?;
    job.execute("update parcels set spot = '{\"x\": 2}' where id = 1").await?;
    job.execute("insert into parcels (id, spot) values (21, '[]')").await?;
    let places: Vec<String> =
        sqlx::query_scalar("select place::text from parcels where id in (1, 21) order by id")
            .fetch_all(&world.pool)
            .await?;
    assert_eq!(places, ["{\"x\": 2}", "[]"]);
    assert_eq!(seen(&world).await?[0].transactions, 2);
    Ok(())
}

#[tokio::test]
async fn the_side_that_the_phase_reads_has_authority_over_defaults() -> Outcome {
    let world = World::new(10).await?;
    let plan =
        world.describe().expand_sql("alter table orders alter new_status set default 'new'").build()?;
    let _a = world.instance("a", Some(plan)).await?;
    let mut job = external(&world).await?;
    let by_old = "insert into orders (old_status) values (' PAID ') returning id";
    let by_new = "insert into orders (new_status) values ('paid') returning id";
    for phase in ["expand", "backfill", "verify", "ramp:50"] {
        world.go(phase).await?;
        let id: i64 = sqlx::query_scalar(by_old).fetch_one(&mut job).await?;
        assert_eq!(world.row(id).await?, (text(" PAID "), text("paid")), "{phase}");
        // A new side that holds a value does not change that.
        let both = "insert into orders (old_status, new_status) values (' A ', 'b') returning id";
        let id: i64 = sqlx::query_scalar(both).fetch_one(&mut job).await?;
        assert_eq!(world.row(id).await?, (text(" A "), text("a")), "{phase}");
        let both = format!("update orders set old_status = ' C ', new_status = 'd' where id = {id}");
        job.execute(AssertSqlSafe(both)).await?;
        assert_eq!(world.row(id).await?, (text(" C "), text("c")), "{phase}");
    }
    world.go("switch").await?;
    job.execute("alter table orders alter old_status set default 'PENDING', alter new_status drop default")
        .await?;
    let id: i64 = sqlx::query_scalar(by_new).fetch_one(&mut job).await?;
    assert_eq!(world.row(id).await?, (text("PAID"), text("paid")));
    let both = format!("update orders set old_status = ' C ', new_status = 'd' where id = {id}");
    job.execute(AssertSqlSafe(both)).await?;
    assert_eq!(world.row(id).await?, (text("D"), text("d")));
    world.go("retire").await?;
    job.execute(by_new).await?;
    for late in ["insert into orders default values", by_old] {
        let error = job.execute(late).await.expect_err("the old side was written");
        assert_eq!(code(&error).as_deref(), Some("ZC003"));
    }
    Ok(())
}

#[tokio::test]
async fn a_failed_mapping_lets_the_write_pass_and_records_the_key() -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute("create table visits (id bigint primary key, old_count text)").await?;
    let plan = ColumnMigration::new(world.pool.clone(), "visits")
        .column("old_count", "count", "integer")
        .forward("old_count::integer")
        .backward("count::text")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("verify").await?;
    let mut job = external(&world).await?;
    job.execute("insert into visits values (1, '12'), (2, 'n/a')").await?;
    job.execute("update visits set old_count = 'many' where id = 1").await?;
    let noted: Vec<(String, String)> =
        sqlx::query_as("select key::text, error from cutover.repairs where side = 'new' order by 1")
            .fetch_all(&world.pool)
            .await?;
    assert_eq!(noted.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), ["1", "2"]);
    assert!(noted[1].1.contains("invalid input syntax"), "{noted:?}");
    let stored: Vec<String> =
        sqlx::query_scalar("select old_count from visits order by id").fetch_all(&world.pool).await?;
    assert_eq!(stored, ["many", "n/a"]);
    Ok(())
}

#[tokio::test]
async fn a_failed_copy_of_a_row_lets_the_write_pass_and_records_it() -> Outcome {
    let world = World::new(3).await?;
    let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, note text check (note <> 'bad'), status text)")
        .without("orders_id_seq")
        .same("note")
        .column("status", "lower(trim(old_status))")
        .column_back("old_status", "upper(status)")
        .build()?;
    let _a = world.instance_of("a", plan).await?;
    world.go("backfill").await?;
    world.filled().await?;
    external(&world).await?.execute("update orders set note = 'bad' where id = 2").await?;
    let noted: Vec<String> =
        sqlx::query_scalar("select key::text from cutover.repairs").fetch_all(&world.pool).await?;
    assert_eq!(noted, ["2"]);
    Ok(())
}

#[tokio::test]
async fn the_guard_maps_under_fixed_settings() -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute("create table visits (id bigint primary key, at timestamptz)").await?;
    let plan = ColumnMigration::new(world.pool.clone(), "visits")
        .column("at", "day", "date")
        .forward("at::date")
        .backward("day::timestamptz")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("expand").await?;
    let mut job = external(&world).await?;
    job.execute("set timezone = 'Pacific/Auckland'").await?;
    job.execute("insert into visits values (1, '2024-06-01 20:00:00+00')").await?;
    let day: String = sqlx::query_scalar("select day::text from visits").fetch_one(&world.pool).await?;
    assert_eq!(day, "2024-06-01");
    Ok(())
}

/// A function that an ordinary role adds must not run with the installer's rights.
#[tokio::test]
async fn functions_created_later_do_not_change_the_mapping() -> Outcome {
    let world = World::new(0).await?;
    world
        .pool
        .execute(
            "create table parcels (id bigint primary key, old_code varchar(20)); \
             create function public.tidy(text) returns text immutable language sql as $$ select trim($1) $$",
        )
        .await?;
    let plan = ColumnMigration::new(world.pool.clone(), "parcels")
        .column("old_code", "code", "text")
        .forward("tidy(lower(old_code))")
        .backward("upper(code)")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("expand").await?;
    world
        .pool
        .execute(
            "create function public.lower(varchar) returns text immutable language sql as $$ select 'stolen' $$; \
             create function public.upper(varchar) returns text immutable language sql as $$ select 'stolen' $$",
        )
        .await?;
    external(&world).await?.execute("insert into parcels values (1, ' ABC ')").await?;
    let code: String = sqlx::query_scalar("select code from parcels").fetch_one(&world.pool).await?;
    assert_eq!(code, "abc");
    Ok(())
}

#[tokio::test]
async fn guards_of_two_migrations_of_one_table_do_not_meet() -> Outcome {
    let world = World::new(1).await?;
    let (first, second) = (format!("{}_a", "n".repeat(55)), format!("{}_b", "n".repeat(55)));
    world.pool.execute("alter table orders add column old_place text").await?;
    let plan = |old: &str, new: &str| {
        ColumnMigration::new(world.pool.clone(), "orders")
            .column(old, new, "text")
            .forward(&format!("lower(trim({old}))"))
            .backward(&format!("upper({new})"))
            .build()
    };
    let a = world.instance("a", Some(plan("old_status", &first)?)).await?;
    plan("old_place", &second)?.run(Task::Expand, &a.agent.migration("other").ok_or("declared")?).await?;
    world.go("expand").await?;
    external(&world).await?.execute("update orders set old_status = ' PAID ', old_place = ' HERE '").await?;
    let query = format!("select {first}, {second} from orders");
    let row: (Option<String>, Option<String>) =
        sqlx::query_as(AssertSqlSafe(query)).fetch_one(&world.pool).await?;
    assert_eq!(row, (text("paid"), text("here")));
    Ok(())
}

#[tokio::test]
async fn expressions_reach_the_trigger_unchanged() -> Outcome {
    let world = World::new(10).await?;
    let plan = world
        .describe()
        .forward("replace(lower(trim(old_status)), ':id', ':refused :copies')")
        .backward("upper(replace(new_status, ':refused :copies', ':id'))")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("verify").await?;
    let mut job = external(&world).await?;
    job.execute("update orders set old_status = ' /X/:ID ' where id = 1").await?;
    job.execute("update orders set old_status = ' /x/:id ' where id = 2").await?;
    assert_eq!(world.row(2).await?.1, text("/x/:refused :copies"));
    world.go("ramp").await?;
    Ok(())
}

#[tokio::test]
async fn a_build_with_another_mapping_rearms_before_it_copies() -> Outcome {
    let world = World::new(10).await?;
    {
        let old = world.instance("old", Some(world.describe().forward("lower(old_status)").build()?)).await?;
        world.go("backfill").await?;
        world.filled().await?;
        world.go("expand").await?;
        old.agent.leave().await?;
    }
    let _new = world.instance("new", Some(world.describe().build()?)).await?;
    world.go("backfill").await?;
    world.filled().await?;
    external(&world).await?.execute("update orders set old_status = ' PAID ' where id = 1").await?;
    assert_eq!(world.row(1).await?.1, text("paid"));
    Ok(())
}

#[tokio::test]
async fn the_guard_sees_what_other_triggers_made_of_the_row() -> Outcome {
    let world = World::new(10).await?;
    world
        .pool
        .execute(
            "create function normal() returns trigger language plpgsql as $$ begin \
                 new.old_status := upper(coalesce(new.old_status, new.note)); return new; end $$; \
             create trigger normalize before insert or update on orders for each row execute function normal()",
        )
        .await?;
    let _a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("backfill").await?;
    let mut job = external(&world).await?;
    job.execute("update orders set note = 'x', old_status = null where id = 1").await?;
    assert_eq!(world.row(1).await?, (text("X"), text("x")));
    Ok(())
}

/// The trigger writes another table with the rights of the role that installed it.
#[tokio::test]
async fn the_guard_keeps_the_rights_and_tables_of_its_installer() -> Outcome {
    let world = World::new(10).await?;
    let plan = table_plan(&world, "bigint generated always as identity")?;
    let _a = world.instance_of("a", plan).await?;
    world.go("backfill").await?;
    world.filled().await?;
    let role = format!("poor_{}", std::process::id());
    for statement in [
        format!("create role {role} login"),
        format!("grant select, insert, update, delete, truncate on orders to {role}"),
        "revoke execute on all functions in schema cutover from public".into(),
        "create schema decoy create table orders_2 (id bigint primary key, note text, status text)".into(),
        format!("grant usage on schema decoy to {role}; grant all on decoy.orders_2 to {role}"),
    ] {
        world.pool.execute(AssertSqlSafe(statement)).await?;
    }
    let mut job = PgConnection::connect(&world.url.replace("postgres@", &format!("{role}@"))).await?;
    job.execute("set search_path = decoy").await?;
    job.execute("create temporary table orders_2 (id bigint primary key, note text, status text)").await?;
    job.execute("update public.orders set old_status = ' POOR ' where id = 1").await?;
    job.execute("insert into public.orders (old_status) values (' NEW ')").await?;
    job.execute("delete from public.orders where id = 2").await?;
    let there: Vec<Option<String>> =
        sqlx::query_scalar("select status from orders_2 where id in (1, 2) or id > 10 order by id")
            .fetch_all(&world.pool)
            .await?;
    assert_eq!(there, [text("poor"), text("new")]);
    // No other role attaches the function to a table of its own.
    let id: i32 = sqlx::query_scalar("select id from cutover.migrations where name = 'status'")
        .fetch_one(&world.pool)
        .await?;
    job.execute("create temporary table bait (id bigint)").await?;
    let set =
        format!("create trigger bait after truncate on bait execute function cutover.guard_{id}('{id}')");
    let error = job.execute(AssertSqlSafe(set)).await.expect_err("refused");
    assert_eq!(code(&error).as_deref(), Some("42501"));
    // A truncate reaches both sides.
    job.execute("truncate public.orders").await?;
    let left: i64 = sqlx::query_scalar("select count(*) from orders_2").fetch_one(&world.pool).await?;
    assert_eq!(left, 0);
    world.go("retire").await?;
    let error = job.execute("truncate public.orders").await.expect_err("refused");
    assert_eq!(code(&error).as_deref(), Some("ZC003"));
    Ok(())
}

#[tokio::test]
async fn a_scan_counts_only_without_a_later_unmirrored_write() -> Outcome {
    let world = World::new(50).await?;
    let lower = map_each(|row: Row| Ok::<_, String>(row.old_status.map(|text| text.trim().to_lowercase())));
    let plan = world.describe().forward_rows(lower).build()?;
    let _a = world.brief("a", plan).await?;
    world.go("verify").await?;
    crate::repairs::scanned(&world).await?;
    let mut job = external(&world).await?;
    job.execute("begin; update orders set old_status = 'STALE' where id = 7").await?;
    // Not committed yet, so the move has to wait for its end.
    world.ask("ramp").await?;
    world.waits_for("a transaction of an external writer").await?;
    job.execute("commit").await?;
    world.waits_for("the new side is not what `forward` computes from the old side, id in [7]").await?;
    assert_eq!(world.row(7).await?, (text("STALE"), text("legacy7")));
    job.execute("update orders set new_status = 'stale' where id = 7").await?;
    world.go("ramp").await?;
    let error = job.execute("update orders set old_status = 'LATE' where id = 7").await.expect_err("refused");
    assert_eq!(code(&error).as_deref(), Some("ZC003"));
    Ok(())
}

/// A transaction that began under one rule does not end under another.
#[tokio::test]
async fn an_open_external_transaction_holds_the_move_to_retire() -> Outcome {
    let world = World::new(10).await?;
    let plan = table_plan(&world, "bigint")?;
    let a = world.instance_of("a", plan).await?;
    world.go("switch").await?;
    let mut long = external(&world).await?;
    long.execute("begin; update orders set note = 'seen' where id = 1").await?;
    world.ask("retire").await?;
    world.waits_for("a transaction of an external writer").await?;
    long.execute("update orders set note = note || '.' where id = 2").await?;
    // Meanwhile the way back is open.
    world.go("ramp").await?;
    world.go("switch").await?;
    world.ask("retire").await?;
    world.waits_for("a transaction of an external writer").await?;
    let mut snapshot = external(&world).await?;
    snapshot.execute("begin isolation level repeatable read; select 1 from orders").await?;
    long.execute("commit").await?;
    world.go("retire").await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute("update orders_2 set status = 'fleet' where id = 3").await?;
    tx.commit().await?;
    // Its snapshot is older than the move, so what it would copy is old.
    let error = snapshot.execute("update orders set note = 'x' where id = 3").await.expect_err("refused");
    assert_eq!(code(&error).as_deref(), Some("40001"));
    let kept = "select status from orders_2 where id = 3";
    assert_eq!(sqlx::query_scalar::<_, String>(kept).fetch_one(&world.pool).await?, "fleet");
    Ok(())
}

#[tokio::test]
async fn a_mapping_over_a_generated_column_is_refused() -> Outcome {
    let world = World::new(5).await?;
    let generated =
        "alter table orders add column short text generated always as (left(old_status, 4)) stored";
    world.pool.execute(generated).await?;
    let _a = world.instance("a", Some(world.describe().forward("lower(short)").build()?)).await?;
    world.ask("expand").await?;
    world.waits_for("mapping `forward` uses the generated column short").await?;
    Ok(())
}
