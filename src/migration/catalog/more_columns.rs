use sqlx::PgConnection;

use super::problem::PlanProblem;
use crate::ledger::unprepared;

/// How many columns a table of Postgres can have.
const MOST: i32 = 1600;

/// Why a table (quoted) cannot get this many columns more. A trial on another table does not see that.
pub(crate) async fn more_columns(
    connection: &mut PgConnection,
    table: &str,
    added: usize,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    // Columns that were dropped keep their numbers.
    let (had, of_type): (Option<i32>, Option<String>) = unprepared::query_as(
        "select max(p.relnatts)::integer, (select reloftype::regtype::text from pg_class \
             where oid = to_regclass($1) and reloftype <> 0) \
         from pg_class p where p.oid = to_regclass($1) \
             or p.oid in (select relid from pg_partition_tree(to_regclass($1)))",
    )
    .bind(table)
    .fetch_one(connection)
    .await?;
    let had = had.unwrap_or_default();
    let is_full = had + i32::try_from(added).unwrap_or(MOST) > MOST;
    Ok(match of_type {
        _ if added == 0 => None,
        Some(name) => Some(PlanProblem::blocking(
            format!("{table} is a table of type {name}, so it gets no other column"),
            format!("`alter table {table} not of`"),
        )),
        None => is_full.then(|| {
            PlanProblem::blocking(
                format!(
                    "{table} has had {had} columns, also counting those that were dropped, and a table can have {MOST}"
                ),
                "move its rows to a table with fewer columns (`TableMigration`)",
            )
        }),
    })
}
