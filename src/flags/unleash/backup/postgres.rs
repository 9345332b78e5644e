//! The last state in the ledger's database.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Backup, BackupError, seal};
use crate::ledger::{Ledger, unprepared};

/// The last state in table `cutover.flag_states` of the ledger: nothing more to run, and as durable
/// as the data.
#[derive(Clone, Debug)]
pub struct PostgresBackup {
    ledger: Ledger,
    name: String,
}

impl PostgresBackup {
    /// `name` is the row's; it should name the service. An environment has a ledger of its own.
    pub fn new(ledger: Ledger, name: impl Into<String>) -> Self {
        Self { ledger, name: name.into() }
    }

    async fn read(&self) -> Result<Option<(Option<Vec<u8>>, i64)>, sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        let row = unprepared::query_as(
            "select case when octet_length(state) <= $2 then state end, octet_length(state)::bigint \
             from cutover.flag_states where name = $1",
        )
        .bind(&self.name)
        .bind(i64::try_from(seal::LARGEST_SEALED).unwrap_or(i64::MAX))
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    async fn write(&self, state: &[u8]) -> Result<(), sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        unprepared::query(
            "insert into cutover.flag_states (name, state) values ($1, $2) \
             on conflict (name) do update set state = excluded.state, kept_at = clock_timestamp()",
        )
        .bind(&self.name)
        .bind(state)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }
}

#[async_trait]
impl Backup for PostgresBackup {
    async fn load(&self) -> Result<Option<Bytes>, BackupError> {
        match self.read().await.map_err(BackupError::place)? {
            None => Ok(None),
            Some((Some(state), _)) => Ok(Some(state.into())),
            Some((None, bytes)) => Err(seal::too_large(bytes.unsigned_abs())),
        }
    }

    async fn save(&self, state: Bytes) -> Result<(), BackupError> {
        self.write(&state).await.map_err(BackupError::place)
    }
}
