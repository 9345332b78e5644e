//! What an open console costs Postgres.

use std::time::Duration;

use cutover_testkit::{Postgres, PostgresOptions};
use sqlx::{Executor, PgPool};

use crate::console::Console;
use crate::{Outcome, STATE, done, execute};

/// One slow read and some fast ones.
const WINDOW: Duration = Duration::from_secs(16);

/// Statements on the ledger per second, during one window. Empty ones, which a pool sends to see whether a connection is
/// alive, do no work and are not counted by the server.
async fn statements_per_second(pool: &PgPool) -> Result<f64, sqlx::Error> {
    let calls = "select coalesce(sum(calls), 0)::float8 from pg_stat_statements where query not like '%pg_stat_statements%'";
    let before: f64 = sqlx::query_scalar(calls).fetch_one(pool).await?;
    tokio::time::sleep(WINDOW).await;
    let after: f64 = sqlx::query_scalar(calls).fetch_one(pool).await?;
    Ok((after - before) / WINDOW.as_secs_f64())
}

#[tokio::test]
async fn a_page_costs_few_queries_and_more_viewers_none() -> Outcome {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let settings = vec![setting("shared_preload_libraries", "pg_stat_statements")];
    let postgres = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await?;
    let url = &postgres.create_database("watched").await?;
    done(url, &["install"], &[]).await;
    execute(url, STATE).await?;
    let pool = PgPool::connect(url).await?;
    pool.execute("create extension pg_stat_statements").await?;
    let console = Console::start(url, &[]);
    let page = "/migrations/shop/status/events";
    let one = console.get(page).await;
    let alone = statements_per_second(&pool).await?;
    let mut others = Vec::new();
    for _ in 0..20 {
        others.push(console.get(page).await);
    }
    let together = statements_per_second(&pool).await?;
    println!("statements per second: {alone:.2} for one viewer, {together:.2} for 21");
    assert!(alone > 0.0 && alone <= 2.0, "{alone}");
    assert!(together <= 2.0, "{together}");
    drop((one, others));
    Ok(())
}
