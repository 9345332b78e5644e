//! Changes without data of tables that a plain description does not expect.

use std::time::Duration;

use cutover::fleet::FleetOptions;
use cutover::migration::{MigrationSpec, PhaseRange, Plan, SchemaChange, SchemaChangeBuilder};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::world::{Outcome, World};

type Describe = fn(SchemaChangeBuilder) -> SchemaChangeBuilder;

/// What is made first, the change, what the plan says about it, and whether that holds `expand`.
const FOUND: [(&str, Describe, &str, bool); 14] = [
    (
        "",
        |change| change.check("some", "exists (select)"),
        "check \"some\" (exists (select)) cannot be added",
        true,
    ),
    (
        "",
        |change| change.check("many", "count(*) > 0"),
        "check \"many\" (count(*) > 0) cannot be added",
        true,
    ),
    ("", |change| change.check("text", "note"), "check \"text\" (note) cannot be added", true),
    ("", |change| change.check("several", "generate_series(1, 2) > 1"), "cannot be added", true),
    (
        "create table shop.later (id bigint unique deferrable)",
        |change| change.foreign_key("to_later", &["total"], "shop.later (id)"),
        "cannot be added",
        true,
    ),
    (
        "create table shop.words (id text primary key)",
        |change| change.foreign_key("to_word", &["total"], "shop.words (id)"),
        "cannot be",
        true,
    ),
    (
        "create table shop.secrets (id bigint primary key); revoke all on shop.secrets from odd_person; \
         alter table shop.secrets owner to odd_other",
        |change| change.foreign_key("to_secret", &["total"], "shop.secrets (id)"),
        "may not refer to",
        true,
    ),
    (
        "create table shop.orders_1 partition of shop.orders for values from (0) to (100)",
        |change| change.drop_column("id"),
        "partition",
        true,
    ),
    (
        "create sequence shop.numbers; alter sequence shop.numbers owner to odd_person; \
         alter sequence shop.numbers owned by shop.orders.total; \
         create table shop.others (id bigint default nextval('shop.numbers'))",
        |change| change.drop_column("total"),
        "default value for column id of table shop.others",
        false,
    ),
    (
        "create unique index by_three on shop.orders (id, total, note)",
        |change| change.drop_column("total"),
        "index shop.by_three",
        false,
    ),
    (
        "alter table shop.orders add constraint one check (total > 0 or note <> '')",
        |change| change.drop_column("total"),
        "constraint one on table shop.orders",
        false,
    ),
    (
        "create index positive on shop.orders (note) where total > 0",
        |change| change.drop_column("total"),
        "index shop.positive",
        false,
    ),
    (
        "create view shop.seen as select note from shop.orders",
        |change| change.drop_table(),
        "view shop.seen",
        false,
    ),
    (
        "create unique index by_id on shop.orders (id); \
         create table shop.lines (id bigint references shop.orders (id))",
        |change| change.drop_index("by_id"),
        "constraint lines_id_fkey on table shop.lines",
        false,
    ),
];

