//! What cannot be attached to the new side, found before `expand`.

use cutover::migration::{ColumnMigration, ColumnMigrationBuilder, Plan, PlanProblem, TableMigration};
use sqlx::{AssertSqlSafe, PgPool};

use crate::world::{Outcome, World};

fn describe(pool: &PgPool, new_type: &str) -> ColumnMigrationBuilder {
    ColumnMigration::new(pool.clone(), "orders").column("old_status", "new_status", new_type)
}

/// The names in these problems' first pair of double quotes.
fn named(problems: &[PlanProblem], words: &str) -> Vec<String> {
    let found = problems.iter().filter(|one| one.problem.contains(words));
    let mut names: Vec<String> =
        found.filter_map(|one| one.problem.split('"').nth(1).map(str::to_owned)).collect();
    names.sort();
    names
}

async fn unfit(world: &World, plan: &impl Plan) -> Outcome<Vec<String>> {
    Ok(named(&world.problems(plan).await?, "cannot be carried over"))
}

/// One of each kind on `old_status`.
const ATTACH: &str = "update orders set old_status = id; \
    create table statuses (status text primary key); insert into statuses select old_status from orders; \
    alter table orders add constraint \"Filled\" check (old_status <> ''), \
        add constraint \"Any\" check (old_status is not null or note is null), \
        add constraint \"One\" unique (old_status), \
        add constraint \"Known\" foreign key (old_status) references statuses on delete restrict, \
        add constraint \"Apart\" exclude using btree (old_status with =); \
    create table lines (status text constraint \"Line\" references orders (old_status)); \
    create index \"Pattern\" on orders (old_status text_pattern_ops); \
    create index \"Lower\" on orders (lower(old_status)); \
    create index \"Part\" on orders (note) where old_status = '1'; \
    create index \"Plain\" on orders (old_status, note); \
    create statistics \"Together\" (dependencies) on old_status, note from orders";

#[tokio::test]
async fn what_does_not_fit_the_new_type_is_named_before_expand() -> Outcome {
    let world = World::new(3).await?;
    world.external(ATTACH).await?;
    let text = describe(&world.pool, "varchar(40)").forward("old_status").backward("new_status");
    assert_eq!(unfit(&world, &text.build()?).await?, Vec::<String>::new());
    let number =
        || describe(&world.pool, "integer").forward("old_status::integer").backward("new_status::text");
    let names = ["Filled", "Known", "Line", "Lower", "Part", "Pattern"];
    assert_eq!(unfit(&world, &number().build()?).await?, names);
    assert_eq!(unfit(&world, &number().carry_over().build()?).await?, names);
    let json = describe(&world.pool, "json").forward("to_json(old_status)").backward("new_status #>> '{}'");
    let names = ["Apart", "Filled", "Known", "Line", "Lower", "One", "Part", "Pattern", "Plain", "Together"];
    assert_eq!(unfit(&world, &json.build()?).await?, names);
    // The library does the rest, and what is named says what to do.
    let named = ["Apart", "Filled", "Known", "Line", "Lower", "Part", "Pattern"];
    let waived = named.iter().fold(number().carry_over(), |plan, name| plan.without(name)).build()?;
    assert_eq!(unfit(&world, &waived).await?, Vec::<String>::new());
    let a = world.instance("a", Some(number().build()?)).await?;
    world.go("verify").await?;
    world.is_held("ramp", "operator does not exist").await?;
    let reason = world.reason().await?;
    assert!(!reason.contains("alter table \"orders\" add constraint \"Filled_new_status\""), "{reason}");
    a.agent.leave().await?;
    let _b = world.instance("b", Some(waived)).await?;
    world.go("ramp").await
}

/// Each unique index of a partitioned table has the columns of its partition key.
#[tokio::test]
async fn what_a_partitioned_table_refuses_is_named_before_expand() -> Outcome {
    let world = World::new(3).await?;
    world
        .external(
            "create unique index \"One\" on orders (old_status); create index \"Plain\" on orders (note)",
        )
        .await?;
    let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create(
            "create table orders_2 (id bigint primary key, note text, status text) partition by range (id)",
        )
        .expand_sql("create table orders_2_all partition of orders_2 default")
        .same("note")
        .column("status", "old_status")
        .column_back("old_status", "status")
        .without("orders_id_seq")
        .carry_over()
        .build()?;
    assert_eq!(unfit(&world, &plan).await?, ["One"]);
    Ok(())
}

