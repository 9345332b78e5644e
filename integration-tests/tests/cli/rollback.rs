//! `cutover rollback` from every phase.

use std::time::Duration;

use cutover_testkit::wait_until;
use serde_json::Value;
use sqlx::PgPool;

use crate::steps::{shop, went};
use crate::{Outcome, database, done, execute, refused, run};

async fn is_in(url: &str, phase: &str) -> Outcome {
    wait_until(phase, Duration::from_secs(60), async || {
        let json: Value = serde_json::from_str(&run(url, &["plan", "status", "--json"]).await.out)?;
        Ok::<_, serde_json::Error>(json["phase"] == phase && json["settled"] == true)
    })
    .await?;
    Ok(())
}

/// Rolls back from this phase, and returns the outcome as JSON.
async fn rolled_back(url: &str, from: &str, to: &str) -> Result<Value, Box<dyn std::error::Error>> {
    is_in(url, from).await?;
    let reason = format!("errors in {from}");
    let said = went(url, &["rollback", "status", "--reason", &reason, "--timeout", "1m", "--json"]).await;
    let outcome: Value = serde_json::from_str(&said.out)?;
    assert_eq!((&outcome["from"], &outcome["phase"]), (&from.into(), &to.into()), "{}", said.out);
    assert_eq!(outcome["done"], true, "{}", said.out);
    done(url, &["history", "--limit", "20"], &[&format!("rollback: desired phase set to {to}"), &reason])
        .await;
    Ok(outcome)
}

#[tokio::test]
async fn a_rollback_reads_the_old_side_again_from_every_phase() -> Outcome {
    let url = &database().await?;
    let _agent = shop(url).await?;
    let pool = PgPool::connect(url).await?;

    rolled_back(url, "off", "off").await?;
    for stays in ["expand", "backfill", "verify"] {
        done(url, &["set-phase", "status", stays], &[]).await;
        is_in(url, stays).await?;
        // On its way forward, it stops where it is.
        execute(url, "update cutover.migrations set desired = null").await?;
        rolled_back(url, stays, stays).await?;
    }
    // Nothing to set a second time.
    let events = "select count(*) from cutover.history where event like 'rollback%'";
    let before: i64 = sqlx::query_scalar(events).fetch_one(&pool).await?;
    went(url, &["rollback", "status"]).await;
    assert_eq!(sqlx::query_scalar::<_, i64>(events).fetch_one(&pool).await?, before);

    for (from, steps) in [("ramp:50", 1), ("switch", 2), ("retire", 3)] {
        let phase = from.split(':').next().unwrap();
        done(url, &["set-phase", "status", from], &[]).await;
        is_in(url, phase).await?;
        if phase == "retire" {
            let parts = [
                "dry run: nothing is changed",
                "shop/status goes back from `retire` to `verify`",
                "retire → switch",
                "Writes go to both sides again.",
                "First, the reverse backfill copies 3000 rows from the new side to the old one, about ",
                "no   the old side is complete",
                "ramp → verify",
                "All reads go to the old side.",
            ];
            done(url, &["rollback", "status", "--dry-run"], &parts).await;
            done(url, &["status"], &["desired   retire"]).await;
            execute(url, "update orders set new_status = 'refunded' where id = 7").await?;
        }
        let outcome = rolled_back(url, phase, "verify").await?;
        assert_eq!(outcome["steps"].as_array().map(Vec::len), Some(steps), "{outcome}");
    }
    let old: String =
        sqlx::query_scalar("select old_status from orders where id = 7").fetch_one(&pool).await?;
    assert_eq!(old, "REFUNDED");

    done(url, &["set-phase", "status", "retire"], &[]).await;
    is_in(url, "retire").await?;
    went(url, &["contract", "status"]).await;
    let gone = ["is finished", "no way back", "declare a new migration", "a backup"];
    refused(url, &["rollback", "status", "--dry-run"], 1, &gone).await;
    refused(url, &["rollback", "status"], 1, &gone).await;
    Ok(())
}

#[tokio::test]
async fn a_rollback_says_what_holds_it() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    let at = |epoch: i32, from: &str, phase: &str| {
        format!(
            "alter table cutover.epochs disable trigger all; \
             update cutover.epochs set closed_at = now(), drained_at = now(); \
             insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason) \
                 values (1, {epoch}, '{phase}', '{from}', 'me', 'test'); \
             update cutover.migrations set epoch = {epoch}, phase = '{phase}', old_complete = false, new_complete = true"
        )
    };
    execute(
        url,
        "insert into cutover.fleets values ('shop'); \
         insert into cutover.migrations (fleet, name) values ('shop', 'status'); \
         insert into cutover.epochs (migration_id, epoch, phase, actor, reason) values (1, 1, 'off', 'me', 'test')",
    )
    .await?;
    execute(url, &at(2, "switch", "retire")).await?;
    let parts = ["no instance drives it", "the reverse backfill copies all rows"];
    done(url, &["rollback", "status", "--no-wait"], &parts).await;
    done(url, &["status"], &["desired   verify"]).await;
    let said = run(url, &["rollback", "status", "--timeout", "1s"]).await;
    assert_eq!(said.code, 4, "{}{}", said.out, said.err);
    assert!(said.out.contains("not done yet"), "{}", said.out);
    // Another person goes forward.
    done(url, &["set-phase", "status", "retire", "--reason", "no"], &[]).await;
    done(url, &["history"], &["desired phase set to retire", "no"]).await;
    execute(url, &at(3, "retire", "contract")).await?;
    refused(url, &["rollback", "status"], 1, &["in `contract`", "no way back", "cutover status status"])
        .await;
    Ok(())
}
