//! The names of a migration's guard triggers, and the statements that remove them.

use sqlx::PgConnection;

use super::unprepared;

/// [`PREFIX`], for a statement.
macro_rules! prefix {
    () => {
        "zzz_cutover_"
    };
}
pub(crate) use prefix;

/// How all names begin. Triggers of other names that come later fire later.
pub(crate) const PREFIX: &str = prefix!();

/// Whether the trigger with this alias of `pg_trigger` is enabled, and may change a row that is inserted or updated.
macro_rules! may_change_rows {
    ($alias:literal) => {
        concat!(
            "(",
            $alias,
            ".tgenabled <> 'D' and ",
            $alias,
            ".tgtype & 3 = 3 and ",
            $alias,
            ".tgtype & 20 <> 0)"
        )
    };
}
pub(crate) use may_change_rows;

/// The names of a migration's triggers. Triggers of one kind fire in the order of their names, and the id keeps those of
/// two migrations of one table apart.
pub(crate) fn names(id: &str) -> [String; 5] {
    ["row", "truncate", "nested", "nested_check", "key"].map(|event| format!("\"{PREFIX}{id}_{event}\""))
}

/// The name of the trigger that compares both sides at commit. It is on the table whose rows are written second.
pub(crate) fn commit_check(id: &str) -> String {
    format!("\"{PREFIX}{id}_commit\"")
}

/// Those of these triggers that the table with this oid does not have. Names are quoted.
pub(crate) async fn missing(
    connection: &mut PgConnection,
    relation: i64,
    names: &[String],
) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar(
        "select name from unnest($2::text[]) as name where not exists (select from pg_trigger \
             where tgrelid = $1::oid and format('\"%s\"', tgname) = name)",
    )
    .bind(relation)
    .bind(names)
    .fetch_all(connection)
    .await
}

/// Whether the check at commit is gone from the table with this oid. The role that armed the guard trigger has installed it, if it
/// may.
pub(crate) async fn is_check_gone(
    connection: &mut PgConnection,
    relation: i64,
    migration: i32,
) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar(
        "select exists (select from pg_class c join pg_proc p on p.proname = 'guard_' || $2::integer \
                 and pg_has_role(p.proowner, c.relowner, 'usage') \
             join pg_namespace n on n.oid = p.pronamespace and n.nspname = 'cutover' where c.oid = $1::oid) \
         and not exists (select from pg_trigger where tgrelid = $1::oid and format('\"%s\"', tgname) = $3)",
    )
    .bind(relation)
    .bind(migration)
    .bind(commit_check(&migration.to_string()))
    .fetch_one(connection)
    .await
}

/// The statements that remove the triggers from the table, which has this quoted name now, and from its partitions.
pub(crate) fn disarm(table: &str, id: &str) -> String {
    let drops: String =
        names(id).iter().map(|name| format!("drop trigger if exists {name} on {table}; ")).collect();
    format!("{drops}{}", disarm_rest(id))
}

/// The same where the table is gone. The check at commit may be on another one.
pub(crate) fn disarm_rest(id: &str) -> String {
    format!(
        "drop function if exists cutover.guard_{id}() cascade; \
         drop function if exists cutover.commit_check_{id}() cascade"
    )
}

/// Whether one of the functions of the triggers is left.
pub(crate) async fn is_left(connection: &mut PgConnection, migration: i32) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar(
        "select exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace and n.nspname = 'cutover' \
             where p.proname in ('guard_' || $1::integer, 'commit_check_' || $1::integer))",
    )
    .bind(migration)
    .fetch_one(connection)
    .await
}
