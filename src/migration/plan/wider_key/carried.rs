//! What belongs to a column and does not follow its name: comments, statistics targets, and the like.

use sqlx::PgConnection;

use crate::ledger::unprepared;

/// The statements that give whatever has the names of the column, its indexes, its constraints and its identity's sequence
/// after the exchange what these have now.
pub(super) async fn carried(
    relation: i64,
    column: &str,
    connection: &mut PgConnection,
) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar(CARRIED).bind(relation).bind(column).fetch_all(connection).await
}

/// Rights on a sequence of an identity are granted again, because the exchange creates it again. Another sequence stays the same
/// one. Indexes of the column are replaced too.
const CARRIED: &str = "with moved as (select a.*, c.relowner, format('%I.%I', n.nspname, c.relname) as \"table\", n.nspname \
        from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace \
        where a.attrelid = $1::oid and a.attname = $2 and not a.attisdropped), \
    indexes as (select i.indexrelid, i.indisclustered, x.relname, m.\"table\", m.nspname from moved m join pg_depend d on d.classid = 'pg_class'::regclass \
            and d.refclassid = 'pg_class'::regclass and d.refobjid = m.attrelid and d.refobjsubid = m.attnum \
        join pg_index i on i.indexrelid = d.objid join pg_class x on x.oid = i.indexrelid \
        union select i.indexrelid, i.indisclustered, x.relname, m.\"table\", m.nspname from moved m join pg_index i on i.indrelid = m.attrelid and i.indisprimary \
            and m.attnum = any (i.indkey::int2[]) join pg_class x on x.oid = i.indexrelid), \
    sequences as (select s.oid, s.relacl, s.relowner, format('%I.%I', n.nspname, s.relname) as name from moved m \
        join pg_depend d on d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass \
            and d.refobjid = m.attrelid and d.refobjsubid = m.attnum and d.deptype = 'i' \
        join pg_class s on s.oid = d.objid and s.relkind = 'S' join pg_namespace n on n.oid = s.relnamespace) \
    select statement from ( \
        select format('comment on column %s.%I is %L', \"table\", attname, col_description(attrelid, attnum)) as statement \
            from moved where col_description(attrelid, attnum) is not null \
        union all select format('alter table %s alter column %I set statistics %s', \"table\", attname, attstattarget) \
            from moved where attstattarget >= 0 \
        union all select format('alter table %s alter column %I set (%s)', \"table\", attname, array_to_string(attoptions, ', ')) \
            from moved where attoptions is not null \
        union all select format('comment on index %I.%I is %L', nspname, relname, obj_description(indexrelid, 'pg_class')) \
            from indexes where obj_description(indexrelid, 'pg_class') is not null \
        union all select format('alter table %s cluster on %I', \"table\", relname) from indexes where indisclustered \
        union all select format('comment on constraint %I on %s is %L', k.conname, m.\"table\", obj_description(k.oid, 'pg_constraint')) \
            from moved m join pg_constraint k on k.conrelid = m.attrelid and m.attnum = any (k.conkey) and k.contype in ('p', 'f') \
            where obj_description(k.oid, 'pg_constraint') is not null \
        union all select format('comment on sequence %s is %L', name, obj_description(oid, 'pg_class')) \
            from sequences where obj_description(oid, 'pg_class') is not null \
        union all select format('grant %s on sequence %s to %s%s', g.privilege_type, s.name, \
                case when g.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end, \
                case when g.is_grantable then ' with grant option' end) \
            from sequences s cross join lateral aclexplode(s.relacl) as g where g.grantee <> s.relowner \
    ) as found order by statement";
