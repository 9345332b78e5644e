use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;

/// What a store failed with.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// The old side: rows in the service's own database, each under a key that is a text.
pub trait MirrorSource: Send + Sync + 'static {
    /// A row, as both sides know it.
    type Row: Serialize + DeserializeOwned + PartialEq + Send + Sync;

    /// The row under this key.
    ///
    /// # Errors
    ///
    /// The database's.
    fn read(
        &self,
        connection: &mut PgConnection,
        key: &str,
    ) -> impl Future<Output = Result<Option<Self::Row>, sqlx::Error>> + Send;

    /// Makes this the row under this key; without a row there is none from now on.
    ///
    /// # Errors
    ///
    /// The database's.
    fn write(
        &self,
        connection: &mut PgConnection,
        key: &str,
        row: Option<&Self::Row>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The next keys, at most so many, in any order that stays the same and in which new ones come last or where they
    /// belong: that of a unique index.
    ///
    /// # Errors
    ///
    /// The database's.
    fn keys(
        &self,
        connection: &mut PgConnection,
        after: Option<&str>,
        limit: i64,
    ) -> impl Future<Output = Result<Vec<String>, sqlx::Error>> + Send;
}

/// The new side: a store of rows as JSON, each under a key and a version. Every operation should have a time limit.
pub trait MirrorStore: Send + Sync + 'static {
    /// Makes what it needs, where that is not there.
    ///
    /// # Errors
    ///
    /// The store's.
    fn prepare(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Whether [`prepare`](Self::prepare) has nothing to do.
    ///
    /// # Errors
    ///
    /// The store's.
    fn is_prepared(&self) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Keeps the row under this version unless it has this version or a higher one, in one step; `false` where it has. A
    /// row that is gone (`None`) leaves its version behind, so that an older one doesn't bring it back.
    ///
    /// # Errors
    ///
    /// The store's: it may have been done or not.
    fn put(
        &self,
        key: &str,
        version: i64,
        row: Option<&str>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// The row under this key.
    ///
    /// # Errors
    ///
    /// The store's.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// Some of the keys, and where to go on; `None` when these were the last. Every key that was there from the first
    /// call to the last is among them; one may be there twice, or be gone.
    ///
    /// # Errors
    ///
    /// The store's.
    fn keys(
        &self,
        cursor: Option<&str>,
    ) -> impl Future<Output = Result<(Vec<String>, Option<String>), StoreError>> + Send;
}
