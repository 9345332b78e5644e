//! What others change about the tables, and about what the values depend on, in the middle of a migration.

use cutover::migration::{ColumnMigrationBuilder, Plan, TableMigration, Task};
use sqlx::{AssertSqlSafe, PgPool};

use crate::world::{Fleet, Outcome, World};

fn table(world: &World) -> Result<TableMigration, cutover::ConfigError> {
    TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, status text)")
        .without("orders_id_seq")
        .column("status", "lower(trim(old_status))")
        .column_back("old_status", "upper(status)")
        .build()
}

async fn table_in(phase: &str) -> Outcome<(World, Fleet)> {
    let world = World::new(20).await?;
    let a = world.brief("a", table(&world)?).await?;
    world.go(phase).await?;
    Ok((world, a))
}

async fn column_in(
    phase: &str,
    setup: &str,
    more: impl Fn(ColumnMigrationBuilder) -> ColumnMigrationBuilder,
) -> Outcome<(World, Fleet)> {
    let world = World::new(20).await?;
    world.external(setup).await?;
    let a = world.brief("a", more(world.describe()).build()?).await?;
    world.go(phase).await?;
    Ok((world, a))
}

async fn number(pool: &PgPool, query: &str) -> Outcome<i64> {
    Ok(sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(pool).await?)
}

/// The first statement in what the migration waits for.
async fn advised(world: &World) -> Outcome<String> {
    let query = "select waits_for from cutover.migrations where name = 'status'";
    let reason: String = sqlx::query_scalar(query).fetch_one(&world.pool).await?;
    let statement = reason.split('`').find(|text| text.starts_with("alter table"));
    Ok(statement.ok_or(reason.clone())?.to_owned())
}

const DIFFERENT: &str = "select count(*) from orders o full join orders_2 n using (id) \
    where n.status is distinct from lower(trim(o.old_status))";

#[tokio::test]
async fn a_table_in_place_of_the_old_one_holds_the_next_step() -> Outcome {
    let (world, _a) = column_in("ramp", "select", |plan| plan).await?;
    world.external("alter table orders rename to orders_before").await?;
    world.external("create table orders (like orders_before including all)").await?;
    world.external("insert into orders (old_status) values (' Elsewhere ')").await?;
    world.ask("retire").await?;
    world.waits_for("table \"orders\" is public.orders_before now").await?;
    world.external("drop table orders").await?;
    world.external(&advised(&world).await?).await?;
    world.go("retire").await
}

#[tokio::test]
async fn a_table_with_another_name_or_schema_holds_the_next_step() -> Outcome {
    for (change, now) in [
        ("alter table orders rename to away", "table \"orders\" is public.away now"),
        ("alter table orders_2 rename to away", "table \"orders_2\" is public.away now"),
    ] {
        let (world, _a) = table_in("ramp").await?;
        world.external(change).await?;
        let old = if change.contains("orders_2") { "orders" } else { "away" };
        world.external(&format!("update {old} set old_status = ' Late ' where id = 3")).await?;
        world.external(&format!("truncate {old}")).await?;
        world.ask("switch").await?;
        world.waits_for(now).await?;
        world.external(&advised(&world).await?).await?;
        world.go("expand").await?;
        world.go("switch").await?;
        assert_eq!(number(&world.pool, "select count(*) from orders_2").await?, 0, "{change}");
    }
    Ok(())
}

