//! The statement that gives a table a key by which its rows can be visited.

use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection};

use crate::ledger::unprepared;
use crate::migration::batch::keyset;
use crate::migration::catalog::{PlanProblem, quote};

/// Why the rows of a table (quoted) cannot be visited, as one problem. `named`: the key columns that the plan names.
pub(super) async fn unusable_key(
    tx: &mut PgConnection,
    table: &str,
    named: &[String],
    reasons: &[String],
) -> Result<PlanProblem, sqlx::Error> {
    let remedy = remedy(tx, table, named).await?;
    Ok(PlanProblem::blocking(format!("{table}: {}", reasons.join("; ")), remedy))
}

/// A statement, and the columns that must identify the rows before it can run.
#[derive(Debug, FromRow)]
struct Attempt {
    statement: String,
    columns: Vec<String>,
}

/// Unique indexes of table `$1` that would do but for one thing, with the statement that corrects it. If columns are named
/// (`$2`), only indexes on these.
const NEARLY: &str = "\
select case \
        when not i.indisvalid then format('reindex index %s', i.indexrelid::regclass) \
        when i.is_usual and i.indimmediate then (select format('alter table %s %s', $1, \
            string_agg(format('alter column %I set not null', name), ', ')) from unnest(i.nullable) as name) \
        else format('create unique index on %s (%s)', $1, i.names) end as statement, \
    case when i.indisvalid then i.nullable else i.list end as columns \
from (select * from pg_index cross join lateral ( \
        select array_agg(a.attname::text order by n) as list, string_agg(quote_ident(a.attname), ', ' order by n) as names, \
            coalesce(array_agg(a.attname::text) filter (where not a.attnotnull), '{}') as nullable, \
            bool_and(o.opcdefault) and count(distinct indoption[n] & 1) = 1 as is_usual \
        from generate_series(0, indnkeyatts - 1) as n \
        join pg_attribute a on a.attrelid = indrelid and a.attnum = indkey[n] \
        join pg_opclass o on o.oid = indclass[n]) as columns \
    where indrelid = to_regclass($1) and indisunique and indpred is null and indexprs is null) as i \
where (cardinality($2) = 0 or i.list @> $2 and i.list <@ $2) \
    and (i.is_usual and i.indimmediate and i.indisvalid) = (cardinality(i.nullable) > 0) \
order by not i.indisprimary, not i.indisvalid, i.indnkeyatts, i.indexrelid";

/// Columns whose values may identify the rows, by the statistics of the table. In a partitioned one, those of the partition key
/// too, which every unique index must have.
const CANDIDATES: &str = "\
with partition_key as (select coalesce(array_agg(a.attname::text order by n), '{}') as names from pg_partitioned_table p \
    cross join unnest(p.partattrs::int2[]) with ordinality as k (number, n) \
    join pg_attribute a on a.attrelid = p.partrelid and a.attnum = k.number where p.partrelid = to_regclass($1)) \
select case when a.attname = any (k.names) then k.names else k.names || a.attname::text end \
    from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace \
    cross join partition_key k \
    left join pg_stats s on s.schemaname = n.nspname and s.tablename = c.relname and s.attname = a.attname \
    where c.oid = to_regclass($1) and a.attnum > 0 and not a.attisdropped and coalesce(s.n_distinct, -1) = -1 \
    order by a.attnotnull desc, a.attnum limit 3";

async fn remedy(tx: &mut PgConnection, table: &str, named: &[String]) -> Result<String, sqlx::Error> {
    if let Some(statement) = statement(tx, table, named).await? {
        return Ok(format!("`{statement}`"));
    }
    let plan = if named.is_empty() { "" } else { "leave `.key(…)` out" };
    if !named.is_empty() && keyset::find(tx, table, &[]).await?.is_ok() {
        return Ok(plan.to_owned());
    }
    let statement = match statement(tx, table, &[]).await? {
        Some(statement) => format!("`{statement}`"),
        None => format!(
            "`alter table {table} add column row_id bigserial unique`, which rewrites the table and blocks its readers and \
             writers meanwhile"
        ),
    };
    Ok(if plan.is_empty() { statement } else { format!("{plan}, and run {statement}") })
}

/// A statement that gives the table a key, of these columns if any are named.
async fn statement(
    tx: &mut PgConnection,
    table: &str,
    named: &[String],
) -> Result<Option<String>, sqlx::Error> {
    let mut attempts: Vec<Attempt> =
        unprepared::query_as(NEARLY).bind(table).bind(named).fetch_all(&mut *tx).await?;
    let has_key = "select exists (select from pg_index where indrelid = to_regclass($1) and indisprimary)";
    let has_key: bool = unprepared::query_scalar(has_key).bind(table).fetch_one(&mut *tx).await?;
    let keys: Vec<Vec<String>> = match named {
        [] => unprepared::query_scalar(CANDIDATES).bind(table).fetch_all(&mut *tx).await?,
        named => vec![named.to_vec()],
    };
    for columns in keys.into_iter().filter(|_| !has_key) {
        let statement = format!("alter table {table} add primary key ({})", quoted(&columns));
        attempts.push(Attempt { statement, columns });
    }
    for Attempt { statement, columns } in attempts {
        if identify(tx, table, &columns).await? {
            return Ok(Some(statement));
        }
    }
    Ok(None)
}

fn quoted(columns: &[String]) -> String {
    columns.iter().map(|column| quote(column)).collect::<Vec<_>>().join(", ")
}

/// Whether these columns hold a value in each row, and another one in each. Not known after two seconds: then they do not.
async fn identify(tx: &mut PgConnection, table: &str, columns: &[String]) -> Result<bool, sqlx::Error> {
    if columns.is_empty() {
        return Ok(true);
    }
    let columns = quoted(columns);
    let query = format!(
        "select not exists (select from {table} where num_nulls({columns}) > 0) \
         and not exists (select from {table} group by {columns} having count(*) > 1)"
    );
    let mut trial = tx.begin().await?;
    trial.execute("set local statement_timeout = '2s'").await?;
    let outcome = unprepared::query_scalar(AssertSqlSafe(query)).fetch_one(&mut *trial).await;
    trial.rollback().await?;
    match outcome {
        Err(sqlx::Error::Database(_)) => Ok(false),
        outcome => outcome,
    }
}
