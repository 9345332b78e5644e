//! Writes in pinned transactions, for releases 2 and 3.

use cutover::migration::Migration;
use sqlx::PgPool;

use crate::columns::{PaymentStatus, book, insert};
use crate::status::Status;
use crate::{Error, Flow};

pub(crate) async fn create(
    pool: &PgPool,
    migration: &Migration,
    statuses: &impl PaymentStatus,
    customer: &str,
    amount_cents: i64,
) -> Result<i64, Error> {
    let mut tx = migration.begin(pool).await?;
    let id = insert(&mut tx, customer, amount_cents).await?;
    statuses.set(&mut tx, id, Status::Pending).await?;
    tx.commit().await?;
    Ok(id)
}

pub(crate) async fn pay(
    pool: &PgPool,
    migration: &Migration,
    statuses: &impl PaymentStatus,
    id: i64,
    status: Status,
    flow: Flow,
) -> Result<bool, Error> {
    let mut tx = migration.begin(pool).await?;
    if !statuses.set(&mut tx, id, status).await? {
        return Ok(false);
    }
    book(&mut tx, id, status, flow).await?;
    tx.commit().await?;
    Ok(true)
}
