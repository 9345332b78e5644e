//! Tables as production has them: types without `=`, self-references, keys beyond the old type, restricted roles.

use std::time::Duration;

use cutover::migration::{
    BatchOptions, ColumnMigration, ColumnMigrationBuilder, Plan, PlanProblem, TableMigration,
    TableMigrationBuilder, Task, Throttle,
};
use cutover_testkit::{Postgres, PostgresOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::world::{Outcome, World};

/// Runs the statements of a text, which stand between backticks.
async fn run_statements(world: &World, text: &str) -> Outcome {
    for statement in text.split('`').skip(1).step_by(2).filter(|text| !text.starts_with('.')) {
        world
            .pool
            .execute(AssertSqlSafe(statement))
            .await
            .map_err(|error| format!("{statement}: {error}"))?;
    }
    Ok(())
}

fn describe(pool: &PgPool) -> ColumnMigrationBuilder {
    ColumnMigration::new(pool.clone(), "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(trim(old_status))")
        .backward("upper(new_status)")
}

/// Such a type has no `=`, or one that is weaker than identity.
#[tokio::test]
async fn columns_of_types_without_equality_migrate() -> Outcome {
    for (sql_type, first, second, third) in [
        ("json", "{\"a\": 1}", "{\"a\":1}", "[]"),
        ("point", "(1,2)", "(1,2.0000000001)", "(0,0)"),
        ("xml", "<a/>", "<a></a>", "<b/>"),
    ] {
        let world = World::new(0).await?;
        let supported = format!("select '{first}'::{sql_type}");
        if world.pool.execute(AssertSqlSafe(supported)).await.is_err() {
            eprintln!("skipped: this server has no {sql_type}");
            continue;
        }
        let make = format!(
            "create table visits (id bigint primary key, old_place {sql_type}); \
             insert into visits select g, '{first}' from generate_series(1, 40) g"
        );
        world.pool.execute(AssertSqlSafe(make)).await?;
        let plan = ColumnMigration::new(world.pool.clone(), "visits")
            .column("old_place", "new_place", sql_type)
            .forward("old_place")
            .backward("new_place")
            .build()?;
        assert_eq!(world.refusals(&plan).await?, [], "{sql_type}");
        let _a = world.instance("a", Some(plan)).await?;
        let set = async |column: &str, value: &str, ids: &str| {
            let update = format!("update visits set {column} = '{value}' where id in ({ids})");
            world.pool.execute(AssertSqlSafe(update)).await
        };
        let differing = async || -> Outcome<i64> {
            let query = "select count(*) from visits where old_place::text is distinct from new_place::text";
            Ok(sqlx::query_scalar(query).fetch_one(&world.pool).await?)
        };
        world.go("expand").await?;
        set("old_place", second, "1").await?;
        world.go("verify").await?;
        set("old_place", third, "2").await?;
        world.go("switch").await?;
        assert_eq!(differing().await?, 0, "{sql_type}");
        set("new_place", second, "3").await?;
        world.go("ramp:50").await?;
        assert_eq!(differing().await?, 0, "{sql_type}");
        world.go("retire").await?;
        world.approve().await?;
        world.go("contract").await?;
        let kept: Vec<String> =
            sqlx::query_scalar("select new_place::text from visits where id < 5 order by id")
                .fetch_all(&world.pool)
                .await?;
        assert_eq!(kept, [second, third, second, first], "{sql_type}");
    }
    Ok(())
}

fn to_table(world: &World, create: &str) -> TableMigrationBuilder {
    TableMigration::new(world.pool.clone(), "visits", "visits_2")
        .create(create)
        .column("code", "lower(old_code)")
        .column_back("old_code", "upper(code)")
}

/// Rows are copied in the order of the key, so a row may come before the one that it refers to.
#[tokio::test]
async fn a_self_reference_of_the_new_table_is_found_first() -> Outcome {
    let world = World::new(0).await?;
    world
        .pool
        .execute(
            "create table visits (id bigint primary key, parent bigint references visits, old_code text); \
             insert into visits select g, null, 'V' || g from generate_series(1, 100) g; \
             update visits set parent = 101 - id where id < 50",
        )
        .await?;
    let create =
        "create table visits_2 (id bigint primary key, parent bigint references visits_2, code text)";
    // The statement of the plan would make it.
    let plan = to_table(&world, create).same("parent").build()?;
    let found = world.refusals(&plan).await?;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].problem.contains("\"visits_2_parent_fkey\"") && found[0].remedy.contains("`.create(…)`")
    );
    // It is there already.
    world.pool.execute(create).await?;
    let batches = BatchOptions { min_rows: 10, max_rows: 10, ..BatchOptions::default() };
    let plan = to_table(&world, create).same("parent").batches(batches).build()?;
    let found = world.refusals(&plan).await?;
    assert_eq!(found.len(), 1, "{found:?}");
    let statements = found[0].remedy.split('`').skip(1).step_by(2);
    let statements: Vec<&str> = statements.filter(|text| text.contains(' ')).collect();
    let [drop, add, validate] = *statements else { return Err(found[0].remedy.clone().into()) };
    world.pool.execute(AssertSqlSafe(drop)).await?;
    assert_eq!(world.refusals(&plan).await?, []);
    let _a = world.instance_of("a", plan).await?;
    world.go("verify").await?;
    world.pool.execute(AssertSqlSafe(add)).await?;
    world.pool.execute(AssertSqlSafe(validate)).await?;
    world.go("switch").await?;
    let parents: i64 =
        sqlx::query_scalar("select count(parent) from visits_2").fetch_one(&world.pool).await?;
    assert_eq!(parents, 49);
    Ok(())
}

