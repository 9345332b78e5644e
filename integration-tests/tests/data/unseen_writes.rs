//! Rows that change without the guard trigger: they hold the way forward until a scan has compared them.

use cutover::migration::TableMigration;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::world::{Fleet, Outcome, World};

const PAST: &str = "rows may have been written past the guard trigger";

/// Enables the guard triggers of all tables.
const ENABLE: &str = "do $$ declare found record; begin \
    for found in select tgrelid::regclass as of, tgname from pg_trigger where tgname like 'zzz_cutover%' loop \
        execute format('alter table %s enable always trigger %I', found.of, found.tgname); end loop; end $$";

async fn external(world: &World, sql: &str) -> Outcome {
    let mut session = PgConnection::connect(&world.url).await?;
    session.execute(AssertSqlSafe(sql)).await.map_err(|error| format!("{sql}: {error}"))?;
    Ok(session.close().await?)
}

/// A partitioned table of the same columns in place of `orders`.
const PARTITIONED: &str = "drop table orders; \
    create table orders (id bigint primary key, note text, old_status text) partition by range (id); \
    create table orders_low partition of orders for values from (0) to (100); \
    insert into orders select g, null, ' LEGACY' || g || ' ' from generate_series(1, 20) g";

async fn in_phase(phase: &str, setup: &'static str) -> Outcome<(World, Fleet)> {
    let world = World::new(20).await?;
    world.pool.execute(setup).await?;
    let a = world.brief("a", world.describe().build()?).await?;
    world.go(phase).await?;
    Ok((world, a))
}

/// The move waits for a scan, which finds the row, and then for its correction.
async fn is_found(world: &World, next: &str, id: i64) -> Outcome {
    world.is_held(next, &format!("id in [{id}]")).await?;
    let correct = format!("update orders set old_status = ' Seen ' where id = {id}");
    external(world, &correct).await?;
    world.go("switch").await?;
    assert_eq!(world.row(id).await?, (Some(" Seen ".to_owned()), Some("seen".to_owned())));
    world.go("retire").await
}

#[tokio::test]
async fn a_guard_that_was_disabled_for_a_moment_holds_a_move() -> Outcome {
    let (world, _a) = in_phase("ramp", "select").await?;
    let sql = format!(
        "begin; alter table orders disable trigger all; update orders set old_status = ' Unseen ' where id = 9; \
         {ENABLE}; commit"
    );
    external(&world, &sql).await?;
    is_found(&world, "switch", 9).await
}

#[tokio::test]
async fn rows_of_an_attached_partition_hold_a_move() -> Outcome {
    let (world, _a) = in_phase("ramp", PARTITIONED).await?;
    let sql = "create table orders_late (like orders); insert into orders_late (id, old_status) values (150, ' L ')";
    external(&world, sql).await?;
    external(&world, "alter table orders attach partition orders_late for values from (100) to (200)")
        .await?;
    is_found(&world, "switch", 150).await
}

/// The catalog's rows about it are as old as those of a partition that was created as one.
#[tokio::test]
async fn rows_of_a_partition_made_in_one_transaction_hold_a_move() -> Outcome {
    for columns in [
        "id bigint not null, note text, old_status text, new_status text",
        "id bigint not null default 150, note text default 'n', old_status text default ' L ', new_status text default 'o'",
    ] {
        let (world, _a) = in_phase("ramp", PARTITIONED).await?;
        let sql = format!(
            "begin; create table orders_late ({columns}); insert into orders_late (id, old_status) values (150, ' L '); \
             alter table orders attach partition orders_late for values from (100) to (200); commit"
        );
        external(&world, &sql).await?;
        is_found(&world, "switch", 150).await?;
    }
    Ok(())
}

#[tokio::test]
async fn rows_of_a_partition_that_was_away_hold_a_move() -> Outcome {
    let (world, _a) = in_phase("ramp", PARTITIONED).await?;
    external(&world, "alter table orders detach partition orders_low").await?;
    external(&world, "update orders_low set old_status = ' Away ' where id = 9").await?;
    external(&world, "alter table orders attach partition orders_low for values from (0) to (100)").await?;
    is_found(&world, "switch", 9).await
}

