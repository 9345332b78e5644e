//! A payments service as a user of `cutover` would write it, in three releases.
//!
//! The column `orders.old_payment_status` holds free text from years of different writers. It is replaced by
//! `new_payment_status`, which holds one of seven words. Each release is one binary:
//!
//! | release | knows | where to look |
//! |---|---|---|
//! | `payments-1` | only the old column, and nothing of the migration | [`release1`] |
//! | `payments-2` | both columns | [`release2`] |
//! | `payments-3` | only the new column | [`release3`] |
//!
//! What they share is what did not change: the routes ([`http`]), the words ([`status`]) and the start
//! ([`start`]).

mod columns;
mod fault;
pub mod http;
pub mod migration;
mod pinned;
pub mod release1;
pub mod release2;
pub mod release3;
pub mod start;
pub mod status;

/// What the handlers need from a release: orders, and payments on them.
pub trait Orders: Clone + Send + Sync + 'static {
    /// A new order, pending.
    fn create(&self, customer: &str, amount_cents: i64) -> impl Future<Output = Result<i64, Error>> + Send;

    /// An order, or `None` when there is none of this number.
    fn find(&self, id: i64) -> impl Future<Output = Result<Option<Order>, Error>> + Send;

    /// Records a payment through one of the two flows; `false` when there is no such order.
    fn pay(
        &self,
        id: i64,
        status: status::Status,
        flow: Flow,
    ) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// An order as the service shows it.
#[derive(Debug, serde::Serialize)]
pub struct Order {
    /// Its number.
    pub id: i64,
    /// Who ordered.
    pub customer: String,
    /// What it costs.
    pub amount_cents: i64,
    /// How far its payment is.
    pub status: status::Status,
}

/// Which code handles a payment; decided by the flag `payment-new-flow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flow {
    /// As it always was.
    Legacy,
    /// What is to replace it; here no more than a word in the books.
    New,
}

impl Flow {
    /// As in column `payments.flow`.
    pub fn name(self) -> &'static str {
        match self {
            Flow::Legacy => "legacy",
            Flow::New => "new",
        }
    }
}

/// Why a request could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The migration's, or the database's.
    #[error(transparent)]
    Operation(#[from] cutover::migration::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Error::Operation(error.into())
    }
}