/// The new key holds more than the old one. Such a row has no way back.
#[tokio::test]
async fn a_key_beyond_the_old_type_is_named_on_the_way_back() -> Outcome {
    let world = World::new(0).await?;
    world
        .pool
        .execute(
            "create table visits (id integer primary key, old_code text); \
             insert into visits select g, 'V' || g from generate_series(1, 100) g",
        )
        .await?;
    let plan = to_table(&world, "create table visits_2 (id bigint primary key, code text)").build()?;
    let _a = world.instance_of("a", plan).await?;
    world.go("retire").await?;
    world.pool.execute("insert into visits_2 values (3000000000, 'far')").await?;
    world.ask("ramp:50").await?;
    world.waits_for("3000000000").await?;
    let rollbacks = async || -> Outcome<i64> {
        let query = "select xact_rollback from pg_stat_database where datname = current_database()";
        Ok(sqlx::query_scalar(query).fetch_one(&world.pool).await?)
    };
    let (before, began) = (rollbacks().await?, std::time::Instant::now());
    let reason = "select waits_for from cutover.migrations where name = 'status'";
    while began.elapsed() < Duration::from_secs(4) {
        let text: Option<String> = sqlx::query_scalar(reason).fetch_one(&world.pool).await?;
        let text = text.unwrap_or_default();
        assert!(text.contains("3000000000") && !text.contains("at line"), "{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let failed = rollbacks().await? - before;
    assert!(failed < 40, "{failed} transactions were rolled back in 4 s");
    world.pool.execute("delete from visits_2 where id = 3000000000").await?;
    world.go("ramp:50").await?;
    Ok(())
}

/// A consumer of logical replication has no pages to read from, so it is no standby.
#[tokio::test]
async fn a_logical_consumer_far_behind_holds_nothing() -> Outcome {
    let settings = vec![("wal_level".to_owned(), "logical".to_owned())];
    let primary = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await?;
    let world = World::at(primary.create_database("shop").await?, 1_000).await?;
    world.pool.execute("create publication everything for all tables").await?;
    let subscriber = Postgres::start(PostgresOptions::default()).await?;
    subscriber.execute("create table orders (id bigint primary key, note text, old_status text)").await?;
    let subscribe = format!(
        "create subscription everything connection 'host=127.0.0.1 port={} user=postgres dbname=shop' \
         publication everything with (copy_data = false)",
        primary.port()
    );
    subscriber.execute(&subscribe).await?;
    let behind = "select coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)), -1)::bigint \
        from pg_stat_replication where state = 'streaming'";
    let lag = async || sqlx::query_scalar::<_, i64>(behind).fetch_one(&world.pool).await.unwrap_or(-1);
    world.until("the consumer to stream", async || lag().await >= 0).await?;
    subscriber.pause()?;
    let noise = "create table noise (id int primary key, x text); \
        insert into noise select g, repeat('x', 1000) from generate_series(1, 4000) g";
    world.pool.execute(noise).await?;
    assert!(lag().await > 1 << 20, "the consumer has kept up");
    let throttle = Throttle::off().standby_lag(Some(1 << 20));
    let _a = world.instance("a", Some(world.describe().throttle(throttle).build()?)).await?;
    world.go("switch").await?;
    assert!(lag().await > 1 << 20, "the consumer has caught up");
    subscriber.resume()?;
    Ok(())
}

/// The driver's text ends in a line of the server's source code.
#[tokio::test]
async fn errors_of_the_server_have_sqlstate_and_hint() -> Outcome {
    let world = World::new(3).await?;
    let misspelt = describe(&world.pool).forward("lower(old_statuss)").build()?;
    let found = world.refusals(&misspelt).await?;
    assert_eq!(found.len(), 1, "{found:?}");
    let text = found[0].to_string();
    for part in ["SQLSTATE 42703", "hint: ", "old_status"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("at line"), "{text}");
    // Errors that users print themselves.
    let error =
        world.pool.execute("select lower(old_statuss) from orders").await.expect_err("no such column");
    let error = cutover::migration::Error::from(error).to_string();
    assert!(error.contains("SQLSTATE 42703") && !error.contains("at line"), "{error}");
    Ok(())
}

/// A role that may use some columns only cannot use one that is added.
#[tokio::test]
async fn a_role_with_rights_on_columns_is_told_what_to_grant() -> Outcome {
    let world = World::new(3).await?;
    let role = format!("clerk_{}", world.url.rsplit('/').next().unwrap_or_default());
    for statement in [
        format!("create role {role} login"),
        format!("grant select, insert on orders to {role}"),
        format!("grant update (old_status) on orders to {role}"),
    ] {
        world.pool.execute(AssertSqlSafe(statement)).await?;
    }
    let options = world.url.parse::<PgConnectOptions>()?.username(&role);
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await?;
    let plan = describe(&pool).use_existing_column().without_guard_trigger().build()?;
    let lacks = async || -> Outcome<Vec<PlanProblem>> {
        let found = world.refusals(&plan).await?;
        Ok(found.into_iter().filter(|one| one.problem.contains("privilege")).collect())
    };
    let found = lacks().await?;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].problem.contains(&role) && found[0].problem.contains("UPDATE"), "{found:?}");
    // The owner has added the column; a grant on it is enough.
    world.pool.execute("alter table orders add new_status text").await?;
    let found = lacks().await?;
    assert_eq!(found.len(), 1, "{found:?}");
    run_statements(&world, &found[0].remedy).await?;
    assert_eq!(lacks().await?, []);
    let mut write = pool.begin().await?;
    write.execute("update orders set old_status = 'X', new_status = 'x'").await?;
    // The same for two tables.
    world.pool.execute("create table orders_2 (id bigint primary key, status text)").await?;
    let plan = TableMigration::new(pool.clone(), "orders", "orders_2")
        .column("status", "lower(old_status)")
        .column_back("old_status", "upper(status)")
        .without_guard_trigger()
        .build()?;
    let found = world.refusals(&plan).await?;
    let found: Vec<_> = found.iter().filter(|one| one.problem.contains("privilege")).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    for problem in found {
        run_statements(&world, &problem.remedy).await?;
    }
    let found = world.refusals(&plan).await?;
    assert!(found.iter().all(|one| !one.problem.contains("privilege")), "{found:?}");
    Ok(())
}

