//! What others make of the tables in the middle of a migration, so that the service could not write any more, or would write
//! to no effect.

use cutover::migration::{ColumnMigration, SchemaChange, TableMigration};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::world::{Fleet, Outcome, World};

/// Runs the statement that the reason names, and then waits until it is not the reason any more.
async fn follow_advice(world: &World, part: &str) -> Outcome {
    let reason = world.reason().await?;
    let advised =
        reason.split('`').find(|text| ["alter ", "grant "].iter().any(|verb| text.starts_with(verb)));
    world.external(advised.ok_or(reason.clone())?).await?;
    let gone = async || !world.reason().await.is_ok_and(|reason| reason.contains(part));
    Ok(world.until(&format!("the end of {reason}"), gone).await?)
}

/// Makes changes one after the other, each of which has to hold the move to this phase, and ends with that move.
async fn each_holds(world: &World, wish: &str, changes: &[(&str, &str, &str)]) -> Outcome {
    let from: String = sqlx::query_scalar("select phase from cutover.migrations where name = 'status'")
        .fetch_one(&world.pool)
        .await?;
    for (change, found, undo) in changes {
        world.external(change).await?;
        world.ask(wish).await?;
        world.waits_for(found).await?;
        assert!(!world.reason().await?.contains("LEGACY"), "{}", world.reason().await?);
        assert!(!world.is_at(wish).await?, "{change}");
        world.ask(&from).await?;
        world.external(undo).await?;
    }
    Ok(())
}

/// A trigger `odd` whose function raises an error if `condition` holds.
fn raises(condition: &str, trigger: &str) -> String {
    format!(
        "create or replace function odd() returns trigger language plpgsql as \
             $$ begin if {condition} then raise exception 'odd row'; end if; return new; end $$; \
         create {trigger} on orders for each row execute function odd()"
    )
}

#[tokio::test]
async fn a_write_that_would_fail_in_retire_holds_the_move_to_it() -> Outcome {
    let world = World::new(20).await?;
    world
        .external(
            "create table pairs (a text, b text, unique (a, b)); create domain status as text; \
        alter table orders alter old_status type status; update orders set note = 'x'; \
        insert into pairs select old_status, note from orders",
        )
        .await?;
    let a = world.brief("a", world.describe().build()?).await?;
    world.go("switch").await?;
    let needs_old = "new.old_status is null";
    let kept = "new.old_status is not distinct from old.old_status and new.new_status <> old.new_status";
    let (insert, dropped) =
        ("an insert into \"orders\" without column \"old_status\" fails", "drop trigger odd on orders");
    let update = "an update of column \"new_status\" of \"orders\" without column \"old_status\" fails";
    let constrained = "alter table orders drop constraint if exists odd";
    let trigger = |trigger: &str| raises(needs_old, trigger);
    let (before, after) = (trigger("trigger odd before insert"), trigger("trigger odd after insert"));
    let deferred = trigger("constraint trigger odd after insert")
        .replace(" for each", " deferrable initially deferred for each");
    let on_update = raises(kept, "trigger odd before update");
    each_holds(
        &world,
        "retire",
        &[
            ("alter table orders add constraint odd check (old_status is not null)", insert, constrained),
            ("alter domain status add constraint odd check (value is not null)", insert, "alter domain status drop constraint odd"),
            (&before, insert, dropped),
            (&after, insert, dropped),
            (&deferred, insert, dropped),
            ("alter table orders add constraint odd check (new_status = lower(trim(old_status)))", update, constrained),
            (&on_update, update, dropped),
            ("alter table orders add constraint odd check (new_status is null) not valid", "an insert into \"orders\" with column \"new_status\" fails", constrained),
            ("alter table orders add constraint odd foreign key (old_status, note) references pairs (a, b) match full", "is MATCH FULL", constrained),
            ("create rule odd as on insert to orders where new.old_status is null do instead nothing", "rule \"odd\" of \"orders\" replaces inserts", "drop rule odd on orders"),
        ],
    )
    .await?;
    // The advice works, and so do the writes then.
    world.external(&before).await?;
    world.ask("retire").await?;
    world.waits_for("function odd()").await?;
    follow_advice(&world, "function odd()").await?;
    world.go("retire").await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute("insert into orders (new_status) values ('new')").await?;
    tx.execute("update orders set new_status = 'other' where id = 3").await?;
    Ok(tx.commit().await?)
}

