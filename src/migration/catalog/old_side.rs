use sqlx::{FromRow, PgConnection};

use crate::ledger::unprepared;

/// What the end of a migration drops: a table, or columns of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldSide {
    /// The table, quoted as in SQL, with its schema if it was named with one.
    pub table: String,
    /// The columns as the catalog names them; empty if the whole table is dropped.
    pub columns: Vec<String>,
}

impl OldSide {
    /// What prevents the drop, or would be dropped with it unasked: everything that refers to the old side, except the
    /// columns' own defaults, their indexes and constraints that concern no other column, what a table owns, and
    /// the triggers of this library.
    ///
    /// `None` if it does not exist or is not on the session's `search_path`.
    pub(crate) async fn dependents(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<Vec<String>>, sqlx::Error> {
        let there: bool = unprepared::query_scalar(
            "select exists (select from pg_attribute where attrelid = to_regclass($1) and not attisdropped \
                 and (cardinality($2) = 0 or attname = any ($2)))",
        )
        .bind(&self.table)
        .bind(&self.columns)
        .fetch_one(&mut *connection)
        .await?;
        if !there {
            return Ok(None);
        }
        let query = if self.columns.is_empty() { OF_TABLE } else { OF_COLUMNS };
        let query = unprepared::query_scalar(query).bind(&self.table).bind(&self.columns);
        query.fetch_all(connection).await.map(Some)
    }
}

impl OldSide {
    /// Defaults of other columns that draw from a sequence which is dropped with the old side, because a column of it owns the
    /// sequence.
    pub(crate) async fn users_of_sequences(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<String>, sqlx::Error> {
        let query = unprepared::query_scalar(OF_SEQUENCES).bind(&self.table).bind(&self.columns);
        query.fetch_all(connection).await
    }
}

/// What computes something from the old side by itself.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub(crate) struct Reader {
    pub(crate) name: String,
    pub(crate) what: String,
    /// The statement that removes it.
    pub(crate) drop: String,
}

impl OldSide {
    /// Generated columns, policies, rules, views, functions with a parsed body, and triggers that are limited to the columns.
    pub(crate) async fn readers(&self, connection: &mut PgConnection) -> Result<Vec<Reader>, sqlx::Error> {
        unprepared::query_as(READERS).bind(&self.table).bind(&self.columns).fetch_all(connection).await
    }
}

/// Of a table as such, its own rules, policies and triggers count for nothing: no row is written to it any more.
const READERS: &str = "with moved as (select attrelid, attnum from pg_attribute where attrelid = to_regclass($1) \
        and attnum > 0 and not attisdropped and (cardinality($2::text[]) = 0 or attname = any ($2))), \
    readers as (select distinct case when f.oid is not null or r.rulename = '_RETURN' then 'pg_class'::regclass::oid \
                else d.classid end as class, \
            coalesce(f.adrelid, case r.rulename when '_RETURN' then r.ev_class end, d.objid) as object, \
            coalesce(f.adnum, d.objsubid) as sub, \
            coalesce(a.attname, v.relname, r.rulename, p.polname, t.tgname, x.proname)::text as name \
        from pg_depend d left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid \
        left join pg_class v on v.oid = r.ev_class and r.rulename = '_RETURN' \
        left join pg_policy p on d.classid = 'pg_policy'::regclass and p.oid = d.objid \
        left join pg_trigger t on d.classid = 'pg_trigger'::regclass and t.oid = d.objid \
        left join pg_proc x on d.classid = 'pg_proc'::regclass and x.oid = d.objid \
        left join pg_attrdef f on d.classid = 'pg_attrdef'::regclass and f.oid = d.objid \
        left join pg_attribute a on (a.attrelid, a.attnum) = (f.adrelid, f.adnum) \
            or d.classid = 'pg_class'::regclass and (a.attrelid, a.attnum) = (d.objid, d.objsubid) \
        where d.refclassid = 'pg_class'::regclass and d.refobjid = to_regclass($1) \
            and (d.refobjsubid in (select attnum from moved) or d.refobjsubid = 0 and cardinality($2) = 0) \
            and (r.oid is not null and (cardinality($2) > 0 or r.ev_class <> d.refobjid) or x.oid is not null \
                or cardinality($2) > 0 and (p.oid is not null \
                    or t.oid is not null and not t.tgisinternal and t.tgname not like 'zzz\\_cutover\\_%' \
                    or a.attgenerated <> '' and a.attnum not in (select attnum from moved)))) \
    select readers.name, format('%s %s', o.type, o.identity) as what, case o.type when 'table column' \
            then format('alter table %s drop column %I', object::regclass, readers.name) \
            else format('drop %s %s', o.type, o.identity) end as drop \
    from readers cross join lateral pg_identify_object(class, object, sub) as o order by what";

const OF_SEQUENCES: &str = "with moved as (select attrelid, attnum from pg_attribute \
        where attrelid = to_regclass($1) and (cardinality($2::text[]) = 0 or attname = any ($2)) and not attisdropped) \
    select distinct pg_describe_object(d.classid, d.objid, d.objsubid) as name \
    from moved join pg_depend o on o.classid = 'pg_class'::regclass and o.refclassid = 'pg_class'::regclass \
        and o.refobjid = moved.attrelid and o.refobjsubid = moved.attnum and o.deptype in ('a', 'i') \
    join pg_class s on s.oid = o.objid and s.relkind = 'S' \
    join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = s.oid and d.deptype = 'n' \
    left join pg_attrdef f on d.classid = 'pg_attrdef'::regclass and f.oid = d.objid \
    where not exists (select from moved m where m.attrelid = f.adrelid and m.attnum = f.adnum) \
    order by name";

/// In Postgres 13 and 14 a generated column depends on the column itself, as a column of the same table; later its default
/// does.
const OF_COLUMNS: &str = "with moved as (select attrelid, attnum from pg_attribute \
        where attrelid = to_regclass($1) and attname = any ($2) and not attisdropped) \
    select distinct case when d.classid = 'pg_rewrite'::regclass then \
            (select pg_describe_object('pg_class'::regclass, r.ev_class, 0) \
             from pg_rewrite r where r.oid = d.objid) \
        else pg_describe_object(d.classid, d.objid, d.objsubid) end as name \
    from moved a \
    join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid \
        and d.refobjsubid = a.attnum \
    where (d.deptype = 'n' \
            or d.classid = 'pg_class'::regclass and d.objid = a.attrelid and d.objsubid <> 0 \
            or exists ( \
            select 1 from pg_depend other where other.classid = d.classid and other.objid = d.objid \
                and other.refclassid = d.refclassid and other.refobjid = d.refobjid \
                and other.refobjsubid <> 0 and other.refobjsubid not in (select attnum from moved) and d.classid <> 'pg_attrdef'::regclass)) \
        and not exists (select from pg_constraint k where d.classid = 'pg_constraint'::regclass and k.oid = d.objid \
            and k.contype = 'c' and k.conrelid = a.attrelid and k.conkey <@ array(select attnum from moved)) \
        and not exists (select from pg_trigger t where d.classid = 'pg_trigger'::regclass and t.oid = d.objid \
            and t.tgname like 'zzz\\_cutover\\_%') \
    order by name";

/// A foreign key from the table to itself is dropped with it.
const OF_TABLE: &str = "select distinct case when d.classid = 'pg_rewrite'::regclass then \
            (select pg_describe_object('pg_class'::regclass, r.ev_class, 0) \
             from pg_rewrite r where r.oid = d.objid) \
        else pg_describe_object(d.classid, d.objid, d.objsubid) end as name \
    from pg_depend d \
    left join pg_constraint c on d.classid = 'pg_constraint'::regclass and c.oid = d.objid \
    where d.refclassid = 'pg_class'::regclass and d.refobjid = to_regclass($1) and cardinality($2::text[]) = 0 \
        and d.deptype = 'n' and c.conrelid is distinct from d.refobjid \
    order by name";
