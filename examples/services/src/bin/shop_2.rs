//! The service of the guide's page "The code of a whole migration": release 2, with code for both columns.

use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post, put};
use cutover::front::BoxError;
use cutover::migration::{ColumnMigration, DualWrite, Error, MigrationSpec, PhaseRange, PinnedTx};
use cutover::{ConfigError, Cutover};
use sqlx::PgPool;

#[tokio::main]
async fn main() -> ExitCode {
    let service = Cutover::service("shop").postgres_from_env().migration(order_status);
    service
        .run(async |instance| {
            let pool = instance.postgres()?;
            let migration = instance.migration("order-status").ok_or("the migration is declared above")?;
            let (old, new) = (OldColumn(pool.clone()), NewColumn(pool.clone()));
            let orders = Arc::new(DualWrite::new(migration, old, new));
            Ok::<_, BoxError>(app().with_state(Shop { pool, orders }))
        })
        .await
}

fn order_status(pool: PgPool) -> Result<MigrationSpec, ConfigError> {
    let plan = ColumnMigration::new(pool, "orders")
        .key("id")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .build()?;
    Ok(MigrationSpec::new("order-status", PhaseRange::FULL).plan(plan))
}

#[cutover::dual_write]
trait Orders {
    #[insert(key = id)]
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, status: &str) -> Result<i64, Error>;

    #[write(key = id)]
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error>;

    #[read(key = id)]
    async fn status(&self, id: i64) -> Result<String, Error>;
}

struct OldColumn(PgPool);

impl Orders for OldColumn {
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, status: &str) -> Result<i64, Error> {
        let insert = "insert into orders (id, old_status) \
            values (coalesce($1, nextval('orders_id_seq')), upper($2)) returning id";
        Ok(sqlx::query_scalar(insert).bind(id).bind(status).fetch_one(&mut **tx).await?)
    }

    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error> {
        let update = "update orders set old_status = upper($2) where id = $1";
        sqlx::query(update).bind(id).bind(status).execute(&mut **tx).await?;
        Ok(())
    }

    async fn status(&self, id: i64) -> Result<String, Error> {
        let select = "select lower(old_status) from orders where id = $1";
        Ok(sqlx::query_scalar(select).bind(id).fetch_one(&self.0).await?)
    }
}

struct NewColumn(PgPool);

impl Orders for NewColumn {
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, status: &str) -> Result<i64, Error> {
        // While both columns are written, the row is already there.
        let upsert = "insert into orders (id, new_status) values (coalesce($1, nextval('orders_id_seq')), $2) \
            on conflict (id) do update set new_status = excluded.new_status returning id";
        Ok(sqlx::query_scalar(upsert).bind(id).bind(status).fetch_one(&mut **tx).await?)
    }

    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error> {
        let update = "update orders set new_status = $2 where id = $1";
        sqlx::query(update).bind(id).bind(status).execute(&mut **tx).await?;
        Ok(())
    }

    async fn status(&self, id: i64) -> Result<String, Error> {
        let select = "select new_status from orders where id = $1";
        Ok(sqlx::query_scalar(select).bind(id).fetch_one(&self.0).await?)
    }
}

#[derive(Clone)]
struct Shop {
    pool: PgPool,
    orders: Arc<DualWrite<OldColumn, NewColumn>>,
}

fn app() -> Router<Shop> {
    Router::new()
        .route("/orders", post(add))
        .route("/orders/{id}", get(status))
        .route("/orders/{id}/{status}", put(set))
}

async fn add(State(shop): State<Shop>) -> Result<String, Error> {
    let mut tx = shop.orders.migration().begin(&shop.pool).await?;
    let id = shop.orders.add(&mut tx, None, "open").await?;
    tx.commit().await?;
    Ok(id.to_string())
}

async fn status(State(shop): State<Shop>, Path(id): Path<i64>) -> Result<String, Error> {
    shop.orders.status(id).await
}

async fn set(State(shop): State<Shop>, Path((id, status)): Path<(i64, String)>) -> Result<(), Error> {
    let mut tx = shop.orders.migration().begin(&shop.pool).await?;
    shop.orders.set(&mut tx, id, &status).await?;
    tx.commit().await
}
