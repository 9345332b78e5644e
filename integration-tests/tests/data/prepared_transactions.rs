//! Transactions that are prepared (`prepare transaction`): they hold their locks without a session. What waits for one names
//! it with the statements that end it, and nothing that it wrote is lost.

use sqlx::{AssertSqlSafe, Executor};

use crate::world::{Outcome, World};

/// Prepares a transaction under a name that is unique on the server, which several databases share.
async fn prepare(world: &World, name: &str, sql: &str) -> Outcome<String> {
    let database: String = sqlx::query_scalar("select current_database()").fetch_one(&world.pool).await?;
    let gid = format!("{name}-{database}");
    world.external(&format!("begin; {sql}; prepare transaction '{gid}'")).await?;
    Ok(gid)
}

/// Waits until `waits_for` names the transaction, and runs the statement of this beginning that it names.
async fn end_as_told(world: &World, part: &str, gid: &str, statement: &str) -> Outcome {
    world.waits_for(part).await?;
    world.waits_for(gid).await?;
    let query = "select waits_for from cutover.migrations where name = 'status'";
    let text: String = sqlx::query_scalar(query).fetch_one(&world.pool).await?;
    let told = text.split('`').find(|text| text.starts_with(statement)).ok_or(text.clone())?;
    world.external(told).await
}

fn both(old: &str, new: &str) -> (Option<String>, Option<String>) {
    (Some(old.to_owned()), Some(new.to_owned()))
}

#[tokio::test]
async fn a_prepared_external_write_holds_what_depends_on_it() -> Outcome {
    let world = World::new(20).await?;
    let _a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("expand").await?;
    let part = "a prepared transaction of an external writer";
    let copied = prepare(&world, "bill", "update orders set old_status = ' Copied ' where id = 3").await?;
    world.ask("verify").await?;
    end_as_told(&world, part, &copied, "commit prepared").await?;
    world.go("ramp").await?;
    assert_eq!(world.row(3).await?, both(" Copied ", "copied"));
    // The way back does not wait for it.
    let back = prepare(&world, "back", "update orders set old_status = ' Back ' where id = 4").await?;
    world.go("verify").await?;
    world.external(&format!("commit prepared '{back}'")).await?;
    world.go("ramp").await?;
    assert_eq!(world.row(4).await?, both(" Back ", "back"));
    world.go("switch").await?;
    let refused = prepare(&world, "void", "update orders set old_status = ' Void ' where id = 5").await?;
    world.ask("retire").await?;
    end_as_told(&world, part, &refused, "rollback prepared").await?;
    world.go("retire").await?;
    assert_eq!(world.row(5).await?, both(" LEGACY5 ", "legacy5"));
    Ok(())
}

#[tokio::test]
async fn a_prepared_pinned_transaction_holds_its_epoch() -> Outcome {
    let world = World::new(20).await?;
    let a = world.instance("a", Some(world.describe().build()?)).await?;
    let database = world.url.rsplit('/').next().unwrap_or_default();
    for (id, (phase, next)) in
        (1_i64..).zip([("ramp", "switch"), ("switch", "retire"), ("switch", "ramp:50")])
    {
        world.go(phase).await?;
        let mut tx = a.migration.begin(&world.pool).await?;
        let update = format!("update orders set old_status = 'Pin', new_status = 'pin' where id = {id}");
        tx.execute(AssertSqlSafe(update)).await?;
        let gid = format!("pin-{id}-{database}");
        tx.execute(AssertSqlSafe(format!("prepare transaction '{gid}'"))).await?;
        tx.commit().await?;
        world.ask(next).await?;
        // It is not ended by the library, however old it is.
        end_as_told(&world, "a prepared transaction of closed epoch", &gid, "commit prepared").await?;
        world.go(next).await?;
        assert_eq!(world.row(id).await?, both("Pin", "pin"), "{phase}");
    }
    Ok(())
}

#[tokio::test]
async fn changes_of_the_schema_name_a_prepared_transaction() -> Outcome {
    let world = World::new(20).await?;
    let plan = world.describe().index("orders_by_status", "(new_status)").build()?;
    let _a = world.instance("a", Some(plan)).await?;
    let ddl = prepare(&world, "ddl", "lock table orders in row exclusive mode").await?;
    world.ask("expand").await?;
    end_as_told(&world, "could not acquire the lock on table", &ddl, "commit prepared").await?;
    world.go("backfill").await?;
    world.filled().await?;
    let build = prepare(&world, "build", "lock table orders in row exclusive mode").await?;
    world.ask("ramp").await?;
    end_as_told(&world, "older transactions to end", &build, "rollback prepared").await?;
    world.go("ramp").await
}

#[tokio::test]
async fn a_copy_names_a_prepared_transaction_that_locks_a_row() -> Outcome {
    let world = World::new(20).await?;
    let _a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("expand").await?;
    let lock = prepare(&world, "row", "select from orders where id = 7 for update").await?;
    world.ask("verify").await?;
    end_as_told(&world, "to be unlocked", &lock, "commit prepared").await?;
    world.go("ramp").await
}
