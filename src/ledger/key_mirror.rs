//! The trigger that keeps the two columns of a key equal while the key changes its type.
//!
//! It has the names and the function of a guard trigger, so that whatever looks for guard triggers finds it.

use super::guard_triggers::names;

/// Two columns of a table that are kept equal. Names are quoted.
#[derive(Debug, Clone)]
pub(crate) struct Mirrored {
    pub(crate) table: String,
    pub(crate) column: String,
    pub(crate) target: String,
}

/// The statements that install the trigger on these tables in place of an earlier one of the migration: each write sets
/// `target` from `column`. `range`: the values that the targets can hold; others leave them null.
pub(crate) fn install(id: &str, columns: &[Mirrored], range: Option<(i64, i64)>) -> String {
    let [on_rows, ..] = names(id);
    let mut tables: Vec<&str> = Vec::new();
    for one in columns {
        if !tables.contains(&&*one.table) {
            tables.push(&one.table);
        }
    }
    let (mut cases, mut triggers) = (String::new(), String::new());
    for (number, table) in tables.iter().enumerate() {
        let of_table = || columns.iter().filter(|one| one.table == **table);
        let sets: String = of_table()
            .map(|Mirrored { column, target, .. }| match range {
                None => format!("new.{target} := new.{column}; "),
                Some((min, max)) => format!(
                    "new.{target} := case when new.{column} between {min} and {max} then new.{column} end; "
                ),
            })
            .collect();
        let watched: Vec<&str> = of_table().map(|one| &*one.column).collect();
        cases += &format!("when '{number}' then {sets}");
        triggers += &format!(
            "; drop trigger if exists {on_rows} on {table}; \
             create trigger {on_rows} before insert or update of {} on {table} for each row \
             execute function cutover.guard_{id}('{number}'); \
             alter table {table} enable always trigger {on_rows}",
            watched.join(", ")
        );
    }
    format!(
        "create or replace function cutover.guard_{id}() returns trigger language plpgsql \
         set search_path = pg_catalog, pg_temp as $guard$ begin case tg_argv[0] {cases} end case; return new; end $guard$; \
         revoke all on function cutover.guard_{id}() from public{triggers}"
    )
}
