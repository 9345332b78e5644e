//! What the server makes of a mapping's expressions: whether they can be computed, from what, and which functions they
//! call.
//!
//! The server parses them as the columns of a temporary view of an empty table like the real one. The view's definition,
//! read with an empty `search_path`, names every function, operator and type with its schema. So the guard trigger can
//! evaluate it under a fixed `search_path` with the meaning that it had when it was armed.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::ledger::unprepared;

/// The name under which a mapping's row is known.
const ROW: &str = "cutover_row";

/// Expressions as the server has understood them.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// `select … as v0, … as v1`, without its `from`. Every name carries its schema. The row is called `cutover_row`.
    pub(crate) select: String,
    /// Why the result can change while the row does not, each with a remedy.
    pub(crate) unstable: Vec<(String, String)>,
    /// Columns of the table that the expressions use, and those of them that are generated.
    pub(crate) uses: Vec<String>,
    pub(crate) generated: Vec<String>,
}

/// Resolves expressions over a row of `table` (quoted), which has further columns of these names and types.
///
/// Everything is rolled back.
///
/// # Errors
///
/// The server's, if the expressions cannot be computed.
pub(crate) async fn resolve(
    connection: &mut PgConnection,
    table: &str,
    added: &[(String, String)],
    expressions: &[String],
) -> Result<Resolved, sqlx::Error> {
    let mut tx = connection.begin().await?;
    // Decides about backslashes in the expressions, and in the view's definition. See `MAPPING_SETTINGS`.
    tx.execute("set local standard_conforming_strings = on").await?;
    tx.execute(AssertSqlSafe(format!("create temporary table {ROW} (like {table}) on commit drop"))).await?;
    for (column, sql_type) in added {
        let add = format!("alter table {ROW} add column if not exists {column} {sql_type}");
        tx.execute(AssertSqlSafe(add)).await?;
    }
    let values: Vec<String> =
        expressions.iter().enumerate().map(|(number, text)| format!("({text}\n) as v{number}")).collect();
    let view = format!("create temporary view cutover_mapping as select {} from {ROW}", values.join(", "));
    tx.execute(AssertSqlSafe(view)).await?;
    let unstable: Vec<(String, String)> = unprepared::query_as(UNSTABLE).fetch_all(&mut *tx).await?;
    let used: Vec<(String, bool)> = unprepared::query_as(USED).bind(table).fetch_all(&mut *tx).await?;
    let generated =
        used.iter().filter(|(_, is_generated)| *is_generated).map(|(name, _)| name.clone()).collect();
    let uses = used.into_iter().map(|(name, _)| name).collect();
    tx.execute("set local search_path = pg_catalog").await?;
    let definition: String =
        unprepared::query_scalar("select pg_get_viewdef('pg_temp.cutover_mapping'::regclass)")
            .fetch_one(&mut *tx)
            .await?;
    tx.rollback().await?;
    // The last `FROM` is the view's own: the definition ends with it.
    let end = definition.rfind("FROM").unwrap_or(definition.len());
    Ok(Resolved { select: definition[..end].trim().to_owned(), unstable, uses, generated })
}

/// A column type as the server sees it.
#[derive(Debug, Clone)]
pub(crate) struct TypeFacts {
    /// As the server writes it.
    pub(crate) name: String,
    /// Whether adding a column of this type rewrites the table.
    pub(crate) rewrites: bool,
    /// The type under the domain, if it is one.
    pub(crate) base: String,
    /// Of the domain and the domains below it: checks, in which the value is called `VALUE`; whether one forbids null; the default.
    pub(crate) checks: Vec<String>,
    pub(crate) not_null: bool,
    pub(crate) default: Option<String>,
}