#[tokio::test]
async fn what_mapped_rows_violate_is_named_before_expand() -> Outcome {
    let world = World::new(4).await?;
    world
        .external(
            "update orders set old_status = case id when 1 then 'A' when 2 then 'a' when 3 then 'B' end; \
             create table statuses (status text primary key); \
             insert into statuses select old_status from orders where id < 4; \
             alter table orders add constraint \"Loud\" check (old_status ~ '^[A-Za-z]'), \
                 add constraint \"Upper\" check (old_status in ('A', 'a', 'B')), \
                 add constraint \"One\" unique (old_status), \
                 add constraint \"Known\" foreign key (old_status) references statuses",
        )
        .await?;
    let plan = |forward: &str| {
        describe(&world.pool, "text")
            .forward(forward)
            .backward("upper(new_status)")
            .index("by_status", "(new_status)")
            .unique_index("one_status", "(new_status)")
            .not_null()
            .carry_over()
    };
    let violated = async |plan: &ColumnMigration| -> Outcome<Vec<String>> {
        let found = world.problems(plan).await?;
        assert!(found.iter().all(|one| !one.is_blocking), "{found:?}");
        Ok(named(&found, "sampled rows").into_iter().filter(|name| name != "orders").collect())
    };
    let folds = plan("lower(old_status)").build()?;
    assert_eq!(violated(&folds).await?, ["Known", "One", "Upper", "one_status"]);
    let found = world.problems(&folds).await?;
    assert!(found.iter().any(|one| one.problem.contains("mapped to a null")), "{found:?}");
    let keeps = plan("coalesce(old_status, 'B ')").build()?;
    assert_eq!(violated(&keeps).await?, ["Known", "Upper"]);
    let keeps = plan("old_status").build()?;
    assert_eq!(violated(&keeps).await?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn what_the_new_table_refuses_is_named_before_expand() -> Outcome {
    let world = World::new(4).await?;
    world
        .external(
            "update orders set old_status = case id when 1 then 'A' when 2 then 'a' when 3 then '' end; \
             create table statuses (status text primary key); insert into statuses values ('a')",
        )
        .await?;
    let plan = |column: &str| {
        TableMigration::new(world.pool.clone(), "orders", "orders_2")
            .create(&format!("create table orders_2 (id bigint primary key, status text {column})"))
            .column("status", "lower(old_status)")
            .column_back("old_status", "upper(status)")
            .without("orders_id_seq")
            .build()
    };
    for (column, words) in [
        (
            "constraint filled check (status <> '')",
            "1 of 4 sampled rows of \"orders\", for example id = 3 (check \"filled\" refuses it)",
        ),
        ("unique", "for example id = 2 (a unique index refuses it)"),
        ("not null", "for example id = 4 (SQLSTATE 23502)"),
        ("constraint known references statuses", "sampled rows violate constraint \"known\""),
    ] {
        let found = world.problems(&plan(column)?).await?;
        assert!(found.iter().any(|one| one.problem.contains(words)), "{column}: {found:?}");
    }
    let found = world.problems(&plan("check (status is not null or id > 0)")?).await?;
    assert!(!found.iter().any(|one| one.problem.contains("refuses it")), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn an_index_whose_name_is_in_use_is_refused_before_expand() -> Outcome {
    let world = World::new(3).await?;
    world.external("create view by_status as select 1; create index by_note on orders (note)").await?;
    let plan = |name: &str| {
        let plan = describe(&world.pool, "text").forward("old_status").backward("new_status");
        plan.index(name, "(new_status)").build()
    };
    let found = world.refusals(&plan("by_status")?).await?;
    assert!(found.len() == 1 && found[0].problem.contains("because by_status has its name"), "{found:?}");
    assert!(found[0].remedy.contains("by_status_2"), "{found:?}");
    assert_eq!(world.refusals(&plan("by_status_2")?).await?, []);
    Ok(())
}

#[tokio::test]
async fn a_statement_that_the_server_cannot_read_is_named_before_expand() -> Outcome {
    let world = World::new(3).await?;
    let plan = |statement: &str| {
        let plan = describe(&world.pool, "text").forward("old_status").backward("new_status");
        // Without the linter nothing else reads them.
        plan.contract_sql(statement).allow("syntax-error").build()
    };
    let named = async |statement: &str| -> Outcome<bool> {
        let found = world.problems(&plan(statement)?).await?;
        Ok(found.iter().any(|one| one.problem.contains("cannot read")))
    };
    for statement in ["drop vieww x", "alter table orders alter column note", "grant select orders to public"]
    {
        assert!(named(statement).await?, "{statement}");
    }
    for statement in [
        "drop view if exists x -- old",
        "drop view if exists x; drop view if exists y;",
        "create or replace function f() returns int language plpgsql as $$ begin return 1; end $$",
        "create rule r as on insert to orders do also insert into log values (new.id)",
        "do $$ begin perform 1; end $$",
        "comment on table orders is 'it''s; new'",
        "with x as (select 1) insert into log select * from x",
        "set local lock_timeout = '1s'",
        "call f()",
        "create trigger t before update on orders for each row when (new.note is null) execute function f()",
    ] {
        assert!(!named(statement).await?, "{statement}");
    }
    Ok(())
}

/// With a default, an insert may leave the old column out.
#[tokio::test]
async fn a_not_null_that_would_be_lost_is_named_before_expand() -> Outcome {
    let world = World::new(3).await?;
    world
        .external("alter table orders alter old_status set not null, alter old_status set default 'new'")
        .await?;
    let plan = || describe(&world.pool, "text").forward("old_status").backward("new_status");
    let is_named = async |plan: ColumnMigration| -> Outcome<bool> {
        let found = world.problems(&plan).await?;
        Ok(found.iter().any(|one| one.problem.contains("is NOT NULL, and the new side would not be")))
    };
    assert!(is_named(plan().build()?).await?);
    assert!(!is_named(plan().not_null().build()?).await?);
    assert!(!is_named(plan().without("not null").build()?).await?);
    Ok(())
}

/// The service may write nulls from `ramp` on.
#[tokio::test]
async fn nulls_hold_retire_if_the_column_is_to_become_not_null() -> Outcome {
    let world = World::new(3).await?;
    let plan =
        describe(&world.pool, "text").forward("old_status").backward("new_status").not_null().build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("switch").await?;
    world.external("update orders set new_status = null where id = 2").await?;
    world.is_held("retire", "which is to become NOT NULL").await?;
    world.external("update orders set new_status = 'given' where new_status is null").await?;
    world.go("retire").await?;
    world.approve().await?;
    world.go("contract").await?;
    world.ended().await
}

/// It owns its tables, but not the schema.
#[tokio::test]
async fn a_right_that_is_needed_in_verify_is_named_before_expand() -> Outcome {
    let admin = World::new(3).await?;
    admin
        .external(
            "update orders set old_status = id; create table statuses (status text primary key); \
             insert into statuses select old_status from orders; \
             alter table orders add constraint \"Known\" foreign key (old_status) references statuses, \
                 add constraint \"One\" unique (old_status); \
             create table lines (status text constraint \"Line\" references orders (old_status))",
        )
        .await?;
    let (world, role) = admin.as_owner().await?;
    admin.external(&format!("revoke create on schema public from {role}, public")).await?;
    let plan = || {
        describe(&world.pool, "text")
            .forward("old_status")
            .backward("new_status")
            .index("by_status", "(new_status)")
    };
    let lacks = async |plan: &ColumnMigration| -> Outcome<Vec<PlanProblem>> {
        let found = world.problems(plan).await?;
        Ok(found.into_iter().filter(|one| one.problem.starts_with("role ")).collect())
    };
    assert_eq!(lacks(&plan().build()?).await?.len(), 1);
    let plan = plan().carry_over().build()?;
    let found = lacks(&plan).await?;
    assert_eq!(found.len(), 3, "{found:?}");
    let _a = world.instance("a", Some(plan.clone())).await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("permission denied for schema public").await?;
    for problem in &found {
        let grant = problem.remedy.split('`').nth(1).ok_or(problem.remedy.clone())?;
        sqlx::query(AssertSqlSafe(grant))
            .execute(&admin.pool)
            .await
            .map_err(|error| format!("{grant}: {error}"))?;
    }
    assert_eq!(lacks(&plan).await?, []);
    world.go("ramp").await
}
