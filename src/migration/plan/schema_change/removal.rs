//! What needs the column or the index that is dropped, besides its dependents.

use sqlx::PgConnection;

use super::found::Table;
use crate::ledger::unprepared;
use crate::migration::catalog::{IdentityOver, PlanProblem, identities_over};

/// The replica identities that the column is part of. Their indexes would be dropped with it.
pub(super) async fn of_identity(
    table: &str,
    column: &String,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let found = identities_over(tx, table, std::slice::from_ref(column)).await?;
    let problem = |identity: &IdentityOver| {
        PlanProblem::blocking(
            format!(
                "column {column:?} is part of the {}, so without it the server would refuse updates and deletes that a publication has",
                identity.what()
            ),
            format!("`{}`", identity.replace()),
        )
    };
    Ok(found.iter().map(problem).collect())
}

/// Why an index cannot be dropped.
pub(super) async fn of_index(
    index: &str,
    table: &Table,
    tx: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let found: Option<(bool, Option<String>, bool, bool)> = unprepared::query_as(
        "select i.indrelid = $2::oid, (select k.conname::text from pg_constraint k \
                where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x') limit 1), \
            i.indisreplident, exists (select from pg_inherits h where h.inhrelid = i.indexrelid) \
         from pg_index i where i.indexrelid = to_regclass($1)",
    )
    .bind(index)
    .bind(table.relation)
    .fetch_optional(tx)
    .await?;
    let name = &table.name;
    Ok(match found {
        None => Some(PlanProblem::blocking(
            format!("index {index} does not exist"),
            "leave it out of the plan if it has been dropped, or name the table with its schema",
        )),
        Some((false, ..)) => Some(PlanProblem::blocking(
            format!("index {index} belongs to another table than {name}"),
            "name the index's own table",
        )),
        Some((_, Some(constraint), ..)) => Some(PlanProblem::blocking(
            format!("index {index} belongs to constraint {constraint:?}"),
            format!("`alter table {name} drop constraint \"{constraint}\"`, if no row depends on it"),
        )),
        Some((_, _, true, _)) => Some(PlanProblem::blocking(
            format!("index {index} is the replica identity of {name}"),
            format!("`alter table {name} replica identity default`"),
        )),
        Some((_, _, _, true)) => Some(PlanProblem::blocking(
            format!("index {index} belongs to an index of the partitioned table"),
            "drop that index instead",
        )),
        Some(_) => None,
    })
}
