//! Release 4: the first migration is history, and a second one moves the status into a number. As in release 2, the migration
//! decides which of the columns is written and read.

use cutover::migration::DualWrite;
use cutover::migration::Migration;
use sqlx::PgPool;

use crate::columns::{CodeColumn, NewColumn, PaymentStatus};
use crate::status::Status;
use crate::{Error, Flow, Order, Orders, pinned};

/// Orders with the columns of the second migration.
#[derive(Debug, Clone)]
pub struct Release4 {
    pool: PgPool,
    migration: Migration,
    statuses: DualWrite<NewColumn, CodeColumn>,
}

impl Release4 {
    /// Orders in this database. The second migration's phase decides which column is used.
    pub fn new(pool: PgPool, migration: Migration) -> Self {
        let (old, new) = (NewColumn(pool.clone()), CodeColumn(pool.clone()));
        Self { pool, statuses: DualWrite::new(migration.clone(), old, new), migration }
    }
}

impl Orders for Release4 {
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
