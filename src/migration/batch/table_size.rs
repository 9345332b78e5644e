use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::ledger::unprepared;

/// A table up to this size is counted; of a larger one the server's estimate is taken.
const COUNTED_BYTES: i64 = 128 << 20;
/// What a row takes where nobody knows.
const BYTES_PER_ROW: i64 = 100;

/// How large a table is, with its partitions, and how much of it is dead.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TableSize {
    /// Live rows, counted or estimated.
    pub(crate) rows: i64,
    pub(crate) bytes: i64,
    /// Versions of rows that vacuum has not removed, as the statistics have it.
    pub(crate) dead_rows: i64,
}

impl TableSize {
    /// Looks at the statistics.
    pub(crate) async fn estimate(tx: &mut PgConnection, table: &str) -> Result<Self, sqlx::Error> {
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
        // Never analyzed.
        let rows = if rows == 0 { bytes / BYTES_PER_ROW } else { rows };
        Ok(Self { rows, bytes, dead_rows: row.try_get("dead")? })
    }

    /// Counts where that is soon done.
    pub(crate) async fn count(tx: &mut PgConnection, table: &str) -> Result<Self, sqlx::Error> {
        let mut size = Self::estimate(tx, table).await?;
        if size.bytes <= COUNTED_BYTES {
            let query = AssertSqlSafe(format!("select count(*) from {table}"));
            size.rows = unprepared::query_scalar(query).fetch_one(tx).await?;
        }
        Ok(size)
    }
}
