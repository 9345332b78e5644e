//! Release 3: knows only the new column. It can run from `retire` on.

use cutover::migration::Migration;
use sqlx::PgPool;

use crate::columns::{NewColumn, PaymentStatus};
use crate::status::Status;
use crate::{Error, Flow, Order, Orders, pinned};

/// Orders with the new column.
#[derive(Debug, Clone)]
pub struct Release3 {
    pool: PgPool,
    migration: Migration,
    statuses: NewColumn,
}

impl Release3 {
    /// Orders in this database. Requests fail while the migration is in an earlier phase than `retire`.
    pub fn new(pool: PgPool, migration: Migration) -> Self {
        Self { statuses: NewColumn(pool.clone()), pool, migration }
    }
}

impl Orders for Release3 {
    async fn create(&self, customer: &str, amount_cents: i64) -> Result<i64, Error> {
        pinned::create(&self.pool, &self.migration, &self.statuses, customer, amount_cents).await
    }

    async fn find(&self, id: i64) -> Result<Option<Order>, Error> {
        self.migration.read(async |_| self.statuses.find(id).await).await
    }

    async fn pay(&self, id: i64, status: Status, flow: Flow) -> Result<bool, Error> {
        pinned::pay(&self.pool, &self.migration, &self.statuses, id, status, flow).await
    }
}
