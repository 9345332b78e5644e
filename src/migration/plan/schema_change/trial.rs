//! What the server would refuse only when a constraint is added, found before anything has changed.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::addition::{Addition, ForeignKey};
use super::found::Table;
use crate::ledger::{sql_state, unprepared};
use crate::migration::catalog::{PlanProblem, quote, split_table};

/// The twin of a referenced table.
pub(super) const REFERENCED: &str = "pg_temp.cutover_referenced";

/// Adds a constraint to an empty temporary table with the columns of `table`, and perhaps a twin of the table that it
/// refers to. The error with which the server refuses it; `None` also if this role may not create temporary tables.
pub(super) async fn try_on_twin(
    table: &str,
    constraint: &str,
    referenced: Option<&str>,
    tx: &mut PgConnection,
) -> Result<Option<sqlx::Error>, sqlx::Error> {
    // An expression may name the table.
    let twin = quote(&split_table(table).1);
    // First the twin of the referenced table, which may be this table, under a name that the other twin takes.
    let mut create = String::new();
    if let Some(referenced) = referenced {
        create +=
            &format!("create temporary table cutover_referenced (like {referenced} including indexes); ");
    }
    create += &format!("create temporary table {twin} (like {table})");
    let mut attempt = tx.begin().await?;
    let outcome = match attempt.execute(AssertSqlSafe(create)).await {
        Err(error) if sql_state(&error).as_deref() == Some("42501") => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            let add = format!("alter table pg_temp.{twin} add {constraint}");
            attempt.execute(AssertSqlSafe(add)).await.map(|_| ())
        }
    };
    attempt.rollback().await?;
    Ok(outcome.err())
}

/// A role needs a right of its own to refer to a table.
pub(super) async fn may_refer(
    addition: &Addition,
    key: &ForeignKey,
    tx: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let (role, may): (String, bool) = unprepared::query_as(
        "select quote_ident(current_user), bool_and(has_column_privilege(attrelid, attnum, 'references')) \
         from pg_attribute where attrelid = to_regclass($1) and attname = any ($2)",
    )
    .bind(&key.table)
    .bind(&key.referenced)
    .fetch_one(tx)
    .await?;
    Ok((!may).then(|| {
        PlanProblem::blocking(
            format!("role {role} may not refer to table {}, as {} does", key.table, addition.text()),
            format!("`grant references on {} to {role}`", key.table),
        )
    }))
}

pub(super) async fn is_in_partition_key(
    table: &Table,
    column: &str,
    tx: &mut PgConnection,
) -> Result<bool, sqlx::Error> {
    // The columns of an expression are internal dependencies of the table on itself.
    unprepared::query_scalar(
        "select exists (select from pg_partitioned_table p \
             join pg_attribute a on a.attrelid = p.partrelid and a.attname = $2 \
             where p.partrelid = $1::oid and (a.attnum = any (p.partattrs::int2[]) \
                 or exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = a.attrelid \
                     and d.objsubid = 0 and d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid \
                     and d.refobjsubid = a.attnum)))",
    )
    .bind(table.relation)
    .bind(column)
    .fetch_one(tx)
    .await
}
