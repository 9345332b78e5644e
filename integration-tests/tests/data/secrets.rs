//! No secret is in the ledger, whatever the errors and reasons contain that are written to it.

use cutover::ledger::Ledger;
use cutover::migration::admin::{Actor, pause_work, resume_work, set_phase};
use cutover::migration::{ColumnMigration, Desired, DualWrite, Phase, Rows, map_each};
use sqlx::FromRow;

use crate::world::{Outcome, World};

/// A password in an address, and a secret of this process as it is and in a URL.
const LEAK: &str =
    "http://me:hunter-1@crm/ refused token \"zebra/known secret\" of /?t=zebra%2Fknown%20secret";

#[derive(FromRow)]
struct Row {
    id: i64,
}

/// All rows of all tables of the ledger.
async fn everything(world: &World) -> Outcome<String> {
    let tables: Vec<String> =
        sqlx::query_scalar("select tablename::text from pg_tables where schemaname = 'cutover'")
            .fetch_all(&world.pool)
            .await?;
    let mut all = String::new();
    for table in tables {
        let rows = format!("select coalesce(string_agg(t::text, e'\\n'), '') from cutover.{table} t");
        let rows: String = sqlx::query_scalar(sqlx::AssertSqlSafe(rows)).fetch_one(&world.pool).await?;
        all.extend(rows.lines().map(|row| format!("{table}: {row}\n")));
    }
    Ok(all)
}

#[tokio::test]
async fn no_secret_is_written_to_the_ledger() -> Outcome {
    cutover::remember("zebra/known secret");
    let world = World::new(20).await?;
    let ledger = Ledger::open(world.url.parse()?).await?;
    let plan = ColumnMigration::new(world.pool.clone(), "orders")
        .column("old_status", "new_status", "text")
        .forward_rows(map_each(|row: Row| match row.id {
            3 => Err(LEAK.to_owned()),
            5 => panic!("{LEAK}"),
            id => Ok(format!("row {id}")),
        }))
        .backward("upper(new_status)")
        .without_guard_trigger()
        .build()?;
    let fleet = world.instance("a", Some(plan)).await?;
    set_phase(&ledger, "status", Desired::from(Phase::Backfill), LEAK).await?;
    let waits = "select coalesce(waits_for, '') from cutover.migrations where name = 'status'";
    world
        .until("the rows to be set aside", async || {
            let waits: Result<String, _> = sqlx::query_scalar(waits).fetch_one(&world.pool).await;
            waits.is_ok_and(|waits| waits.contains("could not be mapped"))
        })
        .await?;
    pause_work(&ledger, "status", Actor::with_reason(LEAK, LEAK)).await?;
    resume_work(&ledger, "status", LEAK).await?;
    let sides = DualWrite::new(fleet.migration.clone(), (), ()).repair_later();
    let mut tx = fleet.migration.begin(&world.pool).await?;
    sides
        .write_with(
            &mut tx,
            Rows::one(&7_i64),
            async |_, _| Ok(()),
            async |_, _| Err::<(), _>(anyhow::anyhow!(LEAK)),
        )
        .await?;
    tx.commit().await?;

    let all = everything(&world).await?;
    for table in ["bad_rows: ", "repairs: ", "history: ", "migrations: "] {
        assert!(
            all.lines().any(|row| row.starts_with(table) && row.contains("refused token")),
            "{table}\n{all}"
        );
    }
    assert!(!all.contains("hunter") && !all.contains("zebra"), "{all}");
    Ok(())
}