/// Looks a type up, by adding a column of it to an empty table. Everything is rolled back.
///
/// # Errors
///
/// The server's, if this is not a type.
pub(crate) async fn look_up_type(
    connection: &mut PgConnection,
    sql_type: &str,
) -> Result<TypeFacts, sqlx::Error> {
    let mut tx = connection.begin().await?;
    let file = "select pg_relation_filenode('pg_temp.cutover_row')::bigint";
    let create = format!("create temporary table {ROW} () on commit drop");
    tx.execute(AssertSqlSafe(create)).await?;
    let before: i64 = unprepared::query_scalar(file).fetch_one(&mut *tx).await?;
    tx.execute(AssertSqlSafe(format!("alter table {ROW} add column v0 {sql_type}"))).await?;
    let after: i64 = unprepared::query_scalar(file).fetch_one(&mut *tx).await?;
    let (name, base, checks, not_null, default) = unprepared::query_as(TYPE).fetch_one(&mut *tx).await?;
    tx.rollback().await?;
    Ok(TypeFacts { name, rewrites: before != after, base, checks, not_null, default })
}

const TYPE: &str = "\
with recursive types (level, oid, modifier) as ( \
    select 0, atttypid, atttypmod from pg_attribute where attrelid = 'pg_temp.cutover_row'::regclass and attnum = 1 \
    union all select level + 1, t.typbasetype, greatest(types.modifier, t.typtypmod) from types join pg_type t using (oid) \
        where t.typtype = 'd') \
select (select format_type(oid, modifier) from types where level = 0), \
    (select format_type(oid, modifier) from types order by level desc limit 1), \
    (select coalesce(array_agg(replace(pg_get_constraintdef(c.oid), ' NOT VALID', '') order by level, c.conname), '{}') \
        from types join pg_constraint c on c.contypid = types.oid and c.contype = 'c'), \
    (select bool_or(t.typnotnull) from types join pg_type t using (oid)), \
    (select t.typdefault from types join pg_type t using (oid) where t.typdefault is not null order by level limit 1)";

/// Functions in the view's parse tree whose result does not follow from their arguments. The dependencies of a view do
/// not name built-in functions, so the tree itself is searched. A stable function depends on settings, which are fixed,
/// or on what this list names: the clock, the session, the transaction and the default text search configuration.
const UNSTABLE: &str = "\
with tree as (select ev_action::text as text from pg_rewrite where ev_class = 'pg_temp.cutover_mapping'::regclass), \
     called as (select distinct m[1]::oid as oid from tree, \
         regexp_matches(text, ':(?:funcid|opfuncid) ([0-9]+)', 'g') as m) \
select p.oid::regprocedure::text, case when n.nspname = 'pg_catalog' \
        then 'compute the value from the row''s columns instead' \
        else format('`alter function %s immutable` if its result follows from its arguments', p.oid::regprocedure) end \
    from called join pg_proc p using (oid) join pg_namespace n on n.oid = p.pronamespace \
    where p.provolatile = 'v' or n.nspname = 'pg_catalog' and (p.proname = any ( \
        array['now', 'transaction_timestamp', 'statement_timestamp', 'current_setting', 'current_database', \
              'current_schema', 'current_schemas', 'current_user', 'session_user', 'getpgusername', \
              'txid_current_if_assigned', 'pg_current_xact_id_if_assigned', 'inet_client_addr', 'inet_client_port', \
              'pg_backend_pid', 'pg_postmaster_start_time']) or p.proname = 'age' and p.pronargs = 1) \
union all select p.oid::regprocedure::text, 'name the text search configuration, as in `to_tsvector(''english'', body)`' \
    from called join pg_proc p using (oid) where p.pronamespace = 'pg_catalog'::regnamespace and p.provolatile = 's' \
    and p.proname ~ '(to_tsvector|to_tsquery|ts_headline)$' and p.proargtypes[0] <> 'regconfig'::regtype \
union all select 'current_date, current_timestamp, current_user or the like', \
        'compute the value from the row''s columns instead' \
    from tree where text like '%{SQLVALUEFUNCTION %' order by 1";

const USED: &str = "\
select distinct a.attname::text, a.attgenerated <> '' from pg_rewrite r \
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid \
        and d.refclassid = 'pg_class'::regclass and d.refobjid = 'pg_temp.cutover_row'::regclass \
    join pg_attribute t on t.attrelid = d.refobjid and t.attnum = d.refobjsubid \
    join pg_attribute a on a.attrelid = to_regclass($1) and a.attname = t.attname and not a.attisdropped \
    where r.ev_class = 'pg_temp.cutover_mapping'::regclass order by 1";
