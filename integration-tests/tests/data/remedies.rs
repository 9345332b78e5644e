//! The statement of each refusal runs, and then the migration goes on.

use cutover::migration::{
    ColumnMigration, ColumnMigrationBuilder, Plan, SchemaChange, TableMigration, WiderKey,
};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::world::{Outcome, World};

/// Statements before the plan is looked at, and words of one of its refusals.
type Case = (&'static str, &'static str);

fn statements(remedy: &str) -> Vec<&str> {
    remedy.split('`').skip(1).step_by(2).filter(|text| text.contains(' ')).collect()
}

/// Runs the first statement of each refusal until nothing is refused.
async fn remedied<P: Plan + 'static>(cases: &[Case], make: impl Fn(&PgPool) -> Outcome<P>) -> Outcome {
    for (setup, words) in cases {
        let world = World::new(3).await?;
        world.pool.execute(*setup).await.map_err(|error| format!("{setup}: {error}"))?;
        remedied_in(&world, &world.pool, (setup, words), &make).await?;
        let _a = world.instance_of("a", make(&world.pool)?).await?;
        world.go("verify").await.map_err(|error| format!("{setup}: {error}"))?;
    }
    Ok(())
}

/// The same with the plan of this pool.
async fn remedied_in<P: Plan>(
    world: &World,
    pool: &PgPool,
    (setup, words): Case,
    make: impl Fn(&PgPool) -> Outcome<P>,
) -> Outcome {
    let plan = make(pool)?;
    let mut found = world.refusals(&plan).await?;
    assert!(found.iter().any(|one| one.problem.contains(words)), "{setup}: {found:?}");
    // One remedy may solve several, and one problem may hide another.
    for _ in 0..4 {
        let Some(first) = found.first() else { break };
        let statement = *statements(&first.remedy).first().ok_or_else(|| first.to_string())?;
        let ran = world.pool.execute(AssertSqlSafe(statement)).await;
        ran.map_err(|error| format!("{setup}: {statement}: {error}"))?;
        found = world.refusals(&plan).await?;
    }
    assert_eq!(found, [], "{setup}");
    Ok(())
}

fn describe(pool: &PgPool, new_type: &str) -> ColumnMigrationBuilder {
    ColumnMigration::new(pool.clone(), "orders")
        .column("old_status", "new_status", new_type)
        .forward("lower(trim(old_status))")
        .backward("upper(new_status)")
}

/// `orders` in two partitions, the second of which was a table of its own.
macro_rules! partitioned {
    ($constraint:literal) => {
        concat!(
            "drop table orders; \
             create table orders (id bigint primary key, note text, old_status text) partition by range (id); \
             create table orders_1 partition of orders for values from (0) to (10); \
             create schema \"Odd\"; create table \"Odd\".\"Late\" (id bigint primary key, note text, old_status text",
            $constraint,
            "); alter table orders attach partition \"Odd\".\"Late\" for values from (10) to (20); \
             insert into orders select g, 'n', ' S' || g from generate_series(1, 15) g"
        )
    };
}

#[tokio::test]
async fn the_statement_of_each_refusal_of_columns_works() -> Outcome {
    let cases = [
        ("alter table orders alter old_status set not null", "NOT NULL"),
        (
            "alter table orders add constraint given check (length(old_status) > 0 and old_status is not null)",
            "given",
        ),
        // The first row of the table does not show it.
        (
            "update orders set note = 'n' where id = 3; \
             alter table orders add constraint given check (note is null or old_status is not null)",
            "given",
        ),
        // The server cannot pass over duplicates of such a key.
        (
            "alter table orders add unique (id, note) deferrable, add constraint given check (old_status is not null)",
            "given",
        ),
        (partitioned!(" not null"), "\"old_status\""),
        (partitioned!(" constraint given check (old_status is not null)"), "given"),
        (
            "create domain code as text check (value is not null); alter table orders alter old_status type code",
            "code",
        ),
        ("alter table orders add new_status text", "was not added by this migration"),
        ("alter table orders add new_status integer", "with type integer"),
        ("alter table orders add new_status text generated always as (note) stored", "is generated"),
        ("create table archive () inherits (orders)", "archive"),
        (
            "create table statuses (name text primary key); insert into statuses select old_status from orders; \
             alter table orders add foreign key (old_status) references statuses on update cascade",
            "ON UPDATE CASCADE",
        ),
        (
            "alter table orders drop old_status; \
             alter table orders add old_status text generated always as (note) stored",
            "is generated",
        ),
        ("create rule \"Quiet one\" as on update to orders do instead nothing", "rewrites every UPDATE"),
        ("alter table orders drop constraint orders_pkey", "has no unique index"),
        (
            "create foreign data wrapper nowhere; create server far foreign data wrapper nowhere; \
             create foreign table far (id bigint not null, note text, old_status text) server far; \
             alter foreign table far inherit orders",
            "is a foreign table",
        ),
        (
            "drop table orders; \
             create table orders (id bigint not null, note text, old_status text) partition by range (id); \
             create table orders_1 partition of orders for values from (0) to (10); \
             create unique index on orders_1 (id); \
             create foreign data wrapper nowhere; create server far foreign data wrapper nowhere; \
             create foreign table far partition of orders for values from (10) to (20) server far",
            "is a foreign table",
        ),
    ];
    remedied(&cases, |pool| Ok(describe(pool, "text").build()?)).await
}

