//! The trigger that keeps the two columns of a key equal while the key changes its type.
//!
//! It has the names and the function of a guard trigger, so that whatever looks for guard triggers finds it.

use sqlx::PgConnection;

use super::guard_triggers::{PREFIX, names};
use super::{literal, unprepared};

/// Two columns of a table that are kept equal. Names are quoted.
#[derive(Debug, Clone)]
pub(crate) struct Mirrored {
    pub(crate) table: String,
    pub(crate) column: String,
    pub(crate) target: String,
    /// The values that `target` can hold; others leave it null. `None`: all of them.
    pub(crate) range: Option<(i64, i64)>,
}

impl Mirrored {
    /// What `target` has to hold, in the trigger.
    fn value(&self) -> String {
        self.value_of(&format!("new.{}", self.column))
    }

    /// The rows of the table in which `target` does not hold that: table and condition.
    pub(crate) fn differing(&self) -> String {
        format!("{} where {} is distinct from {}", self.table, self.target, self.value_of(&self.column))
    }

    /// The statement that corrects these rows.
    pub(crate) fn correction(&self) -> String {
        let (table, target, value) = (&self.table, &self.target, self.value_of(&self.column));
        format!("update {table} set {target} = {value} where {target} is distinct from {value}")
    }

    fn value_of(&self, column: &str) -> String {
        match self.range {
            None => column.to_owned(),
            Some((min, max)) => format!("case when {column} between {min} and {max} then {column} end"),
        }
    }
}

/// The statements that install the trigger on these tables in place of an earlier one of the migration: each write sets
/// `target` from `column`. The trigger's arguments name the targets, for [`targets`].
///
/// The trigger fires for the rows in which a target differs, whichever columns the statement names: other triggers of the table
/// may have changed the column, and a statement may name the target.
pub(crate) fn install(id: &str, columns: &[Mirrored]) -> String {
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
        let sets: String = of_table().map(|one| format!("new.{} := {}; ", one.target, one.value())).collect();
        let differs: Vec<String> =
            of_table().map(|one| format!("new.{} is distinct from {}", one.target, one.value())).collect();
        let targets: String =
            of_table().map(|one| format!(", {}", literal::text(&literal::unquote(&one.target)))).collect();
        cases += &format!("when '{number}' then {sets}");
        triggers += &format!(
            "; drop trigger if exists {on_rows} on {table}; \
             create trigger {on_rows} before insert or update on {table} for each row when ({}) \
             execute function cutover.guard_{id}('{number}'{targets}); \
             alter table {table} enable always trigger {on_rows}",
            differs.join(" or ")
        );
    }
    format!(
        "create or replace function cutover.guard_{id}() returns trigger language plpgsql \
         set search_path = pg_catalog, pg_temp as $guard$ begin case tg_argv[0] {cases} end case; return new; end $guard$; \
         revoke all on function cutover.guard_{id}() from public{triggers}"
    )
}

/// The columns that the migration's triggers set, which `expand` has added: each with its table, both quoted.
pub(crate) async fn targets(
    connection: &mut PgConnection,
    migration: i32,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    // Arguments end in a zero byte, and the first one is the number of the table. What `E''` means does not depend on
    // `standard_conforming_strings`.
    unprepared::query_as(
        "select format('%I.%I', n.nspname, c.relname), format('\"%s\"', replace(a.attname, '\"', '\"\"')) \
         from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace \
         cross join lateral unnest(string_to_array(encode(t.tgargs, 'escape'), E'\\\\000')) with ordinality as argument (name, n) \
         join pg_attribute a on a.attrelid = c.oid and not a.attisdropped and argument.n > 1 \
             and a.attname = convert_from(decode(argument.name, 'escape'), 'UTF8') \
         where t.tgname = $1 and t.tgnargs > 1 order by c.oid, argument.n",
    )
    .bind(format!("{PREFIX}{migration}_row"))
    .fetch_all(connection)
    .await
}
