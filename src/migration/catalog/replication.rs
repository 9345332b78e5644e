//! Logical replication: what it needs of a table that is written, and which subscriptions write one.

use sqlx::PgConnection;

use super::names::quote;
use super::problem::PlanProblem;
use crate::ledger::unprepared;

/// `t`: the tables that hold the rows of `$1`, each with what it is a partition of.
macro_rules! unidentified {
    ($in_schema:literal) => {
        concat!(
            "with t as (select c.oid as relation, format('%I.%I', n.nspname, c.relname) as name, c.relreplident as identity, \
                 array(select c.oid union select relid::oid from pg_partition_ancestors(c.oid)) as roots \
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                 where c.relkind = 'r' and c.relpersistence = 'p' and c.oid in (select to_regclass($1)::oid \
                     union all select relid::oid from pg_partition_tree(to_regclass($1)))) \
             select t.name, quote_ident(p.pubname), (select x.relname::text from pg_index i join pg_class x on x.oid = i.indexrelid \
                 where i.indrelid = t.relation and i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null \
                     and i.indexprs is null and not exists (select from pg_attribute a where a.attrelid = t.relation \
                         and a.attnum = any (i.indkey::int2[]) and not a.attnotnull) order by i.indnatts, x.relname limit 1) \
             from t cross join lateral (select pubname from pg_publication p where (p.pubupdate or p.pubdelete) \
                 and (p.puballtables or exists (select from pg_publication_rel r where r.prpubid = p.oid \
                     and r.prrelid = any (t.roots))",
            $in_schema,
            ") order by pubname limit 1) as p \
             where t.identity <> 'f' and not exists (select from pg_index i where i.indrelid = t.relation and i.indisvalid \
                 and i.indimmediate and case t.identity when 'd' then i.indisprimary when 'i' then i.indisreplident \
                     else false end) order by t.name"
        )
    };
}

/// The table and its partitions whose updates and deletes the server refuses, because a publication has them and nothing
/// identifies their rows. `is_new`: the plan makes the table.
pub(crate) async fn unidentified(
    connection: &mut PgConnection,
    table: &str,
    is_new: bool,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    // Older servers do not publish schemas.
    let look = "select to_regclass('pg_catalog.pg_publication_namespace') is not null";
    let query = match unprepared::query_scalar(look).fetch_one(&mut *connection).await? {
        false => unidentified!(""),
        true => unidentified!(
            " or exists (select from pg_publication_namespace s where s.pnpubid = p.oid \
                 and s.pnnspid in (select relnamespace from pg_class where oid = any (t.roots)))"
        ),
    };
    let found: Vec<(String, String, Option<String>)> =
        unprepared::query_as(query).bind(table).fetch_all(connection).await?;
    let problem = |(name, publication, index): (String, String, Option<String>)| {
        let identity = index.map_or("full".to_owned(), |index| format!("using index {}", quote(&index)));
        let alter = format!("`alter table {name} replica identity {identity}`");
        PlanProblem::blocking(
            format!(
                "publication {publication} publishes updates or deletes of {name}, which has no replica identity, so the \
                 server refuses them"
            ),
            if is_new { "give it a primary key in `.create(…)`".to_owned() } else { alter },
        )
    };
    Ok(found.into_iter().map(problem).collect())
}

/// The names of the subscriptions that write a table. A role may not read all of `pg_subscription`, but the view.
pub(crate) async fn subscriptions(
    connection: &mut PgConnection,
    table: &str,
) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar(
        "select distinct s.subname::text from pg_subscription_rel r join pg_stat_subscription s on s.subid = r.srsubid \
         where r.srrelid in (select to_regclass($1)::oid \
             union all select relid::oid from pg_partition_tree(to_regclass($1)) \
             union all select relid::oid from pg_partition_ancestors(to_regclass($1))) order by 1",
    )
    .bind(table)
    .fetch_all(connection)
    .await
}

/// The names of the publications that have all columns of a table.
pub(crate) async fn publications_of_all_columns(
    connection: &mut PgConnection,
    table: &str,
) -> Result<Vec<String>, sqlx::Error> {
    // Older servers have no lists of columns.
    unprepared::query_scalar(
        "select distinct p.pubname::text from pg_publication_tables v join pg_publication p on p.pubname = v.pubname \
         join pg_class c on c.relname = v.tablename \
         join pg_namespace n on n.oid = c.relnamespace and n.nspname = v.schemaname \
         where c.oid in (select to_regclass($1)::oid union all select relid::oid from pg_partition_tree(to_regclass($1))) \
             and not exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid \
                 and to_jsonb(r) ->> 'prattrs' is not null) order by 1",
    )
    .bind(table)
    .fetch_all(connection)
    .await
}
