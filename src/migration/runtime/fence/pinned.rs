use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgTransaction};

use crate::ledger::fence::FencePin;
use crate::migration::phase::{Percent, Phase};
use crate::migration::runtime::error::Error;
use crate::migration::runtime::fence::on_sqlx::SqlxTx;
use crate::migration::runtime::fence::transaction::{
    Ending, FenceCall, FencedPool, FencedTransaction, Isolation,
};
use crate::migration::runtime::gate::Held;
use crate::migration::runtime::migration::Migration;

/// Whether the guard trigger mirrors the writes of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mirroring {
    /// If the migration's plan says so.
    AsDeclared,
    /// No: the transaction itself makes both sides what they have to be, as a batch does.
    Never,
}

/// How often a transaction is begun before its refusal is returned. With the pauses this is half a second.
const ATTEMPTS: u32 = 14;

/// A transaction that is pinned to an epoch of its migration, or of each of its migrations, and has passed the fence.
///
/// It dereferences to the connection: with `sqlx`, queries run on `&mut *tx`; with `deadpool`, its methods are those of a
/// `deadpool_postgres` client. A repository that takes this type cannot be called with an unpinned connection. A
/// transaction that is dropped without [`PinnedTx::commit`] is rolled back.
///
/// A write through a [`DualWrite`](crate::migration::DualWrite) that failed, or was dropped before its end, may have reached
/// one side only. The transaction can then no longer be committed, whatever the caller does with the error.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct PinnedTx<T: FencedTransaction = SqlxTx> {
    pub(crate) tx: T,
    /// Writes to a migration's sides that have begun and not succeeded.
    pub(crate) unfinished: u32,
    /// The pins of these writes, the outermost first. Empty if there is only one pin.
    writing: Vec<usize>,
    /// `None`: the library's own work, which is not measured as a write of the service.
    began: Option<Instant>,
    // Declared last, so dropped last: the operation counts until the rollback has been queued.
    first: Held<Migration>,
    others: Vec<Held<Migration>>,
}

