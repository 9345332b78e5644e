//! The calls of `cutover.fence`, which refuses a write transaction at a closed or unknown epoch.

/// The arguments of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FencePin {
    pub(crate) migration: i32,
    pub(crate) epoch: i32,
    pub(crate) phase: &'static str,
    /// Whether the guard trigger has to mirror the writes of the transaction.
    pub(crate) mirrors: bool,
}

/// One message that passes the fence of each migration and begins a transaction.
///
/// The server runs a simple-query message as one implicit transaction. The `begin` at its end turns that into a
/// transaction that stays open. `begin` comes last so that a refused fence leaves the connection outside any transaction.
/// The values are numbers, names of the library and booleans, so they need no quoting.
pub(crate) fn begin_message(isolation: &str, pins: &[FencePin]) -> String {
    let call = |FencePin { migration, epoch, phase, mirrors }: &FencePin| match mirrors {
        true => format!("cutover.fence({migration}, {epoch}, '{phase}', true)"),
        false => format!("cutover.fence({migration}, {epoch}, '{phase}')"),
    };
    let calls: Vec<String> = pins.iter().map(call).collect();
    format!("set transaction isolation level {isolation}; select {}; begin", calls.join(", "))
}

/// The same calls as a statement with parameters. Each migration has four parameters: id, epoch, phase, and whether
/// its writes are mirrored.
#[cfg(feature = "deadpool")]
pub(crate) fn call_with_parameters(migrations: usize) -> String {
    let call =
        |n: usize| format!("cutover.fence(${}, ${}, ${}, ${})", 4 * n + 1, 4 * n + 2, 4 * n + 3, 4 * n + 4);
    let calls: Vec<String> = (0..migrations).map(call).collect();
    format!("select {}", calls.join(", "))
}
