//! What a plan finds in the database before `expand`: each problem with its remedy, and all of them at once.

use crate::world::{Fleet, Outcome, World};
use cutover::ledger::Ledger;
use cutover::migration::admin::{incompatible_builds, plan};
use cutover::migration::{
    ColumnMigration, ColumnMigrationBuilder, MigrationSpec, Phase, PhaseRange, Plan, PlanProblem, Task,
    map_each,
};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor, PgPool};

#[derive(sqlx::FromRow)]
struct Old {
    old_status: Option<String>,
}

#[derive(sqlx::FromRow)]
struct New {
    new_status: Option<String>,
}

fn describe(pool: &PgPool) -> ColumnMigrationBuilder {
    ColumnMigration::new(pool.clone(), "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(trim(old_status))")
        .backward("upper(new_status)")
}

/// Runs the first statement of a remedy, which stands between backticks.
async fn apply(world: &World, remedy: &str) -> Outcome {
    let statement = remedy.split('`').nth(1).ok_or("no statement")?;
    world.pool.execute(AssertSqlSafe(statement)).await.map_err(|error| format!("{statement}: {error}"))?;
    Ok(())
}

/// The setup gives one blocking problem with these words; its remedy, when it is run, leaves none.
async fn remedied(setup: &str, words: &[&str]) -> Outcome {
    let world = World::new(3).await?;
    world.pool.execute(AssertSqlSafe(setup)).await?;
    let plan = describe(&world.pool).build()?;
    let found = world.refusals(&plan).await?;
    assert_eq!(found.len(), 1, "{setup}: {found:?}");
    for word in words {
        assert!(found[0].problem.contains(word), "{setup}: {word} is not in {}", found[0]);
    }
    apply(&world, &found[0].remedy).await?;
    let left = world.problems(&plan).await?;
    assert!(left.iter().all(|problem| !problem.is_blocking), "{setup}: {left:?}");
    Ok(())
}

#[tokio::test]
async fn a_table_as_the_plan_assumes_it_has_no_problem() -> Outcome {
    let world = World::new(3).await?;
    assert_eq!(world.problems(&describe(&world.pool).build()?).await?, []);
    // Another required column, a foreign key and a unique value are no obstacle to an insert without the old column.
    world
        .pool
        .execute(
            "create table customers (id bigint primary key); insert into customers values (1); \
             alter table orders add customer bigint references customers, add code text not null default 'x', \
                 add unique (id, code); \
             update orders set customer = 1",
        )
        .await?;
    assert_eq!(world.problems(&describe(&world.pool).build()?).await?, []);
    assert!(!world.has_column("new_status").await, "a trial left something behind");
    Ok(())
}

#[tokio::test]
async fn rows_that_others_are_writing_are_no_problem() -> Outcome {
    let world = World::new(3).await?;
    let plan = describe(&world.pool).build()?;
    for write in ["delete from orders where id = 2", "update orders set note = 'x' where id = 2"] {
        let mut job = world.pool.begin().await?;
        job.execute(write).await?;
        assert_eq!(world.problems(&plan).await?, [], "{write}");
        job.rollback().await?;
    }
    Ok(())
}

/// It may be gone at the next look, and no remedy for the table would help.
#[tokio::test]
async fn an_error_that_may_pass_is_no_problem_of_the_table() -> Outcome {
    let world = World::new(3).await?;
    world
        .pool
        .execute(
            "create function wait() returns trigger language plpgsql as $$ begin \
                 if new.old_status is null then raise exception 'no lock' using errcode = 'lock_not_available'; end if; \
                 return new; end $$; \
             create trigger wait before insert on orders for each row execute function wait()",
        )
        .await?;
    let error = world.problems(&describe(&world.pool).build()?).await.expect_err("the look fails");
    assert!(error.to_string().contains("no lock"), "{error}");
    Ok(())
}

