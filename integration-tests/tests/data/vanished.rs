//! A client that is gone without a word in the middle of the library's own work. The server does not notice it by itself.

use std::str::FromStr;

use cutover::migration::ColumnMigration;
use cutover_testkit::{Postgres, Proxy};
use sqlx::Executor;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::world::{Outcome, World};

#[tokio::test]
async fn a_lost_client_holds_no_table_for_long() -> Outcome {
    let world = World::new(10).await?;
    world
        .pool
        .execute(
            "create function slow(text) returns text language plpgsql immutable as \
             $$ begin perform pg_advisory_xact_lock_shared(7); return lower($1); end $$",
        )
        .await?;
    let mut gate = world.pool.begin().await?;
    gate.execute("select pg_advisory_xact_lock(7)").await?;
    let proxy = Proxy::start(Postgres::shared().await?.port())?;
    let rows = PgConnectOptions::from_str(&world.url)?.port(proxy.port()).application_name("rows");
    let plan = ColumnMigration::new(PgPoolOptions::new().connect_lazy_with(rows), "orders")
        .key("id")
        .column("old_status", "new_status", "text")
        .forward("slow(old_status)")
        .backward("upper(new_status)")
        .build()?;
    let _looks = world.instance("a", Some(plan)).await?;
    world.ask("backfill").await?;
    let sessions = async |state: &str| {
        let count = "select count(*) from pg_stat_activity \
            where datname = current_database() and application_name = 'rows' and xact_start is not null and ";
        let count = sqlx::AssertSqlSafe(format!("{count} {state}"));
        sqlx::query_scalar::<_, i64>(count).fetch_one(&world.pool).await.unwrap_or(-1)
    };
    let waits = async || sessions("wait_event = 'advisory'").await > 0;
    world.until("a look at the table that waits in the mapping", waits).await?;
    proxy.lose();
    gate.rollback().await?;
    world.until("a session without its client", async || sessions("state like 'idle%'").await > 0).await?;
    Ok(world.until("no transaction left", async || sessions("true").await == 0).await?)
}
