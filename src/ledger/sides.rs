//! Both sides of a migration by oid and column numbers: rows of `cutover.sides`.

use sqlx::{FromRow, PgConnection};

use super::external_writes::own_delete;
use super::{guard_triggers, unprepared};

/// One side as it was recorded, and what the catalog says about it now.
#[derive(Debug, Clone, FromRow)]
pub(crate) struct SideRow {
    /// The table's oid.
    pub(crate) relation: i64,
    /// Whether the migration itself made it.
    pub(crate) made: bool,
    /// Whether the table and, if columns were recorded, the columns still exist: any of the old ones, all of the new ones.
    pub(crate) is_there: bool,
    /// The table's present name, quoted and with its schema.
    pub(crate) table: Option<String>,
    /// The present names, quoted, of the columns that still exist. Empty: the side is the whole table.
    pub(crate) columns: Vec<String>,
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
/// statements of the expand DDL, so that a person who runs these records the sides too. `made`: they make the new side.
///
/// No column: the side is the whole table.
pub(crate) fn record(migration: &str, tables: [&str; 2], columns: [&[String]; 2], made: bool) -> String {
    let row = |side: &str, table: &str, columns: &[String], made: bool| {
        let names: Vec<String> = columns.iter().map(|column| format!("'{column}'")).collect();
        let numbers = match columns {
            [] => "null::smallint[]".to_owned(),
            _ => format!(
                "(select array_agg(attnum order by attnum) from pg_catalog.pg_attribute \
                 where attrelid = to_regclass('{table}') and attname in ({}) and not attisdropped)",
                names.join(", ")
            ),
        };
        let names = match columns {
            [] => "null::name[]".to_owned(),
            _ => format!("array[{}]::name[]", names.join(", ")),
        };
        format!(
            "({migration}, '{side}', to_regclass('{table}'), to_regclass('{table}')::oid, {numbers}, {names}, \
              'cutover.sides'::regclass::oid, {made})"
        )
    };
    format!(
        "insert into cutover.sides as known (migration_id, side, relation, table_oid, column_numbers, column_names, recorded_in, made) values {}, {} \
         on conflict (migration_id, side) do update \
             set relation = excluded.relation, table_oid = excluded.table_oid, column_numbers = excluded.column_numbers, \
                 column_names = excluded.column_names, recorded_in = excluded.recorded_in, \
                 made = excluded.made or known.made and known.relation = excluded.relation \
                     and known.column_numbers is not distinct from excluded.column_numbers, \
                 recorded_at = clock_timestamp()",
        row("old", tables[0], columns[0], false),
        row("new", tables[1], columns[1], made),
    )
}

/// Finds the columns of both sides again by their names, if a dump of the database was restored: there the table is known by its
/// name, and its columns may have other numbers. What the driver knew of the catalog means nothing there.
pub(crate) async fn follow_restored(tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    unprepared::query(concat!(
        own_delete!(),
        ", followed as (update cutover.sides s set recorded_in = s.tableoid, table_oid = s.relation::oid, \
             column_numbers = case when s.column_numbers is not null then coalesce((select array_agg(attnum order by attnum) \
                 from pg_attribute where attrelid = s.relation and attname = any (s.column_names) and not attisdropped), '{0}') end \
             where s.recorded_in <> s.tableoid and exists (select from cutover.sides t \
                 where t.migration_id = s.migration_id and t.table_oid <> t.relation::oid) returning s.migration_id) \
         delete from cutover.guard_looks l using followed f, own \
             where l.migration_id = f.migration_id and l.unseen_writes_at is null",
    ))
    .execute(tx)
    .await?;
    Ok(())
}

/// Why the ledger may be older than the data: schema `cutover`, or the rows of its tables, were restored from a dump, and the
/// migration's tables are still those that the dump describes.
pub(crate) async fn restored_alone(
    connection: &mut PgConnection,
    migration: i32,
) -> Result<Option<String>, sqlx::Error> {
    unprepared::query_scalar(
        "select format('%s restored from a dump, and table %s was not: in that dump, migration %s/%s is in \
             `%s` (epoch %s), and what was written in later phases may be on one side only; to fix: restore the whole \
             database, or schema cutover as it was last; if the migration was not moved since that dump, \
             `update cutover.sides set recorded_in = tableoid where migration_id = %s`', \
             case when s.recorded_in = s.tableoid then 'the rows of schema cutover were' else 'schema cutover was' end, \
             s.relation, m.fleet, m.name, m.phase, m.epoch, m.id) \
         from cutover.migrations m join cutover.sides s on s.migration_id = m.id \
         where m.id = $1 and m.ended_at is null and m.phase <> 'off' and (s.recorded_in <> s.tableoid \
                 or m.sides_file = pg_relation_filenode(s.tableoid) and not exists (select from cutover.sides k \
                     where k.migration_id = m.id and k.xmin = m.sides_xmin)) \
             and not exists (select from cutover.sides t \
                 where t.migration_id = m.id and t.table_oid <> t.relation::oid) limit 1",
    )
    .bind(migration)
    .fetch_optional(connection)
    .await
}

/// Why a migration of this table (quoted) may have begun before: a guard trigger of it belongs to one that is not in the ledger.
pub(crate) async fn forgotten(
    connection: &mut PgConnection,
    table: &str,
) -> Result<Option<String>, sqlx::Error> {
    unprepared::query_scalar(concat!(
        "select format('trigger %1$s of %2$s belongs to migration %3$s, which is not in the ledger, so its rows were deleted, and the \
             new side may hold what the old one lacks; to fix: restore schema cutover as it was last; if the old side is \
             right, `drop function if exists cutover.guard_%3$s(), cutover.commit_check_%3$s() cascade`', \
             quote_ident(tgname), tgrelid::regclass, id) \
         from (select tgname, tgrelid, substring(tgname::text from '^",
        guard_triggers::prefix!(),
        "([0-9]+)_')::integer as id from pg_trigger where tgrelid = to_regclass($1)) as armed \
         where id is not null and not exists (select from cutover.migrations m where m.id = armed.id) order by id limit 1"
    ))
    .bind(table)
    .fetch_optional(connection)
    .await
}

/// Both sides; `None` if the expand DDL has not run, or if the migration has no id yet.
pub(crate) async fn find(
    connection: &mut PgConnection,
    migration: impl Into<Option<i32>>,
) -> Result<Option<SideRows>, sqlx::Error> {
    let Some(migration) = migration.into() else { return Ok(None) };
    let rows: Vec<SideRow> = unprepared::query_as(
        "select s.relation::bigint as relation, s.made, \
                c.oid is not null and (s.column_numbers is null \
                    or cardinality(a.names) >= case s.side when 'old' then 1 else cardinality(s.column_numbers) end) \
                    as is_there, \
                quote_ident(n.nspname) || '.' || quote_ident(c.relname) as \"table\", \
                a.names as columns, coalesce(c.relkind in ('i', 'I'), false) as is_index \
         from cutover.sides s left join pg_class c on c.oid = s.relation \
         left join pg_namespace n on n.oid = c.relnamespace \
         cross join lateral (select coalesce(array_agg(quote_ident(attname) order by attnum), '{}') as names \
             from pg_attribute where attrelid = c.oid and attnum = any (s.column_numbers) and not attisdropped) as a \
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
    /// It adds constraints, and drops nothing.
    pub(crate) adds_only: bool,
}

/// The migrations that have not ended and have recorded this table (quoted) and column, or the table as a whole, as one of
/// their sides, or whose trigger compares this column with another. `migration`: the one that asks.
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
        "select m.fleet, m.name, m.phase, s.side, \
                exists (select from cutover.sides o join pg_attribute i on i.attrelid = o.relation and i.attname = $4 \
                    where o.migration_id = m.id and o.side = 'old' and o.column_numbers = array[i.attnum]) as adds_only \
         from cutover.sides s \
         join cutover.migrations m on m.id = s.migration_id and m.ended_at is null \
         left join pg_attribute a on a.attrelid = to_regclass($2)::oid and a.attname = $3 and not a.attisdropped \
         where m.id is distinct from $1 and case when s.relation = to_regclass($2)::oid \
             then s.column_numbers is null or $3::text is null or a.attnum = any (s.column_numbers) \
             else s.side = 'old' and exists (select from pg_trigger t where t.tgrelid = to_regclass($2)::oid \
                 and t.tgname = format('zzz_cutover_%s_row', m.id) \
                 and ($3::text is null or exists (select from pg_depend d where d.classid = 'pg_trigger'::regclass \
                     and d.objid = t.oid and d.refobjid = t.tgrelid and d.refobjsubid = a.attnum))) end \
         order by m.id",
    )
    .bind(migration)
    .bind(table)
    .bind(column)
    .bind(TABLE_ITSELF)
    .fetch_all(connection)
    .await
}
