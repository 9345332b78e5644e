//! Parts of tables: what is refused before `expand`, and what external writes do in each phase.

use cutover::migration::{Plan, TableMigration, TableMigrationBuilder};
use sqlx::{AssertSqlSafe, Executor};

use crate::world::{Outcome, World};

const EVENTS: &str = "create table events (id bigint primary key, kind text not null, at date, body text, \
        shown text generated always as ('<' || body || '>') stored); \
    insert into events (id, kind, at, body) select g, case when g % 2 = 0 then 'audit' else 'other' end, \
        date '2026-01-01' + g, 'b' || g from generate_series(1, 20) g";

const AUDIT: &str = "create table audit_events (id bigint primary key, at date, body text)";

/// Every problem of a plan for `events` and `audit_events`, with whether it blocks.
async fn problems(
    world: &World,
    plan: impl FnOnce(TableMigrationBuilder) -> TableMigrationBuilder,
) -> Outcome<Vec<String>> {
    let plan = plan(TableMigration::new(world.pool.clone(), "events", "audit_events")).build()?;
    let mut connection = world.pool.acquire().await?;
    let found = plan.problems(None, &mut connection).await?;
    Ok(found.iter().map(|problem| format!("{} {problem}", problem.is_blocking)).collect())
}

#[tokio::test]
async fn a_split_that_loses_something_is_refused() -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute(EVENTS).await?;
    let full = |plan: TableMigrationBuilder| {
        plan.create(AUDIT).rows_where("kind = 'audit'").same("body").same("at").column_back("kind", "'audit'")
    };
    assert_eq!(problems(&world, full).await?, [""; 0]);
    // A column that no mapping fills and that the plan does not waive.
    let found = problems(&world, |plan| {
        plan.create(AUDIT).rows_where("kind = 'audit'").same("body").column_back("kind", "'audit'")
    })
    .await?;
    assert!(
        found.len() == 1 && found[0].starts_with("true ") && found[0].contains("`.same(\"at\")`"),
        "{found:?}"
    );
    // A row that comes back does not fulfil the condition.
    let found = problems(&world, |plan| {
        plan.create(AUDIT).rows_where("kind = 'audit'").same("body").same("at").without("kind")
    })
    .await?;
    assert!(
        found.iter().any(|text| text.contains("true ") && text.contains("`.column_back(\"kind\"")),
        "{found:?}"
    );
    let found = problems(&world, |plan| {
        plan.create(AUDIT).rows_where("kind = 'audit'").same("body").same("at").column_back("kind", "'other'")
    })
    .await?;
    assert!(
        found.iter().any(|text| text.contains("true ") && text.contains("10 of 10 sampled rows")),
        "{found:?}"
    );
    // The value is another one when it comes back.
    let found = problems(&world, |plan| {
        plan.create(AUDIT)
            .rows_where("kind = 'audit'")
            .column("body", "left(body, 2)")
            .column_back("body", "body || '!'")
            .same("at")
            .column_back("kind", "'audit'")
    })
    .await?;
    assert!(found.is_empty(), "`left` of the longer text is the same: {found:?}");
    let found = problems(&world, |plan| {
        plan.create(AUDIT)
            .rows_where("kind = 'audit'")
            .column("body", "upper(body)")
            .column_back("body", "body || '!'")
            .same("at")
            .column_back("kind", "'audit'")
    })
    .await?;
    assert!(
        found.iter().any(|text| text.contains("true ") && text.contains("gives another value")),
        "{found:?}"
    );
    for (condition, part) in [("kind = audit", "does not exist"), ("id > random() * 9", "random()")] {
        let found = problems(&world, |plan| full(plan).rows_where(condition)).await?;
        assert!(found.iter().any(|text| text.contains("true ") && text.contains(part)), "{found:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_partitioned_table_needs_a_key_and_partitions() -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute(EVENTS).await?;
    let create = "create table audit_events (id bigint, at date, body text, primary key (id, at)) partition by range (at)";
    let described = |plan: TableMigrationBuilder| plan.create(create).same("body").without("kind");
    let found = problems(&world, |plan| described(plan).same("at")).await?;
    assert!(
        found.iter().any(|text| text.contains("true ") && text.contains("has no partition")),
        "{found:?}"
    );
    let remedy = "create unique index concurrently on \"events\" (\"id\", \"at\")";
    assert!(found.iter().any(|text| text.contains("true ") && text.contains(remedy)), "{found:?}");
    world.pool.execute(remedy).await?;
    world.pool.execute("alter table events alter column at set not null").await?;
    let keyed = |plan: TableMigrationBuilder| {
        described(plan).key("id").key("at").expand_sql(
            "create table audit_1 partition of audit_events for values from ('2026-01-01') to ('2026-01-16')",
        )
    };
    let found = problems(&world, keyed).await?;
    assert!(found.iter().any(|text| text.contains("true ") && text.contains("takes 6 of")), "{found:?}");
    let found = problems(&world, |plan| {
        keyed(plan).expand_sql("create table audit_0 partition of audit_events default")
    })
    .await?;
    assert!(!found.iter().any(|text| text.contains("true ")), "{found:?}");
    Ok(())
}

/// In which phases an external write is refused.
const REFUSED: [&str; 1] = ["retire"];

#[tokio::test]
async fn external_writes_move_rows_into_a_part_and_out_of_it() -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute(EVENTS).await?;
    let plan = TableMigration::new(world.pool.clone(), "events", "audit_events")
        .create(AUDIT)
        .rows_where("kind = 'audit'")
        .same("body")
        .same("at")
        .column_back("kind", "'audit'");
    let _a = world.instance_of("a", plan.build()?).await?;
    let there = "select array_agg(id || coalesce(body, '-') order by id) from audit_events where id between 1 and 5 or id > 90";
    for phase in ["expand", "verify", "ramp:50", "switch", "retire"] {
        world.go(phase).await?;
        let run = async |statement: &str, is_concerned: bool| -> Outcome {
            let done = world.pool.execute(AssertSqlSafe(statement.to_owned())).await;
            let code = done.err().and_then(|error| {
                error.as_database_error().and_then(|one| one.code().map(|code| code.into_owned()))
            });
            let expected = (is_concerned && REFUSED.contains(&phase)).then(|| "ZC003".to_owned());
            assert_eq!(code, expected, "{phase}: {statement}");
            Ok(())
        };
        // The migration does not concern the other rows.
        run("update events set body = body || 'x' where id = 3", false).await?;
        run("insert into events values (90, 'other'); delete from events where id = 90", false).await?;
        for (statement, found) in [
            ("update events set body = 'new' where id = 2", &["2new", "4b4"][..]),
            ("update events set kind = 'audit' where id = 1", &["1b1", "2new", "4b4"]),
            ("update events set kind = 'other' where id in (1, 4)", &["2new"]),
            ("insert into events values (99, 'audit')", &["2new", "99-"]),
            ("update events set id = 98 where id = 99", &["2new", "98-"]),
            ("delete from events where id = 98", &["2new"]),
            (
                "update events set kind = 'audit' where id = 4; update events set body = 'b2' where id = 2",
                &["2b2", "4b4"],
            ),
        ] {
            // Where the insert is refused, there is nothing to change.
            if !(REFUSED.contains(&phase) && statement.contains("id = 9")) {
                run(statement, true).await?;
            }
            if !REFUSED.contains(&phase) && phase != "expand" {
                let there: Vec<String> = sqlx::query_scalar(there).fetch_one(&world.pool).await?;
                assert_eq!(there, found, "{phase}: {statement}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn external_writes_of_other_columns_do_not_concern_a_table_of_its_own() -> Outcome {
    let world = World::new(0).await?;
    world
        .pool
        .execute(
            "create table users (id bigint primary key, name text not null, bio text); \
             insert into users select g, 'n', case when g % 2 = 0 then 'b' || g end from generate_series(1, 20) g",
        )
        .await?;
    let plan = TableMigration::new(world.pool.clone(), "users", "profiles")
        .create("create table profiles (id bigint primary key, bio text)")
        .only_columns()
        .same("bio");
    let _a = world.instance_of("a", plan.build()?).await?;
    let there = "select array_agg(id || bio order by id) from profiles where id < 5 or id > 90";
    for phase in ["expand", "verify", "ramp:50", "switch", "retire"] {
        world.go(phase).await?;
        let run = async |statement: &str, is_refused: bool| -> Outcome {
            let done = world.pool.execute(AssertSqlSafe(statement.to_owned())).await;
            let code = done.err().and_then(|error| {
                error.as_database_error().and_then(|one| one.code().map(|code| code.into_owned()))
            });
            assert_eq!(code, is_refused.then(|| "ZC003".to_owned()), "{phase}: {statement}");
            Ok(())
        };
        let is_retired = phase == "retire";
        // The new side alone holds this.
        if is_retired {
            world.pool.execute("update profiles set bio = 'newer' where id = 2").await?;
        }
        run("update users set name = name || 'x'", false).await?;
        run("insert into users values (90, 'plain'); delete from users where id = 90", false).await?;
        for (statement, found) in [
            ("update users set bio = 'new' where id = 2", &["2new", "4b4"][..]),
            ("update users set bio = 'first' where id = 1", &["1first", "2new", "4b4"]),
            ("update users set bio = null where id in (1, 2)", &["4b4"]),
            ("insert into users values (99, 'n', 'b')", &["4b4", "99b"]),
            ("update users set bio = 'b2' where id = 2", &["2b2", "4b4", "99b"]),
        ] {
            // What sets it to the value that it holds changes nothing.
            let is_change = statement.contains("'new'") || !statement.ends_with("where id = 2");
            run(statement, is_retired && is_change).await?;
            if !is_retired && phase != "expand" {
                let there: Vec<String> = sqlx::query_scalar(there).fetch_one(&world.pool).await?;
                assert_eq!(there, found, "{phase}: {statement}");
            }
        }
        if !is_retired {
            run("delete from users where id = 99", false).await?;
        }
    }
    // A row that is deleted takes its columns with it, wherever they are.
    world.pool.execute("delete from users where id = 2").await?;
    let there: Vec<String> = sqlx::query_scalar(there).fetch_one(&world.pool).await?;
    assert_eq!(there, ["4b4"]);
    Ok(())
}

#[tokio::test]
async fn moved_rows_stay_while_a_foreign_key_would_delete_others() -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute(EVENTS).await?;
    let plan = TableMigration::new(world.pool.clone(), "events", "audit_events")
        .create(AUDIT)
        .rows_where("kind = 'audit'")
        .same("body")
        .same("at")
        .column_back("kind", "'audit'");
    let _a = world.instance_of("a", plan.build()?).await?;
    world.go("retire").await?;
    world
        .pool
        .execute(
            "create table notes (event bigint constraint notes_fkey references events on delete cascade); \
             insert into notes values (2), (3)",
        )
        .await?;
    world.approve().await?;
    world.go("contract").await?;
    world.waits_for("`alter table notes drop constraint notes_fkey`").await?;
    let count = "select count(*) from events where kind = 'audit'";
    assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&world.pool).await?, 10);
    world.pool.execute("alter table notes drop constraint notes_fkey").await?;
    let gone = async || {
        sqlx::query_scalar::<_, i64>(count).fetch_one(&world.pool).await.is_ok_and(|count| count == 0)
    };
    world.until("the moved rows to be deleted", gone).await?;
    let left = "select (select count(*) from events), (select count(*) from audit_events), (select count(*) from notes)";
    assert_eq!(sqlx::query_as::<_, (i64, i64, i64)>(left).fetch_one(&world.pool).await?, (10, 10, 2));
    Ok(())
}
