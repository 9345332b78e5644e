//! The table of orders. `sqlx migrate run` makes it, from the folder `migrations`.

use std::sync::Arc;

use cutover::ConfigError;
use cutover::migration::{ColumnMigration, DualWrite, Error, Migration, MigrationSpec, PhaseRange, PinnedTx};
use sqlx::PgPool;

/// The status moves from `old_status`, in capitals, to `new_status`.
pub(crate) fn order_status(pool: PgPool) -> Result<MigrationSpec, ConfigError> {
    let plan = ColumnMigration::new(pool, "orders")
        .key("id")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .build()?;
    Ok(MigrationSpec::new("order-status", PhaseRange::FULL).plan(plan))
}

#[derive(Clone)]
pub(crate) struct Shop {
    pool: PgPool,
    pub(crate) orders: Arc<DualWrite<OldColumn, NewColumn>>,
}

impl Shop {
    pub(crate) fn new(pool: PgPool, migration: Migration) -> Self {
        let (old, new) = (OldColumn { pool: pool.clone() }, NewColumn { pool: pool.clone() });
        Self { pool, orders: Arc::new(DualWrite::new(migration, old, new)) }
    }

    pub(crate) async fn begin(&self) -> Result<PinnedTx, Error> {
        self.orders.migration().begin(&self.pool).await
    }
}

#[cutover::dual_write]
pub(crate) trait Orders {
    #[insert(key = id)]
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, status: &str) -> Result<i64, Error>;

    #[write(key = id)]
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error>;

    #[read(key = id)]
    async fn status(&self, id: i64) -> Result<String, Error>;
}

pub(crate) struct OldColumn {
    pool: PgPool,
}

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
        Ok(sqlx::query_scalar(select).bind(id).fetch_one(&self.pool).await?)
    }
}

pub(crate) struct NewColumn {
    pool: PgPool,
}

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
        Ok(sqlx::query_scalar(select).bind(id).fetch_one(&self.pool).await?)
    }
}