/// An insert that names neither side relies on it.
#[tokio::test]
async fn a_default_is_carried_over_or_holds_ramp() -> Outcome {
    let carried = [
        ("'PAID '", "lower(trim(old_status))", Some("paid")),
        ("upper('paid')", "old_status", Some("PAID")),
        // It depends on another column, or gives another value each time: no statement can be derived.
        ("'PAID'", "old_status || coalesce(note, '')", None),
        ("clock_timestamp()::text", "lower(old_status)", None),
    ];
    for (default, forward, expected) in carried {
        let world = World::new(3).await?;
        let set = format!("alter table orders alter old_status set default {default}");
        world.pool.execute(AssertSqlSafe(set)).await?;
        let plan = describe(&world.pool).forward(forward).backward("new_status");
        let found = world.problems(&plan.clone().build()?).await?;
        assert!(found.iter().any(|one| one.problem.contains("the default of column")), "{found:?}");
        let plan = if expected.is_some() { plan.carry_over() } else { plan };
        let _a = world.instance("a", Some(plan.build()?)).await?;
        let Some(expected) = expected else {
            world.go("verify").await?;
            world.ask("ramp").await?;
            world.waits_for("the default of column \"old_status\"").await?;
            world.pool.execute("alter table orders alter new_status set default 'own'").await?;
            world.go("ramp").await?;
            continue;
        };
        world.go("retire").await?;
        world.pool.execute("alter table orders alter old_status drop default").await?;
        let query = "insert into orders (note) values ('n') returning new_status";
        let value: Option<String> = sqlx::query_scalar(query).fetch_one(&world.pool).await?;
        assert_eq!(value.as_deref(), Some(expected), "{default}");
    }
    Ok(())
}

#[tokio::test]
async fn two_expands_of_one_column_make_one() -> Outcome {
    let world = World::new(3).await?;
    let a = world.instance("a", None).await?;
    let plans: Vec<_> = (0..4).map(|_| describe(&world.pool).build()).collect::<Result<_, _>>()?;
    let run = plans.iter().map(|plan| plan.run(Task::Expand, &a.migration));
    for outcome in futures_util::future::join_all(run).await {
        outcome?;
    }
    let made: (i64, i64) = sqlx::query_as(
        "select (select count(*) from pg_attribute where attrelid = 'orders'::regclass and attname = 'new_status'), \
             (select count(*) from pg_trigger where tgname like 'zzz_cutover%')",
    )
    .fetch_one(&world.pool)
    .await?;
    // Triggers for rows, for keys, and for the commit.
    assert_eq!(made.0, 1);
    let again = made.1;
    plans[0].run(Task::Expand, &a.migration).await?;
    let triggers = "select count(*) from pg_trigger where tgname like 'zzz_cutover%'";
    assert_eq!(sqlx::query_scalar::<_, i64>(triggers).fetch_one(&world.pool).await?, again);
    assert_eq!(again, 3);
    Ok(())
}
