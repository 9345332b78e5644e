use crate::ledger::fence::FencePin;
use crate::migration::runtime::error::Error;

/// The isolation level of a pinned transaction.
///
/// Postgres has no other level, so the enum is exhaustive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// The server's default level.
    #[default]
    ReadCommitted,
    /// One snapshot for the whole transaction. The fence then locks the ledger's row of the epoch, because the snapshot may
    /// be older than a close. The transaction can therefore fail with SQLSTATE 40001 when it begins.
    RepeatableRead,
    /// As if transactions ran one after the other. The fence works as under [`Isolation::RepeatableRead`].
    Serializable,
}

impl Isolation {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "read committed",
            Isolation::RepeatableRead => "repeatable read",
            Isolation::Serializable => "serializable",
        }
    }
}

/// The arguments of the fence.
#[derive(Debug, Clone)]
pub struct FenceCall {
    pub(crate) isolation: Isolation,
    /// One for each migration, by ascending id. All transactions take the locks of the fence in this order, so that no two
    /// of them wait for each other.
    pub(crate) pins: Vec<FencePin>,
}

/// A pool on which [`Migration::begin`](crate::migration::Migration::begin) begins transactions: `sqlx::PgPool` and, with the
/// cargo feature `deadpool`, `deadpool_postgres::Pool`. It cannot be implemented outside this library.
pub trait FencedPool: Send + Sync {
    /// The type of the pool's transactions.
    type Transaction: FencedTransaction;

    /// Begins a transaction that has passed the fence. If it is refused or dropped, no connection stays in a transaction.
    #[doc(hidden)]
    fn begin(&self, call: FenceCall) -> impl Future<Output = Result<Self::Transaction, Error>> + Send;
}

/// The transaction inside a [`PinnedTx`](crate::migration::PinnedTx). It cannot be implemented outside this library.
pub trait FencedTransaction: Sized + Send {
    /// The connection that queries run on.
    type Connection;

    #[doc(hidden)]
    fn connection(&self) -> &Self::Connection;

    #[doc(hidden)]
    fn commit(self, _: Ending) -> impl Future<Output = Result<(), Error>> + Send;

    #[doc(hidden)]
    fn rollback(self, _: Ending) -> impl Future<Output = Result<(), Error>> + Send;

    /// Runs a statement of the library whose parameters and columns are text.
    #[doc(hidden)]
    fn ask(
        &mut self,
        statement: &'static str,
        values: &[&str],
    ) -> impl Future<Output = Result<Vec<Vec<String>>, Error>> + Send;
}

/// Proof that the call comes from `PinnedTx`, which alone may end a transaction.
#[derive(Debug)]
pub struct Ending(pub(super) ());
