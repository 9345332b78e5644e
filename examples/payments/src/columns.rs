//! The columns, behind one trait.

use cutover::migration::PinnedTx;
use sqlx::{PgConnection, PgPool, Postgres, Row};

use crate::status::Status;
use crate::{Error, Flow, Order};

/// The payment status of orders.
#[cutover::dual_write]
pub trait PaymentStatus {
    /// Returns the order with this number, with its status.
    #[read(key = id)]
    async fn find(&self, id: i64) -> Result<Option<Order>, Error>;

    /// Sets an order's status. Returns `false` if there is no such order.
    #[write(key = id)]
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: Status) -> Result<bool, Error>;
}

/// Column `orders.old_payment_status`: free text.
#[derive(Debug, Clone)]
pub(crate) struct OldColumn(pub(crate) PgPool);

/// Column `orders.new_payment_status`: one of eight words.
#[derive(Debug, Clone)]
pub(crate) struct NewColumn(pub(crate) PgPool);

impl PaymentStatus for OldColumn {
    async fn find(&self, id: i64) -> Result<Option<Order>, Error> {
        let query = "select customer, amount_cents, old_payment_status as status from orders where id = $1";
        find(&self.0, query, id, |text: Option<String>| Status::from_legacy(text.as_deref())).await
    }

    async fn set(&self, tx: &mut PinnedTx, id: i64, status: Status) -> Result<bool, Error> {
        Ok(set_old(tx, id, status).await?)
    }
}

impl PaymentStatus for NewColumn {
    async fn find(&self, id: i64) -> Result<Option<Order>, Error> {
        let query = "select customer, amount_cents, new_payment_status as status from orders where id = $1";
        find(&self.0, query, id, |text: Option<String>| Status::from_name(text.as_deref())).await
    }

    async fn set(&self, tx: &mut PinnedTx, id: i64, status: Status) -> Result<bool, Error> {
        let done = sqlx::query("update orders set new_payment_status = $2 where id = $1")
            .bind(id)
            .bind(status.name())
            .execute(&mut **tx)
            .await?;
        Ok(done.rows_affected() == 1)
    }
}

/// Column `orders.payment_code`: a number.
#[derive(Debug, Clone)]
pub(crate) struct CodeColumn(pub(crate) PgPool);

impl PaymentStatus for CodeColumn {
    async fn find(&self, id: i64) -> Result<Option<Order>, Error> {
        let query = "select customer, amount_cents, payment_code as status from orders where id = $1";
        find(&self.0, query, id, Status::from_code).await
    }

    async fn set(&self, tx: &mut PinnedTx, id: i64, status: Status) -> Result<bool, Error> {
        let done = sqlx::query("update orders set payment_code = $2 where id = $1")
            .bind(id)
            .bind(status.code())
            .execute(&mut **tx)
            .await?;
        Ok(done.rows_affected() == 1)
    }
}

/// Also used by release 1, whose transactions are not pinned.
pub(crate) async fn set_old(tx: &mut PgConnection, id: i64, status: Status) -> Result<bool, sqlx::Error> {
    let done = sqlx::query("update orders set old_payment_status = $2 where id = $1")
        .bind(id)
        .bind(status.legacy_name())
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}

async fn find<T>(
    pool: &PgPool,
    query: &'static str,
    id: i64,
    read: fn(Option<T>) -> Status,
) -> Result<Option<Order>, Error>
where
    T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    let Some(row) = sqlx::query(query).bind(id).fetch_optional(pool).await? else { return Ok(None) };
    Ok(Some(Order {
        id,
        customer: row.try_get("customer")?,
        amount_cents: row.try_get("amount_cents")?,
        status: read(row.try_get("status")?),
    }))
}

/// Inserts an order without a status.
pub(crate) async fn insert(
    tx: &mut PgConnection,
    customer: &str,
    amount_cents: i64,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("insert into orders (customer, amount_cents) values ($1, $2) returning id")
        .bind(customer)
        .bind(amount_cents)
        .fetch_one(tx)
        .await
}

/// Records a payment of an order.
pub(crate) async fn book(
    tx: &mut PgConnection,
    id: i64,
    status: Status,
    flow: Flow,
) -> Result<(), sqlx::Error> {
    sqlx::query("insert into payments (order_id, status, flow) values ($1, $2, $3)")
        .bind(id)
        .bind(status.name())
        .bind(flow.name())
        .execute(tx)
        .await?;
    Ok(())
}
