//! Installation and upgrade of the schema, while others work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cutover::health::Health;
use cutover::ledger::{Ledger, LedgerError, SCHEMA_VERSION, Step};
use cutover::migration::Phase;
use cutover::migration::admin::set_phase;
use cutover_testkit::{Postgres, wait_until};
use sqlx::{Connection, Executor, PgConnection};

use super::constraints::STATE;
use super::{LIMIT, Outcome, agent, as_role, ask, execute, open, until};

/// Opens the ledger as the next version of the library would, which has one more step.
async fn open_as_next_version(url: &str) -> Result<Ledger, LedgerError> {
    Ledger::open_with_step(url.parse()?, NEXT).await
}

/// A step that changes a table which every fence reads.
const NEXT: Step = Step {
    version: SCHEMA_VERSION + 1,
    compatible_from: SCHEMA_VERSION,
    sql: "alter table cutover.epochs add column note text; \
          create table cutover.notes (id integer primary key, note text not null)",
};

/// Opens the ledger from many processes that start at the same time.
async fn open_at_once<F>(url: &str, processes: usize, open: impl Fn(String) -> F) -> Outcome
where
    F: Future<Output = Result<Ledger, LedgerError>> + Send + 'static,
{
    let starts: Vec<_> = (0..processes).map(|_| tokio::spawn(open(url.to_owned()))).collect();
    for start in starts {
        start.await??;
    }
    Ok(())
}