#[tokio::test]
async fn what_the_server_would_refuse_later_is_found_first() -> Outcome {
    let world = World::new(1).await?;
    let roles = "do $$ begin create role odd_person; exception when duplicate_object then null; end $$; \
        do $$ begin create role odd_other; exception when duplicate_object then null; end $$; \
        grant odd_other to odd_person; revoke odd_other from odd_person";
    world.pool.execute(roles).await?;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .after_connect(|connection, _| {
            Box::pin(async move { connection.execute("set role odd_person").await.map(|_| ()) })
        })
        .connect(&world.url)
        .await?;
    let mut ledger = PgConnection::connect(&world.url).await?;
    let mut wrong = Vec::new();
    for (make, describe, part, is_blocking) in FOUND {
        let partitioned = if make.contains("partition of") { "partition by range (id)" } else { "" };
        let create = format!(
            "drop schema if exists shop cascade; create schema shop; grant all on schema shop to odd_person, odd_other; \
             create table shop.orders (id bigint, total bigint, note text) {partitioned}; \
             alter table shop.orders owner to odd_person; {make}; \
             do $$ declare t text; begin for t in select oid::regclass from pg_class where relnamespace = 'shop'::regnamespace \
                 and relkind in ('r', 'p') and pg_get_userbyid(relowner) = session_user loop \
                 execute format('alter table %s owner to odd_person', t); end loop; end $$"
        );
        world.pool.execute(AssertSqlSafe(create)).await?;
        let change = SchemaChange::new(pool.clone(), "shop.orders").without_read_check();
        let plan = match describe(change).build() {
            Ok(plan) => plan,
            Err(error) => {
                if !error.to_string().contains(part) {
                    wrong.push(format!("{part}: build says {error}"));
                }
                continue;
            }
        };
        let found = plan.problems(None, &mut ledger).await?;
        let text = |problem: &cutover::migration::PlanProblem| problem.to_string();
        if !found.iter().any(|one| text(one).contains(part) && one.is_blocking == is_blocking) {
            wrong.push(format!("{part}: {:?}", found.iter().map(text).collect::<Vec<_>>()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[tokio::test]
async fn a_check_that_fails_refuses_no_write_before_switch() -> Outcome {
    let world = World::new(3).await?;
    world.pool.execute("alter table orders add total integer default 1").await?;
    let plan = SchemaChange::new(world.pool.clone(), "orders")
        .quiet_period(Duration::from_millis(200))
        .check("large", "100 / total > 1")
        .build()?;
    let spec = MigrationSpec::new("status", PhaseRange::FULL)
        .plan(plan)
        .external_write_quiet_period(Duration::from_millis(200));
    let _a = world.join(vec![spec], "a", FleetOptions::default()).await?;
    world.go("expand").await?;
    world.pool.execute("update orders set total = 0 where id = 1").await?;
    let seen = "select exists (select from cutover.external_writes) \
        or exists (select from cutover.external_write_events)";
    assert!(sqlx::query_scalar::<_, bool>(seen).fetch_one(&world.pool).await?);
    world.ask("verify").await?;
    world.waits_for("check \"large\"").await?;
    world.pool.execute("update orders set total = 2").await?;
    world.go("retire").await?;
    Ok(())
}

#[tokio::test]
async fn a_table_is_followed_when_its_name_changes() -> Outcome {
    let world = World::new(3).await?;
    world.pool.execute("create index by_note on orders (note)").await?;
    let plan = SchemaChange::new(world.pool.clone(), "orders")
        .quiet_period(Duration::from_millis(200))
        .without_read_check()
        .unique("by_status", &["old_status"])
        .drop_index("by_note")
        .build()?;
    let _a = world.instance_of("a", plan).await?;
    world.go("expand").await?;
    world.pool.execute("create schema \"my.shop\"; alter table orders rename to \"Or.ders\"").await?;
    world.pool.execute("alter table \"Or.ders\" set schema \"my.shop\"").await?;
    for phase in ["retire", "ramp:50", "retire"] {
        world.go(phase).await?;
        let there = "select to_regclass('\"my.shop\".by_status') is not null";
        let there: bool = sqlx::query_scalar(there).fetch_one(&world.pool).await?;
        assert_eq!(there, phase == "retire", "{phase}");
    }
    world.approve().await?;
    world.go("contract").await?;
    let gone = "select to_regclass('\"my.shop\".by_note') is null and contype = 'u' from pg_constraint \
        where conname = 'by_status'";
    world
        .until("the end", async || sqlx::query_scalar(gone).fetch_one(&world.pool).await.unwrap_or(false))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_table_that_refers_to_itself_gets_its_constraints() -> Outcome {
    let world = World::new(3).await?;
    world.pool.execute("alter table orders add above bigint, add total integer").await?;
    let plan = SchemaChange::new(world.pool.clone(), "orders")
        .quiet_period(Duration::from_millis(200))
        .foreign_key("orders_above", &["above"], "orders (id)")
        .check("orders_total", "total > 0 -- as agreed")
        .build()?;
    let _a = world.instance_of("a", plan).await?;
    world.go("retire").await?;
    let valid = "select count(*) from pg_constraint where conname in ('orders_above', 'orders_total') and convalidated";
    assert_eq!(sqlx::query_scalar::<_, i64>(valid).fetch_one(&world.pool).await?, 2);
    Ok(())
}
