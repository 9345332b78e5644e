//! The last known state of the flags, one row per service.

use super::connection::Ledger;
use super::unprepared;

/// A stored state.
pub(crate) struct FlagState {
    /// `None` if the state is larger than the limit of the query.
    pub(crate) state: Option<Vec<u8>>,
    pub(crate) bytes: u64,
}

/// The state stored under `name`. A state of more than `limit` bytes is not transferred.
pub(crate) async fn load(
    ledger: &Ledger,
    name: &str,
    limit: usize,
) -> Result<Option<FlagState>, sqlx::Error> {
    let mut tx = ledger.begin().await?;
    let row: Option<(Option<Vec<u8>>, i64)> = unprepared::query_as(
        "select case when octet_length(state) <= $2 then state end, octet_length(state)::bigint \
         from cutover.flag_states where name = $1",
    )
    .bind(name)
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_optional(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(row.map(|(state, bytes)| FlagState { state, bytes: bytes.unsigned_abs() }))
}

/// Stores a state under `name`, replacing the previous one.
pub(crate) async fn save(ledger: &Ledger, name: &str, state: &[u8]) -> Result<(), sqlx::Error> {
    let mut tx = ledger.begin().await?;
    unprepared::query(
        "insert into cutover.flag_states (name, state) values ($1, $2) \
         on conflict (name) do update set state = excluded.state, kept_at = clock_timestamp()",
    )
    .bind(name)
    .bind(state)
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}
