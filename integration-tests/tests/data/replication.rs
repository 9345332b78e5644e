//! Logical replication of a table that migrates: what it needs of the table, and what it writes.

use cutover::migration::{Plan, PlanProblem, SchemaChange, TableMigration, WiderKey};
use cutover_testkit::{Postgres, PostgresOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::world::{Outcome, World};

/// The statement between the first backquotes.
fn statement(problem: &PlanProblem) -> Outcome<String> {
    Ok(problem.remedy.split('`').nth(1).ok_or_else(|| problem.to_string())?.to_owned())
}

/// Runs the statement of the only refusal, after which there is none.
async fn is_refused_and_corrected(world: &World, plan: &impl Plan, words: &str) -> Outcome {
    let found = world.refusals(plan).await?;
    assert!(found.len() == 1 && found[0].problem.contains(words), "{found:?}");
    world.external(&statement(&found[0])?).await?;
    assert_eq!(world.refusals(plan).await?, []);
    Ok(())
}

/// The server refuses updates of a published table whose rows nothing identifies.
#[tokio::test]
async fn a_table_without_replica_identity_is_refused_before_expand() -> Outcome {
    let world = World::new(3).await?;
    let unique = "alter table orders drop constraint orders_pkey, add constraint once unique (id); \
        create publication everything for all tables";
    world.external(unique).await?;
    let words = "public.orders, which has no replica identity";
    is_refused_and_corrected(&world, &world.describe().build()?, words).await?;
    let _a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("retire").await
}

/// With the column its index would go, and then the server refuses updates.
#[tokio::test]
async fn a_column_of_the_replica_identity_is_not_dropped() -> Outcome {
    let world = World::new(3).await?;
    world
        .external(
            "alter table orders alter old_status set default '', alter old_status set not null; \
             create unique index once on orders (id, old_status); alter table orders replica identity using index once; \
             create publication changed for table orders",
        )
        .await?;
    let plan =
        || SchemaChange::new(world.pool.clone(), "orders").drop_column("old_status").without_read_check();
    is_refused_and_corrected(
        &world,
        &plan().build()?,
        "replica identity of public.orders, which is index once",
    )
    .await?;
    let _a = world.instance_of("a", plan().build()?).await?;
    world.go("switch").await?;
    world.external("alter table orders replica identity using index once").await?;
    world.is_held("retire", "replica identity").await?;
    let reason = world.reason().await?;
    world.external(reason.split('`').find(|part| part.starts_with("alter")).ok_or(reason.clone())?).await?;
    world.go("retire").await?;
    world.external("drop index once").await?;
    world.approve().await?;
    world.go("contract").await?;
    world.ended().await?;
    world.external("update orders set note = 'after'").await
}

/// A partition may have one of its own.
#[tokio::test]
async fn replica_identities_of_partitions_hold_ramp() -> Outcome {
    let world = World::new(0).await?;
    world
        .external(
            "drop table orders; create table orders (id bigint primary key, note text, old_status text not null default '') \
                 partition by range (id); \
             create table orders_low partition of orders for values from (0) to (100); \
             insert into orders select g, 'n', 'LEGACY' || g from generate_series(1, 9) g; \
             create unique index once on orders_low (old_status); \
             alter table orders_low replica identity using index once; create publication changed for table orders",
        )
        .await?;
    let plan = world.describe().without("default").build()?;
    let found = world.problems(&plan).await?;
    assert!(found.iter().any(|one| one.problem.contains("replica identity of orders_low")), "{found:?}");
    let _a = world.instance("a", Some(plan)).await?;
    world.go("verify").await?;
    world.is_held("ramp", "replica identity of orders_low").await?;
    let reason = world.reason().await?;
    world
        .external(
            reason
                .split('`')
                .find(|part| part.starts_with("alter table orders_low"))
                .ok_or(reason.clone())?,
        )
        .await?;
    world.go("retire").await?;
    world.approve().await?;
    world.go("contract").await?;
    world.ended().await?;
    world.external("update orders set note = 'after'").await
}

#[tokio::test]
async fn a_new_table_without_replica_identity_is_refused_before_expand() -> Outcome {
    let world = World::new(3).await?;
    world.external("create publication everything for all tables").await?;
    let table = |create: &str| {
        TableMigration::new(world.pool.clone(), "orders", "orders_2")
            .create(create)
            .column("status", "lower(trim(old_status))")
            .column_back("old_status", "upper(status)")
            .without("orders_id_seq")
            .build()
    };
    let found =
        world.refusals(&table("create table orders_2 (id bigint not null unique, status text)")?).await?;
    assert!(found.len() == 1 && found[0].problem.contains("public.orders_2, which has no"), "{found:?}");
    let with_key = table("create table orders_2 (id bigint primary key, status text)")?;
    assert_eq!(world.refusals(&with_key).await?, []);
    let _a = world.instance_of("a", with_key).await?;
    world.go("verify").await?;
    world.external("alter table orders_2 replica identity nothing").await?;
    world.ask("ramp").await?;
    world.waits_for("publishes updates or deletes of public.orders_2").await?;
    world.external("alter table orders_2 replica identity default").await?;
    world.go("ramp").await
}

#[tokio::test]
async fn a_table_that_refers_to_a_wider_key_needs_a_replica_identity() -> Outcome {
    let world = World::new(1).await?;
    world
        .external(
            "create table parents (id integer primary key); insert into parents values (1); \
             create table children (parent integer references parents); insert into children values (1); \
             create publication filtered for table children",
        )
        .await?;
    let plan = WiderKey::new(world.pool.clone(), "parents", "id").build()?;
    let found = world.refusals(&plan).await?;
    let is_named = |one: &PlanProblem| one.problem.contains("public.children, which has no replica identity");
    let named = found.iter().find(|one| is_named(one)).ok_or(format!("{found:?}"))?;
    world.external(&statement(named)?).await?;
    assert!(!world.refusals(&plan).await?.iter().any(is_named));
    Ok(())
}

/// A row filter on the old column passes no row that is written from `retire` on.
#[tokio::test]
async fn ramp_waits_for_the_row_filter_of_a_publication() -> Outcome {
    let world = World::new(3).await?;
    let has_filters = "select current_setting('server_version_num')::integer >= 150000";
    if !sqlx::query_scalar::<_, bool>(has_filters).fetch_one(&world.pool).await? {
        return Ok(());
    }
    world
        .external(
            "create publication filtered for table orders where (old_status is not null) with (publish = 'insert')",
        )
        .await?;
    let plan = world.describe().build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("no counterpart of row filter").await?;
    let reason = world.reason().await?;
    let correct = reason.split('`').find(|part| part.starts_with("begin")).ok_or(reason.clone())?;
    world.external(correct).await?;
    world.go("retire").await?;
    world.approve().await?;
    world.go("contract").await?;
    world.ended().await
}

/// A filter that is left out would publish rows that were kept back.
#[tokio::test]
async fn a_row_filter_goes_with_the_publication_of_a_table() -> Outcome {
    let world = World::new(3).await?;
    let has_filters = "select current_setting('server_version_num')::integer >= 150000";
    if !sqlx::query_scalar::<_, bool>(has_filters).fetch_one(&world.pool).await? {
        return Ok(());
    }
    let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, status text)")
        .column("status", "lower(trim(old_status))")
        .column_back("old_status", "upper(status)")
        .without("orders_id_seq")
        .build()?;
    for (filter, has_statement) in [("id > 2", true), ("note is null", false)] {
        world
            .external(&format!(
                "drop publication if exists filtered; \
                 create publication filtered for table orders where ({filter}) with (publish = 'insert')"
            ))
            .await?;
        let found = world.problems(&plan).await?;
        let problem =
            found.iter().find(|one| one.problem.contains("\"filtered\"")).ok_or(format!("{found:?}"))?;
        assert_eq!(problem.remedy.contains("\"orders_2\" where ((\"id\" > 2))"), has_statement, "{problem}");
        assert_eq!(problem.remedy.contains("alter publication"), has_statement, "{problem}");
    }
    Ok(())
}

