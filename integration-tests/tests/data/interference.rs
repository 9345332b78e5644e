//! Rules and triggers that keep writes from the rows of a table, or from the guard trigger.

use cutover::migration::{ColumnMigration, Plan, TableMigration};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::world::{Outcome, World};

fn columns(world: &World) -> Outcome<ColumnMigration> {
    Ok(world.describe().build()?)
}

fn table(world: &World) -> Outcome<TableMigration> {
    Ok(TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, status text)")
        .column("status", "lower(trim(old_status))")
        .column_back("old_status", "upper(status)")
        .without("orders_id_seq")
        .build()?)
}

/// Makes this, and runs the statement of the only refusal, after which the migration goes through.
async fn is_refused_and_corrected<P: Plan + 'static>(
    make: &'static str,
    words: &str,
    plan: impl Fn(&World) -> Outcome<P>,
) -> Outcome {
    let world = World::new(3).await?;
    world.pool.execute(make).await?;
    let found = world.refusals(&plan(&world)?).await?;
    assert!(found.len() == 1 && found[0].problem.contains(words), "{make}: {found:?}");
    let statement = found[0].remedy.split('`').nth(1).ok_or("no statement")?;
    world.pool.execute(AssertSqlSafe(statement)).await?;
    assert_eq!(world.refusals(&plan(&world)?).await?, [], "{statement}");
    let _a = world.instance_of("a", plan(&world)?).await?;
    world.go("retire").await
}

#[tokio::test]
async fn rules_that_rewrite_writes_are_refused_before_expand() -> Outcome {
    let nothing = "create rule quiet as on update to orders where old.id = 2 do instead nothing";
    is_refused_and_corrected(nothing, "rule \"quiet\" of \"orders\" rewrites every UPDATE", columns).await?;
    let log = "create table log (what text); create rule \"Log it\" as on insert to orders do also insert into log values ('i')";
    is_refused_and_corrected(log, "rule \"Log it\" of \"orders\" rewrites every INSERT", table).await
}

#[tokio::test]
async fn triggers_that_fire_after_the_guard_are_refused() -> Outcome {
    let late = "create function late() returns trigger language plpgsql as $$ begin \
            new.old_status := new.old_status || '!'; return new; end $$; \
        create trigger zzzz_late before insert on orders for each row execute function late()";
    is_refused_and_corrected(
        late,
        "trigger \"zzzz_late\" of \"orders\" fires after the guard trigger",
        columns,
    )
    .await
}

/// It keeps the copy from the rows, so it is named before anything else is.
#[tokio::test]
async fn a_rule_that_is_made_after_expand_holds_the_next_step() -> Outcome {
    let world = World::new(3).await?;
    let _a = world.instance("a", Some(columns(&world)?)).await?;
    world.go("expand").await?;
    world.pool.execute("create rule quiet as on update to orders do instead nothing").await?;
    world.ask("backfill").await?;
    world.waits_for("`alter table \"orders\" disable rule \"quiet\"`").await?;
    world.pool.execute("alter table orders disable rule quiet").await?;
    world.go("retire").await
}

#[tokio::test]
async fn a_trigger_that_keeps_the_copy_from_rows_is_refused() -> Outcome {
    let world = World::new(5).await?;
    world
        .pool
        .execute(
            "create function skip() returns trigger language plpgsql as $$ begin \
                 if new.id = 2 then return null; end if; return new; end $$; \
             create trigger skip before update on orders for each row execute function skip()",
        )
        .await?;
    for plan in [columns(&world)?, world.describe().let_triggers_fire().build()?] {
        let found = world.refusals(&plan).await?;
        assert!(found.len() == 1 && found[0].problem.contains("keep it from 1 of 5 rows"), "{found:?}");
    }
    let plan = world.describe().skip_triggers().build()?;
    assert_eq!(world.refusals(&plan).await?, []);
    let _a = world.instance("a", Some(plan)).await?;
    world.go("switch").await
}

#[tokio::test]
async fn a_view_is_refused_by_its_kind() -> Outcome {
    let world = World::new(1).await?;
    world.pool.execute("alter table orders rename to base; create view orders as select * from base").await?;
    let found = world.refusals(&columns(&world)?).await?;
    assert!(found.len() == 1 && found[0].problem.contains("\"orders\" is a view"), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn a_table_with_another_name_is_named_by_it() -> Outcome {
    let world = World::new(1).await?;
    let _a = world.instance("a", Some(columns(&world)?)).await?;
    world.go("expand").await?;
    world.pool.execute("create schema archive; alter table orders set schema archive").await?;
    world.ask("verify").await?;
    world.waits_for("table \"orders\" is archive.orders now").await?;
    world.pool.execute("alter table archive.orders set schema public").await?;
    world.go("verify").await
}

/// Mappings are tried on temporary tables.
#[tokio::test]
async fn a_role_without_temporary_tables_is_told_what_to_grant() -> Outcome {
    let world = World::new(1).await?;
    world
        .pool
        .execute(
            "create role \"no temp\" login; alter table orders owner to \"no temp\"; \
             do $$ begin execute format('revoke temporary on database %I from public', current_database()); end $$",
        )
        .await?;
    let options = world.url.parse::<PgConnectOptions>()?.username("no temp");
    let pool = PgPool::connect_with(options).await?;
    let plan = ColumnMigration::new(pool, "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(trim(old_status))")
        .backward("upper(new_status)")
        .build()?;
    let found = world.refusals(&plan).await?;
    assert!(found.len() == 1 && found[0].problem.contains("may not create temporary tables"), "{found:?}");
    let grant = found[0].remedy.split('`').nth(1).ok_or("no statement")?;
    world.pool.execute(AssertSqlSafe(grant)).await?;
    assert_eq!(world.refusals(&plan).await?, []);
    Ok(())
}

#[tokio::test]
async fn a_type_that_rewrites_the_table_is_refused() -> Outcome {
    let world = World::new(1).await?;
    world.pool.execute("create domain short as text check (length(value) < 20)").await?;
    let plan = ColumnMigration::new(world.pool.clone(), "orders")
        .column("old_status", "new_status", "short")
        .forward("lower(trim(old_status))")
        .backward("upper(new_status)")
        .build()?;
    let found = world.refusals(&plan).await?;
    assert!(found.len() == 1 && found[0].problem.contains("would rewrite \"orders\""), "{found:?}");
    Ok(())
}
