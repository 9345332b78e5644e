//! A payments service as a user of `cutover` would write it, in four releases.
//!
//! The column `orders.old_payment_status` contains free text from years of different writers. A migration replaces it with
//! `new_payment_status`, which contains one of seven words. Each release is a binary:
//!
//! | release | knows | where to look |
//! |---|---|---|
//! | `payments-1` | only the old column; does not declare the migration | [`release1`] |
//! | `payments-2` | both columns | [`release2`] |
//! | `payments-3` | only the new column | [`release3`] |
//! | `payments-4` | that column and a number, `payment_code`, to which a second migration moves it | [`release4`] |
//!
//! They share what does not change: the routes ([`http`]), the statuses ([`status`]) and the start ([`start`]).

pub mod columns;
mod fault;
pub mod http;
pub mod migration;
mod pinned;
pub mod release1;
pub mod release2;
pub mod release3;
pub mod release4;
pub mod start;
pub mod status;

/// What the handlers need from a release: orders, and payments on them.
pub trait Orders: Clone + Send + Sync + 'static {
    /// Creates an order with status `pending`, and returns its number.
    fn create(&self, customer: &str, amount_cents: i64) -> impl Future<Output = Result<i64, Error>> + Send;

    /// Returns the order with this number.
    fn find(&self, id: i64) -> impl Future<Output = Result<Option<Order>, Error>> + Send;

    /// Records a payment by one of the two flows. Returns `false` if there is no such order.
    fn pay(
        &self,
        id: i64,
        status: status::Status,
        flow: Flow,
    ) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// An order, as the service returns it.
#[derive(Debug, serde::Serialize)]
pub struct Order {
    /// The order's number.
    pub id: i64,
    /// The customer's name.
    pub customer: String,
    /// The amount in cents.
    pub amount_cents: i64,
    /// The status of its payment.
    pub status: status::Status,
}

/// The code that handles a payment. Flag `payment-new-flow` selects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flow {
    /// The existing flow.
    Legacy,
    /// Its replacement. Here, it only stores another word.
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

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the migration or the database.
    #[error(transparent)]
    Operation(#[from] cutover::migration::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Error::Operation(error.into())
    }
}
