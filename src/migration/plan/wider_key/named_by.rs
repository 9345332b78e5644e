//! What else names a column that moves, or stands between a write and its row.

use sqlx::PgConnection;

use crate::ledger::{sides, unprepared};
use crate::migration::catalog::{PlanProblem, TableFacts, late_triggers, quote, row_security, rules};

/// Another migration works on the column.
pub(super) fn claimed(other: sides::OtherUser, table: &str, column: &str) -> PlanProblem {
    let sides::OtherUser { fleet, name, phase, .. } = other;
    PlanProblem::blocking(
        format!(
            "migration {fleet}/{name}, which is in `{phase}`, works on column {} of {table}",
            quote(column)
        ),
        format!("finish that migration first, or end it in `off` with `cutover abandon {fleet}/{name}`"),
    )
}

/// What keeps a copy from the rows of a table, or the trigger from what is written.
pub(super) fn interference(table: &str, facts: &TableFacts) -> Vec<PlanProblem> {
    let mut problems: Vec<PlanProblem> =
        facts.row_security.then(|| row_security(table, facts)).into_iter().collect();
    problems.extend(rules(table, facts, &["UPDATE"]));
    problems.extend(late_triggers(facts));
    problems
}

/// Objects that name the column and would go on naming the old one after the exchange. Each with its kind.
pub(super) async fn named_by(
    table: &str,
    column: &str,
    relation: i64,
    connection: &mut PgConnection,
) -> Result<Vec<(String, PlanProblem)>, sqlx::Error> {
    let found: Vec<(String, String, String)> =
        unprepared::query_as(NAMED_BY).bind(relation).bind(column).fetch_all(connection).await?;
    let describe = |(kind, name, remedy): (String, String, String)| {
        let what = format!("{kind} {name} names column {} of {table}", quote(column));
        (kind, PlanProblem::blocking(what, remedy))
    };
    Ok(found.into_iter().map(describe).collect())
}

/// Everything that the server records as depending on the column, except what moves with it. An index that a constraint owns
/// counts as the constraint, and the rule of a view as the view. Generated columns are found in their expressions, because
/// servers differ in how they record them. Triggers that the library installs belong to migrations, which are asked for
/// apart.
const NAMED_BY: &str = "\
with named as (select attrelid, attnum from pg_attribute where attrelid = $1::oid and attname = $2), \
depends as (select distinct d.classid, d.objid from pg_depend d, named \
    where d.refclassid = 'pg_class'::regclass and d.refobjid = named.attrelid and d.refobjsubid = named.attnum \
        and d.deptype in ('n', 'a', 'i') and (d.classid <> 'pg_class'::regclass or d.objid <> named.attrelid) \
    union select 'pg_class'::regclass, i.indexrelid from pg_index i, named \
        where i.indrelid = named.attrelid and named.attnum = any (i.indkey::int2[])), \
constraints as (select k.* from pg_constraint k where k.contype <> 'p' and exists (select from depends d \
    where d.classid = 'pg_constraint'::regclass and d.objid = k.oid \
        or d.classid = 'pg_class'::regclass and d.objid = k.conindid and k.contype in ('u', 'x'))), \
views as (select distinct case when r.rulename = '_RETURN' then 'pg_class'::regclass else d.classid end as classid, \
        case when r.rulename = '_RETURN' then r.ev_class else d.objid end as objid \
    from depends d join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid), \
objects as (select o.*, case o.type when 'publication relation' \
            then format('alter publication %s drop table %s', split_part(o.identity, ' in publication ', 2), \
                split_part(o.identity, ' in publication ', 1)) \
            else format('drop %s %s', case o.type when 'statistics object' then 'statistics' else o.type end, o.identity) end \
            as remedy \
    from (select classid, objid from views union all select classid, objid from depends \
            where classid not in ('pg_rewrite'::regclass, 'pg_class'::regclass, 'pg_constraint'::regclass, \
                'pg_attrdef'::regclass)) as other \
        cross join lateral pg_identify_object(other.classid, other.objid, 0) as o \
    where not exists (select from pg_trigger t where other.classid = 'pg_trigger'::regclass and t.oid = other.objid \
        and (t.tgisinternal or t.tgname like 'zzz\\_cutover\\_%'))) \
select 'foreign key', format('%I of %s', k.conname, k.conrelid::regclass), \
        format('`alter table %s drop constraint %I` for the time of the migration, give the column that it refers to \
             the type bigint by a migration of its own, and add the key again when both have finished', \
             k.conrelid::regclass, k.conname) \
    from constraints k, named where k.contype = 'f' and k.conparentid = 0 \
        and k.conrelid = named.attrelid and named.attnum = any (k.conkey) \
union all select case k.contype when 'c' then 'check' when 'u' then 'unique constraint' else 'exclusion constraint' end, \
        quote_ident(k.conname), \
        format('`alter table %s drop constraint %I`, and add it again when the migration has finished', \
             k.conrelid::regclass, k.conname) \
    from constraints k where k.contype in ('c', 'u', 'x') and k.conname not like 'cutover\\_%\\_not\\_null' \
union all select 'index', i.indexrelid::regclass::text, \
        format('`drop index concurrently %s`, and build it again when the migration has finished', i.indexrelid::regclass) \
    from depends d join pg_index i on d.classid = 'pg_class'::regclass and i.indexrelid = d.objid \
    where not i.indisprimary and i.indexrelid <> all (select conindid from constraints where contype in ('u', 'x')) \
        and not exists (select from pg_class x where x.oid = i.indexrelid and x.relname like 'cutover\\_%\\_key\\_%') \
union all select 'index', i.indexrelid::regclass::text, \
        format('`alter table %s replica identity default`', i.indrelid::regclass) \
    from pg_index i join named on i.indrelid = named.attrelid where i.indisprimary and i.indisreplident \
union all select 'privilege', 'grants on the column', \
        format('`revoke all (%I) on %s from %s`, and grant the rights on the table instead', a.attname, a.attrelid::regclass, \
             (select string_agg(distinct case when g.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end, \
                 ', ') from aclexplode(a.attacl) as g)) \
    from pg_attribute a join named on a.attrelid = named.attrelid and a.attnum = named.attnum \
    where cardinality(a.attacl) > 0 \
union all select type, identity, format('`%s`, and create it again when the migration has finished', remedy) from objects \
union all select 'generated column', a.attname::text, \
        format(case to_jsonb(a) ->> 'attgenerated' when 's' then '`alter table %s alter column %I drop expression`' \
             else '`alter table %s drop column %I`, and add it again when the migration has finished' end, \
             a.attrelid::regclass, a.attname) \
    from named join pg_attribute a on a.attrelid = named.attrelid and a.attgenerated <> '' \
    join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum \
    where d.adbin::text like '%:varattno ' || named.attnum || ' %'";