/// Before the copy the new side is computed for the trial.
#[tokio::test]
async fn a_write_that_would_fail_is_found_at_the_next_move() -> Outcome {
    let world = World::new(20).await?;
    let _a = world.brief("a", world.describe().without("filled").build()?).await?;
    world.go("expand").await?;
    // Inserts of both sides pass, and those of the new side alone.
    let filled = "alter table orders add constraint filled check (num_nonnulls(old_status, new_status) > 0)";
    world.external(filled).await?;
    let found = "an insert into \"orders\" without column \"old_status\" fails";
    let check = "alter table orders add constraint odd check (old_status is not null)";
    for (from, to) in [("expand", "backfill"), ("ramp", "switch")] {
        world.go(from).await?;
        each_holds(&world, to, &[(check, found, "alter table orders drop constraint odd")]).await?;
        world.go(to).await?;
    }
    // The way back does not wait.
    world.external(check).await?;
    world.ask("retire").await?;
    world.waits_for(found).await?;
    world.go("verify").await
}

/// The copy names such rows. Other writes of the service pass.
#[tokio::test]
async fn a_row_that_the_mapping_refuses_with_any_error_does_not_hold_the_copy() -> Outcome {
    let world = World::new(20).await?;
    world
        .external(
            "create domain status as text; \
             create function coded(v text) returns text immutable language plpgsql as $$ begin \
                 if v = '0' then raise exception 'no status'; end if; return lower(trim(v)); end $$",
        )
        .await?;
    let plan = ColumnMigration::new(world.pool.clone(), "orders")
        .key("id")
        .column("old_status", "new_status", "status")
        .forward("coded(old_status)")
        .backward("upper(new_status)");
    let _a = world.brief("a", plan.build()?).await?;
    for (value, error) in [("0", "P0001"), ("odd", "23514")] {
        world.go("expand").await?;
        if error == "23514" {
            world.external("alter domain status add constraint odd check (value <> 'odd')").await?;
        }
        world.external(&format!("insert into orders (old_status) values ('{value}')")).await?;
        world.ask("ramp").await?;
        world.waits_for(error).await?;
        assert!(world.is_at("backfill").await?, "{}", world.reason().await?);
        world.external(&format!("delete from orders where old_status = '{value}'")).await?;
    }
    Ok(())
}

/// A function of the mapping raises errors of its own, which are none of the table's.
#[tokio::test]
async fn a_value_that_a_function_refuses_waits_in_verify() -> Outcome {
    let world = World::new(20).await?;
    world
        .external(
            "create function known(text) returns text language plpgsql immutable as \
                 $$ begin if $1 = 'odd' then raise exception 'unknown'; end if; return $1; end $$",
        )
        .await?;
    let _a = world.instance("a", Some(world.describe().forward("known(old_status)").build()?)).await?;
    world.go("expand").await?;
    world.ask("backfill").await?;
    world.filled().await?;
    world.external("update orders set old_status = 'odd' where id = 3").await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("the repair of 1 row").await?;
    world.external("update orders set old_status = 'KNOWN' where id = 3").await?;
    world.go("ramp").await
}

#[tokio::test]
async fn a_drop_of_a_column_waits_for_inserts_without_it() -> Outcome {
    let world = World::new(20).await?;
    let plan = SchemaChange::new(world.pool.clone(), "orders").drop_column("old_status").build()?;
    let _a = world.brief("a", plan).await?;
    world.go("switch").await?;
    world.external("alter table orders add constraint odd check (old_status is not null)").await?;
    world.ask("retire").await?;
    world.waits_for("without column \"old_status\" fails").await?;
    follow_advice(&world, "without column").await?;
    world.go("retire").await
}

