//! What stands against a wider key: everything else that names the column.

use sqlx::PgConnection;

use super::builder::Description;
use super::found::find;
use crate::ledger::{sides, unprepared};
use crate::migration::catalog::{PlanProblem, TableFacts, quote};

/// Everything at once. Also asked before the exchange, because an object that names the key may have been added since.
pub(super) async fn problems(
    plan: &Description,
    migration: Option<i32>,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let (table, column) = (&plan.table, quote(&plan.column));
    let Some(facts) = TableFacts::read(&mut *connection, table).await? else {
        return Ok(vec![PlanProblem::blocking(
            format!("table {table} does not exist, or is not on the search_path"),
            "create it, or name it with its schema",
        )]);
    };
    let Some(key) = find(plan, migration, &mut *connection).await? else {
        return Ok(vec![PlanProblem::blocking(
            format!("column {column} of {table} does not exist"),
            "name the column of the primary key",
        )]);
    };
    let mut problems = Vec::new();
    if facts.kind != "r" || !facts.children.is_empty() || !facts.parents.is_empty() {
        problems.push(PlanProblem::blocking(
            format!("{table} is partitioned, a partition, or part of an inheritance tree"),
            "move it with a TableMigration to a table whose key is `bigint`",
        ));
    }
    if !facts.is_owner {
        problems.push(PlanProblem::blocking(
            format!("role {} may not change {table}, because it is not the owner", facts.role),
            format!(
                "`grant <owner of {table}> to {}`, or let the owner's role run the migration",
                facts.role
            ),
        ));
    }
    if key.constraint.is_none() {
        problems.push(PlanProblem::blocking(
            format!("column {column} of {table} is not the primary key by itself"),
            "name the column of a primary key of one column; for others use a TableMigration",
        ));
    }
    if !["integer", "smallint", "bigint"].contains(&&*key.key_type) {
        problems.push(PlanProblem::blocking(
            format!("column {column} of {table} has type {}, and not `integer`", key.key_type),
            "use a TableMigration",
        ));
    }
    let is_recorded = sides::find(&mut *connection, migration).await?.is_some();
    for (name, exists) in [(&plan.wide, key.has_wide), (&plan.narrow, key.has_narrow)] {
        if exists && !is_recorded {
            problems.push(PlanProblem::blocking(
                format!("column {} of {table} exists, and the migration needs the name", quote(name)),
                format!("`alter table {table} rename column {} to …`", quote(name)),
            ));
        }
    }
    for other in sides::other_users(connection, migration, table, Some(&plan.column)).await? {
        let sides::OtherUser { fleet, name, phase, .. } = other;
        problems.push(PlanProblem::blocking(
            format!("migration {fleet}/{name}, which is in `{phase}`, works on the same column"),
            "finish that migration first, or end it in `off` with `cutover abandon`",
        ));
    }
    problems.extend(named_by(plan, key.relation, connection).await?);
    Ok(problems)
}

/// Objects that name the column and would go on naming the old one after the exchange.
async fn named_by(
    plan: &Description,
    relation: i64,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let found: Vec<(String, String, String)> = unprepared::query_as(
        "with named (attnum) as (select attnum from pg_attribute where attrelid = $1::oid and attname = $2) \
         select 'foreign key', format('%I of %s', k.conname, k.conrelid::regclass), \
                format('`alter table %s drop constraint %I` for the time of the migration, give the referring column type \
                     bigint by a migration of its own, and add the key again when both have finished', \
                     k.conrelid::regclass, k.conname) \
             from pg_constraint k, named where k.contype = 'f' and k.conparentid = 0 \
                 and (k.confrelid = $1::oid and named.attnum = any (k.confkey) \
                      or k.conrelid = $1::oid and named.attnum = any (k.conkey)) \
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
    .bind(&plan.column)
    .fetch_all(connection)
    .await?;
    let table = &plan.table;
    Ok(found
        .into_iter()
        .map(|(kind, name, remedy)| {
            PlanProblem::blocking(
                format!("{kind} {name} names column {} of {table}", quote(&plan.column)),
                remedy,
            )
        })
        .collect())
}
