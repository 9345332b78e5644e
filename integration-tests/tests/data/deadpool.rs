//! Pinned transactions on a `deadpool_postgres` pool. The pool has one connection, so its next user sees any state that a
//! transaction leaves behind.

use crate::world::{Outcome, World, interrupted};
use cutover::migration::DualWrite;
use cutover::migration::Phase;
use cutover::migration::{DeadpoolTx, Error, Isolation, Migration, PinnedTx};
use deadpool_postgres::{Manager, Pool, Runtime};
use tokio_postgres::{NoTls, SimpleQueryMessage};

pub(crate) fn pool_of_one(world: &World) -> Outcome<Pool> {
    let config: tokio_postgres::Config = world.url.parse()?;
    let manager = Manager::new(config, NoTls);
    Ok(Pool::builder(manager).max_size(1).runtime(Runtime::Tokio1).build()?)
}

/// Whether the connection is outside of any transaction.
async fn is_clean(pool: &Pool) -> Outcome<bool> {
    let client = pool.get().await?;
    let answer = client.simple_query("select transaction_timestamp() = statement_timestamp()").await?;
    Ok(answer
        .iter()
        .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"))))
}

async fn notes(world: &World) -> Outcome<i64> {
    Ok(sqlx::query_scalar("select count(*) from orders where note is not null")
        .fetch_one(&world.pool)
        .await?)
}

async fn note(tx: &PinnedTx<DeadpoolTx>, id: i64) -> Result<(), Error> {
    tx.execute("update orders set note = 'noted' where id = $1", &[&id]).await?;
    Ok(())
}

#[tokio::test]
async fn only_a_commit_changes_the_database() -> Outcome {
    let world = World::new(3).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    let pool = pool_of_one(&world)?;
    let tx = fleet.migration.begin(&pool).await?;
    assert_eq!(tx.phase(), Phase::Off);
    note(&tx, 1).await?;
    tx.rollback().await?;
    let tx = fleet.migration.begin(&pool).await?;
    note(&tx, 1).await?;
    drop(tx);
    assert!(is_clean(&pool).await?);
    assert_eq!(notes(&world).await?, 0);
    let tx = fleet.migration.begin(&pool).await?;
    note(&tx, 1).await?;
    tx.commit().await?;
    assert!(is_clean(&pool).await?);
    assert_eq!(notes(&world).await?, 1);
    // A failed statement fails its transaction only.
    let tx = fleet.migration.begin(&pool).await?;
    tx.batch_execute("select 1 / 0").await.expect_err("division by zero");
    drop(tx);
    assert!(is_clean(&pool).await?);
    Ok(())
}

#[tokio::test]
async fn every_isolation_level_is_applied() -> Outcome {
    let world = World::new(1).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    let pool = pool_of_one(&world)?;
    for (isolation, name) in [
        (Isolation::ReadCommitted, "read committed"),
        (Isolation::RepeatableRead, "repeatable read"),
        (Isolation::Serializable, "serializable"),
    ] {
        let tx = fleet.migration.begin_isolated(&pool, isolation).await?;
        let level: String = tx.query_one("show transaction_isolation", &[]).await?.get(0);
        assert_eq!(level, name);
        tx.commit().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_refused_transaction_leaves_the_connection_clean() -> Outcome {
    let world = World::new(1).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    let pool = pool_of_one(&world)?;
    let close = "update cutover.epochs set closed_at = clock_timestamp()";
    sqlx::query(close).execute(&world.pool).await?;
    let refused = fleet.migration.begin(&pool).await.expect_err("closed");
    assert!(matches!(refused, Error::EpochClosed), "{refused:?}");
    assert!(is_clean(&pool).await?);
    // A short refusal, as during a move, is retried inside `begin`.
    let reopened = async {
        fleet.migration.begin(&pool).await?.commit().await?;
        Outcome::Ok(())
    };
    let reopen = async {
        tokio::task::yield_now().await;
        sqlx::query("update cutover.epochs set closed_at = null").execute(&world.pool).await?;
        Outcome::Ok(())
    };
    tokio::try_join!(reopened, reopen)?;
    assert!(is_clean(&pool).await?);
    Ok(())
}

async fn transfer(migration: &Migration, pool: &Pool, id: i64) -> Result<(), Error> {
    let tx = migration.begin(pool).await?;
    note(&tx, id).await?;
    tx.commit().await
}

#[tokio::test]
async fn a_dropped_begin_leaves_no_transaction_and_no_pin() -> Outcome {
    let world = World::new(100).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    // The first transaction on a connection prepares the fence, so both new and used connections are tried.
    for fresh in [true, false] {
        let mut pool = pool_of_one(&world)?;
        let mut ended = 0;
        for times in 1..100 {
            if fresh {
                pool = pool_of_one(&world)?;
            }
            let before = notes(&world).await?;
            let outcome = interrupted(times, transfer(&fleet.migration, &pool, times as i64)).await;
            assert!(is_clean(&pool).await?, "dropped after {times} polls");
            let written = notes(&world).await? - before;
            match outcome {
                Some(outcome) => {
                    outcome?;
                    ended += 1;
                }
                None => assert!(written <= 1),
            }
            if ended == 3 {
                break;
            }
        }
        assert_eq!(ended, 3, "the future never completed");
    }
    // A leaked pin would hold the migration at this step.
    world.go("backfill").await
}

#[cutover::dual_write]
trait Statuses: Send + Sync {
    #[write(key = id)]
    async fn set(&self, tx: &mut PinnedTx<DeadpoolTx>, id: i64, status: &str) -> Result<(), Error>;

    #[read(key = id)]
    async fn get(&self, tx: &mut PinnedTx<DeadpoolTx>, id: i64) -> Result<Option<String>, Error>;
}

/// One column of the table.
struct Column(&'static str);

impl Statuses for Column {
    async fn set(&self, tx: &mut PinnedTx<DeadpoolTx>, id: i64, status: &str) -> Result<(), Error> {
        let statement = format!("update orders set {} = $2 where id = $1", self.0);
        tx.execute(&statement, &[&id, &status]).await?;
        Ok(())
    }

    async fn get(&self, tx: &mut PinnedTx<DeadpoolTx>, id: i64) -> Result<Option<String>, Error> {
        let query = format!("select {} from orders where id = $1", self.0);
        Ok(tx.query_one(&query, &[&id]).await?.get(0))
    }
}

#[tokio::test]
async fn a_dual_write_accepts_deadpool_transactions() -> Outcome {
    let world = World::new(3).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    let pool = pool_of_one(&world)?;
    let statuses = DualWrite::new(fleet.migration.clone(), Column("old_status"), Column("new_status"));
    for (phase, id) in [("off", 1), ("expand", 2)] {
        world.go(phase).await?;
        let mut tx = fleet.migration.begin(&pool).await?;
        statuses.set(&mut tx, id, "paid").await?;
        assert_eq!(statuses.get(&mut tx, id).await?.as_deref(), Some("paid"));
        tx.commit().await?;
    }
    let paid = || Some("paid".to_owned());
    assert_eq!(world.row(1).await?, (paid(), None));
    assert_eq!(world.row(2).await?, (paid(), paid()));
    // The phase of another migration does not apply to these columns.
    let other = fleet.agent.migration("other").ok_or("declared")?;
    let mut tx = other.begin(&pool).await?;
    let refused = statuses.set(&mut tx, 3, "paid").await.expect_err("another migration's");
    assert!(matches!(refused, Error::OtherMigration { .. }));
    Ok(())
}
