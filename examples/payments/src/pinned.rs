//! Writes that are pinned to an epoch, the same for releases 2 and 3.

use cutover::migration::control::{Migration, PinnedTx};
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
    migration
        .transaction(pool, async |tx: &mut PinnedTx| {
            let id = insert(tx, customer, amount_cents).await?;
            statuses.set(tx, id, Status::Pending).await?;
            Ok(id)
        })
        .await
}

pub(crate) async fn pay(
    pool: &PgPool,
    migration: &Migration,
    statuses: &impl PaymentStatus,
    id: i64,
    status: Status,
    flow: Flow,
) -> Result<bool, Error> {
    migration
        .transaction(pool, async |tx: &mut PinnedTx| {
            let known = statuses.set(tx, id, status).await?;
            if known {
                book(tx, id, status, flow).await?;
            }
            Ok(known)
        })
        .await
}
