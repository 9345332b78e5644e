use serde::Deserialize;
use serde::de::DeserializeOwned;
use sqlx::{Executor, PgConnection};

use super::names::quote;
use crate::ledger::guard_triggers::may_change_rows;
use crate::ledger::unprepared;

/// One table as the catalog describes it, read by one statement.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct TableFacts {
    /// `pg_class.relkind`: `r` for a table, `p` for a partitioned one.
    pub(crate) kind: String,
    /// Its oid.
    pub(crate) relation: i64,
    /// `pg_class.relpersistence`: `p`, or `u` for an unlogged table.
    pub(crate) persistence: String,
    /// The role that reads it here.
    pub(crate) role: String,
    /// The owner, quoted.
    pub(crate) owner: String,
    /// Whether that role has the owner's rights.
    pub(crate) is_owner: bool,
    /// Whether row security filters what that role reads.
    pub(crate) row_security: bool,
    /// What the role may do with every column, also one that is added later: of `select`, `insert`, `update`, `delete`.
    pub(crate) privileges: Vec<String>,
    /// The policies that apply to the role.
    pub(crate) policies: Vec<String>,
    /// Its partitions, or the tables that inherit from it.
    pub(crate) children: Vec<String>,
    /// Those that are foreign tables, at any depth.
    pub(crate) foreign_partitions: Vec<String>,
    /// The tables that it is a partition of or inherits from.
    pub(crate) parents: Vec<String>,
    pub(crate) is_partition: bool,
    pub(crate) columns: Vec<ColumnFacts>,
    pub(crate) foreign_keys: Vec<ForeignKey>,
    /// Triggers of the users' own, on its partitions too.
    pub(crate) triggers: Vec<Trigger>,
    /// Rules that replace or accompany writes, and are enabled.
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ColumnFacts {
    pub(crate) name: String,
    /// With its modifier.
    #[serde(rename = "type")]
    pub(crate) sql_type: String,
    pub(crate) not_null: bool,
    pub(crate) has_default: bool,
    pub(crate) is_generated: bool,
    /// Generated, and not stored.
    pub(crate) is_virtual: bool,
    pub(crate) is_identity: bool,
    /// The sequence that the column owns.
    pub(crate) sequence: Option<String>,
    pub(crate) in_primary_key: bool,
    /// What the role may do with it: of `select`, `insert`, `update`.
    pub(crate) privileges: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ForeignKey {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
    /// Whether it changes rows of this table when the referenced row changes.
    pub(crate) has_action: bool,
    pub(crate) is_to_itself: bool,
    /// The oid of the table that it refers to.
    pub(crate) referenced: i64,
    pub(crate) definition: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Trigger {
    /// The table, or one of its partitions, quoted.
    pub(crate) table: String,
    pub(crate) name: String,
    /// Whether it is enabled, and may change a row that is inserted or updated.
    pub(crate) may_change_rows: bool,
    pub(crate) function: String,
    pub(crate) body: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Rule {
    pub(crate) name: String,
    /// `INSERT`, `UPDATE` or `DELETE`.
    pub(crate) event: String,
    /// Whether it replaces the write.
    pub(crate) is_instead: bool,
    pub(crate) definition: String,
}

const READ: &str = concat!(
    "\
select json_build_object( \
    'kind', c.relkind::text, 'relation', c.oid::bigint, 'persistence', c.relpersistence::text, 'role', current_user::text, \
    'owner', quote_ident(pg_get_userbyid(c.relowner)), 'is_owner', pg_has_role(c.relowner, 'usage'), \
    'row_security', row_security_active(c.oid), 'is_partition', c.relispartition, \
    'privileges', (select coalesce(json_agg(name), '[]') from unnest('{select,insert,update,delete}'::text[]) as name \
        where has_table_privilege(c.oid, name)), \
    'policies', (select coalesce(json_agg(p.polname::text order by p.polname), '[]') from pg_policy p \
        where p.polrelid = c.oid and exists (select from unnest(p.polroles) as r (role) \
            where r.role = 0 or pg_has_role(r.role, 'usage'))), \
    'children', (select coalesce(json_agg(i.inhrelid::regclass::text order by i.inhrelid::regclass::text), '[]') \
        from pg_inherits i where i.inhparent = c.oid), \
    'foreign_partitions', (select coalesce(json_agg(f.oid::regclass::text order by f.oid), '[]') from pg_class f \
        where f.relkind = 'f' and (f.oid in (select relid from pg_partition_tree(c.oid)) and f.oid <> c.oid \
            or f.oid in (select inhrelid from pg_inherits where inhparent = c.oid))), \
    'parents', (select coalesce(json_agg(i.inhparent::regclass::text order by i.inhseqno), '[]') \
        from pg_inherits i where i.inhrelid = c.oid), \
    'columns', (select coalesce(json_agg(json_build_object( \
            'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'not_null', a.attnotnull, \
            'has_default', a.atthasdef, 'is_generated', a.attgenerated <> '', 'is_virtual', a.attgenerated = 'v', 'is_identity', a.attidentity <> '', \
            'sequence', (select d.objid::regclass::text from pg_depend d \
                where d.classid = 'pg_class'::regclass and d.objsubid = 0 and d.refclassid = 'pg_class'::regclass \
                    and d.refobjid = c.oid and d.refobjsubid = a.attnum and d.deptype in ('a', 'i') \
                    and exists (select from pg_class s where s.oid = d.objid and s.relkind = 'S') limit 1), \
            'privileges', (select coalesce(json_agg(name), '[]') from unnest('{select,insert,update}'::text[]) as name \
                where has_column_privilege(c.oid, a.attnum, name)), \
            'in_primary_key', exists (select from pg_index i \
                where i.indrelid = c.oid and i.indisprimary and a.attnum = any (i.indkey::int2[]))) order by a.attnum), '[]') \
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), \
    'foreign_keys', (select coalesce(json_agg(json_build_object( \
            'name', f.conname, 'has_action', f.confdeltype not in ('a', 'r') or f.confupdtype not in ('a', 'r'), \
            'definition', pg_get_constraintdef(f.oid), 'is_to_itself', f.confrelid = c.oid, 'referenced', f.confrelid::bigint, \
            'columns', (select json_agg(a.attname) from pg_attribute a \
                where a.attrelid = f.conrelid and a.attnum = any (f.conkey))) order by f.conname), '[]') \
        from pg_constraint f where f.conrelid = c.oid and f.contype = 'f' \
            and not exists (select from pg_constraint p where p.oid = f.conparentid and p.conrelid = f.conrelid)), \
    'triggers', (select coalesce(json_agg(json_build_object( \
            'table', case when t.tgrelid = c.oid then $1 else t.tgrelid::regclass::text end, 'name', t.tgname, 'function', p.oid::regprocedure::text, 'body', p.prosrc, \
            'may_change_rows', ",
    may_change_rows!("t"),
    ") \
            order by t.tgrelid <> c.oid, t.tgname, t.tgrelid::regclass::text), '[]') \
        from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace \
        where (t.tgrelid = c.oid or t.tgrelid in (select relid from pg_partition_tree(c.oid)) \
                and (t.tgparentid = 0 or current_setting('server_version_num')::integer < 150000)) \
            and not t.tgisinternal and n.nspname <> 'cutover'), \
    'rules', (select coalesce(json_agg(json_build_object('name', r.rulename, 'is_instead', r.is_instead, 'definition', pg_get_ruledef(r.oid), \
            'event', case r.ev_type when '2' then 'UPDATE' when '3' then 'INSERT' else 'DELETE' end) order by r.rulename), '[]') \
        from pg_rewrite r where r.ev_class = c.oid and r.ev_type <> '1' and r.ev_enabled <> 'D'))::text \
from pg_class c where c.oid = to_regclass($1)"
);

impl TableFacts {
    /// Reads a table (quoted). `None` if there is none of that name on the session's `search_path`.
    pub(crate) async fn read(
        connection: &mut PgConnection,
        table: &str,
    ) -> Result<Option<Self>, sqlx::Error> {
        read_json(connection, READ, table).await
    }

    /// The columns that an insert can name, quoted and separated by commas.
    pub(crate) fn stored_columns(&self) -> String {
        let stored = self.columns.iter().filter(|column| !column.is_generated);
        stored.map(|column| quote(&column.name)).collect::<Vec<_>>().join(", ")
    }

    /// Whether it is a table with rows of its own, or a partitioned one.
    pub(crate) fn is_table(&self) -> bool {
        ["r", "p"].contains(&&*self.kind)
    }

    pub(crate) fn column(&self, name: &str) -> Option<&ColumnFacts> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// Runs a query of one JSON text about a table (quoted). `None` if there is no such table.
///
/// It turns off just-in-time compilation for the transaction: the planner takes these queries for expensive ones, and their
/// compilation would take a hundred times as long as the queries.
pub(super) async fn read_json<T: DeserializeOwned>(
    connection: &mut PgConnection,
    query: &'static str,
    table: &str,
) -> Result<Option<T>, sqlx::Error> {
    connection.execute("set local jit = off").await?;
    let json: Option<String> =
        unprepared::query_scalar(query).bind(table).fetch_optional(&mut *connection).await?;
    let Some(json) = json else { return Ok(None) };
    serde_json::from_str(&json).map(Some).map_err(|error| sqlx::Error::Decode(error.into()))
}
