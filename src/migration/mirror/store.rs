use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;

/// The error of a store.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// The old side: rows in the service's own database, each under a text key.
///
/// The methods also run in background work, with fixed settings such as `timezone = 'UTC'` and with `row_security = off`.
pub trait MirrorSource: Send + Sync + 'static {
    /// A row in the form that both sides share.
    type Row: Serialize + DeserializeOwned + PartialEq + Send + Sync;

    /// The row under this key.
    ///
    /// # Errors
    ///
    /// An error of the database.
    fn read(
        &self,
        connection: &mut PgConnection,
        key: &str,
    ) -> impl Future<Output = Result<Option<Self::Row>, sqlx::Error>> + Send;

    /// Writes the row under this key; `None` deletes it.
    ///
    /// # Errors
    ///
    /// An error of the database.
    fn write(
        &self,
        connection: &mut PgConnection,
        key: &str,
        row: Option<&Self::Row>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Up to `limit` keys that follow `after`, in the order of a unique index.
    ///
    /// # Errors
    ///
    /// An error of the database.
    fn keys(
        &self,
        connection: &mut PgConnection,
        after: Option<&str>,
        limit: i64,
    ) -> impl Future<Output = Result<Vec<String>, sqlx::Error>> + Send;
}

/// The new side: a store of rows as JSON, each with a key and a version. Every operation should have a time limit.
pub trait MirrorStore: Send + Sync + 'static {
    /// Creates what the store needs, unless it exists.
    ///
    /// # Errors
    ///
    /// An error of the store.
    fn prepare(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Whether everything that [`prepare`](Self::prepare) creates exists.
    ///
    /// # Errors
    ///
    /// An error of the store.
    fn is_prepared(&self) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Stores the row with this version, atomically, unless the store has this version of it or a higher one. Returns
    /// whether it was stored. A deleted row (`None`) keeps its version, so that an older write does not restore it.
    ///
    /// # Errors
    ///
    /// An error of the store. The row may have been stored or not.
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
    /// An error of the store.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// Some of the keys, and the cursor for the next call; `None` if these were the last. Every key that exists from the
    /// first call to the last is returned. A key may be returned twice, or be deleted by then.
    ///
    /// # Errors
    ///
    /// An error of the store.
    fn keys(
        &self,
        cursor: Option<&str>,
    ) -> impl Future<Output = Result<(Vec<String>, Option<String>), StoreError>> + Send;
}
