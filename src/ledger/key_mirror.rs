//! The trigger that keeps the two columns of a key equal while the key changes its type.
//!
//! It has the names and the function of a guard trigger, so that whatever looks for guard triggers finds it.

use super::guard_triggers::names;

/// The statements that install the trigger on `table` in place of an earlier one of the migration: each write sets `target`
/// from `key`. `range`: the values that `target` can hold; others leave it null. All names are quoted.
pub(crate) fn install(id: &str, table: &str, key: &str, target: &str, range: Option<(i64, i64)>) -> String {
    let [on_rows, ..] = names(id);
    let value = match range {
        None => format!("new.{key}"),
        Some((min, max)) => format!("case when new.{key} between {min} and {max} then new.{key} end"),
    };
    format!(
        "create or replace function cutover.guard_{id}() returns trigger language plpgsql \
         set search_path = pg_catalog, pg_temp as $guard$ begin new.{target} := {value}; return new; end $guard$; \
         revoke all on function cutover.guard_{id}() from public; \
         drop trigger if exists {on_rows} on {table}; \
         create trigger {on_rows} before insert or update of {key} on {table} for each row \
         execute function cutover.guard_{id}(); \
         alter table {table} enable always trigger {on_rows}"
    )
}