#[tokio::test]
async fn processes_that_install_at_once_find_one_ledger() -> Outcome {
    let url = Postgres::fresh_database().await?;
    open_at_once(&url, 16, async |url| open(&url).await).await?;
    assert_eq!(ask::<i64>(&url, "select count(*) from cutover.ledger").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_newer_ledger_is_refused_unless_it_is_compatible() -> Outcome {
    let url = Postgres::fresh_database().await?;
    open(&url).await?;
    execute(&url, "update cutover.ledger set version = 9, compatible_from = 1").await?;
    open(&url).await?;
    execute(&url, "update cutover.ledger set compatible_from = 8").await?;
    let error = open(&url).await.expect_err("refused");
    assert!(matches!(error, LedgerError::Newer { found: 9, needs: 8 }), "{error}");
    assert_eq!(ask::<i32>(&url, "select version from cutover.ledger").await?, 9);
    Ok(())
}

#[tokio::test]
async fn every_table_has_a_primary_key() -> Outcome {
    let url = Postgres::fresh_database().await?;
    open(&url).await?;
    let without = "select coalesce(string_agg(c.relname, ', '), '') from pg_class c \
        where c.relnamespace = 'cutover'::regnamespace and c.relkind in ('r', 'p') \
          and not exists (select from pg_constraint p where p.conrelid = c.oid and p.contype = 'p')";
    assert_eq!(ask::<String>(&url, without).await?, "");
    Ok(())
}

#[tokio::test]
async fn an_upgrade_keeps_rows_and_the_previous_library() -> Outcome {
    let url = Postgres::fresh_database().await?;
    open(&url).await?;
    execute(&url, STATE).await?;
    let error = Ledger::existing_with_step(url.parse()?, NEXT).await.expect_err("refused");
    assert!(
        matches!(error, LedgerError::Older { found: SCHEMA_VERSION, needs } if needs == NEXT.version),
        "{error}"
    );
    assert!(error.to_string().contains("cutover install"), "{error}");
    // A role that may use the ledger may not change it.
    execute(&url, "create role upgrade_app login").await?;
    open(&url).await?.grant("upgrade_app").await?;
    let app = as_role(&url, "upgrade_app");
    for refused in [open_as_next_version(&app).await.map(drop), Ledger::can_install(&app.parse()?).await] {
        let error = refused.expect_err("refused");
        assert!(
            matches!(&error, LedgerError::NotUpgraded { role, found: SCHEMA_VERSION, .. } if role == "upgrade_app"),
            "{error}"
        );
        assert!(error.to_string().contains("cutover install"), "{error}");
    }
    Ledger::can_install(&url.parse()?).await?;
    assert_eq!(ask::<i32>(&url, "select version from cutover.ledger").await?, SCHEMA_VERSION);

    open_at_once(&url, 8, async |url| open_as_next_version(&url).await).await?;
    assert_eq!(ask::<i32>(&url, "select version from cutover.ledger").await?, NEXT.version);
    assert_eq!(ask::<String>(&url, "select phase from cutover.migrations").await?, "expand");
    assert_eq!(ask::<i64>(&url, "select count(*) from cutover.epochs where note is null").await?, 2);
    // The previous library still works with it, and leaves the version as it is.
    open(&url).await?;
    Ledger::existing(app.parse()?).await?;
    assert_eq!(ask::<i32>(&url, "select version from cutover.ledger").await?, NEXT.version);
    Ok(())
}

#[tokio::test]
async fn an_upgrade_lets_writers_pass_and_tries_again() -> Outcome {
    let url = Postgres::fresh_database().await?;
    open(&url).await?;
    execute(&url, STATE).await?;
    let fence = "begin; select cutover.fence(1, 2, 'expand')";
    let mut writer = PgConnection::connect(&url).await?;
    writer.execute("set idle_in_transaction_session_timeout = '5min'").await?;
    writer.execute(fence).await?;
    let upgrade = tokio::spawn({
        let url = url.clone();
        async move { open_as_next_version(&url).await.map(drop) }
    });
    let waits =
        "select exists (select from pg_locks where relation = 'cutover.epochs'::regclass and not granted)";
    until(&url, waits).await?;
    // Another writer does not wait until the first one ends.
    let mut other = PgConnection::connect(&url).await?;
    tokio::time::timeout(LIMIT, other.execute(fence)).await??;
    other.execute("commit").await?;
    assert!(!upgrade.is_finished());
    assert_eq!(ask::<i32>(&url, "select version from cutover.ledger").await?, SCHEMA_VERSION);
    writer.execute("commit").await?;
    upgrade.await??;
    assert_eq!(ask::<i32>(&url, "select version from cutover.ledger").await?, NEXT.version);
    // Statements that it prepared before still work.
    other.execute(fence).await?;
    other.execute("commit").await?;
    Ok(())
}

#[tokio::test]
async fn an_upgrade_behind_an_endless_writer_reports_busy() -> Outcome {
    let url = Postgres::fresh_database().await?;
    open(&url).await?;
    execute(&url, STATE).await?;
    let mut writer = PgConnection::connect(&url).await?;
    writer
        .execute(
            "set idle_in_transaction_session_timeout = '5min'; begin; select cutover.fence(1, 2, 'expand')",
        )
        .await?;
    let error = open_as_next_version(&url).await.expect_err("refused");
    assert!(matches!(error, LedgerError::Busy), "{error}");
    assert_eq!(ask::<i32>(&url, "select version from cutover.ledger").await?, SCHEMA_VERSION);
    Ok(())
}

#[tokio::test]
async fn an_upgrade_disturbs_no_running_writer() -> Outcome {
    let url = Postgres::fresh_database().await?;
    let health = Health::new();
    let agent = agent(&url, "a", &health).await?;
    let migration = agent.migration("status").expect("declared");
    wait_until("admitted", LIMIT, async || Ok::<_, LedgerError>(migration.current().is_some())).await?;
    execute(&url, "create table written (pinned boolean)").await?;
    set_phase(&open(&url).await?, "status", Phase::Expand.into(), "me").await?;
    until(&url, "select phase = 'expand' from cutover.migrations").await?;

    let stop = Arc::new(AtomicBool::new(false));
    let pinned = tokio::spawn({
        let (url, stop, migration) = (url.clone(), stop.clone(), migration.clone());
        async move {
            let pool = sqlx::PgPool::connect(&url).await?;
            while !stop.load(Ordering::Relaxed) {
                let mut tx = migration.begin(&pool).await?;
                sqlx::query("insert into written values (true)").execute(&mut *tx).await?;
                tx.commit().await?;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        }
    });
    let external = tokio::spawn({
        let (url, stop) = (url.clone(), stop.clone());
        async move {
            let mut session = PgConnection::connect(&url).await?;
            while !stop.load(Ordering::Relaxed) {
                session
                    .execute(
                        "begin; select cutover.record_external_write(1, true); \
                         insert into written values (false); commit",
                    )
                    .await?;
            }
            Ok::<_, sqlx::Error>(())
        }
    });
    until(&url, "select count(distinct pinned) = 2 from written").await?;
    open_as_next_version(&url).await?;
    execute(&url, "truncate written").await?;
    until(&url, "select count(distinct pinned) = 2 from written").await?;
    // The previous library goes on driving.
    set_phase(&open(&url).await?, "status", Phase::Backfill.into(), "me").await?;
    until(&url, "select phase = 'backfill' from cutover.migrations").await?;
    stop.store(true, Ordering::Relaxed);
    pinned.await?.map_err(|error| error.to_string())?;
    external.await??;
    Ok(())
}
