//! A write whose future is dropped: no matter how far it got, neither side keeps half of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::deadpool::pool_of_one;
use crate::world::{Outcome, World, interrupted};
use cutover::migration::{DeadpoolTx, Error, FencedPool, FencedTransaction, PinnedTx};
use cutover::migration::{DualWrite, Rows};
use cutover_testkit::{Postgres, Proxy};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgPool};

/// A column of the table.
#[derive(Clone, Copy)]
struct Column(&'static str);

/// The operations that both drivers offer to the tests.
trait Update: FencedTransaction {
    async fn update(tx: &mut PinnedTx<Self>, column: Column, id: i64) -> Result<(), Error>;
}

impl Update for cutover::migration::SqlxTx {
    async fn update(tx: &mut PinnedTx, Column(name): Column, id: i64) -> Result<(), Error> {
        let statement = sqlx::AssertSqlSafe(format!("update orders set {name} = 'x' where id = $1"));
        sqlx::query(statement).bind(id).execute(&mut **tx).await?;
        Ok(())
    }
}

impl Update for DeadpoolTx {
    async fn update(tx: &mut PinnedTx<Self>, Column(name): Column, id: i64) -> Result<(), Error> {
        tx.execute(&format!("update orders set {name} = 'x' where id = $1"), &[&id]).await?;
        Ok(())
    }
}

type Sides = DualWrite<Column, Column>;

async fn set<T: Update>(sides: &Sides, tx: &mut PinnedTx<T>, id: i64) -> Result<(), Error> {
    sides
        .write_with(
            tx,
            Rows::one(&id),
            async |old, tx| T::update(tx, *old, id).await,
            async |new, tx| T::update(tx, *new, id).await,
        )
        .await
}

/// Drops after one more poll each time, until the future completes. It drops either the whole transaction, or only the
/// write, after which the caller commits.
async fn drops<P: FencedPool>(world: &World, sides: &Sides, pools: impl AsyncFn() -> Outcome<P>) -> Outcome
where
    P::Transaction: Update,
{
    let id = AtomicUsize::new(0);
    let row = async |what: &str, times: usize| {
        let (old, new) = world.row(id.load(Ordering::Relaxed) as i64).await?;
        let is_written = (old.as_deref() == Some("x"), new.as_deref() == Some("x"));
        assert_eq!(is_written.0, is_written.1, "{what} dropped after {times} polls left half of a write");
        Outcome::Ok(is_written.0)
    };
    let next = || id.fetch_add(1, Ordering::Relaxed) as i64 + 1;
    for times in 1.. {
        let (pool, key) = (pools().await?, next());
        let all = async {
            let mut tx = sides.migration().begin(&pool).await?;
            set(sides, &mut tx, key).await?;
            tx.commit().await
        };
        let ended = interrupted(times, all).await.transpose()?.is_some();
        let is_written = row("all", times).await?;
        assert!(is_written || !ended);
        if ended {
            break;
        }
        assert!(times < 300, "the future never completed");
    }
    for times in 1.. {
        let (pool, key) = (pools().await?, next());
        let mut tx = sides.migration().begin(&pool).await?;
        let ended = interrupted(times, set(sides, &mut tx, key)).await.transpose()?.is_some();
        match tx.commit().await {
            Ok(()) => assert!(ended, "half of a write was committed after {times} polls"),
            Err(error) => assert!(matches!(error, Error::Unfinished) && !ended, "{error}"),
        }
        assert_eq!(row("a write", times).await?, ended);
        if ended {
            break;
        }
        assert!(times < 300, "the future never completed");
    }
    Ok(())
}

#[tokio::test]
async fn a_dropped_write_reaches_both_sides_or_none() -> Outcome {
    let world = World::new(1_000).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    for phase in ["expand", "verify"] {
        world.go(phase).await?;
        let sides = DualWrite::new(fleet.migration.clone(), Column("old_status"), Column("new_status"));
        // A new connection each time, and a used one.
        let fresh = async || Ok(PgPoolOptions::new().max_connections(1).connect_lazy(&world.url)?);
        drops::<PgPool>(&world, &sides, fresh).await?;
        world.refill().await?;
        drops(&world, &sides, async || Ok(world.pool.clone())).await?;
        world.refill().await?;
        drops(&world, &sides, async || pool_of_one(&world)).await?;
        world.refill().await?;
        // The same behind a savepoint.
        let guarded = sides.repair_later();
        drops(&world, &guarded, async || Ok(world.pool.clone())).await?;
        world.refill().await?;
        let pool = pool_of_one(&world)?;
        drops(&world, &guarded, async || Ok(pool.clone())).await?;
        world.refill().await?;
    }
    // A leaked pin would hold the migration here.
    world.go("ramp").await
}

#[tokio::test]
async fn an_ignored_error_prevents_the_commit() -> Outcome {
    let world = World::new(1).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    // It fails in every phase, so that the bug shows before the migration begins.
    for phase in ["off", "expand"] {
        world.go(phase).await?;
        let sides = DualWrite::new(fleet.migration.clone(), Column("old_status"), Column("new_status"));
        let mut tx = fleet.migration.begin(&world.pool).await?;
        let failed = sides
            .write_with(
                &mut tx,
                Rows::one(&1),
                async |old, tx| {
                    Update::update(tx, *old, 1).await?;
                    if phase == "off" { Err(Error::NotInFleet) } else { Ok(()) }
                },
                async |_, _| Err(Error::NotInFleet),
            )
            .await;
        assert!(matches!(failed, Err(Error::NotInFleet)));
        // A later successful write does not change that.
        set(&sides, &mut tx, 1).await?;
        assert!(matches!(tx.commit().await, Err(Error::Unfinished)), "{phase}");
        assert_eq!(world.row(1).await?.0.as_deref(), Some(" LEGACY1 "), "{phase}");
    }
    Ok(())
}

/// A network partition leaves the server with an open transaction and no client.
#[tokio::test]
async fn the_server_ends_the_transaction_of_a_lost_client() -> Outcome {
    let world = World::new(10).await?;
    let a = world.instance("a", None).await?;
    let gate = Proxy::start(Postgres::shared().await?.port())?;
    let port = format!(":{}/", Postgres::shared().await?.port());
    let distant = PgPool::connect(&world.url.replace(&port, &format!(":{}/", gate.port()))).await?;
    let mut tx = a.migration.begin(&distant).await?;
    sqlx::query("update orders set note = 'lost' where id = 1").execute(&mut *tx).await?;
    gate.lose();
    // Every other writer of the row waits, with a connection of its pool.
    let write = async {
        let mut tx = a.migration.begin(&world.pool).await?;
        sqlx::query("update orders set note = 'kept' where id = 1").execute(&mut *tx).await?;
        tx.commit().await
    };
    tokio::time::timeout(Duration::from_secs(40), write).await??;
    // A limit that the session has set is kept.
    let own = PgPoolOptions::new().max_connections(1).connect(&world.url).await?;
    own.execute("set idle_in_transaction_session_timeout = '77s'").await?;
    let mut tx = a.migration.begin(&own).await?;
    let limit: String =
        sqlx::query_scalar("show idle_in_transaction_session_timeout").fetch_one(&mut *tx).await?;
    assert_eq!(limit, "77s");
    Ok(())
}
