//! Guard triggers that others drop or disable while a migration is at rest.

use cutover::migration::{SchemaChange, TableMigration};
use sqlx::Executor;

use crate::wider_key;
use crate::world::{Fleet, Outcome, World};

/// Runs what the reason names between backquotes, a statement or a `cutover set-phase`, and waits until it names no guard
/// trigger any more.
async fn follow_advice(world: &World) -> Outcome {
    let reason = world.reason().await?;
    let advice: Vec<&str> = reason.split('`').skip(1).step_by(2).collect();
    for advised in advice {
        match advised.strip_prefix("cutover set-phase status ") {
            Some(phase) => world.go(phase).await?,
            // The name of a task, or of a phase.
            None if !advised.contains(' ') => {}
            None => world.external(advised).await?,
        }
    }
    Ok(world.until(&format!("the end of {reason}"), async || is_over(world).await).await?)
}

async fn is_over(world: &World) -> bool {
    world.reason().await.is_ok_and(|reason| !reason.contains("zzz_cutover"))
}

async fn at_rest(phase: &str) -> Outcome<(World, Fleet, String)> {
    let world = World::new(20).await?;
    let a = world.brief("a", world.describe().build()?).await?;
    world.go(phase).await?;
    let trigger = format!("zzz_cutover_{}_row", world.id().await?);
    Ok((world, a, trigger))
}

#[tokio::test]
async fn a_guard_trigger_that_is_gone_is_told_at_rest() -> Outcome {
    for phase in ["ramp", "switch", "retire"] {
        let (world, a, trigger) = at_rest(phase).await?;
        let drop = format!("drop trigger {trigger} on orders");
        world.external(&drop).await?;
        let told = format!("the guard trigger \"{trigger}\" of \"orders\" is gone");
        world.waits_for(&told).await?;
        a.says("is gone, so external writes").await?;
        follow_advice(&world).await.map_err(|error| format!("{phase}: {error}"))?;
        if phase == "retire" {
            let write = world.external("update orders set old_status = 'late' where id = 3").await;
            assert!(write.is_err_and(|error| error.to_string().contains("no longer written")));
        }
        assert!(!world.is_at("contract").await?);
    }
    Ok(())
}

/// All triggers of the migration, each with its table and whether it always fires.
async fn triggers(world: &World) -> Outcome<Vec<(String, String)>> {
    let query = "select tgrelid::regclass || ' ' || tgname, tgenabled::text from pg_trigger \
        where tgname like 'zzz%' order by 1";
    Ok(sqlx::query_as(query).fetch_all(&world.pool).await?)
}

/// Each is told, and what is told brings all of them back.
#[tokio::test]
async fn every_part_of_the_guard_is_brought_back() -> Outcome {
    let tables = |world: &World| {
        TableMigration::new(world.pool.clone(), "orders", "orders_2")
            .create("create table orders_2 (id bigint primary key, status text)")
            .column("status", "lower(trim(old_status))")
            .column_back("old_status", "upper(status)")
            .without("orders_id_seq")
            .build()
    };
    for (moves_columns, parts) in [
        (true, vec!["key on orders"]),
        (true, vec!["commit on orders"]),
        (false, vec!["nested on orders", "commit on orders_2"]),
        (false, vec!["truncate on orders"]),
    ] {
        let world = World::new(20).await?;
        let _a = match moves_columns {
            true => world.brief("a", world.describe().build()?).await?,
            false => world.brief("a", tables(&world)?).await?,
        };
        world.go("ramp").await?;
        let (id, before) = (world.id().await?, triggers(&world).await?);
        for part in &parts {
            world.external(&format!("drop trigger zzz_cutover_{id}_{part}")).await?;
        }
        for part in &parts {
            let name = part.split(' ').next().unwrap_or_default();
            world.waits_for(&format!("\"zzz_cutover_{id}_{name}\"")).await?;
        }
        follow_advice(&world).await?;
        world.go("ramp").await?;
        assert_eq!(triggers(&world).await?, before, "{parts:?}");
    }
    Ok(())
}

/// It was enabled again before the driver looked.
#[tokio::test]
async fn a_check_at_commit_that_was_disabled_for_a_while_needs_another_scan() -> Outcome {
    let (world, a, _) = at_rest("switch").await?;
    let trigger = format!("zzz_cutover_{}_commit", world.id().await?);
    world.external(&format!("alter table orders disable trigger {trigger}")).await?;
    world.waits_for("between the two statements of a write are not compared meanwhile").await?;
    a.says("to be enabled").await?;
    follow_advice(&world).await?;
    world.ask("retire").await?;
    world.waits_for("the check at commit was dropped, disabled or replaced").await?;
    assert!(world.is_at("switch").await?);
    world.go("verify").await?;
    world.go("retire").await
}

