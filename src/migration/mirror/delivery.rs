//! Bringing noted rows to the other store.

use futures_util::future::join_all;
use sqlx::PgPool;

use super::store::{MirrorSource, MirrorStore, StoreError};
use crate::ledger::repairs::{self, Note};
use crate::migration::dual::Repaired;

/// How many rows are on their way side by side: each waits for two databases, and holds a connection for a part of it.
const AT_ONCE: usize = 4;

/// A row as the store keeps it.
pub(crate) fn to_json<R: serde::Serialize>(row: Option<&R>) -> Result<Option<String>, StoreError> {
    Ok(row.map(serde_json::to_string).transpose()?)
}

pub(crate) fn from_json<R: serde::de::DeserializeOwned>(
    json: Option<String>,
) -> Result<Option<R>, StoreError> {
    Ok(json.map(|json| serde_json::from_str(&json)).transpose()?)
}

/// Delivers what is due, once.
pub(crate) async fn deliver_due<S: MirrorSource, M: MirrorStore>(
    pool: &PgPool,
    migration: i32,
    source: &S,
    store: &M,
) -> Result<Repaired, sqlx::Error> {
    let mut done = Repaired::default();
    for notes in repairs::due(pool, migration).await?.chunks(AT_ONCE) {
        let delivered = notes.iter().map(|note| deliver(pool, migration, source, store, note));
        for (note, delivered) in notes.iter().zip(join_all(delivered).await) {
            match delivered {
                Ok(()) => done.repaired += 1,
                Err(error) => {
                    tracing::warn!(migration, key = note.key, %error, "a row did not arrive at the other store");
                    repairs::fail(pool, migration, note, &error.to_string()).await?;
                    done.failed += 1;
                }
            }
        }
    }
    Ok(done)
}

/// The version was read before the row, so the row is this version's or a later one's; and a later one is noted anew.
async fn deliver<S: MirrorSource, M: MirrorStore>(
    pool: &PgPool,
    migration: i32,
    source: &S,
    store: &M,
    note: &Note,
) -> Result<(), StoreError> {
    let mut connection = pool.acquire().await?;
    let row = source.read(&mut connection, &note.key).await?;
    drop(connection);
    let is_kept = store.put(&note.key, note.version, to_json(row.as_ref())?.as_deref()).await?;
    if !is_kept && from_json(store.get(&note.key).await?)? != row {
        // Usually somebody else has brought a later version of it, and the note is that one's.
        return Ok(repairs::redraw(pool, migration, note).await?);
    }
    repairs::settle(pool, migration, &note.key, note.version).await?;
    Ok(())
}
