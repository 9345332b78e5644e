//! The repository in every phase of the migration, forwards and backwards.

use cutover::migration::Error;
use cutover::testing::EveryPhase;
use cutover_testkit::Postgres;
use sqlx::{Executor, PgPool};

use crate::orders::{Orders as _, Shop, order_status};

// In a repository of your own, `#[sqlx::test]` makes the database and runs the migrations.
#[tokio::test]
async fn orders_work_in_every_phase() -> Result<(), Box<dyn std::error::Error>> {
    let pool = PgPool::connect(&Postgres::fresh_database().await?).await?;
    pool.execute(include_str!("../migrations/0001_orders.sql")).await?;
    EveryPhase::new(&pool, order_status(pool.clone())?)
        .run(async |visit| {
            let shop = Shop::new(pool.clone(), visit.migration().clone());
            let mut tx = shop.begin().await?;
            let id = shop.orders.add(&mut tx, None, "open").await?;
            // Rows that were inserted in earlier phases have to be writable, too.
            for earlier in visit.earlier() {
                shop.orders.set(&mut tx, *earlier, "paid").await?;
            }
            tx.commit().await?;
            assert_eq!(shop.orders.status(id).await?, "open");
            for earlier in visit.earlier() {
                assert_eq!(shop.orders.status(*earlier).await?, "paid");
            }
            Ok::<_, Error>(id)
        })
        .await?;
    Ok(())
}
