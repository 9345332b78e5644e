//! A column is renamed or dropped by hand while it moves: no external write fails, none is lost, and the next step waits.

use sqlx::{Connection, Executor, PgConnection};

use crate::world::{Outcome, World};

#[tokio::test]
async fn external_writes_pass_while_a_column_has_another_name() -> Outcome {
    for (phase, next, column, write, row) in [
        ("expand", "ramp", "old_status", "away = ' Away '", [" Away ", "away"]),
        ("ramp", "switch", "new_status", "old_status = ' Away '", [" Away ", "away"]),
        ("switch", "retire", "old_status", "new_status = 'away'", ["AWAY", "away"]),
        ("switch", "retire", "new_status", "away = 'away'", ["AWAY", "away"]),
    ] {
        let world = World::new(20).await?;
        let _a = world.brief("a", world.describe().build()?).await?;
        world.go(phase).await?;
        world.external(&format!("alter table orders rename {column} to away")).await?;
        world.external(&format!("update orders set {write} where id = 3")).await?;
        world.external("insert into orders (note) values ('neither')").await?;
        world.ask(next).await?;
        world
            .waits_for(&format!("column \"{column}\" of public.orders has been renamed to \"away\""))
            .await?;
        let query = "select waits_for from cutover.migrations where name = 'status'";
        let reason: String = sqlx::query_scalar(query).fetch_one(&world.pool).await?;
        let statement =
            reason.split('`').find(|text| text.starts_with("alter table")).ok_or(reason.clone())?;
        world.external(statement).await?;
        world.go(next).await?;
        let expected = (Some(row[0].to_owned()), Some(row[1].to_owned()));
        assert_eq!(world.row(3).await?, expected, "{phase}: {column}");
    }
    Ok(())
}

#[tokio::test]
async fn external_writes_pass_when_a_column_was_dropped() -> Outcome {
    let world = World::new(20).await?;
    let _a = world.brief("a", world.describe().build()?).await?;
    world.go("ramp").await?;
    world.external("alter table orders drop new_status").await?;
    world.external("update orders set old_status = ' Away ' where id = 3").await?;
    world.ask("switch").await?;
    world.waits_for("column \"new_status\" of public.orders has been dropped").await
}

/// A session that has compiled the trigger's function expects the former type. No instance is there to have it compiled again.
#[tokio::test]
async fn an_external_write_passes_after_a_change_of_a_type() -> Outcome {
    let world = World::new(20).await?;
    let a = world.brief("a", world.describe().build()?).await?;
    world.go("ramp").await?;
    let mut session = PgConnection::connect(&world.url).await?;
    session.execute("update orders set old_status = ' First ' where id = 3").await?;
    a.agent.leave().await?;
    world.external("alter table orders alter old_status type varchar(100)").await?;
    session.execute("update orders set old_status = ' Second ' where id = 3").await?;
    let _b = world.brief("b", world.describe().build()?).await?;
    world.go("retire").await?;
    assert_eq!(world.row(3).await?, (Some(" Second ".to_owned()), Some("second".to_owned())));
    Ok(())
}