#[tokio::test]
async fn a_guard_trigger_that_is_disabled_is_told_at_rest() -> Outcome {
    for disable in ["disable trigger all", "disable trigger user"] {
        let (world, a, trigger) = at_rest("retire").await?;
        world.external(&format!("alter table orders {disable}")).await?;
        world.waits_for(&format!("guard trigger {trigger} of orders to be enabled")).await?;
        a.says("to be enabled").await?;
        // The old side is not dropped meanwhile.
        world.approve().await?;
        world.ask("contract").await?;
        world.waits_for("to be enabled").await?;
        assert!(world.is_at("retire").await?);
        follow_advice(&world).await?;
        world.go("contract").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_trigger_that_watches_writers_is_told_when_it_is_gone() -> Outcome {
    let world = World::new(20).await?;
    let plan = SchemaChange::new(world.pool.clone(), "orders").drop_column("old_status").build()?;
    let _a = world.brief("a", plan).await?;
    world.go("retire").await?;
    world.external(&format!("drop function cutover.guard_{}() cascade", world.id().await?)).await?;
    world.waits_for("so writers that the change would refuse are not seen").await?;
    world.approve().await?;
    world.ask("contract").await?;
    world.waits_for("are not seen").await?;
    assert!(world.is_at("retire").await?);
    world.ask("retire").await?;
    follow_advice(&world).await?;
    world.go("retire").await?;
    let write = world.external("update orders set old_status = 'late' where id = 3").await;
    let refusal = write.expect_err("refused").to_string();
    assert!(refusal.contains("Column old_status of table orders is about to be dropped"), "{refusal}");
    Ok(())
}

const CHILDREN: &str = "create table parents (id integer primary key, note text); \
    insert into parents select g from generate_series(1, 20) g; \
    create table children (id bigint primary key, parent integer references parents); \
    insert into children select g, g from generate_series(1, 20) g";

async fn parent(world: &World) -> Outcome<i64> {
    let query = "select parent::bigint from children where id = 3";
    Ok(sqlx::query_scalar(query).fetch_one(&world.pool).await?)
}

/// What was written past the trigger is in the column that the exchange puts aside.
#[tokio::test]
async fn a_trigger_of_a_key_that_is_gone_holds_the_exchange() -> Outcome {
    for phase in ["ramp", "switch"] {
        for (lose, found) in [
            ("drop trigger {} on children", "of public.children is gone"),
            ("alter table children disable trigger user", "of children to be enabled"),
        ] {
            let world = World::new(1).await?;
            world.pool.execute(CHILDREN).await?;
            let _a = wider_key::instance(&world, "parents").await?;
            world.go(phase).await?;
            let trigger = format!("zzz_cutover_{}_row", world.id().await?);
            world.external(&lose.replace("{}", &trigger)).await?;
            world.external("update children set parent = 7 where id = 3").await?;
            world.ask("retire").await?;
            let is_held = async || {
                world.reason().await.is_ok_and(|reason| reason.contains(found))
                    || world.is_at("retire").await.unwrap_or(false)
            };
            world.until("the driver's decision", is_held).await?;
            assert_eq!(parent(&world).await?, 7, "{phase}, {lose}: before the way forward");
            assert!(!world.is_at("retire").await?);
            let enable = format!("alter table children enable always trigger {trigger}");
            if lose.starts_with("alter") {
                world.external(&enable).await?;
            }
            world.go("expand").await?;
            world.go("retire").await?;
            assert_eq!(parent(&world).await?, 7, "{phase}, {lose}");
        }
    }
    Ok(())
}

/// The new column is the key, and the old one has fallen behind.
#[tokio::test]
async fn a_trigger_of_a_key_that_is_gone_holds_the_way_back() -> Outcome {
    let told = "is gone, so its columns of the key may differ";
    let world = World::new(1).await?;
    world.pool.execute(CHILDREN).await?;
    let _a = wider_key::instance(&world, "parents").await?;
    world.go("retire").await?;
    let trigger = format!("zzz_cutover_{}_row", world.id().await?);
    let write = "update children set parent = 7 where id = 3";
    world.external(&format!("drop trigger {trigger} on children; {write}")).await?;
    world.is_held("ramp", told).await?;
    assert_eq!(parent(&world).await?, 7);
    world.waits_for(told).await?;
    follow_advice(&world).await?;
    world.go("ramp").await?;
    assert_eq!(parent(&world).await?, 7);
    Ok(())
}

/// Nothing has seen the trigger disabled.
#[tokio::test]
async fn a_key_that_was_written_past_its_trigger_is_not_exchanged() -> Outcome {
    for (from, to) in [("switch", "retire"), ("retire", "ramp")] {
        let world = World::new(1).await?;
        world.pool.execute(CHILDREN).await?;
        let _a = wider_key::instance(&world, "parents").await?;
        world.go(from).await?;
        let trigger = format!("zzz_cutover_{}_row", world.id().await?);
        world
            .external(&format!(
                "alter table children disable trigger user; update children set parent = 7 where id = 3; \
                 alter table children enable always trigger {trigger}"
            ))
            .await?;
        let told = "1 row of public.children differs";
        world.is_held(to, told).await?;
        assert_eq!(parent(&world).await?, 7, "{from}");
        let reason = world.reason().await?;
        let advised = reason.split('`').find(|part| part.starts_with("update "));
        world.external(advised.ok_or(reason.clone())?).await?;
        world.go(to).await?;
        assert_eq!(parent(&world).await?, 7, "{from}");
    }
    Ok(())
}
