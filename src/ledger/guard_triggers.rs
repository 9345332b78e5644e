//! The names of a migration's guard triggers, and the statements that remove them.

/// The names of a migration's triggers. Triggers of one kind fire in the order of their names, and the id keeps those of
/// two migrations of one table apart.
pub(crate) fn names(id: &str) -> [String; 2] {
    [format!("\"zzz_cutover_{id}_row\""), format!("\"zzz_cutover_{id}_truncate\"")]
}

/// The statements that remove the triggers from the table, which has this quoted name now.
pub(crate) fn disarm(table: &str, id: &str) -> String {
    let [on_rows, on_truncate] = names(id);
    format!(
        "drop trigger if exists {on_rows} on {table}; drop trigger if exists {on_truncate} on {table}; \
         drop function if exists cutover.guard_{id}()"
    )
}
