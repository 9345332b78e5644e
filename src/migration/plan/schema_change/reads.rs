//! Who still reads what the change drops, as far as the server counts it.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::description::{Description, Removal};
use super::found::Table;
use crate::ledger::{read_counts, unprepared};
use crate::migration::catalog::{PlanProblem, split_table};
use crate::migration::phase::time_left;

/// The server's count of reads of what the change drops. `None` if it does not count them.
async fn count(
    plan: &Description,
    table: &Table,
    connection: &mut PgConnection,
) -> Result<Option<(String, i64)>, sqlx::Error> {
    match &plan.removal {
        None => Ok(None),
        Some(Removal::Table) => {
            let reads = unprepared::query_scalar(
                "with tree (oid) as (select $1::oid union select relid::oid from pg_partition_tree($1::oid)) \
                 select coalesce(sum(coalesce(s.seq_scan, 0) + coalesce(s.idx_scan, 0)), 0)::bigint \
                 from pg_stat_user_tables s join tree on tree.oid = s.relid",
            )
            .bind(table.relation)
            .fetch_one(connection)
            .await?;
            Ok(Some((format!("table {}", table.name), reads)))
        }
        Some(Removal::Index(name)) => {
            let index = plan.index(name);
            let reads = unprepared::query_scalar(
                "with tree (oid) as (select to_regclass($1)::oid \
                     union select relid::oid from pg_partition_tree(to_regclass($1)::oid)) \
                 select coalesce(sum(s.idx_scan), 0)::bigint from pg_stat_user_indexes s \
                 join tree on tree.oid = s.indexrelid",
            )
            .bind(&index)
            .fetch_one(connection)
            .await?;
            Ok(Some((format!("index {index}"), reads)))
        }
        Some(Removal::Column(column)) => {
            let Some(view) = statements_view(connection).await? else { return Ok(None) };
            let mut tx = connection.begin().await?;
            let query = format!(
                "select coalesce(sum(calls), 0)::bigint from {view} \
                 where dbid = (select oid from pg_database where datname = current_database()) \
                   and query ~* (E'\\\\m' || $1 || E'\\\\M') and query ~* (E'\\\\m' || $2 || E'\\\\M') \
                   and query !~* E'^\\\\s*(alter|create|drop|comment|grant|revoke|do|explain|insert into cutover)\\\\M'"
            );
            let bare = split_table(&table.name).1;
            let found = unprepared::query_scalar(AssertSqlSafe(query))
                .bind(bare)
                .bind(column)
                .fetch_one(&mut *tx)
                .await;
            tx.rollback().await?;
            match found {
                Ok(reads) => Ok(Some((format!("column {column:?} of {}", table.name), reads))),
                // The extension is there, and the server was started without its library.
                Err(sqlx::Error::Database(_)) => Ok(None),
                Err(error) => Err(error),
            }
        }
    }
}

/// `pg_stat_statements`, with its schema, if the database has it.
async fn statements_view(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    unprepared::query_scalar(
        "select format('%I.pg_stat_statements', n.nspname) from pg_extension e \
         join pg_namespace n on n.oid = e.extnamespace where e.extname = 'pg_stat_statements'",
    )
    .fetch_optional(connection)
    .await
}

/// A problem as long as reads were counted within the quiet period.
pub(super) async fn recent(
    plan: &Description,
    table: &Table,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    if plan.without_read_check {
        return Ok(None);
    }
    let Some((what, reads)) = count(plan, table, connection).await? else { return Ok(None) };
    let age = read_counts::observe(connection, migration, &what, reads).await?;
    let quiet = plan.quiet_period.as_secs_f64();
    let problem = format!(
        "reads of {what} to stop for {}: the server has counted {reads}, and the count last changed {age:.0} s ago",
        time_left(plan.quiet_period)
    );
    let remedy = "find the readers, for example in `pg_stat_activity`; or `.without_read_check()`";
    Ok((age < quiet).then(|| PlanProblem::warning(problem, remedy)))
}

/// What the server does not count, as a warning.
pub(super) async fn uncounted(
    plan: &Description,
    connection: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let Some(Removal::Column(column)) = &plan.removal else { return Ok(None) };
    let has_statements = statements_view(connection).await?.is_some();
    Ok((!has_statements && !plan.without_read_check).then(|| {
        PlanProblem::warning(
            format!(
                "it is not known whether column {column:?} of {} is still read, because the database does not have \
                 pg_stat_statements",
                plan.table
            ),
            "`create extension pg_stat_statements` (it must be in `shared_preload_libraries`), or look through the code \
             of every reader",
        )
    }))
}
