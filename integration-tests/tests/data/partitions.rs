//! Partitioned tables: indexes, and rows that move from one partition to another.

use cutover::migration::{ColumnMigration, TableMigration};
use sqlx::{AssertSqlSafe, Executor};

use crate::world::{Outcome, World};

const VISITS: &str = "create table visits (region text, id bigint, old_code text default 'OLD', primary key (region, id)) \
        partition by list (region); \
    create table visits_a partition of visits for values in ('a'); \
    create table visits_b partition of visits for values in ('b') partition by hash (id); \
    create table visits_b0 partition of visits_b for values with (modulus 2, remainder 0); \
    create table visits_b1 partition of visits_b for values with (modulus 2, remainder 1); \
    insert into visits select chr(97 + g % 2), g, ' V' || g from generate_series(1, 60) g";

fn describe(world: &World) -> cutover::migration::ColumnMigrationBuilder {
    ColumnMigration::new(world.pool.clone(), "visits")
        .column("old_code", "new_code", "text")
        .forward("lower(trim(old_code))")
        .backward("upper(new_code)")
        .without("default")
}

#[tokio::test]
async fn indexes_are_built_by_partition_and_attached() -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute(VISITS).await?;
    let plan = describe(&world)
        .index("visits_by_code", "(new_code) where new_code <> 'void'")
        .unique_index("visits_once", "(new_code, region, id)")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("expand").await?;
    world.go("ramp").await?;
    let valid = "select count(*) from pg_partition_tree('visits') p join pg_index i on i.indrelid = p.relid \
        where i.indisvalid and pg_get_indexdef(i.indexrelid) like '%new_code%'";
    // The table, the partitioned partition, and three partitions with rows.
    assert_eq!(sqlx::query_scalar::<_, i64>(valid).fetch_one(&world.pool).await?, 2 * 5);
    // A partition that is made later gets its indexes and its trigger from the server.
    world
        .pool
        .execute(
            "create table visits_c partition of visits for values in ('c'); \
             insert into visits values ('c', 1, ' LATE ')",
        )
        .await?;
    assert_eq!(sqlx::query_scalar::<_, i64>(valid).fetch_one(&world.pool).await?, 2 * 6);
    let code = "select new_code from visits where region = 'c'";
    assert_eq!(sqlx::query_scalar::<_, String>(code).fetch_one(&world.pool).await?, "late");
    Ok(())
}

/// The server makes an insert of such an update.
#[tokio::test]
async fn a_row_that_moves_to_another_partition_keeps_its_values() -> Outcome {
    rows_move(VISITS.to_owned()).await
}

#[tokio::test]
async fn a_partition_may_have_the_name_of_its_table() -> Outcome {
    let namesake =
        VISITS.replace("create table visits_a", "create schema archive; create table archive.visits");
    rows_move(namesake).await
}

async fn rows_move(setup: String) -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute(AssertSqlSafe(setup)).await?;
    let _a = world.instance("a", Some(describe(&world).build()?)).await?;
    // A stale new side, and an old side that holds what its default gives.
    world.go("verify").await?;
    world.pool.execute("update visits set old_code = 'STALE' where id <= 20").await?;
    world.go("off").await?;
    world
        .pool
        .execute("alter table visits disable trigger user; update visits set old_code = 'OLD' where id <= 20")
        .await?;
    world.pool.execute("alter table visits enable trigger user").await?;
    for (id, phase) in (1_i64..).zip(["expand", "verify", "ramp", "switch", "retire"]) {
        world.go(phase).await?;
        let row = format!("select old_code, new_code from visits where id = {id}");
        let row = || sqlx::query_as::<_, (Option<String>, Option<String>)>(AssertSqlSafe(row.clone()));
        let before = row().fetch_one(&world.pool).await?;
        let other =
            format!("update visits set region = case region when 'a' then 'b' else 'a' end where id = {id}");
        world.pool.execute(AssertSqlSafe(other)).await?;
        // In `expand` the new side is stale, and a copy might miss the row in its new place.
        let new = if phase == "expand" { Some("old".to_owned()) } else { before.1 };
        assert_eq!(row().fetch_one(&world.pool).await?, (before.0, new), "{phase}");
    }
    // An external insert of such an old value would be refused.
    let moved = "update visits set region = 'b' where id = 30 returning old_code, new_code";
    let row: (String, String) = sqlx::query_as(moved).fetch_one(&world.pool).await?;
    assert_eq!(row, (" V30".to_owned(), "v30".to_owned()));
    Ok(())
}

/// An insert takes the default of the table that it names.
#[tokio::test]
async fn defaults_of_partitions_do_not_hide_what_an_insert_named() -> Outcome {
    let world = World::new(0).await?;
    world.pool.execute(VISITS).await?;
    world
        .pool
        .execute("alter table visits_a alter old_code drop default; alter table visits_b1 alter old_code set default 'B'")
        .await?;
    let _a = world.instance("a", Some(describe(&world).build()?)).await?;
    world.go("verify").await?;
    for (id, (table, region)) in
        (100..).zip([("visits", "a"), ("visits_a", "a"), ("visits", "b"), ("visits_b", "b")])
    {
        let insert = format!("insert into {table} (region, id, new_code) values ('{region}', {id}, 'paid')");
        world.pool.execute(AssertSqlSafe(insert)).await?;
        let row = format!("select old_code, new_code from visits where id = {id}");
        let row: (String, String) = sqlx::query_as(AssertSqlSafe(row)).fetch_one(&world.pool).await?;
        assert_eq!(row, ("PAID".to_owned(), "paid".to_owned()), "{table} {region}");
    }
    Ok(())
}

/// The trigger for `truncate` is not made with a partition.
#[tokio::test]
async fn a_truncate_of_a_newer_partition_needs_another_scan() -> Outcome {
    let world = World::new(0).await?;
    world
        .pool
        .execute(
            "create table parts (region text, id bigint, old_code text, primary key (region, id)) partition by list (region); \
             create table parts_a partition of parts for values in ('a'); insert into parts values ('a', 1, 'A')",
        )
        .await?;
    let plan = TableMigration::new(world.pool.clone(), "parts", "codes")
        .create("create table codes (region text, id bigint, code text, primary key (region, id))")
        .column("code", "lower(old_code)")
        .column_back("old_code", "upper(code)")
        .build()?;
    let _a = world.brief("a", plan).await?;
    world.go("verify").await?;
    world
        .external(
            "create table parts_b partition of parts for values in ('b'); insert into parts values ('b', 2, 'B')",
        )
        .await?;
    world.go("ramp").await?;
    world.external("truncate parts_b").await?;
    world.is_held("switch", "scan").await?;
    assert!(!world.is_at("switch").await?);
    world.external("delete from codes where region = 'b'").await?;
    world.go("switch").await
}
