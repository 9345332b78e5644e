use super::error::Error;
use super::fence::{FencedPool, Isolation, Mirroring, PinnedTx};
use super::migration::Migration;

/// Several migrations, for transactions that write under all of them.
///
/// A transaction is pinned to the migrations that it was begun with, and only to these. So one that writes the data of two
/// migrations is begun with both. The fence checks all of them in the message that begins the transaction, so there is no
/// further round trip. This is a cheap handle: make it once and keep it with the service's state.
///
/// ```
/// use cutover::migration::{DualWrite, Error, Migration, PinnedTx};
/// # #[cutover::dual_write]
/// # trait Statuses {
/// #     #[write(key = id)]
/// #     async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error>;
/// # }
/// # #[cutover::dual_write]
/// # trait Addresses {
/// #     #[write(key = id)]
/// #     async fn change(&self, tx: &mut PinnedTx, id: i64, address: &str) -> Result<(), Error>;
/// # }
///
/// # async fn f(status: Migration, address: Migration, statuses: impl Statuses, addresses: impl Addresses,
/// #     pool: sqlx::PgPool) -> Result<(), Error> {
/// let both = status.and(&address);
/// let mut tx = both.begin(&pool).await?;
/// statuses.set(&mut tx, 1, "paid").await?;
/// addresses.change(&mut tx, 1, "1 Main St").await?;
/// tx.commit().await
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Migrations {
    first: Migration,
    others: Vec<Migration>,
}

impl Migration {
    /// This migration and another one, for transactions that write under both.
    pub fn and(&self, other: &Migration) -> Migrations {
        Migrations { first: self.clone(), others: Vec::new() }.and(other)
    }
}

impl Migrations {
    /// Adds a migration. One that is already included changes nothing.
    pub fn and(mut self, other: &Migration) -> Self {
        if !self.iter().any(|known| known.is(other)) {
            self.others.push(other.clone());
        }
        self
    }

    /// The migrations, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Migration> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Begins a transaction that is pinned to the current epoch of each migration. See [`Migration::begin`].
    ///
    /// # Errors
    ///
    /// As [`Migration::begin`]. One migration whose epoch is refused is enough.
    ///
    /// # Cancel safety
    ///
    /// As [`Migration::begin`].
    pub async fn begin<P: FencedPool>(&self, pool: &P) -> Result<PinnedTx<P::Transaction>, Error> {
        self.begin_isolated(pool, Isolation::default()).await
    }

    /// Like [`Migrations::begin`], at an isolation level.
    ///
    /// # Errors
    ///
    /// As [`Migration::begin`].
    ///
    /// # Cancel safety
    ///
    /// As [`Migration::begin`].
    pub async fn begin_isolated<P: FencedPool>(
        &self,
        pool: &P,
        isolation: Isolation,
    ) -> Result<PinnedTx<P::Transaction>, Error> {
        PinnedTx::begin(pool, isolation, Mirroring::AsDeclared, &self.first, &self.others).await
    }
}
