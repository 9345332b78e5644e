use std::collections::BTreeMap;

use serde::Deserialize;
use sqlx::PgConnection;

use super::table::read_json;

/// What is attached to a table, read by one statement. Names are those of the catalog unless noted.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Attachments {
    pub(crate) indexes: Vec<IndexFacts>,
    /// Check, exclusion and foreign key constraints. Keys are indexes.
    pub(crate) constraints: Vec<ConstraintFacts>,
    /// Foreign keys of other tables.
    pub(crate) referencing: Vec<ConstraintFacts>,
    pub(crate) grants: Vec<Grant>,
    pub(crate) comment: Option<String>,
    pub(crate) columns: Vec<ColumnExtras>,
    pub(crate) statistics: Vec<StatisticsFacts>,
    pub(crate) publications: Vec<PublicationFacts>,
    /// `pg_class.relreplident`: `d` default, `i` an index, `f` full, `n` nothing.
    pub(crate) replica_identity: String,
    /// Of a partitioned table: the partitions that hold rows.
    pub(crate) partitions: Option<Vec<Partition>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Partition {
    /// Quoted.
    pub(crate) table: String,
    /// Its foreign keys, and whether each is validated.
    pub(crate) foreign_keys: BTreeMap<String, bool>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct IndexFacts {
    pub(crate) name: String,
    /// In their order, with included ones; `None` for an expression.
    pub(crate) columns: Vec<Option<String>>,
    /// Every column that the index needs.
    pub(crate) refers_to: Vec<String>,
    pub(crate) is_unique: bool,
    pub(crate) is_primary: bool,
    pub(crate) is_valid: bool,
    pub(crate) has_predicate: bool,
    pub(crate) is_replica_identity: bool,
    /// `pg_constraint.contype` and the definition of the constraint that owns the index.
    pub(crate) constraint: Option<String>,
    pub(crate) constraint_definition: Option<String>,
    pub(crate) definition: String,
    /// Quoted. `None`: that of the database, or one in which this role may create nothing.
    pub(crate) tablespace: Option<String>,
    pub(crate) predicate: Option<String>,
    pub(crate) comment: Option<String>,
    /// That of the constraint.
    pub(crate) constraint_comment: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ConstraintFacts {
    pub(crate) name: String,
    /// `pg_constraint.contype`.
    pub(crate) kind: String,
    /// The table that has the constraint, quoted.
    pub(crate) table: String,
    pub(crate) columns: Vec<String>,
    pub(crate) is_valid: bool,
    pub(crate) definition: String,
    /// The referenced table, quoted, and its columns.
    pub(crate) referenced: Option<String>,
    pub(crate) referenced_columns: Vec<String>,
    pub(crate) comment: Option<String>,
    /// Of a foreign key of another table: the partitions of that table.
    #[serde(default)]
    pub(crate) partitions: Option<Vec<Partition>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Grant {
    /// Quoted, or `public`.
    pub(crate) role: String,
    pub(crate) privilege: String,
    pub(crate) is_grantable: bool,
    pub(crate) column: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ColumnExtras {
    pub(crate) name: String,
    pub(crate) comment: Option<String>,
    pub(crate) statistics_target: Option<i32>,
    /// `n_distinct=…` and the like.
    pub(crate) options: Option<Vec<String>>,
    /// `a` or `d` for an identity column.
    pub(crate) identity: String,
    /// The sequences that the default or the identity draws from, quoted.
    pub(crate) sequences: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct StatisticsFacts {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
    pub(crate) definition: String,
}

/// A publication that names the table, its schema or a partition of it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PublicationFacts {
    pub(crate) name: String,
    /// `None`: all columns.
    pub(crate) columns: Option<Vec<String>>,
    pub(crate) filter: Option<String>,
    /// Updates or deletes.
    pub(crate) publishes_changes: bool,
}

/// The partitions of this table that hold rows.
macro_rules! partitions {
    ($table:literal) => {
        concat!(
            "(select json_agg(json_build_object('table', p.relid::regclass::text, 'foreign_keys', \
                (select coalesce(json_object_agg(f.conname, f.convalidated), '{}') from pg_constraint f \
                    where f.conrelid = p.relid and f.contype = 'f')) order by p.relid::regclass::text) \
                from pg_partition_tree(",
            $table,
            ") p where p.isleaf and p.level > 0)"
        )
    };
}

/// Newer columns of `pg_publication_rel` are read through JSON, because older servers do not have them. A foreign key that
/// refers to a partitioned table has a row for each partition besides its own.
const READ: &str = concat!(
    "\
select json_build_object( \
    'partitions', ",
    partitions!("c.oid"),
    ", \
    'replica_identity', c.relreplident::text, \
    'comment', obj_description(c.oid, 'pg_class'), \
    'indexes', (select coalesce(json_agg(json_build_object( \
            'name', ic.relname, 'is_unique', i.indisunique, 'is_primary', i.indisprimary, \
            'is_valid', i.indisvalid and i.indisready, 'has_predicate', i.indpred is not null, \
            'is_replica_identity', i.indisreplident, 'definition', pg_get_indexdef(i.indexrelid), 'tablespace', \
            (select quote_ident(s.spcname) from pg_tablespace s \
                where s.oid = ic.reltablespace and has_tablespace_privilege(s.oid, 'create')), \
            'predicate', pg_get_expr(i.indpred, i.indrelid), \
            'constraint', k.contype::text, 'constraint_definition', pg_get_constraintdef(k.oid), \
            'comment', obj_description(i.indexrelid, 'pg_class'), \
            'constraint_comment', obj_description(k.oid, 'pg_constraint'), \
            'columns', (select json_agg(a.attname order by p.n) \
                from unnest(i.indkey::int2[]) with ordinality as p (attnum, n) \
                left join pg_attribute a on a.attrelid = c.oid and a.attnum = p.attnum and p.attnum <> 0), \
            'refers_to', (select coalesce(json_agg(distinct a.attname), '[]') from pg_attribute a \
                where a.attrelid = c.oid and a.attnum > 0 and (a.attnum = any (i.indkey::int2[]) \
                    or exists (select from pg_depend d where d.classid = 'pg_class'::regclass \
                        and d.objid = i.indexrelid and d.refclassid = 'pg_class'::regclass \
                        and d.refobjid = c.oid and d.refobjsubid = a.attnum)))) order by ic.relname), '[]') \
        from pg_index i join pg_class ic on ic.oid = i.indexrelid \
        left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = c.oid and k.contype in ('p', 'u', 'x') \
        where i.indrelid = c.oid), \
    'constraints', (select coalesce(json_agg(json_build_object( \
            'name', k.conname, 'kind', k.contype::text, 'table', k.conrelid::regclass::text, \
            'is_valid', k.convalidated, 'definition', pg_get_constraintdef(k.oid), \
            'comment', obj_description(k.oid, 'pg_constraint'), \
            'referenced', case when k.confrelid <> 0 then k.confrelid::regclass::text end, \
            'columns', (select coalesce(json_agg(a.attname order by p.n), '[]') \
                from unnest(k.conkey) with ordinality as p (attnum, n) \
                join pg_attribute a on a.attrelid = k.conrelid and a.attnum = p.attnum), \
            'referenced_columns', (select coalesce(json_agg(a.attname order by p.n), '[]') \
                from unnest(k.confkey) with ordinality as p (attnum, n) \
                join pg_attribute a on a.attrelid = k.confrelid and a.attnum = p.attnum)) order by k.conname), '[]') \
        from pg_constraint k where k.conrelid = c.oid and k.contype in ('c', 'f') \
            and k.conname !~ '^cutover_[0-9]+_not_null$' \
            and not exists (select from pg_constraint p where p.oid = k.conparentid and p.conrelid = k.conrelid)), \
    'referencing', (select coalesce(json_agg(json_build_object( \
            'name', k.conname, 'kind', k.contype::text, 'table', k.conrelid::regclass::text, \
            'is_valid', k.convalidated, 'definition', pg_get_constraintdef(k.oid), \
            'comment', obj_description(k.oid, 'pg_constraint'), \
            'referenced', k.confrelid::regclass::text, \
            'partitions', ",
    partitions!("k.conrelid"),
    ", \
            'columns', (select json_agg(a.attname order by p.n) \
                from unnest(k.conkey) with ordinality as p (attnum, n) \
                join pg_attribute a on a.attrelid = k.conrelid and a.attnum = p.attnum), \
            'referenced_columns', (select json_agg(a.attname order by p.n) \
                from unnest(k.confkey) with ordinality as p (attnum, n) \
                join pg_attribute a on a.attrelid = k.confrelid and a.attnum = p.attnum)) \
            order by k.conrelid::regclass::text, k.conname), '[]') \
        from pg_constraint k where k.confrelid = c.oid and k.contype = 'f' and k.conparentid = 0 \
            and k.conrelid <> c.oid), \
    'grants', (select coalesce(json_agg(json_build_object( \
            'role', case when g.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end, \
            'privilege', lower(g.privilege_type), 'is_grantable', g.is_grantable, 'column', g.attname) \
            order by g.attname nulls first, g.grantee, g.privilege_type), '[]') \
        from (select null::name as attname, (aclexplode(c.relacl)).* \
              union all select a.attname, (aclexplode(a.attacl)).* from pg_attribute a \
                  where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as g \
        where g.grantee <> c.relowner), \
    'columns', (select coalesce(json_agg(json_build_object( \
            'name', a.attname, 'comment', col_description(c.oid, a.attnum), \
            'statistics_target', nullif(a.attstattarget, -1), 'options', a.attoptions, \
            'identity', a.attidentity::text, \
            'sequences', (select coalesce(json_agg(distinct s.oid::regclass::text), '[]') from pg_class s \
                where s.relkind = 'S' and (exists (select from pg_depend d \
                        join pg_attrdef f on f.adrelid = c.oid and f.adnum = a.attnum \
                        where d.classid = 'pg_attrdef'::regclass and d.objid = f.oid \
                            and d.refclassid = 'pg_class'::regclass and d.refobjid = s.oid) \
                    or exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = s.oid \
                        and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid \
                        and d.refobjsubid = a.attnum and d.deptype = 'i')))) order by a.attnum), '[]') \
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), \
    'statistics', (select coalesce(json_agg(json_build_object( \
            'name', x.stxname, 'definition', pg_get_statisticsobjdef(x.oid), \
            'columns', (select coalesce(json_agg(distinct a.attname), '[]') from pg_attribute a \
                where a.attrelid = c.oid and a.attnum > 0 and (a.attnum = any (x.stxkeys::int2[]) \
                    or exists (select from pg_depend d where d.classid = 'pg_statistic_ext'::regclass \
                        and d.objid = x.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid \
                        and d.refobjsubid = a.attnum)))) order by x.stxname), '[]') \
        from pg_statistic_ext x where x.stxrelid = c.oid), \
    'publications', (select coalesce(json_agg(json_build_object( \
            'name', p.pubname, 'publishes_changes', p.pubupdate or p.pubdelete, 'filter', (select to_jsonb(v) ->> 'rowfilter' from pg_publication_tables v \
                where v.pubname = p.pubname and v.tablename = c.relname \
                    and v.schemaname = (select n.nspname from pg_namespace n where n.oid = c.relnamespace) limit 1), \
            'columns', (select json_agg(a.attname order by a.attnum) from pg_attribute a where a.attrelid = c.oid \
                and a.attnum::text in (select m[1] from regexp_matches(to_jsonb(r) ->> 'prattrs', '[0-9]+', 'g') as m))) \
            order by p.pubname), '[]') \
        from pg_publication p left join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = c.oid \
        where not p.puballtables and (r.oid is not null or exists (select from pg_publication_tables v \
            join pg_class o on o.relname = v.tablename join pg_namespace n on n.oid = o.relnamespace and n.nspname = v.schemaname \
            where v.pubname = p.pubname and o.oid in (select c.oid union all select relid::oid from pg_partition_tree(c.oid))))))::text \
from pg_class c where c.oid = to_regclass($1)"
);

impl Attachments {
    /// Reads a table (quoted). `None` if there is none of that name on the session's `search_path`.
    pub(crate) async fn read(
        connection: &mut PgConnection,
        table: &str,
    ) -> Result<Option<Self>, sqlx::Error> {
        read_json(connection, READ, table).await
    }

    pub(crate) fn column(&self, name: &str) -> Option<&ColumnExtras> {
        self.columns.iter().find(|column| column.name == name)
    }
}
