//! How many rows a mapping in Rust gets at once. They are in the memory of the service's process.

use sqlx::{PgConnection, Row};

use super::keyset::{Keyset, Span};
use super::query::Query;
use crate::ledger::unprepared;

/// The most bytes of the rows of one table in a batch, unless a single row has more.
const MOST_BYTES: i64 = 8 << 20;

/// The rows of a table, with an expression for the bytes of each.
#[derive(Debug)]
pub(crate) struct RowBytes {
    table: String,
    bytes: String,
}

impl RowBytes {
    /// `None`: no column of the table can be long.
    ///
    /// The expression reads lengths that are stored beside the values, and decompresses nothing. Of a type without such a length,
    /// a value is taken for four times as long as it is stored.
    pub(crate) async fn of(tx: &mut PgConnection, table: &str) -> Result<Option<Self>, sqlx::Error> {
        let bytes: Option<String> = unprepared::query_scalar(
            "select string_agg(format(case when coalesce(nullif(y.typbasetype, 0), y.oid) \
                        in ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'bytea'::regtype) \
                    then 'coalesce(octet_length(t.%I), 0)::bigint' \
                    else 'coalesce(pg_column_size(t.%I), 0)::bigint * 4' end, a.attname), ' + ') \
             from pg_attribute a join pg_type y on y.oid = a.atttypid \
             where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped and a.attlen = -1 \
                 and a.attgenerated <> 'v'",
        )
        .bind(table)
        .fetch_one(tx)
        .await?;
        Ok(bytes.map(|bytes| Self { table: table.to_owned(), bytes }))
    }

    /// How many of the first rows of a span are few enough bytes; at least one. `None`: all of them.
    pub(crate) async fn fitting(
        &self,
        key: &Keyset,
        span: &Span,
        tx: &mut PgConnection,
    ) -> Result<Option<u32>, sqlx::Error> {
        let Self { table, bytes } = self;
        let rows = format!("from {table} as t where {}", key.within(span));
        let all = self.number(format!("select coalesce(sum({bytes}), 0)::bigint {rows}"), tx).await?;
        if all <= MOST_BYTES {
            return Ok(None);
        }
        let first = format!(
            "select count(*) from (select sum({bytes}) over (order by {} rows unbounded preceding) as bytes {rows}) as first \
             where bytes <= {MOST_BYTES}",
            key.ordered("")
        );
        Ok(Some(u32::try_from(self.number(first, tx).await?).unwrap_or(u32::MAX).max(1)))
    }

    /// The first of the rows of a query, in its order; at least one.
    pub(crate) fn first_of(&self, rows: &str) -> String {
        format!(
            "select * from (select *, sum({}) over (rows unbounded preceding) as \"c:bytes\", \
                row_number() over () as \"c:number\" from ({rows}) as t) as t \
             where \"c:bytes\" <= {MOST_BYTES} or \"c:number\" = 1",
            self.bytes
        )
    }

    async fn number(&self, query: String, tx: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let row = Query::new(query).fetch_plain(tx).await?.pop();
        row.ok_or(sqlx::Error::RowNotFound)?.try_get(0)
    }
}
