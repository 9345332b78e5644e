//! What else names a column that moves.

use sqlx::PgConnection;

use crate::ledger::{sides, unprepared};
use crate::migration::catalog::{PlanProblem, quote};

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

/// Objects that name the column and would go on naming the old one after the exchange.
/// Each with its kind.
pub(super) async fn named_by(
    table: &str,
    column: &str,
    relation: i64,
    connection: &mut PgConnection,
) -> Result<Vec<(String, PlanProblem)>, sqlx::Error> {
    let found: Vec<(String, String, String)> = unprepared::query_as(
        "with named (attnum) as (select attnum from pg_attribute where attrelid = $1::oid and attname = $2) \
         select 'foreign key', format('%I of %s', k.conname, k.conrelid::regclass), \
                format('`alter table %s drop constraint %I` for the time of the migration, give the column that it refers to \
                     the type bigint by a migration of its own, and add the key again when both have finished', \
                     k.conrelid::regclass, k.conname) \
             from pg_constraint k, named where k.contype = 'f' and k.conparentid = 0 \
                 and k.conrelid = $1::oid and named.attnum = any (k.conkey) \
         union all select 'index', i.indexrelid::regclass::text, \
                format('`drop index concurrently %s`, and build it again when the migration has finished', \
                     i.indexrelid::regclass) \
             from pg_index i, named where i.indrelid = $1::oid and not i.indisprimary and i.indisvalid \
                 and named.attnum = any (i.indkey::int2[]) \
                 and not exists (select from pg_class x where x.oid = i.indexrelid and x.relname like 'cutover\\_%\\_key\\_%') \
         union all select 'index', i.indexrelid::regclass::text, \
                format('`alter table %s replica identity default`', $1::oid::regclass) \
             from pg_index i where i.indrelid = $1::oid and i.indisprimary and i.indisreplident \
         union all select 'check', k.conname::text, \
                format('`alter table %s drop constraint %I`, and add it again when the migration has finished', \
                     k.conrelid::regclass, k.conname) \
             from pg_constraint k, named where k.conrelid = $1::oid and k.contype in ('c', 'x') \
                 and named.attnum = any (k.conkey) and k.conname not like 'cutover\\_%\\_not\\_null' \
         union all select 'privilege', 'grants on the column', \
                format('grant the rights on the table instead: `grant … on %s to …`', $1::oid::regclass) \
             from pg_attribute a, named where a.attrelid = $1::oid and a.attnum = named.attnum and a.attacl is not null \
         union all select distinct 'object', case when d.classid = 'pg_rewrite'::regclass \
                    then (select pg_describe_object('pg_class'::regclass, r.ev_class, 0) from pg_rewrite r where r.oid = d.objid) \
                    else pg_describe_object(d.classid, d.objid, d.objsubid) end, \
                'drop it, and create it again when the migration has finished' \
             from pg_depend d, named where d.refclassid = 'pg_class'::regclass and d.refobjid = $1::oid \
                 and d.refobjsubid = named.attnum and d.deptype in ('n', 'a') \
                 and d.classid in ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_statistic_ext'::regclass, \
                     'pg_publication_rel'::regclass) \
         union all select 'generated column', a.attname::text, \
                format('`alter table %s alter column %I drop expression`', $1::oid::regclass, a.attname) \
             from pg_attribute a join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum, named \
             where a.attrelid = $1::oid and a.attgenerated <> '' and d.adbin::text like '%:varattno ' || named.attnum || ' %'",
    )
    .bind(relation)
    .bind(column)
    .fetch_all(connection)
    .await?;
    let describe = |(kind, name, remedy): (String, String, String)| {
        let what = format!("{kind} {name} names column {} of {table}", quote(column));
        (kind, PlanProblem::blocking(what, remedy))
    };
    Ok(found.into_iter().map(describe).collect())
}