fn to_table(pool: &PgPool) -> Outcome<TableMigration> {
    Ok(TableMigration::new(pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, status text)")
        .without("orders_id_seq")
        .column("status", "lower(trim(old_status))")
        .column_back("old_status", "upper(status)")
        .build()?)
}

#[tokio::test]
async fn a_new_table_that_could_not_be_written_holds_the_move() -> Outcome {
    let world = World::new(20).await?;
    let _a = world.brief("a", to_table(&world.pool)?).await?;
    world.go("switch").await?;
    let key = "alter table orders_2 add constraint odd foreign key (id) references orders";
    each_holds(
        &world,
        "retire",
        &[
            (key, "refers to the old table", "alter table orders_2 drop constraint odd"),
            (
                "create rule odd as on insert to orders_2 do instead nothing",
                "rule \"odd\" of \"orders_2\"",
                "drop rule odd on orders_2",
            ),
            (
                "alter table orders_2 set unlogged",
                "\"orders_2\" is unlogged",
                "alter table orders_2 set logged",
            ),
            (
                "alter schema public rename to away",
                "schema public, in which",
                "alter schema away rename to public",
            ),
        ],
    )
    .await
}

/// As a superuser sees it, and as the role of the service does.
async fn ordinary(rows: i64) -> Outcome<(World, World, String)> {
    let world = World::new(rows).await?;
    let (service, role) = world.as_owner().await?;
    Ok((world, service, role))
}

async fn in_switch() -> Outcome<(World, World, String, Fleet)> {
    let (world, service, role) = ordinary(20).await?;
    let a = service.brief("a", to_table(&service.pool)?).await?;
    world.go("switch").await?;
    Ok((world, service, role, a))
}

const DIFFERENT: &str = "select count(*) from orders o full join orders_2 n using (id) \
    where o.id is null or n.id is null or n.status is distinct from lower(trim(o.old_status))";

async fn number(pool: &PgPool, query: &str) -> Outcome<i64> {
    Ok(sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(pool).await?)
}

/// The guard trigger writes the new table with the rights of the service's role.
#[tokio::test]
async fn a_policy_that_hides_new_rows_loses_no_external_write() -> Outcome {
    let (world, _service, _, _a) = in_switch().await?;
    world
        .external(
            "alter table orders_2 enable row level security, force row level security; \
        create policy odd on orders_2 using (id > 10)",
        )
        .await?;
    world.external("delete from orders where id = 5").await?;
    world.external("update orders set old_status = ' Late ' where id in (3, 12)").await?;
    world.ask("retire").await?;
    world.waits_for("row security filters the rows of \"orders_2\"").await?;
    follow_advice(&world, "row security").await?;
    world.pool.execute("update cutover.repairs set next_try_at = now()").await?;
    world.go("retire").await?;
    assert_eq!(number(&world.pool, DIFFERENT).await?, 0);
    Ok(())
}

