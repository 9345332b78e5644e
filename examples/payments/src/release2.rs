//! Release 2: knows both columns. The migration decides which of them is written and read.

use cutover::migration::DualWrite;
use cutover::migration::Migration;
use sqlx::PgPool;

use crate::columns::{NewColumn, OldColumn, PaymentStatus};
use crate::status::Status;
use crate::{Error, Flow, Order, Orders, pinned};

/// Orders with both columns.
#[derive(Debug, Clone)]
pub struct Release2 {
    pool: PgPool,
    migration: Migration,
    statuses: DualWrite<OldColumn, NewColumn>,
}

impl Release2 {
    /// Orders in this database. The migration's phase decides which column is used.
    pub fn new(pool: PgPool, migration: Migration) -> Self {
        let (old, new) = (OldColumn(pool.clone()), NewColumn(pool.clone()));
        Self { pool, statuses: DualWrite::new(migration.clone(), old, new), migration }
    }
}

impl Orders for Release2 {
    async fn create(&self, customer: &str, amount_cents: i64) -> Result<i64, Error> {
        pinned::create(&self.pool, &self.migration, &self.statuses, customer, amount_cents).await
    }

    async fn find(&self, id: i64) -> Result<Option<Order>, Error> {
        self.statuses.find(id).await
    }

    async fn pay(&self, id: i64, status: Status, flow: Flow) -> Result<bool, Error> {
        pinned::pay(&self.pool, &self.migration, &self.statuses, id, status, flow).await
    }
}
