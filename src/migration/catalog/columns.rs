use sqlx::PgConnection;

use super::names::unquote;
use crate::ledger::unprepared;

/// The types of columns (quoted); `None` for one that does not exist.
pub(crate) async fn column_types(
    tx: &mut PgConnection,
    table: &str,
    columns: &[String],
) -> Result<Vec<Option<String>>, sqlx::Error> {
    unprepared::query_scalar(
        "select format_type(a.atttypid, a.atttypmod) from unnest($2::text[]) with ordinality as wanted (name, n) \
         left join pg_attribute a on a.attrelid = to_regclass($1) and a.attname = wanted.name \
             and a.attnum > 0 and not a.attisdropped order by n",
    )
    .bind(table)
    .bind(columns.iter().map(|column| unquote(column)).collect::<Vec<_>>())
    .fetch_all(tx)
    .await
}
