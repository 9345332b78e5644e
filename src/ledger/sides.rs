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
    /// It is an index.
    pub(crate) is_index: bool,
}

/// The column number under which a change of a table as such is recorded, for [`record`]. It is a system column's, so
/// other changes of the table's columns may run at the same time.
pub(crate) const TABLE_ITSELF: &str = "ctid";

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

/// Both sides; `None` if the expand DDL has not run, or if the migration has no id yet.
pub(crate) async fn find(
    connection: &mut PgConnection,
    migration: impl Into<Option<i32>>,
) -> Result<Option<SideRows>, sqlx::Error> {
    let Some(migration) = migration.into() else { return Ok(None) };
    let rows: Vec<SideRow> = unprepared::query_as(
        "select s.relation::bigint as relation, s.made, \
                c.oid is not null and (s.column_number is null or a.attnum is not null) as is_there, \
                format('%s.%s', quote_ident(n.nspname), quote_ident(c.relname)) as \"table\", \
                quote_ident(a.attname) as \"column\", coalesce(c.relkind in ('i', 'I'), false) as is_index \
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

/// A migration that works on the same table or column.
#[derive(Debug, FromRow)]
pub(crate) struct OtherUser {
    pub(crate) fleet: String,
    pub(crate) name: String,
    pub(crate) phase: String,
    /// The side of that migration, `old` or `new`.
    pub(crate) side: String,
}

/// The migrations that have not ended and have recorded this table (quoted) and column, or the table as a whole, as one of
/// their sides. `migration`: the one that asks.
pub(crate) async fn other_users(
    connection: &mut PgConnection,
    migration: Option<i32>,
    table: &str,
    column: Option<&str>,
) -> Result<Vec<OtherUser>, sqlx::Error> {
    let is_installed: bool = unprepared::query_scalar("select to_regclass('cutover.sides') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !is_installed {
        return Ok(Vec::new());
    }
    unprepared::query_as(
        "select m.fleet, m.name, m.phase, s.side from cutover.sides s \
         join cutover.migrations m on m.id = s.migration_id and m.ended_at is null \
         left join pg_attribute a on a.attrelid = s.relation and a.attname = $3 and not a.attisdropped \
         where s.relation = to_regclass($2)::oid and m.id is distinct from $1 \
           and (s.column_number is null or $3::text is null or s.column_number = a.attnum) \
         order by m.id",
    )
    .bind(migration)
    .bind(table)
    .bind(column)
    .fetch_all(connection)
    .await
}