#[tokio::test]
async fn rights_that_are_gone_hold_the_move() -> Outcome {
    let (world, _service, role, _a) = in_switch().await?;
    let postgres: String = sqlx::query_scalar("select current_user::text").fetch_one(&world.pool).await?;
    let owner = |table: &str, role: &str| format!("alter table {table} owner to {role}");
    world.external(&owner("orders_2", &postgres)).await?;
    world.external("delete from orders where id = 5").await?;
    world.external(&owner("orders", &postgres)).await?;
    world.external(&format!("grant all on orders to {role}")).await?;
    world.ask("retire").await?;
    let lacks = "which lacks select, insert, update, delete on it";
    world.waits_for(lacks).await?;
    world.waits_for("because it is not the owner").await?;
    world.external(&owner("orders", &role)).await?;
    follow_advice(&world, lacks).await?;
    world.pool.execute("update cutover.repairs set next_try_at = now()").await?;
    world.go("ramp").await?;
    assert_eq!(number(&world.pool, DIFFERENT).await?, 0);
    // New sessions of the role find another table.
    world
        .external(&format!(
            "create schema other; create table other.orders_2 (like public.orders_2 including all); \
             grant all on schema other to {role}; grant all on other.orders_2 to {role}; \
             alter role {role} set search_path = other, public"
        ))
        .await?;
    let sessions = "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1";
    sqlx::query(sessions).bind(&role).execute(&world.pool).await?;
    world.ask("switch").await?;
    world.waits_for("is another one for the service than public.orders_2").await?;
    follow_advice(&world, "is another one").await.err();
    sqlx::query(sessions).bind(&role).execute(&world.pool).await?;
    world.go("switch").await
}

/// A pinned write of the new side reaches no row while a policy hides it, and fails in no way.
#[tokio::test]
async fn a_policy_of_the_past_makes_another_scan_necessary() -> Outcome {
    let (world, service, _, a) = in_switch().await?;
    world.go("ramp").await?;
    for (hide, show) in [
        (
            "alter table orders_2 enable row level security, force row level security",
            "alter table orders_2 disable row level security",
        ),
        ("create rule odd as on update to orders_2 do instead nothing", "drop rule odd on orders_2"),
    ] {
        world.external(hide).await?;
        let seen = "select coalesce(unseen_writes_by, '') like '%row security, was changed' from cutover.guard_looks";
        world
            .until("a look", async || sqlx::query_scalar(seen).fetch_one(&world.pool).await.unwrap_or(false))
            .await?;
        let mut tx = a.migration.begin(&service.pool).await?;
        for update in [
            "update orders set old_status = ' Pinned ' where id = 3",
            "update orders_2 set status = 'pinned' where id = 3",
        ] {
            tx.execute(update).await?;
        }
        tx.commit().await?;
        world.external(show).await?;
        world.ask("switch").await?;
        world.waits_for("id in [3]").await?;
        world.go("expand").await?;
        world.go("ramp").await?;
        assert_eq!(number(&world.pool, DIFFERENT).await?, 0);
        world.pool.execute("update orders set old_status = ' Before ' where id = 3").await?;
        world.pool.execute("update cutover.guard_looks set unseen_writes_by = null").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_guard_trigger_that_was_dropped_holds_the_move() -> Outcome {
    for from in ["verify", "ramp"] {
        let world = World::new(20).await?;
        let _a = world.brief("a", world.describe().build()?).await?;
        world.go("ramp").await?;
        world.go(from).await?;
        let id = world.id().await?;
        world.external(&format!("drop trigger zzz_cutover_{id}_row on orders")).await?;
        world.external("update orders set old_status = ' Late ' where id = 3").await?;
        world.ask("retire").await?;
        let driver_until = "select driver_until::text from cutover.migrations where name = 'status'";
        let asked: String = sqlx::query_scalar(driver_until).fetch_one(&world.pool).await?;
        world.waits_for(&format!("the guard trigger \"zzz_cutover_{id}_row\" of \"orders\" is gone")).await?;
        // The reason is also told at rest. A driver that has gone on for three seconds has decided about the move.
        let later = "select driver_until > $1::timestamptz + interval '3 s' from cutover.migrations where name = 'status'";
        let has_decided = async || {
            let later = sqlx::query_scalar::<_, bool>(later).bind(&asked).fetch_one(&world.pool).await;
            later.unwrap_or(false)
        };
        world.until("the driver's decision", has_decided).await?;
        assert!(world.is_at(from).await?, "{from}");
        world.go("expand").await?;
        world.go("retire").await?;
        assert_eq!(world.row(3).await?.1, Some("late".to_owned()));
    }
    Ok(())
}
