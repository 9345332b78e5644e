//! What is attached to the old side: the new side has it before it is read, or a person has waived it.

use crate::world::{Outcome, World};
use cutover::migration::{
    ColumnMigration, ColumnMigrationBuilder, MigrationSpec, PhaseRange, Plan, TableMigration,
    TableMigrationBuilder,
};
use cutover_testkit::{Folder, Postgres, PostgresOptions, wait_until};
use sqlx::{AssertSqlSafe, Executor};
use std::time::Duration;

fn describe(world: &World) -> ColumnMigrationBuilder {
    ColumnMigration::new(world.pool.clone(), "orders")
        .column("old_status", "new_status", "text")
        .forward("old_status")
        .backward("new_status")
}

/// A role of this test.
async fn role(world: &World) -> Outcome<String> {
    let role = format!("reader_{}", world.url.rsplit('/').next().unwrap_or_default());
    world.pool.execute(AssertSqlSafe(format!("create role {role}"))).await?;
    Ok(role)
}

/// What `ramp` waits for.
/// Runs every statement of a text, each of which stands between backticks.
async fn run_statements(world: &World, text: &str) -> Outcome {
    let verbs = ["alter ", "begin", "comment ", "create ", "grant "];
    let quoted = text.split('`').skip(1).step_by(2);
    for statement in quoted.filter(|text| verbs.iter().any(|verb| text.starts_with(verb))) {
        world
            .pool
            .execute(AssertSqlSafe(statement))
            .await
            .map_err(|error| format!("{statement}: {error}; of {text}"))?;
    }
    Ok(())
}

/// How many of the plan's problems say that something is missing on the new side.
async fn lacking(world: &World, plan: &impl Plan) -> Outcome<usize> {
    let mut connection = world.pool.acquire().await?;
    let found = plan.problems(None, &mut connection).await?;
    Ok(found.iter().filter(|problem| problem.problem.contains("no counterpart")).count())
}

/// The reason to wait names all of these. Its statements work, and `ramp` is reached after them.
async fn ramp_after_statements(world: &World, plan: &impl Plan, names: &[&str]) -> Outcome {
    let reason = world.reason().await?;
    for name in names {
        assert!(reason.contains(name), "{name} is not in {reason}");
    }
    run_statements(world, &reason).await?;
    world.go("ramp").await?;
    assert_eq!(lacking(world, plan).await?, 0);
    Ok(())
}

/// Attaches one of everything to `old_status`.
async fn attach(world: &World) -> Outcome {
    let role = role(world).await?;
    let statement = format!(
        "update orders set old_status = 'LEGACY' || id; \
         create table statuses (status text primary key); insert into statuses select old_status from orders; \
         create index by_old_status on orders (lower(old_status), id desc) where old_status <> 'old_status'; \
         create unique index once on orders (old_status, note) include (id); \
         alter table orders add constraint one_old_status unique (old_status); \
         alter table orders add constraint some_status check (old_status <> ''); \
         alter table orders add constraint known foreign key (old_status) references statuses on update restrict; \
         create table lines (status text references orders (old_status)); insert into lines values ('LEGACY1'); \
         comment on column orders.old_status is 'the customer''s view'; \
         alter table orders alter old_status set statistics 500; \
         alter table orders alter old_status set (n_distinct = -0.5); \
         create statistics together (dependencies) on old_status, note from orders; \
         grant select (old_status), update (old_status) on orders to {role}"
    );
    world.pool.execute(AssertSqlSafe(statement)).await?;
    Ok(())
}

const NAMES: [&str; 10] = [
    "\"by_old_status\"",
    "\"once\"",
    "\"one_old_status\"",
    "\"some_status\"",
    "\"known\"",
    "\"lines_status_fkey\"",
    "comment",
    "statistics target",
    "\"together\"",
    "privileges",
];

#[tokio::test]
async fn ramp_waits_for_what_the_old_column_has() -> Outcome {
    let world = World::new(5).await?;
    attach(&world).await?;
    let plan = describe(&world).build()?;
    assert_eq!(lacking(&world, &plan).await?, NAMES.len(), "it is listed before `expand`");
    let _a = world.instance("a", Some(plan.clone())).await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("by_old_status").await?;
    ramp_after_statements(&world, &plan, &NAMES).await?;
    Ok(())
}

