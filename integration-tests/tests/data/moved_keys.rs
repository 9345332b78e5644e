//! Rows whose key changes while they are copied: none is left behind the place that the copy has reached.

use crate::world::{Fleet, Outcome, World};
use cutover::migration::{BatchOptions, ColumnMigration, ColumnMigrationBuilder, TableMigration, map_each};
use sqlx::{Connection, Executor, FromRow, PgConnection};

const ROWS: i64 = 60;

/// The copy stops at this row until the session rolls back.
const STOP: &str = "begin; select from orders where id = 35 for update";

async fn world() -> Outcome<World> {
    let world = World::new(ROWS).await?;
    world.pool.execute("alter table orders alter id drop identity").await?;
    Ok(world)
}

/// Copies ten rows at a time, in the order of their keys.
fn describe(world: &World) -> ColumnMigrationBuilder {
    let batches = BatchOptions { min_rows: 10, max_rows: 10, ranges: 1, ..BatchOptions::default() };
    world.describe().batches(batches)
}

async fn stop(world: &World) -> Outcome<PgConnection> {
    let mut session = PgConnection::connect(&world.url).await?;
    session.execute(STOP).await?;
    Ok(session)
}

async fn count(world: &World, query: &'static str) -> Outcome<i64> {
    Ok(sqlx::query_scalar(query).fetch_one(&world.pool).await?)
}

async fn until_copied(world: &World, query: &'static str) -> Outcome {
    Ok(world.until("three batches", async || count(world, query).await.is_ok_and(|rows| rows == 30)).await?)
}

/// An external writer and a pinned one each give a row that is not copied yet a key before all others.
async fn move_two_rows(world: &World, a: &Fleet, [external, pinned]: [&'static str; 2]) -> Outcome {
    world.pool.execute(external).await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute(pinned).await?;
    tx.commit().await?;
    Ok(())
}

async fn move_during_the_copy(world: &World, plan: ColumnMigration) -> Outcome<Fleet> {
    let a = world.brief("a", plan).await?;
    world.go("expand").await?;
    let mut session = stop(world).await?;
    world.ask("backfill").await?;
    until_copied(world, "select count(*) from orders where new_status is not null").await?;
    let moves = ["update orders set id = -1 where id = 50", "update orders set id = -2 where id = 51"];
    move_two_rows(world, &a, moves).await?;
    session.execute("rollback").await?;
    world.filled().await?;
    Ok(a)
}

const NOT_COPIED: &str =
    "select count(*) from orders where new_status is distinct from lower(trim(old_status))";

#[tokio::test]
async fn a_row_that_moves_behind_the_copy_is_copied() -> Outcome {
    let world = world().await?;
    let _a = move_during_the_copy(&world, describe(&world).build()?).await?;
    assert_eq!(count(&world, NOT_COPIED).await?, 0);
    assert_eq!(count(&world, "select count(*) from orders where id < 0").await?, 2);
    Ok(())
}

#[derive(FromRow)]
struct Row {
    old_status: Option<String>,
}

#[tokio::test]
async fn with_a_rust_mapping_a_row_that_moves_is_repaired() -> Outcome {
    let world = world().await?;
    let lower = map_each(|row: Row| Ok::<_, String>(row.old_status.map(|text| text.trim().to_lowercase())));
    let _a = move_during_the_copy(&world, describe(&world).forward_rows(lower).build()?).await?;
    world.go("verify").await?;
    world.until("the repair", async || count(&world, NOT_COPIED).await.is_ok_and(|rows| rows == 0)).await?;
    world.go("ramp:50").await
}

#[tokio::test]
async fn a_row_that_moves_behind_the_copy_back_is_copied() -> Outcome {
    let world = world().await?;
    let a = world.instance("a", Some(describe(&world).build()?)).await?;
    world.go("retire").await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute("update orders set new_status = 'late' || id").await?;
    tx.commit().await?;
    let mut session = stop(&world).await?;
    world.go("switch").await?;
    until_copied(&world, "select count(*) from orders where old_status like 'LATE%'").await?;
    let moves = ["update orders set id = -1 where id = 50", "update orders set id = -2 where id = 51"];
    move_two_rows(&world, &a, moves).await?;
    session.execute("rollback").await?;
    world.go("ramp:50").await?;
    let not_copied = "select count(*) from orders where old_status is distinct from upper(new_status)";
    assert_eq!(count(&world, not_copied).await?, 0);
    Ok(())
}

/// A key that keeps its value moves no row, so no row is mapped and no external write is counted.
#[tokio::test]
async fn an_update_that_repeats_the_key_is_no_external_write() -> Outcome {
    let world = world().await?;
    let _a = world.instance("a", Some(describe(&world).build()?)).await?;
    world.go("verify").await?;
    world.pool.execute("update orders set id = id, note = 'n'").await?;
    let seen = "select (select count(*) from cutover.external_write_events) + (select count(*) from cutover.external_writes)";
    assert_eq!(count(&world, seen).await?, 0);
    Ok(())
}

/// The row itself is not part of the old side, so its key may change and it may be deleted in every phase.
#[tokio::test]
async fn the_row_of_an_own_table_follows_its_row_in_every_phase() -> Outcome {
    for refers in ["", "references users on delete cascade on update cascade"] {
        let world = World::new(0).await?;
        world
            .external(
                "create table users (id bigint primary key, name text, bio text); \
                 insert into users select g, 'n' || g, case when g < 20 then 'b' || g end from generate_series(1, 30) g",
            )
            .await?;
        let plan = TableMigration::new(world.pool.clone(), "users", "profiles")
            .create(&format!("create table profiles (id bigint primary key {refers}, bio text)"))
            .only_columns()
            .same("bio")
            .build()?;
        let warnings = world.problems(&plan).await?;
        assert_eq!(warnings.iter().any(|one| one.problem.contains("leaves it behind")), refers.is_empty());
        let a = world.brief("a", plan).await?;
        for (number, phase) in [(1, "ramp"), (2, "switch"), (3, "retire")] {
            world.go(phase).await?;
            if phase == "retire" {
                // What the old side holds of these rows is outdated.
                let mut tx = a.migration.begin(&world.pool).await?;
                tx.execute(
                    "insert into profiles values (25, 'late'); update profiles set bio = 'b3!' where id = 3",
                )
                .await?;
                tx.commit().await?;
            }
            for id in [number, 20 + number] {
                world.external(&format!("update users set id = {id} + 100 where id = {id}")).await?;
            }
            world.external(&format!("delete from users where id = 1{number}")).await?;
        }
        world.external("update users set id = 125 where id = 25").await?;
        let refused = world.external("update users set id = 126, bio = 'no' where id = 26").await;
        assert!(refused.is_err(), "the old side was written");
        let orphans =
            "select count(*) from profiles p where not exists (select from users u where u.id = p.id)";
        assert_eq!(sqlx::query_scalar::<_, i64>(orphans).fetch_one(&world.pool).await?, 0, "{refers}");
        let moved = "select string_agg(id || bio, ' ' order by id) from profiles where id > 100";
        let moved: String = sqlx::query_scalar(moved).fetch_one(&world.pool).await?;
        assert_eq!(moved, "101b1 102b2 103b3! 125late", "{refers}");
    }
    Ok(())
}
