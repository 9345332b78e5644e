//! Both sides of a migration by oid and column number: rows of `cutover.sides`.

use sqlx::{FromRow, PgConnection};

use super::unprepared;

/// One side as it was recorded, and what the catalog says about it now.
#[derive(Debug, Clone, FromRow)]
pub(crate) struct SideRow {
    /// The table's oid.
    pub(crate) relation: i64,
    /// Whether the migration itself made it.
    pub(crate) made: bool,
    /// Whether the table and, if one was recorded, the column still exist.
    pub(crate) is_there: bool,
    /// The table's present name, quoted and with its schema.
    pub(crate) table: Option<String>,
    /// The column's present name, quoted.
    pub(crate) column: Option<String>,
}

/// Both sides of a migration.
#[derive(Debug, Clone)]
pub(crate) struct SideRows {
    pub(crate) old: SideRow,
    pub(crate) new: SideRow,
}

/// The statement that records both sides: tables (quoted) and columns as the catalog names them. It belongs to the
/// statements of the expand DDL, so that whoever runs these records the sides too. `made`: they make the new side.
pub(crate) fn record(migration: &str, tables: [&str; 2], columns: [Option<&str>; 2], made: bool) -> String {
    let row = |side: &str, table: &str, column: Option<&str>, made: bool| {
        let number = match column {
            Some(column) => format!(
                "(select attnum from pg_catalog.pg_attribute \
                 where attrelid = to_regclass('{table}') and attname = '{column}' and not attisdropped)"
            ),
            None => "null".to_owned(),
        };
        format!("({migration}, '{side}', to_regclass('{table}')::oid, {number}, {made})")
    };
    format!(
        "insert into cutover.sides as known (migration_id, side, relation, column_number, made) values {}, {} \
         on conflict (migration_id, side) do update \
             set relation = excluded.relation, column_number = excluded.column_number, \
                 made = excluded.made or known.made and known.relation = excluded.relation \
                     and known.column_number is not distinct from excluded.column_number, \
                 recorded_at = clock_timestamp()",
        row("old", tables[0], columns[0], false),
        row("new", tables[1], columns[1], made),
    )
}

/// Both sides; `None` if the expand DDL has not run.
pub(crate) async fn find(
    connection: &mut PgConnection,
    migration: i32,
) -> Result<Option<SideRows>, sqlx::Error> {
    let rows: Vec<SideRow> = unprepared::query_as(
        "select s.relation::bigint as relation, s.made, \
                c.oid is not null and (s.column_number is null or a.attnum is not null) as is_there, \
                format('%s.%s', quote_ident(n.nspname), quote_ident(c.relname)) as \"table\", \
                quote_ident(a.attname) as \"column\" \
         from cutover.sides s left join pg_class c on c.oid = s.relation \
         left join pg_namespace n on n.oid = c.relnamespace \
         left join pg_attribute a on a.attrelid = c.oid and a.attnum = s.column_number and not a.attisdropped \
         where s.migration_id = $1 order by s.side = 'new'",
    )
    .bind(migration)
    .fetch_all(connection)
    .await?;
    Ok(<[SideRow; 2]>::try_from(rows).ok().map(|[old, new]| SideRows { old, new }))
}