#[tokio::test]
async fn the_statement_for_a_virtual_column_works() -> Outcome {
    let query = "select current_setting('server_version_num')::int >= 180000";
    let has_virtual: bool = sqlx::query_scalar(query).fetch_one(&World::new(1).await?.pool).await?;
    let cases: &[Case] = &[
        ("alter table orders add new_status text generated always as (note) virtual", "is generated"),
        (
            "alter table orders drop old_status; \
             alter table orders add old_status text generated always as (note) virtual",
            "is generated",
        ),
    ];
    remedied(if has_virtual { cases } else { &[] }, |pool| Ok(describe(pool, "text").build()?)).await
}

#[tokio::test]
async fn the_statement_of_each_refusal_of_tables_works() -> Outcome {
    let cases = [
        (
            "create table orders_2 (id bigint primary key, status text); insert into orders_2 values (99, 'x')",
            "holds rows",
        ),
        ("create table orders_2 (id bigint not null, status text)", "orders_2"),
        (
            "create table orders_2 (id bigint primary key, status text, other bigint references orders_2)",
            "refers to the table itself",
        ),
        (
            "create table orders_2 (id bigint primary key, status text); \
             create rule quiet as on insert to orders_2 do instead nothing",
            "rewrites every INSERT",
        ),
    ];
    remedied(&cases, |pool| {
        Ok(TableMigration::new(pool.clone(), "orders", "orders_2")
            .create("create table orders_2 (id bigint primary key, status text)")
            .column("status", "lower(trim(old_status))")
            .column_back("old_status", "upper(status)")
            .without("orders_id_seq")
            .build()?)
    })
    .await
}

#[tokio::test]
async fn the_statement_of_each_refusal_of_a_change_works() -> Outcome {
    let no_key = (
        "create table people (id bigint); insert into people select id from orders",
        "has no unique constraint over (id)",
    );
    remedied(&[no_key], |pool| {
        Ok(SchemaChange::new(pool.clone(), "orders").foreign_key("of", &["id"], "people (id)").build()?)
    })
    .await?;
    let identity = (
        "update orders set note = id; alter table orders alter note set not null; create unique index by_note on orders (note); \
         alter table orders replica identity using index by_note",
        "is the replica identity",
    );
    remedied(&[identity], |pool| {
        Ok(SchemaChange::new(pool.clone(), "orders").drop_index("by_note").build()?)
    })
    .await
}

/// Of roles whose names have to be quoted.
#[tokio::test]
async fn the_grant_of_each_refusal_works() -> Outcome {
    for (owns, words) in [(false, "is not the owner"), (true, "row")] {
        let world = World::new(3).await?;
        let database = world.url.rsplit('/').next().unwrap_or_default();
        let [role, owner] = ["role", "owner"].map(|kind| format!("Odd {kind} of {database}"));
        let owned_by = if owns { &role } else { &owner };
        let setup = format!(
            "create role \"{role}\" login; create role \"{owner}\"; \
             grant create on schema public to \"{role}\", \"{owner}\"; \
             alter table orders alter id drop identity, alter id type integer; \
             grant all on orders to \"{role}\"; alter table orders owner to \"{owned_by}\""
        );
        world.pool.execute(AssertSqlSafe(setup)).await?;
        let undo = if owns {
            world
                .pool
                .execute("alter table orders enable row level security, force row level security")
                .await?;
            format!("alter role \"{role}\" nobypassrls")
        } else {
            format!("revoke \"{owner}\" from \"{role}\"")
        };
        let options = world.url.parse::<PgConnectOptions>()?.username(&role);
        let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await?;
        let change = |pool: &PgPool| {
            Ok(SchemaChange::new(pool.clone(), "orders").check("positive", "id > 0").build()?)
        };
        remedied_in(&world, &pool, ("a change", words), change).await?;
        world.pool.execute(AssertSqlSafe(undo)).await?;
        let wider = |pool: &PgPool| Ok(WiderKey::new(pool.clone(), "orders", "id").build()?);
        remedied_in(&world, &pool, ("a wider key", words), wider).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_domain_is_replaced_by_its_type_and_checks() -> Outcome {
    let world = World::new(3).await?;
    world
        .pool
        .execute(
            "create domain word as text default 'none' check (value <> 'VALUE'); \
             create domain short as word check (length(value) < 20)",
        )
        .await?;
    let found = world.refusals(&describe(&world.pool, "short").build()?).await?;
    assert!(found.len() == 1 && found[0].problem.contains("would rewrite \"orders\""), "{found:?}");
    let remedy = &found[0].remedy;
    assert!(remedy.starts_with("describe it with type text"), "{remedy}");
    let told = statements(remedy);
    assert_eq!(told.len(), 3, "{remedy}");
    let plan = told.iter().fold(describe(&world.pool, "text"), |plan, statement| plan.expand_sql(statement));
    let plan = plan.build()?;
    assert_eq!(world.refusals(&plan).await?, []);
    let _a = world.instance("a", Some(plan)).await?;
    world.go("switch").await?;
    for refused in ["VALUE", "a word of more than 20 letters"] {
        let insert = format!("insert into orders (new_status) values ('{refused}')");
        assert!(world.pool.execute(AssertSqlSafe(insert)).await.is_err(), "{refused}");
    }
    let given: String = sqlx::query_scalar("insert into orders (note) values ('n') returning new_status")
        .fetch_one(&world.pool)
        .await?;
    assert_eq!(given, "none");
    Ok(())
}