/// A publisher in one database and the table `orders`, which is filled from it, in another one.
struct Subscribed {
    world: World,
    publisher: PgConnection,
    _server: Postgres,
}

async fn subscribed() -> Outcome<Subscribed> {
    let settings = vec![("wal_level".to_owned(), "logical".to_owned())];
    let server = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await?;
    let world = World::at(server.create_database("subscriber").await?, 3).await?;
    let mut publisher = PgConnection::connect(&server.create_database("publisher").await?).await?;
    publisher
        .execute(
            "create table orders (id bigint primary key, note text, old_status text); \
             insert into orders values (101, null, ' A '); create publication orders for table orders",
        )
        .await?;
    // In one server, the subscription would wait for its own transaction.
    publisher.execute("select pg_create_logical_replication_slot('orders', 'pgoutput')").await?;
    let port = server.port();
    world
        .external(&format!(
            "create subscription orders connection 'host=127.0.0.1 port={port} user=postgres dbname=publisher' \
             publication orders with (create_slot = false)"
        ))
        .await?;
    Ok(Subscribed { world, publisher, _server: server })
}

/// It would stop at the first write that is refused.
#[tokio::test]
async fn a_subscription_that_writes_the_old_side_holds_retire() -> Outcome {
    let Subscribed { world, mut publisher, _server } = subscribed().await?;
    let plan = world.describe().build()?;
    let found = world.problems(&plan).await?;
    assert!(
        found.iter().any(|one| one.problem.contains("subscription \"orders\" writes") && !one.is_blocking)
    );
    let _a = world.instance("a", Some(plan)).await?;
    for phase in ["expand", "verify", "ramp", "switch"] {
        world.go(phase).await?;
        let write = format!("update orders set old_status = ' {} ' where id = 101", phase.to_uppercase());
        publisher.execute(AssertSqlSafe(write)).await?;
        let is_there = async || world.row(101).await.is_ok_and(|(_, new)| new.as_deref() == Some(phase));
        world.until(&format!("the row of {phase}"), is_there).await?;
    }
    world.is_held("retire", "subscription \"orders\" writes").await?;
    publisher.execute("update orders set old_status = ' LATE ' where id = 101").await?;
    let is_late = async || world.row(101).await.is_ok_and(|(_, new)| new.as_deref() == Some("late"));
    world.until("the last row", is_late).await?;
    assert!(!world.is_at("retire").await?);
    publisher.execute("alter publication orders drop table orders").await?;
    let reason = world.reason().await?;
    let refresh =
        reason.split('`').find(|part| part.starts_with("alter subscription")).ok_or(reason.clone())?;
    world.external(refresh).await?;
    world.go("retire").await
}

/// The publication may leave the old side out.
#[tokio::test]
async fn a_subscription_can_be_waived() -> Outcome {
    let Subscribed { world, publisher: _publisher, _server } = subscribed().await?;
    let _a = world.instance("a", Some(world.describe().without("orders").build()?)).await?;
    world.go("retire").await
}
