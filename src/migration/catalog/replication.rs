//! Logical replication: what it needs of a table that is written, and which subscriptions write one.

use sqlx::PgConnection;

use super::attachments::Attachments;
use super::counterpart::{Attached, Counterpart, attached, statement};
use super::names::quote;
use super::problem::PlanProblem;
use crate::ledger::unprepared;

/// The oids of `$1` and of its partitions.
macro_rules! with_partitions {
    () => {
        "select to_regclass($1)::oid union all select relid::oid from pg_partition_tree(to_regclass($1))"
    };
}

/// `t`: the tables that hold the rows of `$1`, each with what it is a partition of.
macro_rules! unidentified {
    ($in_schema:literal) => {
        concat!(
            "with t as (select c.oid as relation, format('%I.%I', n.nspname, c.relname) as name, c.relreplident as identity, \
                 array(select c.oid union select relid::oid from pg_partition_ancestors(c.oid)) as roots \
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                 where c.relkind = 'r' and c.relpersistence = 'p' and c.oid in (",
            with_partitions!(),
            ")) \
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

/// A table whose replica identity is an index over a column that goes.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct IdentityOver {
    /// Quoted.
    pub(crate) table: String,
    /// Quoted.
    index: String,
    has_primary_key: bool,
}

impl IdentityOver {
    pub(crate) fn what(&self) -> String {
        format!("replica identity of {}, which is index {}", self.table, self.index)
    }

    /// The statement that gives the table another one.
    pub(crate) fn replace(&self) -> String {
        let identity = if self.has_primary_key { "default" } else { "full" };
        format!("alter table {} replica identity {identity}", self.table)
    }
}

/// The table and its partitions whose replica identity is an index over one of these columns. Without the column there is no index,
/// and the server refuses updates and deletes that a publication has.
pub(crate) async fn identities_over(
    connection: &mut PgConnection,
    table: &str,
    columns: &[String],
) -> Result<Vec<IdentityOver>, sqlx::Error> {
    unprepared::query_as(concat!(
        "select case when c.oid = to_regclass($1) then $1 else c.oid::regclass::text end as \"table\", \
             quote_ident(x.relname) as index, \
             exists (select from pg_index p where p.indrelid = c.oid and p.indisprimary) as has_primary_key \
         from pg_class c join pg_index i on i.indrelid = c.oid and i.indisreplident join pg_class x on x.oid = i.indexrelid \
         where c.relreplident = 'i' and c.oid in (",
        with_partitions!(),
        ") and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = any ($2) \
             and a.attnum = any (i.indkey::int2[])) order by c.oid <> to_regclass($1), 1"
    ))
    .bind(table)
    .bind(columns)
    .fetch_all(connection)
    .await
}

/// The replica identity of the old table, if the new one lacks it. In one table it is an index: see [`identities`].
pub(super) fn replica_identity(
    sides: &Counterpart<'_>,
    old: &Attachments,
    new: &Attachments,
) -> Option<Attached> {
    if sides.is_one_table() || old.replica_identity != "f" || new.replica_identity != "d" {
        return None;
    }
    let set = format!("alter table {} replica identity full", sides.new_table);
    Some(of_identity(format!("replica identity of {} (full)", sides.old_table), vec![set]))
}

/// The replica identities that the old columns are part of. Another one is needed before they go.
pub(crate) fn identities(found: &[IdentityOver]) -> Option<Attached> {
    let what: Vec<String> = found.iter().map(IdentityOver::what).collect();
    (!found.is_empty())
        .then(|| of_identity(what.join(", "), found.iter().map(IdentityOver::replace).collect()))
}

/// It is part of what subscribers expect, so a person changes it.
fn of_identity(what: String, statements: Vec<String>) -> Attached {
    let steps = statements.into_iter().map(statement).collect();
    Attached { is_automatic: false, ..attached("replica identity", what, steps) }
}

/// The names of the subscriptions that write a table. A role may not read all of `pg_subscription`, but the view.
pub(crate) async fn subscriptions(
    connection: &mut PgConnection,
    table: &str,
) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar(concat!(
        "select distinct s.subname::text from pg_subscription_rel r join pg_stat_subscription s on s.subid = r.srsubid \
         where r.srrelid in (",
        with_partitions!(),
        " union all select relid::oid from pg_partition_ancestors(to_regclass($1))) order by 1",
    ))
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
    unprepared::query_scalar(concat!(
        "select distinct p.pubname::text from pg_publication_tables v join pg_publication p on p.pubname = v.pubname \
         join pg_class c on c.relname = v.tablename \
         join pg_namespace n on n.oid = c.relnamespace and n.nspname = v.schemaname \
         where c.oid in (",
        with_partitions!(),
        ") and not exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid \
                 and to_jsonb(r) ->> 'prattrs' is not null) order by 1",
    ))
    .bind(table)
    .fetch_all(connection)
    .await
}
