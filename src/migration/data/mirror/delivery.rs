//! Bringing noted rows to the other store.

use sqlx::PgPool;

use super::notes::{self, Note};
use super::store::{MirrorSource, MirrorStore, StoreError};
use crate::migration::data::Repaired;

/// A row as the store keeps it.
pub(super) fn to_json<R: serde::Serialize>(row: Option<&R>) -> Result<Option<String>, StoreError> {
    Ok(row.map(serde_json::to_string).transpose()?)
}

pub(super) fn from_json<R: serde::de::DeserializeOwned>(
    json: Option<String>,
) -> Result<Option<R>, StoreError> {
    Ok(json.map(|json| serde_json::from_str(&json)).transpose()?)
}

/// Delivers what is due, once.
pub(super) async fn deliver_due<S: MirrorSource, M: MirrorStore>(
    pool: &PgPool,
    migration: i32,
    source: &S,
    store: &M,
) -> Result<Repaired, sqlx::Error> {
    let mut done = Repaired::default();
    for note in notes::due(pool, migration).await? {
        match deliver(pool, migration, source, store, &note).await {
            Ok(()) => done.mended += 1,
            Err(error) => {
                tracing::warn!(migration, key = note.key, %error, "a row did not arrive at the other store");
                notes::fail(pool, migration, &note, &error.to_string()).await?;
                done.failed += 1;
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
        return Ok(notes::redraw(pool, migration, note).await?);
    }
    notes::settle(pool, migration, &note.key, note.version).await?;
    Ok(())
}