/// Neither the row nor its counterpart can be found by the key.
#[tokio::test]
async fn external_writes_pass_while_the_key_has_another_name() -> Outcome {
    for renamed in ["orders", "orders_2"] {
        let (world, _a) = table_in("ramp").await?;
        world.external(&format!("alter table {renamed} rename id to number")).await?;
        let id = if renamed == "orders" { "number" } else { "id" };
        world.external(&format!("update orders set old_status = ' Late ' where {id} = 3")).await?;
        world.external(&format!("delete from orders where {id} = 4")).await?;
        world.external("insert into orders (old_status) values (' New ')").await?;
        if renamed == "orders_2" {
            world.external("truncate orders").await?;
        }
        world.ask("switch").await?;
        world.waits_for("key column").await?;
        world.external(&format!("alter table {renamed} rename number to id")).await?;
        world.go("expand").await?;
        world.go("retire").await?;
        assert_eq!(number(&world.pool, DIFFERENT).await?, 0, "{renamed}");
        let refused = world.external("update orders set old_status = ' Refused ' where id = 5").await;
        let refused = refused.err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(refused.contains("no longer written"), renamed == "orders", "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn a_label_with_another_name_holds_a_move() -> Outcome {
    let mood =
        "create type mood as enum ('sad', 'glad'); alter table orders alter old_status type mood using 'sad'";
    let (world, _a) =
        column_in("ramp", mood, |plan| plan.forward("old_status::text").backward("new_status::mood")).await?;
    world.external("alter type mood add value 'calm' before 'glad'").await?;
    world.external("update orders set old_status = 'calm' where id = 4").await?;
    world.go("switch").await?;
    world.go("ramp").await?;
    world.external("alter type mood rename value 'sad' to 'blue'").await?;
    world.ask("retire").await?;
    world.waits_for("id in [1, 2").await?;
    world.go("expand").await?;
    world.go("retire").await?;
    let different = "select count(*) from orders where new_status is distinct from old_status::text";
    assert_eq!(number(&world.pool, different).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_function_of_the_mapping_that_changes_holds_a_move() -> Outcome {
    let function = |body: &str| {
        format!(
            "create or replace function spelled(text) returns text language sql immutable as $$select {body}$$"
        )
    };
    let setup = function("lower(trim($1))");
    let (world, _a) = column_in("ramp", &setup, |plan| plan.forward("spelled(old_status)")).await?;
    world.external(&function("lower(replace(trim($1), 'Y', 'I'))")).await?;
    world.ask("retire").await?;
    world.waits_for("id in [1, 2").await?;
    world.go("expand").await?;
    world.go("switch").await?;
    let different = "select count(*) from orders where new_status is distinct from spelled(old_status)";
    assert_eq!(number(&world.pool, different).await?, 0);
    world.external(&setup).await?;
    world.ask("retire").await?;
    world.waits_for("function spelled(text) was replaced").await
}

#[tokio::test]
async fn a_new_table_that_loses_rows_holds_a_move() -> Outcome {
    let odd = "create function odd() returns trigger language plpgsql as \
        $$ begin new.status := 'odd'; return new; end $$; \
        create trigger odd before insert or update on orders_2 for each row execute function odd()";
    for (change, found) in [("truncate orders_2", "the new side lacks rows"), (odd, "id in [3]")] {
        let (world, _a) = table_in("ramp").await?;
        world.external(change).await?;
        world.external("update orders set old_status = ' Late ' where id = 3").await?;
        world.ask("switch").await?;
        world.waits_for(found).await?;
        world.external("drop trigger if exists odd on orders_2").await?;
        world.go("expand").await?;
        world.go("retire").await?;
        assert_eq!(number(&world.pool, DIFFERENT).await?, 0, "{change}");
    }
    Ok(())
}

/// In `ramp` each row that is written is in both tables.
#[tokio::test]
async fn a_trigger_of_the_new_table_that_needs_the_old_row_holds_a_move() -> Outcome {
    let function = |name: &str, body: &str| {
        format!(
            "create function {name}() returns trigger language plpgsql as $$ declare found text; begin {body} return new; end $$; "
        )
    };
    let strict = "select old_status into strict found from orders where id = new.id;";
    let taken = "new.status := lower(trim((select old_status from orders where id = new.id)));";
    let harmless = "new.status := lower(new.status); perform clock_timestamp();";
    for (trigger, body, found) in [
        ("before insert or update", strict, "query returned no rows"),
        ("after insert", strict, "query returned no rows"),
        ("before insert", taken, "store another value in \"status\""),
        (
            "before insert",
            "if not exists (select from orders where id = new.id) then return null; end if;",
            "discard a row",
        ),
    ] {
        let (world, a) = table_in("ramp").await?;
        world
            .external(&format!(
                "{}{}create trigger fine before insert or update on orders_2 for each row execute function fine(); \
                 create trigger odd {trigger} on orders_2 for each row execute function odd()",
                function("fine", harmless),
                function("odd", body)
            ))
            .await?;
        world.is_held("retire", found).await.map_err(|error| format!("{trigger}: {body}: {error}"))?;
        world.external("alter table orders_2 disable trigger \"odd\"").await?;
        world.go("verify").await?;
        world.go("retire").await?;
        let mut tx = a.migration.begin(&world.pool).await?;
        sqlx::query("insert into orders_2 (id, status) values (500, 'new')").execute(&mut *tx).await?;
        tx.commit().await?;
    }
    Ok(())
}

#[tokio::test]
async fn new_rows_are_tried_with_keys_of_many_types() -> Outcome {
    for (columns, key) in [
        ("kept date", "kept date '2024-01-01' + n"),
        ("kept timestamptz", "kept timestamptz '2024-01-01' + n * interval '1 hour'"),
        ("kept timestamp(3)", "kept timestamp '2024-01-01' + n * interval '1 hour'"),
        ("kept bytea", "kept n::text::bytea"),
        ("kept char(20)", "kept n::text"),
        ("kept boolean, \"it's\" integer", "kept true, \"it's\" n"),
        ("kept boolean, part smallint, at date", "kept true, part 1, at date '2024-01-01' + n"),
    ] {
        let names: Vec<&str> = key.split(", ").filter_map(|one| one.split(' ').next()).collect();
        let values: Vec<&str> = key.split(", ").filter_map(|one| Some(one.split_once(' ')?.1)).collect();
        let (list, values) = (names.join(", "), values.join(", "));
        let world = World::new(1).await?;
        let not_null = columns.replace(", ", " not null, ") + " not null";
        world
            .external(&format!(
                "create table visits ({not_null}, old_status text); \
                 create unique index on visits ({list}); \
                 insert into visits ({list}, old_status) select {values}, 'Paid' from generate_series(1, 20) as n"
            ))
            .await?;
        let plan = TableMigration::new(world.pool.clone(), "visits", "visits_2")
            .create(&format!("create table visits_2 ({not_null}, status text, primary key ({list}))"))
            .column("status", "lower(trim(old_status))")
            .column_back("old_status", "upper(status)")
            .build()?;
        let _a = world.brief("a", plan).await?;
        world.go("ramp").await?;
        let same: Vec<String> = names.iter().map(|name| format!("visits.{name} = new.{name}")).collect();
        world
            .external(&format!(
                "create function odd() returns trigger language plpgsql as $$ begin \
                     perform from visits where {}; if not found then raise 'no old row'; end if; return new; end $$; \
                 create trigger odd before insert on visits_2 for each row execute function odd()",
                same.join(" and ")
            ))
            .await?;
        world.is_held("retire", "no old row").await.map_err(|error| format!("{columns}: {error}"))?;
    }
    Ok(())
}

/// Rows of a child are rows of the table for every query, and no trigger of the table sees a write of them.
#[tokio::test]
async fn a_child_of_either_table_holds_the_next_step() -> Outcome {
    for (change, found) in [
        ("create table child () inherits (orders)", "the tables child inherit from \"orders\""),
        (
            "create table child (like orders); alter table child inherit orders",
            "the tables child inherit from \"orders\"",
        ),
        ("create table child () inherits (orders_2)", "the tables child inherit from \"orders_2\""),
        (
            "create table parent (id bigint not null, status text); alter table orders_2 inherit parent",
            "child of parent",
        ),
    ] {
        let (world, _a) = table_in("ramp").await?;
        world.external(change).await?;
        let of_orders = change.contains("child") && !change.contains("orders_2");
        if of_orders {
            world.external("insert into child (id, old_status) values (500, ' Child ')").await?;
        }
        world.is_held("retire", found).await.map_err(|error| format!("{change}: {error}"))?;
        world.external(&advised(&world).await?).await?;
        world.go("expand").await?;
        world.go("retire").await?;
        assert_eq!(number(&world.pool, DIFFERENT).await?, 0, "{change}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_table_may_not_have_holds_the_next_step() -> Outcome {
    for (change, found) in [
        ("alter table orders alter old_status set not null", "column \"old_status\" is NOT NULL"),
        ("create table orders_child () inherits (orders)", "the tables orders_child inherit"),
    ] {
        let (world, _a) = column_in("ramp", "select", |plan| plan).await?;
        world.external(change).await?;
        world.is_held("retire", found).await?;
        world.external(&advised(&world).await?).await?;
        world.go("retire").await?;
    }
    Ok(())
}

#[tokio::test]
async fn work_on_rows_names_all_that_is_missing_at_once() -> Outcome {
    let (world, a) = column_in("verify", "select", |plan| plan).await?;
    world.external("alter table orders rename new_status to away").await?;
    world.external("alter table orders drop constraint orders_pkey").await?;
    let refused = world.describe().build()?.run(Task::Scan, &a.migration).await;
    let refused = refused.err().map(|error| error.to_string()).unwrap_or_default();
    for part in ["has been renamed to \"away\"", "has no unique index"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(!refused.contains("\"new_status\" does not exist"), "{refused}");
    Ok(())
}