#[tokio::test]
async fn whatever_requires_the_old_column_is_found_by_trying() -> Outcome {
    for (setup, words) in [
        ("alter table orders alter old_status set not null", &["NOT NULL"][..]),
        ("alter table orders add constraint given check (old_status is not null)", &["given", "23514"]),
        ("alter table orders add constraint given check (num_nonnulls(old_status) = 1)", &["given"]),
        (
            "create domain status as text not null; alter table orders alter old_status type status",
            &["domain status"],
        ),
    ] {
        remedied(setup, words).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_trigger_that_requires_the_old_column_is_named() -> Outcome {
    let world = World::new(3).await?;
    world
        .pool
        .execute(
            "create function required() returns trigger language plpgsql as $$ begin \
                 if new.old_status is null then raise exception 'a status is required'; end if; return new; end $$; \
             create trigger required before insert on orders for each row execute function required()",
        )
        .await?;
    let found = world.problems(&describe(&world.pool).build()?).await?;
    assert!(
        found.iter().any(|one| one.is_blocking && one.problem.contains("a status is required")),
        "{found:?}"
    );
    let depends = found.iter().find(|one| !one.is_blocking).ok_or("no warning")?;
    assert!(depends.problem.contains("trigger \"required\" of \"orders\" may depend on column"), "{depends}");
    Ok(())
}

#[tokio::test]
async fn generated_old_columns_and_foreign_key_actions_are_refused() -> Outcome {
    remedied(
        "alter table orders drop old_status; \
         alter table orders add old_status text generated always as (upper(note)) stored",
        &["is generated"],
    )
    .await?;
    remedied(
        "create table statuses (name text primary key); insert into statuses select old_status from orders; \
         alter table orders add constraint listed foreign key (old_status) references statuses on delete set null",
        &["constraint \"listed\"", "ON DELETE SET NULL"],
    )
    .await
}

#[tokio::test]
async fn a_new_column_that_others_made_is_refused() -> Outcome {
    let world = World::new(3).await?;
    let plan = || ColumnMigration::new(world.pool.clone(), "orders").forward("old_status").backward("note");
    let found = world.problems(&plan().column("old_status", "note", "text").build()?).await?;
    assert!(found[0].problem.contains("\"note\" of \"orders\" exists and was not added"), "{found:?}");
    let taken = plan().column("old_status", "note", "text").use_existing_column().build()?;
    assert_eq!(world.problems(&taken).await?, []);
    let other = plan().column("old_status", "note", "character varying(20)").use_existing_column().build()?;
    let found = world.problems(&other).await?;
    assert!(found[0].problem.contains("type text instead of character varying(20)"), "{found:?}");
    // What the migration made itself is its own.
    let a = world.instance("a", None).await?;
    let own = describe(&world.pool).without_guard_trigger().build()?;
    own.run(Task::Expand, &a.migration).await?;
    own.run(Task::Expand, &a.migration).await?;
    Ok(())
}

#[tokio::test]
async fn a_table_of_a_type_gets_no_other_column() -> Outcome {
    let setup = "create type shape as (id bigint, note text, old_status text); alter table orders of shape";
    remedied(setup, &["is a table of type shape"]).await
}

/// A trial on another table does not see them.
#[tokio::test]
async fn columns_that_were_dropped_leave_no_place_for_another() -> Outcome {
    let world = World::new(3).await?;
    for change in ["add c{} int", "drop c{}"] {
        let all: Vec<String> = (0..1597).map(|n| change.replace("{}", &n.to_string())).collect();
        world.external(&format!("alter table orders {}", all.join(", "))).await?;
    }
    let refusals = world.refusals(&describe(&world.pool).build()?).await?;
    let [refusal] = &*refusals else { return Err(format!("{refusals:?}").into()) };
    assert!(refusal.problem.contains("has had 1600 columns"), "{refusal:?}");
    Ok(())
}

#[tokio::test]
async fn identity_serial_and_primary_keys_are_refused() -> Outcome {
    let world = World::new(3).await?;
    world.pool.execute("alter table orders add number serial").await?;
    for (old, words) in
        [("id", "part of the primary key"), ("number", "draws from a sequence (orders_number_seq)")]
    {
        world.pool.execute("create unique index if not exists by_number on orders (number)").await?;
        let plan = ColumnMigration::new(world.pool.clone(), "orders")
            .column(old, "big", "bigint")
            .forward(old)
            .backward("big")
            .build()?;
        let found = world.problems(&plan).await?;
        assert!(found.iter().any(|one| one.is_blocking && one.problem.contains(words)), "{old}: {found:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_mapping_that_does_not_follow_from_the_row_is_refused() -> Outcome {
    let world = World::new(3).await?;
    world
        .pool
        .execute(
            "create function tidy(text) returns text language sql as $$ select trim($1) $$; \
             create function tidied(text) returns text immutable language sql as $$ select trim($1) $$",
        )
        .await?;
    for (forward, word) in [
        ("old_status || now()", "now()"),
        ("old_status || random()", "random()"),
        ("old_status || current_date", "current_date"),
        ("(select old_status || clock_timestamp())", "clock_timestamp()"),
        ("tidy(old_status)", "alter function tidy(text) immutable"),
        ("old_status + nothing", "column \"nothing\" does not exist"),
    ] {
        let found = world.problems(&describe(&world.pool).forward(forward).build()?).await?;
        assert_eq!(found.len(), 1, "{forward}: {found:?}");
        assert!(found[0].is_blocking && found[0].to_string().contains(word), "{forward}: {found:?}");
        assert!(!found[0].to_string().contains("at line"), "{found:?}");
    }
    for forward in [
        "tidied(old_status)",
        "to_char(old_status::timestamptz, 'YYYY')",
        "(select max(x) from unnest(array[old_status]) x)",
    ] {
        let found = world.problems(&describe(&world.pool).forward(forward).build()?).await?;
        assert!(found.iter().all(|one| !one.is_blocking), "{forward}: {found:?}");
    }
    Ok(())
}

#[tokio::test]
async fn row_security_of_the_role_is_refused_with_its_policies() -> Outcome {
    let world = World::new(3).await?;
    let role = format!("tenant_{}", std::process::id());
    for statement in [
        format!("create role {role} login"),
        format!("alter table orders owner to {role}"),
        "alter table orders add tenant int, enable row level security, force row level security".into(),
        "create policy by_tenant on orders using (tenant = nullif(current_setting('app.tenant', true), '')::int)".into(),
    ] {
        world.pool.execute(AssertSqlSafe(statement)).await?;
    }
    let url = world.url.replace("postgres@", &format!("{role}@"));
    let pool = PgPoolOptions::new().max_connections(2).connect(&url).await?;
    let plan = describe(&pool).build()?;
    let found = world.problems(&plan).await?;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].problem.contains(&role) && found[0].problem.contains("by_tenant"), "{found:?}");
    apply(&world, &found[0].remedy).await?;
    assert_eq!(world.problems(&plan).await?, []);
    // A role that bypasses it is not concerned.
    assert_eq!(world.problems(&describe(&world.pool).build()?).await?, []);
    Ok(())
}

#[tokio::test]
async fn children_and_partitions_are_named() -> Outcome {
    let world = World::new(3).await?;
    world.pool.execute("create table archive () inherits (orders)").await?;
    let found = world.problems(&describe(&world.pool).build()?).await?;
    assert!(found[0].is_blocking && found[0].problem.contains("archive"), "{found:?}");
    world
        .pool
        .execute(
            "create table visits (id bigint primary key, old_status text) partition by range (id); \
             create table visits_1 partition of visits for values from (0) to (100)",
        )
        .await?;
    let plan = |table: &str| {
        ColumnMigration::new(world.pool.clone(), table)
            .column("old_status", "new_status", "text")
            .forward("old_status")
            .backward("new_status")
    };
    assert_eq!(world.problems(&plan("visits").index("by_new", "(new_status)").build()?).await?, []);
    for wrong in [
        plan("visits").unique_index("by_new", "(new_status)"),
        plan("visits").index("by_new", "(no_such_column)"),
        plan("visits").index("by_new", "using gin (new_status)"),
    ] {
        let found = world.problems(&wrong.build()?).await?;
        assert!(found.iter().any(|one| one.is_blocking), "{found:?}");
    }
    let found = world.problems(&plan("visits_1").build()?).await?;
    assert!(found[0].problem.contains("is a partition or child of visits"), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn a_table_that_two_search_paths_resolve_differently_is_named() -> Outcome {
    let world = World::new(3).await?;
    world.pool.execute("create schema app; create table app.orders (like orders including all)").await?;
    let options =
        world.url.parse::<sqlx::postgres::PgConnectOptions>()?.options([("search_path", "app, public")]);
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await?;
    let found = world.problems(&describe(&pool).build()?).await?;
    assert!(found[0].problem.contains("app.orders for the pool and public.orders"), "{found:?}");
    // The migration follows the pool's table.
    let _a: Fleet = world.instance("a", Some(describe(&pool).build()?)).await?;
    world.go("verify").await?;
    assert!(!world.has_column("new_status").await);
    Ok(())
}

/// Rust and SQL do not trim the same characters, and not every value has an image.
#[tokio::test]
async fn sampled_rows_show_values_that_mappings_lose() -> Outcome {
    let world = World::new(50).await?;
    world
        .pool
        .execute("update orders set old_status = E'\\tsecret' where id = 7; update orders set note = id")
        .await?;
    let plan = describe(&world.pool)
        .forward("old_status")
        .backward_rows(map_each(|row: New| {
            Ok::<_, String>(row.new_status.map(|text| text.trim().to_owned()))
        }))
        .forward_rows(map_each(|row: Old| Ok::<_, String>(row.old_status)))
        .build()?;
    let found = world.problems(&plan).await?;
    let lost = found.iter().find(|one| one.problem.contains("of `backward`")).ok_or("nothing found")?;
    assert!(lost.problem.contains("50 of 50 sampled rows") && !lost.problem.contains("LEGACY"), "{lost}");
    let plan = ColumnMigration::new(world.pool.clone(), "orders")
        .column("note", "number", "smallint")
        .forward("note::smallint")
        .backward("number::text")
        .build()?;
    assert_eq!(world.problems(&plan).await?, []);
    world
        .pool
        .execute(
            "update orders set note = 'secret' where id = 7; update orders set note = '007' where id = 8",
        )
        .await?;
    let found = world.problems(&plan).await?;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0]
            .problem
            .contains("fails for 1 of 50 sampled rows of \"orders\", for example id = 7 (SQLSTATE 22P02)"),
        "{found:?}"
    );
    assert!(!found[0].problem.contains("secret") && !found[0].is_blocking, "{found:?}");
    Ok(())
}

#[tokio::test]
async fn the_steps_ahead_show_what_stands_against_the_plan() -> Outcome {
    let world = World::new(3).await?;
    world
        .pool
        .execute(
            "alter table orders alter old_status set not null; create index by_status on orders (old_status)",
        )
        .await?;
    let ledger = Ledger::open(world.url.parse()?).await?;
    let _a = world.instance("a", Some(describe(&world.pool).build()?)).await?;
    let shown = async || -> Outcome<Vec<PlanProblem>> {
        Ok(plan(&ledger, "status", Phase::Contract).await?.problems)
    };
    world.until("the driver's look", async || shown().await.is_ok_and(|found| !found.is_empty())).await?;
    let found = shown().await?;
    assert!(found.iter().any(|one| one.is_blocking && one.problem.contains("NOT NULL")), "{found:?}");
    assert!(found.iter().any(|one| !one.is_blocking && one.problem.contains("by_status")), "{found:?}");
    assert_eq!(found, world.problems(&describe(&world.pool).build()?).await?);
    Ok(())
}

/// A table or column that has the old side's name later is another one.
#[tokio::test]
async fn the_old_side_is_dropped_once_and_by_its_identity() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.instance("a", Some(describe(&world.pool).build()?)).await?;
    world.go("retire").await?;
    world
        .pool
        .execute("alter table orders rename old_status to legacy; alter table orders add old_status text")
        .await?;
    world.approve().await?;
    world.go("contract").await?;
    world.until("the old column to be dropped", async || !world.has_column("legacy").await).await?;
    world.pool.execute("update orders set old_status = 'kept'").await?;
    world.go("contract").await?;
    assert!(world.has_column("old_status").await);
    Ok(())
}

#[tokio::test]
async fn preflight_reports_what_expand_would_refuse() -> Outcome {
    let world = World::new(3).await?;
    let ledger = Ledger::open(world.url.parse()?).await?;
    let reported = async || -> Outcome<Vec<String>> {
        let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(describe(&world.pool).build()?);
        Ok(incompatible_builds(&ledger, "orders", &[spec]).await?)
    };
    assert_eq!(reported().await?, [""; 0]);
    world.pool.execute("alter table orders alter old_status set not null, add new_status integer").await?;
    let found = reported().await?;
    for words in ["NOT NULL", "integer instead of text", "was not added by this migration"] {
        assert!(found.iter().any(|text| text.contains(words)), "{words}: {found:?}");
    }
    assert!(found.iter().all(|text| text.contains("cannot begin") && text.contains("to fix: ")), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn all_problems_are_refused_together() -> Outcome {
    let world = World::new(3).await?;
    world.pool.execute("alter table orders alter old_status set not null, add new_status integer").await?;
    let a = world.instance("a", None).await?;
    let plan = describe(&world.pool).forward("old_status || now()").build()?;
    let error = plan.run(Task::Expand, &a.migration).await.expect_err("refused").to_string();
    for part in
        ["NOT NULL without a default", "with type integer instead of text", "use_existing_column", "now()"]
    {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    Ok(())
}
