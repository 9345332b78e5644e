//! Objects of the database that read the old side: from `retire` on they would find nothing of new rows.

use cutover::migration::TableMigration;

use crate::world::{Outcome, World};

/// Each with what is told of it.
const READERS: [(&str, &str); 7] = [
    (
        "alter table orders add column label text generated always as (upper(old_status)) stored",
        "table column public.orders.label",
    ),
    ("create policy odd on orders using (old_status is not null)", "policy odd on public.orders"),
    (
        "create function note_it() returns trigger language plpgsql as 'begin return null; end'; \
         create trigger noted after update of old_status on orders for each row execute function note_it()",
        "trigger noted on public.orders",
    ),
    (
        "create function see_it() returns trigger language plpgsql as 'begin return null; end'; \
         create trigger seen after update on orders for each row \
             when (old.old_status is distinct from new.old_status) execute function see_it()",
        "trigger seen on public.orders",
    ),
    ("create view \"Odd view\" as select old_status from orders", "view public.\"Odd view\""),
    ("create materialized view kept as select old_status from orders", "materialized view public.kept"),
    (
        "create table log (what text); \
         create rule logged as on delete to orders do also insert into log values (old.old_status)",
        "rule logged on public.orders",
    ),
];

/// Every statement that is told works.
#[tokio::test]
async fn what_reads_the_old_column_holds_retire() -> Outcome {
    let world = World::new(3).await?;
    for (make, _) in READERS {
        world.external(make).await?;
    }
    let plan = world.describe().skip_triggers().build()?;
    let found = world.problems(&plan).await?;
    for (_, what) in READERS {
        let is_told =
            found.iter().any(|one| one.problem.starts_with(&format!("{what} reads")) && !one.is_blocking);
        assert!(is_told, "{what}: {found:?}");
    }
    let _a = world.instance("a", Some(plan)).await?;
    world.go("switch").await?;
    world.is_held("retire", "reads the old side").await?;
    assert!(!world.is_at("retire").await?);
    let reason = world.reason().await?;
    for (_, what) in READERS {
        assert!(reason.contains(&format!("{what} reads")), "{what}: {reason}");
    }
    let is_drop = |part: &&str| part.starts_with("drop ") || part.contains(" drop column ");
    for statement in reason.split('`').filter(is_drop) {
        world.external(statement).await?;
    }
    world.go("retire").await
}

#[tokio::test]
async fn what_reads_the_old_side_can_be_waived() -> Outcome {
    let world = World::new(3).await?;
    world.external("create view report as select old_status from orders").await?;
    let _a = world.instance("a", Some(world.describe().without("report").build()?)).await?;
    world.go("retire").await
}

/// A statement of `contract` sees to it.
#[tokio::test]
async fn what_reads_the_old_table_holds_retire() -> Outcome {
    let world = World::new(3).await?;
    world
        .external(
            "create view report as select count(*) from orders; create view other as select id from orders",
        )
        .await?;
    let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table orders_2 (id bigint primary key, status text)")
        .column("status", "lower(trim(old_status))")
        .column_back("old_status", "upper(status)")
        .without("orders_id_seq")
        .contract_sql("drop view other")
        .build()?;
    let found = world.problems(&plan).await?;
    assert_eq!(found.iter().filter(|one| one.problem.contains("reads the old side")).count(), 1, "{found:?}");
    let _a = world.instance_of("a", plan).await?;
    world.go("switch").await?;
    world.ask("retire").await?;
    world.waits_for("view public.report reads the old side").await?;
    world.external("drop view report").await?;
    world.go("retire").await
}
