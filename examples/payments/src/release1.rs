//! Release 1: knows only the old column.

use sqlx::PgPool;

use crate::columns::{OldColumn, PaymentStatus, book, insert, set_old};
use crate::status::Status;
use crate::{Error, Flow, Order, Orders};

/// Orders with the old column.
#[derive(Debug, Clone)]
pub struct Release1 {
    /// The service's database.
    pub pool: PgPool,
}

impl Orders for Release1 {
    async fn create(&self, customer: &str, amount_cents: i64) -> Result<i64, Error> {
        let mut tx = self.pool.begin().await?;
        let id = insert(&mut tx, customer, amount_cents).await?;
        set_old(&mut tx, id, Status::Pending).await?;
        tx.commit().await?;
        Ok(id)
    }

    async fn find(&self, id: i64) -> Result<Option<Order>, Error> {
        OldColumn(self.pool.clone()).find(id).await
    }

    async fn pay(&self, id: i64, status: Status, flow: Flow) -> Result<bool, Error> {
        let mut tx = self.pool.begin().await?;
        if !set_old(&mut tx, id, status).await? {
            return Ok(false);
        }
        book(&mut tx, id, status, flow).await?;
        tx.commit().await?;
        Ok(true)
    }
}