/// The new table still has the rows of such a partition.
#[tokio::test]
async fn a_partition_that_is_taken_away_holds_the_move_of_a_table() -> Outcome {
    for take in ["drop table orders_low", "alter table orders detach partition orders_low"] {
        let world = World::new(0).await?;
        world.pool.execute(PARTITIONED).await?;
        world.pool.execute("create table orders_rest partition of orders default").await?;
        external(&world, "insert into orders (id, old_status) values (150, ' Stays ')").await?;
        let plan = TableMigration::new(world.pool.clone(), "orders", "orders_2")
            .create("create table orders_2 (id bigint primary key, status text)")
            .column("status", "lower(trim(old_status))")
            .column_back("old_status", "upper(status)")
            .build()?;
        let _a = world.brief("a", plan).await?;
        world.go("ramp").await?;
        external(&world, take).await?;
        world.ask("switch").await?;
        world.waits_for("the new side has rows that the old side does not have").await?;
        world.go("expand").await?;
        world.go("switch").await?;
        let left: Vec<i64> = sqlx::query_scalar("select id from orders_2").fetch_all(&world.pool).await?;
        assert_eq!(left, [150], "{take}");
    }
    Ok(())
}

#[tokio::test]
async fn rewritten_values_hold_a_move() -> Outcome {
    let (world, _a) = in_phase("switch", "select").await?;
    let sql = "alter table orders alter old_status type text using case id when 7 then ' Other ' else old_status end";
    external(&world, sql).await?;
    world.ask("retire").await?;
    world.waits_for(PAST).await?;
    world.go("verify").await?;
    is_found(&world, "ramp", 7).await
}

/// The scan of before does not count.
#[tokio::test]
async fn a_trigger_that_fires_last_makes_a_new_scan_necessary() -> Outcome {
    let (world, _a) = in_phase("verify", "select").await?;
    crate::repairs::scanned(&world).await?;
    let late = "create function late() returns trigger language plpgsql as $$ begin \
            if new.note = 'late' then new.old_status := ' Late '; end if; return new; end $$; \
        create trigger zzzz_late before update on orders for each row execute function late()";
    external(&world, late).await?;
    external(&world, "update orders set note = 'late' where id = 3").await?;
    world.ask("ramp").await?;
    world.waits_for("trigger \"zzzz_late\" of \"orders\" fires after the guard trigger").await?;
    let reason: String = sqlx::query_scalar("select waits_for from cutover.migrations where name = 'status'")
        .fetch_one(&world.pool)
        .await?;
    let statement = reason.split('`').find(|text| text.starts_with("alter trigger")).ok_or(reason.clone())?;
    external(&world, statement).await?;
    world.waits_for("id in [3]").await?;
    external(&world, "update orders set old_status = 'L', note = null where id = 3").await?;
    world.go("ramp").await
}

#[tokio::test]
async fn maintenance_of_a_table_holds_no_move() -> Outcome {
    let (world, _a) = in_phase("ramp", PARTITIONED).await?;
    external(&world, "vacuum full orders").await?;
    external(&world, "alter table orders alter old_status set default 'OLD', alter note set statistics 200")
        .await?;
    external(&world, "create table orders_high partition of orders for values from (100) to (200)").await?;
    external(&world, "insert into orders (id, old_status) values (150, ' High ')").await?;
    let all_with_defaults = "begin; create table orders_top partition of orders \
        (id default 250, note default 'n', old_status default 'o', new_status default 'o') for values from (200) to (300); \
        insert into orders values (250, default, ' Top ', 'top'); commit";
    external(&world, all_with_defaults).await?;
    world.go("switch").await?;
    external(&world, "alter table orders_low set unlogged").await?;
    external(&world, "cluster orders_low using orders_low_pkey").await?;
    external(&world, "alter table orders alter note type varchar(100)").await?;
    external(&world, "alter table orders detach partition orders_high").await?;
    world.go("retire").await
}