#[tokio::test]
async fn carried_over_indexes_stay_in_their_tablespace() -> Outcome {
    let place = Folder::new("tablespace")?;
    let server = Postgres::start(PostgresOptions::default()).await?;
    server.own(place.path())?;
    server
        .execute(&format!("create tablespace \"Other.Disk\" location '{}'", place.path().display()))
        .await?;
    let world = World::at(server.create_database("shop").await?, 5).await?;
    world
        .external(
            "create index by_old_status on orders (lower(old_status), id desc) with (fillfactor = 70) \
                 tablespace \"Other.Disk\" where old_status <> ' WHERE '; \
             alter table orders add unique (old_status) using index tablespace \"Other.Disk\"",
        )
        .await?;
    let _a = world.instance("a", Some(describe(&world).carry_over().build()?)).await?;
    world.go("ramp").await?;
    let there = "select count(*) from pg_class c join pg_tablespace t on t.oid = c.reltablespace \
        where c.relname like '%new_status%' and t.spcname = 'Other.Disk'";
    assert_eq!(sqlx::query_scalar::<_, i64>(there).fetch_one(&world.pool).await?, 2);
    Ok(())
}

#[tokio::test]
async fn carry_over_gives_the_new_column_the_same() -> Outcome {
    let world = World::new(5).await?;
    attach(&world).await?;
    let plan = describe(&world).carry_over().build()?;
    let _a = world.instance("a", Some(plan.clone())).await?;
    world.go("ramp").await?;
    assert_eq!(lacking(&world, &plan).await?, 0);
    let refused = world.pool.execute("update orders set old_status = 'LEGACY2' where id = 1").await;
    assert!(refused.is_err(), "the value is not unique");
    let definition: String = sqlx::query_scalar(
        "select pg_get_indexdef('by_new_status'::regclass) || col_description('orders'::regclass, attnum) \
         from pg_attribute where attrelid = 'orders'::regclass and attname = 'new_status'",
    )
    .fetch_one(&world.pool)
    .await?;
    assert!(
        definition.ends_with(
            "(lower(new_status), id DESC) WHERE (new_status <> 'old_status'::text)the customer's view"
        ),
        "{definition}"
    );
    // The end of the old column takes nothing else with it.
    world.go("retire").await?;
    world.pool.execute("drop table lines; drop statistics together; drop index once, by_old_status").await?;
    world.approve().await?;
    world.go("contract").await?;
    wait_until("the old column to be dropped", Duration::from_secs(20), async || {
        match world.has_column("old_status").await {
            false => Ok(true),
            true => Err(world.reason().await.unwrap_or_default()),
        }
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_constraint_that_rows_violate_is_not_carried_over() -> Outcome {
    let world = World::new(5).await?;
    world.pool.execute("alter table orders add constraint loud check (old_status ~ 'LEGACY')").await?;
    let plan = world.describe().carry_over().build()?;
    let a = world.instance("a", Some(plan)).await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("rows of the new side violate it").await?;
    world.pool.execute("update orders set old_status = 'LEGACY 7' where id = 1").await?;
    let names: Vec<String> = sqlx::query_scalar(
        "select conname::text from pg_constraint where contype = 'c' and conrelid = 'orders'::regclass",
    )
    .fetch_all(&world.pool)
    .await?;
    assert_eq!(names, ["loud"]);
    // The next build waives it.
    a.agent.leave().await?;
    let _b = world.instance("b", Some(world.describe().carry_over().without("loud").build()?)).await?;
    world.go("ramp").await?;
    Ok(())
}

#[tokio::test]
async fn an_index_that_is_added_after_the_scan_holds_ramp() -> Outcome {
    let world = World::new(5).await?;
    let _a = world.instance("a", Some(world.plan()?)).await?;
    world.go("verify").await?;
    let scanned = "select count(*) = 1 from cutover.jobs where kind = 'scan' and finished_at is not null";
    world
        .until("the scan", async || sqlx::query_scalar(scanned).fetch_one(&world.pool).await.unwrap_or(false))
        .await?;
    world.pool.execute("create index late on orders (old_status)").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.ask("ramp").await?;
    world.waits_for("\"late\"").await?;
    world.pool.execute("drop index late").await?;
    world.go("ramp").await?;
    Ok(())
}

#[tokio::test]
async fn a_foreign_key_added_after_expand_is_named_before_a_move() -> Outcome {
    let world = World::new(5).await?;
    let _a = world.instance("a", Some(world.plan()?)).await?;
    world.go("backfill").await?;
    world.filled().await?;
    world
        .pool
        .execute(
            "create table statuses (status text primary key); insert into statuses select old_status from orders; \
             alter table orders add constraint late foreign key (old_status) references statuses on delete set null",
        )
        .await?;
    world.ask("verify").await?;
    world.waits_for("constraint \"late\"").await?;
    run_statements(&world, &world.reason().await?).await?;
    world.go("verify").await?;
    Ok(())
}

#[tokio::test]
async fn a_publication_and_the_replica_identity_keep_the_new_column() -> Outcome {
    let world = World::new(5).await?;
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(&world.pool)
        .await?;
    world
        .pool
        .execute(
            "alter table orders alter old_status set default 'NEW', alter old_status set not null; \
             create unique index identity on orders (old_status, id); \
             alter table orders replica identity using index identity",
        )
        .await?;
    if version >= 150_000 {
        world
            .pool
            .execute("create publication some_orders for table orders (id, old_status) where (id > 0)")
            .await?;
    }
    let plan = describe(&world).carry_over().build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("alter table \"orders\" replica identity default").await?;
    if version >= 150_000 {
        world.waits_for("column list of publication").await?;
    }
    let text = world.reason().await?;
    run_statements(&world, &text).await?;
    world.go("ramp").await?;
    if version >= 150_000 {
        let published: String = sqlx::query_scalar(
            "select attnames::text || rowfilter from pg_publication_tables where pubname = 'some_orders'",
        )
        .fetch_one(&world.pool)
        .await?;
        assert_eq!(published, "{id,old_status,new_status}(id > 0)");
    }
    Ok(())
}

fn tables(world: &World) -> TableMigrationBuilder {
    TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint generated always as identity primary key, note text, status text)")
        .same("note")
        .column("status", "lower(old_status)")
        .column_back("old_status", "upper(status)")
}

async fn attach_to_table(world: &World) -> Outcome {
    let role = role(world).await?;
    let statement = format!(
        "update orders set note = 'n' || id; \
         create index orders_by_note on orders (note); create index by_status on orders (old_status); \
         alter table orders add constraint one_note unique (note), add constraint some_note check (note <> 'x'); \
         alter table orders add parent bigint references orders; \
         create table lines (id bigint references orders on delete cascade); insert into lines values (1); \
         comment on table orders is 'orders'; comment on column orders.note is 'note'; \
         grant select, insert on orders to {role}; grant update (note) on orders to {role}"
    );
    world.pool.execute(AssertSqlSafe(statement)).await?;
    Ok(())
}

/// Those for which no statement can be derived are waived.
fn waived(builder: TableMigrationBuilder) -> TableMigrationBuilder {
    builder.without("by_status").without("orders_parent_fkey")
}

#[tokio::test]
async fn ramp_waits_for_what_the_old_table_has() -> Outcome {
    let world = World::new(5).await?;
    attach_to_table(&world).await?;
    let plan = tables(&world).build()?;
    assert_eq!(lacking(&world, &plan).await?, 9, "it is listed before `expand`");
    let plan = waived(tables(&world)).build()?;
    let _a = world.instance_of("a", plan.clone()).await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("orders_by_note").await?;
    let names = [
        "orders_id_seq",
        "one_note",
        "some_note",
        "lines_id_fkey",
        "comment",
        "privileges",
        "update for reader",
    ];
    ramp_after_statements(&world, &plan, &names).await?;
    Ok(())
}

#[tokio::test]
async fn carry_over_gives_the_new_table_the_same() -> Outcome {
    let world = World::new(5).await?;
    attach_to_table(&world).await?;
    let plan = waived(tables(&world)).carry_over().build()?;
    let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(plan.clone());
    let _a = world.join(vec![spec], "a", cutover::fleet::FleetOptions::default()).await?;
    world.go("ramp").await?;
    assert_eq!(lacking(&world, &plan).await?, 0);
    let id = async |table: &str| -> Outcome<i64> {
        let insert = format!("insert into {table} (note) values (random()::text) returning id");
        Ok(sqlx::query_scalar(AssertSqlSafe(insert)).fetch_one(&world.pool).await?)
    };
    let first = id("orders").await?;
    world.go("retire").await?;
    assert!(id("orders_2").await? > first, "the new table gives a value that the old one has given");
    // The sequence stays when the old table goes, and so do its values.
    world.pool.execute("alter table lines drop constraint lines_id_fkey").await?;
    world.approve().await?;
    world.go("contract").await?;
    wait_until("the old table to be dropped", Duration::from_secs(30), async || {
        sqlx::query_scalar("select to_regclass('orders') is null").fetch_one(&world.pool).await
    })
    .await?;
    assert_eq!(id("orders_2").await?, first + 2);
    Ok(())
}
