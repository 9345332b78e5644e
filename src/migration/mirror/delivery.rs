//! Delivers recorded rows to the other store.

use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use super::store::{MirrorSource, MirrorStore, StoreError};
use crate::config::describe_source;
use crate::ledger::begin_work;
use crate::ledger::repairs::{self, Repair};
use crate::migration::catalog::ROW_WORK_SETTINGS;
use crate::migration::dual::Repaired;

/// How many rows are delivered at a time. Each waits for two databases, and needs a connection for a part of that time.
const CONCURRENCY: usize = 4;
/// After how many attempts, about four hours, a row is given up until a person asks for it.
const MAX_ATTEMPTS: u32 = 50;

/// A row as the store keeps it.
pub(crate) fn to_json<R: serde::Serialize>(row: Option<&R>) -> Result<Option<String>, StoreError> {
    Ok(row.map(serde_json::to_string).transpose()?)
}

pub(crate) fn from_json<R: serde::de::DeserializeOwned>(
    json: Option<String>,
) -> Result<Option<R>, StoreError> {
    Ok(json.map(|json| serde_json::from_str(&json)).transpose()?)
}

/// Delivers the rows that are due, once.
pub(crate) async fn deliver_due<S: MirrorSource, M: MirrorStore>(
    pool: &PgPool,
    migration: i32,
    source: &S,
    store: &M,
) -> Result<Repaired, sqlx::Error> {
    let mut done = Repaired::default();
    let due = repairs::due(&mut *begin_work(pool).await?, migration, &["new"]).await?;
    for due in due.chunks(CONCURRENCY) {
        let deliveries = due.iter().map(|repair| deliver(pool, migration, source, store, repair));
        for (repair, delivered) in due.iter().zip(join_all(deliveries).await) {
            match delivered {
                Ok(()) => done.repaired += 1,
                Err(error) => {
                    let error = describe_source(&*error);
                    tracing::warn!(
                        migration,
                        key = repair.key,
                        error,
                        "row not delivered to the other store"
                    );
                    let mut tx = begin_work(pool).await?;
                    repairs::fail(&mut *tx, migration, repair, &error, Some(MAX_ATTEMPTS)).await?;
                    tx.commit().await?;
                    done.failed += 1;
                }
            }
        }
    }
    Ok(done)
}

/// Delivers a row. The version was read before the row, so the row is of this version or of a later one. A later version
/// is recorded again.
async fn deliver<S: MirrorSource, M: MirrorStore>(
    pool: &PgPool,
    migration: i32,
    source: &S,
    store: &M,
    repair: &Repair,
) -> Result<(), StoreError> {
    let key: String = serde_json::from_str(&repair.key)?;
    let mut tx = begin_work(pool).await?;
    // A row that a policy hides would be deleted from the store.
    tx.execute(AssertSqlSafe(&**ROW_WORK_SETTINGS)).await?;
    let row = source.read(&mut tx, &key).await?;
    tx.rollback().await?;
    let is_kept = store.put(&key, repair.version, to_json(row.as_ref())?.as_deref()).await?;
    let is_other = !is_kept && from_json(store.get(&key).await?)? != row;
    let mut tx = begin_work(pool).await?;
    if is_other {
        // Usually another writer has delivered a later version, which this record belongs to by now.
        repairs::renew_version(&mut tx, migration, repair).await?;
    } else {
        repairs::remove(&mut *tx, migration, repair).await?;
    }
    Ok(tx.commit().await?)
}
