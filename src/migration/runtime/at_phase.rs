use super::columns::SideColumns;
use super::error::Error;
use super::fence::{FencedTransaction, PinnedTx};
use super::gate::Pin;
use super::migration::Migration;
use crate::migration::phase::{Percent, Phase};

/// What [`Migration::columns`] takes: a [`PinnedTx`], or the [`Pin`] of a read. It cannot be implemented outside this library.
pub trait AtPhase {
    /// The phase and the share of reads of the new side.
    #[doc(hidden)]
    fn phase_and_ramp(&self, migration: &Migration) -> Result<(Phase, Percent), Error>;
}

impl<T: FencedTransaction> AtPhase for PinnedTx<T> {
    fn phase_and_ramp(&self, migration: &Migration) -> Result<(Phase, Percent), Error> {
        let pin = self.pin_of(migration)?;
        Ok((pin.phase(), pin.ramp()))
    }
}

impl AtPhase for Pin<'_> {
    fn phase_and_ramp(&self, migration: &Migration) -> Result<(Phase, Percent), Error> {
        if !std::ptr::eq(self.gate(), migration.gate()) {
            return Err(Error::OtherMigration {
                migration: migration.name().to_owned(),
                begun_with: "another one's pin".to_owned(),
            });
        }
        Ok((self.phase(), self.ramp()))
    }
}

impl Migration {
    /// The columns that a statement names, at the phase of a transaction or of a read's pin. The service writes only these
    /// columns, and the guard trigger mirrors the write to the other side:
    ///
    /// ```
    /// use cutover::migration::{Error, Key, Migration};
    /// use sqlx::{AssertSqlSafe, PgPool};
    ///
    /// async fn pay(status: &Migration, pool: &PgPool, id: i64) -> Result<(), Error> {
    ///     let mut tx = status.begin(pool).await?;
    ///     let column = status.columns(&tx)?;
    ///     let update = format!("update orders set {column} = 'paid' where id = $1 and {column} = 'open'");
    ///     sqlx::query(AssertSqlSafe(update)).bind(id).execute(&mut *tx).await?;
    ///     tx.commit().await
    /// }
    ///
    /// async fn find(status: &Migration, pool: &PgPool, id: i64) -> Result<Option<String>, Error> {
    ///     status
    ///         .read(async |pin| {
    ///             let column = status.columns(pin)?.for_key(Key::of(&id));
    ///             let select = format!("select {column} from orders where id = $1");
    ///             Ok(sqlx::query_scalar(AssertSqlSafe(select)).bind(id).fetch_optional(pool).await?)
    ///         })
    ///         .await
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotMirrored`] if this build's plan of the migration does not use `mirror_writes`, and
    /// [`Error::OtherMigration`] if the transaction or the pin is of another migration.
    pub fn columns(&self, at: &impl AtPhase) -> Result<SideColumns, Error> {
        let (phase, ramp) = at.phase_and_ramp(self)?;
        let Some(columns) = self.mirrored_columns() else {
            return Err(Error::NotMirrored { migration: self.name().to_owned() });
        };
        Ok(SideColumns::new(columns.clone(), phase, ramp, self.seed()))
    }
}