impl<T: FencedTransaction> PinnedTx<T> {
    /// See [`Migration::begin`]. The pins are held until the transaction is dropped, or until this future is.
    pub(crate) async fn begin(
        pool: &impl FencedPool<Transaction = T>,
        isolation: Isolation,
        mirroring: Mirroring,
        first: &Migration,
        others: &[Migration],
    ) -> Result<Self, Error> {
        let mut attempt = 1;
        loop {
            match Self::try_to_begin(pool, isolation, mirroring, first, others)
                .await
                .map_err(Error::or_refusal)
            {
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                    // This instance is about to adopt the next epoch.
                    tokio::time::sleep(Duration::from_millis(5) * attempt).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_to_begin(
        pool: &impl FencedPool<Transaction = T>,
        isolation: Isolation,
        mirroring: Mirroring,
        first: &Migration,
        others: &[Migration],
    ) -> Result<Self, Error> {
        let began = (mirroring != Mirroring::Never).then(Instant::now);
        let enter = |migration: &Migration| Held::enter(migration.clone()).ok_or(Error::NotInFleet);
        let first = enter(first)?;
        let others = others.iter().map(enter).collect::<Result<Vec<_>, Error>>()?;
        let pin = |held| fence_pin(held, mirroring);
        let mut pins: Vec<FencePin> = std::iter::once(&first).chain(&others).map(pin).collect();
        pins.sort_unstable_by_key(|pin| pin.migration);
        let tx = pool.begin(FenceCall { isolation, pins }).await?;
        Ok(Self { tx, unfinished: 0, writing: Vec::new(), began, first, others })
    }

    /// The phase that the transaction runs at.
    ///
    /// With several migrations, this is the phase of the one whose [`DualWrite`](crate::migration::DualWrite) is writing at
    /// the moment, and otherwise of the first one. [`PinnedTx::phase_of`] names the migration.
    pub fn phase(&self) -> Phase {
        self.current().phase()
    }

    /// The epoch that the transaction runs at, of the same migration as [`PinnedTx::phase`].
    pub fn epoch(&self) -> i32 {
        self.current().epoch()
    }

    /// The share of keys to read from the new side in [`Phase::Ramp`], of the same migration as [`PinnedTx::phase`].
    pub fn ramp(&self) -> Percent {
        self.current().ramp()
    }

    /// The phase of this migration that the transaction runs at.
    ///
    /// # Errors
    ///
    /// [`Error::OtherMigration`] if the transaction was not begun with this migration.
    pub fn phase_of(&self, migration: &Migration) -> Result<Phase, Error> {
        Ok(self.pin_of(migration)?.phase())
    }

    /// Whether the transaction was begun with this migration.
    pub fn is_of(&self, migration: &Migration) -> bool {
        self.pins().any(|pin| pin.gate_owner().is(migration))
    }

    fn pins(&self) -> impl Iterator<Item = &Held<Migration>> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn current(&self) -> &Held<Migration> {
        let index = self.writing.last().copied().unwrap_or(0);
        self.pins().nth(index).unwrap_or(&self.first)
    }

    fn other_migration(&self, migration: &Migration) -> Error {
        let names: Vec<String> = self.pins().map(|pin| format!("`{}`", pin.gate_owner().name())).collect();
        Error::OtherMigration { migration: migration.name().to_owned(), begun_with: names.join(" and ") }
    }

    /// The pin of this migration.
    #[inline]
    pub(crate) fn pin_of(&self, migration: &Migration) -> Result<&Held<Migration>, Error> {
        Ok(self.numbered_pin_of(migration)?.1)
    }

    #[inline]
    fn numbered_pin_of(&self, migration: &Migration) -> Result<(usize, &Held<Migration>), Error> {
        let mut pins = self.pins().enumerate();
        pins.find(|(_, pin)| pin.gate_owner().is(migration)).ok_or_else(|| self.other_migration(migration))
    }

    /// Until [`PinnedTx::write_ended`] is called as often, the transaction can't be committed, and [`PinnedTx::phase`] is
    /// this migration's. Returns that phase.
    #[inline]
    pub(crate) fn write_begins(&mut self, migration: &Migration) -> Result<Phase, Error> {
        let (index, pin) = self.numbered_pin_of(migration)?;
        let phase = pin.phase();
        self.unfinished += 1;
        if !self.others.is_empty() {
            self.writing.push(index);
        }
        Ok(phase)
    }

    #[inline]
    pub(crate) fn write_ended(&mut self) {
        self.unfinished -= 1;
        self.writing.pop();
    }

    /// See [`FencedTransaction::ask`].
    pub(crate) async fn ask(
        &mut self,
        statement: &'static str,
        values: &[&str],
    ) -> Result<Vec<Vec<String>>, Error> {
        self.tx.ask(statement, values).await
    }

    /// Commits the transaction.
    ///
    /// # Errors
    ///
    /// The database's error. After a lost connection, it is not known whether the transaction committed. A transaction in
    /// which a statement has failed is rolled back, with SQLSTATE `25P02`, also if the caller ignored that error. SQLSTATE
    /// `40001` if another transaction changed a row between the writes of its two sides; begin the transaction again.
    ///
    /// [`Error::Unfinished`] if a write through a [`DualWrite`](crate::migration::DualWrite) failed in this transaction, or
    /// was dropped before its end. The transaction has been rolled back.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: after a drop it is not known whether the transaction committed.
    pub async fn commit(self) -> Result<(), Error> {
        // The pins are held until the server has answered.
        let Self { tx, unfinished, began, first, others, .. } = self;
        if unfinished > 0 {
            // If that fails, the server rolls back when the connection ends.
            let _ = tx.rollback(Ending(())).await;
            return Err(Error::Unfinished);
        }
        tx.commit(Ending(())).await?;
        if let Some(took) = began.map(|began| began.elapsed()) {
            std::iter::once(&first)
                .chain(&others)
                .for_each(|pin| pin.gate_owner().write_times().record(took));
        }
        Ok(())
    }

    /// Rolls the transaction back and waits until that has happened.
    ///
    /// # Errors
    ///
    /// The database's error. Nothing is committed then either.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: after a drop, the rollback happens before the connection is used again.
    pub async fn rollback(self) -> Result<(), Error> {
        let Self { tx, first: _first, others: _others, .. } = self;
        tx.rollback(Ending(())).await
    }
}

impl PinnedTx {
    /// Runs these statements and commits, in one message. Returns the rows of the statements, and one more. It does not
    /// count as a write of the service.
    ///
    /// # Errors
    ///
    /// As [`PinnedTx::commit`].
    pub(crate) async fn commit_after(self, statements: String) -> Result<Vec<PgRow>, Error> {
        let Self { tx, unfinished, first: _first, others: _others, .. } = self;
        if unfinished > 0 {
            let _ = tx.rollback(Ending(())).await;
            return Err(Error::Unfinished);
        }
        tx.commit_after(statements).await
    }

    /// The transaction, for functions that take a `&mut sqlx::Transaction<'_, Postgres>`. Those that take a
    /// `&mut PgConnection` or an `impl PgExecutor` accept `&mut *tx`.
    ///
    /// It stays where it is: only [`PinnedTx::commit`] ends a transaction in the right way.
    pub fn as_transaction(&mut self) -> &mut PgTransaction<'static> {
        self.tx.transaction_mut()
    }
}

impl<T: FencedTransaction> Deref for PinnedTx<T> {
    type Target = T::Connection;

    fn deref(&self) -> &T::Connection {
        self.tx.connection()
    }
}

impl DerefMut for PinnedTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.tx.connection_mut()
    }
}

impl<T: FencedTransaction> fmt::Debug for PinnedTx<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedTx")
            .field("first", &self.first)
            .field("others", &self.others)
            .finish_non_exhaustive()
    }
}

fn fence_pin(pin: &Held<Migration>, mirroring: Mirroring) -> FencePin {
    let migration = pin.gate_owner();
    let mirrors = mirroring == Mirroring::AsDeclared && migration.mirrored_columns().is_some();
    FencePin { migration: migration.id(), epoch: pin.epoch(), phase: pin.phase().name(), mirrors }
}
