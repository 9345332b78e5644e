//! The calls of `cutover.fence`, which refuses a write transaction at a closed or unknown epoch.

/// The call as a statement to prepare: migration id, epoch, phase.
#[cfg(feature = "deadpool")]
pub(crate) const CALL: &str = "select cutover.fence($1, $2, $3)";

/// One message that passes the fence and begins a transaction.
///
/// The server runs a simple-query message as one implicit transaction. The `begin` at its end turns that into a
/// transaction that stays open. `begin` comes last so that a refused fence leaves the connection outside any transaction.
/// The values are two numbers and two names of the library, so they need no quoting.
pub(crate) fn begin_message(isolation: &str, migration: i32, epoch: i32, phase: &str) -> String {
    format!(
        "set transaction isolation level {isolation}; select cutover.fence({migration}, {epoch}, '{phase}'); begin"
    )
}
