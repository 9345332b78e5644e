use sqlx::PgConnection;

use super::problem::PlanProblem;
use crate::ledger::unprepared;

/// How many columns a table of Postgres can have.
const MOST: i32 = 1600;

/// Whether a table (quoted) cannot get this many columns more. Columns that were dropped keep their numbers. A trial on another
/// table does not see those.
pub(crate) async fn too_many_columns(
    connection: &mut PgConnection,
    table: &str,
    added: usize,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let had: Option<i32> = unprepared::query_scalar(
        "select max(p.relnatts)::integer from pg_class p where p.oid = to_regclass($1) \
             or p.oid in (select relid from pg_partition_tree(to_regclass($1)))",
    )
    .bind(table)
    .fetch_one(connection)
    .await?;
    let had = had.unwrap_or_default();
    let is_full = had + i32::try_from(added).unwrap_or(MOST) > MOST;
    Ok(is_full.then(|| {
        PlanProblem::blocking(
            format!(
                "{table} has had {had} columns, also counting those that were dropped, and a table can have {MOST}"
            ),
            "move its rows to a table with fewer columns (`TableMigration`)",
        )
    }))
}
