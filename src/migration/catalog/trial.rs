//! What only a trial shows: whether an insert may leave the old columns out.

use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::names::quote;
use super::problem::PlanProblem;
use super::table::TableFacts;
use crate::ledger::{describe_error, is_refusal, unprepared};

/// A duplicate of a key: every other check has passed by then.
const DUPLICATES: [&str; 2] = ["23505", "23P01"];

/// How many rows of a table are tried, and of each of its partitions.
const SAMPLE: (u32, u32) = (200, 20);
/// The server cannot pass over duplicates: the table has a rule, or a key that is checked at the end of the transaction.
const NO_CONFLICTS: [&str; 2] = ["0A000", "55000"];

/// The partitions that hold rows here. No more than these, so that the statement does not become too long.
const PARTITIONS: &str = "\
select format('%I.%I', n.nspname, c.relname) from pg_partition_tree(to_regclass($1)) p join pg_class c on c.oid = p.relid \
    join pg_namespace n on n.oid = c.relnamespace where p.isleaf and c.relkind = 'r' and c.oid <> to_regclass($1) \
    order by c.oid limit 500";

/// Inserts copies of some rows without these columns, as the service will from `retire` on. Rolled back in any case.
///
/// Each partition has constraints of its own. A refusal counts only if the same insert with the columns is not refused in
/// the same way. In an empty table nothing can be tried, and no problem is reported.
pub(crate) async fn insert_without(
    connection: &mut PgConnection,
    table: &str,
    facts: &TableFacts,
    columns: &[String],
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let partitions: Vec<String> =
        unprepared::query_scalar(PARTITIONS).bind(table).fetch_all(&mut *connection).await?;
    let trial = Trial { table, facts, partitions: &partitions };
    let Some(without) = trial.refusal(connection, columns).await? else { return Ok(None) };
    let with = trial.refusal(connection, &[]).await?;
    if with.as_ref().and_then(identity) == identity(&without) {
        return Ok(None);
    }
    let names: Vec<String> = columns.iter().map(|column| quote(column)).collect();
    let (column, reason) = (names.join(", "), describe_error(&without));
    let changed = trial.to_be_changed(connection, &without, columns).await?;
    Ok(Some(PlanProblem::blocking(
        format!(
            "an insert into {table} without column {column} fails, as every insert would from `retire` on: {reason}"
        ),
        remedy(&without, &changed, &column),
    )))
}

struct Trial<'a> {
    table: &'a str,
    facts: &'a TableFacts,
    partitions: &'a [String],
}

impl Trial<'_> {
    async fn refusal(
        &self,
        connection: &mut PgConnection,
        left_out: &[String],
    ) -> Result<Option<sqlx::Error>, sqlx::Error> {
        let stored = self.facts.columns.iter().filter(|column| !column.is_generated);
        let columns: Vec<String> = stored
            .filter(|column| !left_out.contains(&column.name))
            .map(|column| quote(&column.name))
            .collect();
        let (table, columns) = (self.table, columns.join(", "));
        // Without the rows that others are writing. On a conflict, the insert would wait for the end of these transactions.
        let rows = |from: &str, limit: u32| {
            format!(
                "select * from (select {columns} from {from} limit {limit} for share skip locked) as sampled"
            )
        };
        let source = match self.partitions {
            [] => rows(table, SAMPLE.0),
            some => some.iter().map(|from| rows(from, SAMPLE.1)).collect::<Vec<_>>().join(" union all "),
        };
        let insert = |source: &str, end: &str| {
            format!(
                "insert into {table} ({columns}) overriding system value select {columns} from ({source}) as sampled{end}"
            )
        };
        let found = attempt(connection, insert(&source, " on conflict do nothing")).await?;
        match found.as_ref().and_then(of_postgres) {
            Some(error) if NO_CONFLICTS.contains(&error.code()) => {}
            _ => return Ok(found),
        }
        let found = attempt(connection, insert(&rows(table, 1), "")).await?;
        Ok(found.filter(|error| !of_postgres(error).is_some_and(|error| DUPLICATES.contains(&error.code()))))
    }

    /// The table whose constraint refused the insert (quoted): a partition, if the whole table does not have it.
    async fn to_be_changed(
        &self,
        connection: &mut PgConnection,
        error: &sqlx::Error,
        left_out: &[String],
    ) -> Result<String, sqlx::Error> {
        let Some((error, partition)) = of_postgres(error).and_then(|error| Some((error, error.table()?)))
        else {
            return Ok(self.table.to_owned());
        };
        let is_of_table = match error.constraint() {
            Some(name) => unprepared::query_scalar(
                "select exists (select from pg_constraint where conrelid = to_regclass($1) and conname = $2)",
            )
            .bind(self.table)
            .bind(name)
            .fetch_one(connection)
            .await?,
            None => left_out.iter().all(|name| self.facts.column(name).is_some_and(|column| column.not_null)),
        };
        Ok(match (is_of_table || self.partitions.is_empty(), error.schema()) {
            (false, Some(schema)) => format!("{}.{}", quote(schema), quote(partition)),
            _ => self.table.to_owned(),
        })
    }
}

/// Runs a statement and undoes it. Returns the server's refusal.
async fn attempt(
    connection: &mut PgConnection,
    statement: String,
) -> Result<Option<sqlx::Error>, sqlx::Error> {
    let mut tx = connection.begin().await?;
    let outcome = tx.execute(AssertSqlSafe(statement)).await;
    tx.rollback().await?;
    match outcome {
        Ok(_) => Ok(None),
        Err(error) if is_refusal(&error) => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

fn of_postgres(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// What makes two refusals the same.
fn identity(error: &sqlx::Error) -> Option<(&str, Option<&str>, Option<&str>, &str)> {
    let error = of_postgres(error)?;
    // The message of a violated constraint may hold values of the row.
    let message = if error.constraint().or(error.column()).is_some() { "" } else { error.message() };
    Some((error.code(), error.constraint(), error.column(), message))
}

fn remedy(error: &sqlx::Error, table: &str, column: &str) -> String {
    let other = || format!("change what refuses it, so that an insert may leave column {column} out");
    let Some(error) = of_postgres(error) else { return other() };
    match (error.code(), error.data_type(), error.constraint()) {
        ("23502", Some(domain), _) => format!("`alter domain {domain} drop not null`"),
        ("23514", Some(domain), Some(name)) => {
            format!("`alter domain {domain} drop constraint {}`", quote(name))
        }
        ("23502", None, _) => format!("`alter table {table} alter column {column} drop not null`"),
        ("23514", None, Some(name)) => format!("`alter table {table} drop constraint {}`", quote(name)),
        _ => other(),
    }
}
