use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::ledger::jobs::TableSize;
use crate::ledger::unprepared;

/// The rows of a table up to this size are counted. Larger tables are estimated.
const COUNTED_BYTES: i64 = 128 << 20;
/// The assumed size of a row if the statistics do not know the number of rows.
const BYTES_PER_ROW: i64 = 100;

/// The size of a table with its partitions, from the statistics.
pub(crate) async fn estimate(tx: &mut PgConnection, table: &str) -> Result<TableSize, sqlx::Error> {
    let row = unprepared::query(
        "with recursive tree (oid) as ( \
             select to_regclass($1)::oid union all \
             select i.inhrelid from pg_inherits i join tree on i.inhparent = tree.oid) \
         select coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint as rows, \
                coalesce(sum(pg_table_size(c.oid)), 0)::bigint as bytes, \
                coalesce(sum(pg_stat_get_dead_tuples(c.oid)), 0)::bigint as dead \
         from tree join pg_class c on c.oid = tree.oid where c.relkind <> 'p'",
    )
    .bind(table)
    .fetch_one(tx)
    .await?;
    let (rows, bytes): (i64, i64) = (row.try_get("rows")?, row.try_get("bytes")?);
    // The table was never analyzed.
    let rows = if rows == 0 { bytes / BYTES_PER_ROW } else { rows };
    Ok(TableSize { rows, bytes, dead_rows: row.try_get("dead")? })
}

/// The same, with the rows counted if the table is small.
pub(crate) async fn count(tx: &mut PgConnection, table: &str) -> Result<TableSize, sqlx::Error> {
    let mut size = estimate(tx, table).await?;
    if size.bytes <= COUNTED_BYTES {
        let query = AssertSqlSafe(format!("select count(*) from {table}"));
        size.rows = unprepared::query_scalar(query).fetch_one(tx).await?;
    }
    Ok(size)
}
