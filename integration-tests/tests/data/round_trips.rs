//! The fence costs a transaction no round trip.

use std::time::Duration;

use cutover::migration::{Error, Migration};
use cutover_testkit::{Postgres, Proxy};
use deadpool_postgres::{Manager, Pool, Runtime};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio_postgres::NoTls;

use crate::world::{Outcome, World};

/// Messages that are sent within this time are one round trip.
const ONE_WAY: Duration = Duration::from_millis(400);
const UPDATE: &str = "update orders set note = 'noted' where id = $1";

/// A world, the migration of an instance, and its address behind a proxy.
async fn behind_proxy() -> Outcome<(World, crate::world::Fleet, Proxy, String)> {
    let world = World::new(3).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    let port = Postgres::shared().await?.port();
    let proxy = Proxy::start(port)?;
    let url = world.url.replace(&format!(":{port}"), &format!(":{}", proxy.port()));
    Ok((world, fleet, proxy, url))
}

#[tokio::test]
async fn the_fence_costs_no_round_trip_on_sqlx() -> Outcome {
    let (_world, fleet, proxy, url) = behind_proxy().await?;
    let pool = PgPoolOptions::new().max_connections(1).test_before_acquire(false).connect(&url).await?;
    let without = async || -> Result<(), sqlx::Error> {
        let mut tx = pool.begin().await?;
        sqlx::query(UPDATE).bind(1_i64).execute(&mut *tx).await?;
        tx.commit().await
    };
    // Prepares the statement, which takes a round trip of its own.
    without().await?;
    proxy.slow(ONE_WAY);
    let unfenced = counted(&proxy, &pool, without).await?;
    let migration = &fleet.migration;
    let fenced = counted(&proxy, &pool, async || pinned(migration, &pool).await).await?;
    assert_eq!((unfenced, fenced), (3, 3));
    Ok(())
}

async fn pinned(migration: &Migration, pool: &PgPool) -> Result<(), Error> {
    let mut tx = migration.begin(pool).await?;
    sqlx::query(UPDATE).bind(1_i64).execute(&mut *tx).await?;
    tx.commit().await
}

/// The round trips of a transaction, on an idle connection.
async fn counted<E>(
    proxy: &Proxy,
    pool: &PgPool,
    transaction: impl AsyncFn() -> Result<(), E>,
) -> Result<u64, E>
where
    E: From<sqlx::Error>,
{
    // The pool tests a connection when it is returned.
    drop(pool.acquire().await?);
    while pool.num_idle() == 0 {
        tokio::task::yield_now().await;
    }
    let before = proxy.round_trips();
    transaction().await?;
    Ok(proxy.round_trips() - before)
}

#[tokio::test]
async fn the_fence_costs_no_round_trip_on_deadpool() -> Outcome {
    let (_world, fleet, proxy, url) = behind_proxy().await?;
    let config: tokio_postgres::Config = url.parse()?;
    let pool = Pool::builder(Manager::new(config, NoTls)).max_size(1).runtime(Runtime::Tokio1).build()?;
    let without = async || -> Outcome {
        let mut client = pool.get().await?;
        let tx = client.transaction().await?;
        let update = tx.prepare_cached(UPDATE).await?;
        tx.execute(&update, &[&1_i64]).await?;
        Ok(tx.commit().await?)
    };
    let with = async || -> Outcome {
        let tx = fleet.migration.begin(&pool).await?;
        let update = tx.prepare_cached(UPDATE).await?;
        tx.execute(&update, &[&1_i64]).await?;
        Ok(tx.commit().await?)
    };
    // Prepares the statements, which takes round trips of its own.
    without().await?;
    with().await?;
    proxy.slow(ONE_WAY);
    let before = proxy.round_trips();
    without().await?;
    let between = proxy.round_trips();
    with().await?;
    assert_eq!((between - before, proxy.round_trips() - between), (3, 3));
    Ok(())
}
