//! Whether the index that work on rows follows has the order in which the server sorts.
//!
//! The order of text depends on a library of the operating system. After an upgrade of that, or on a standby of another system
//! that was promoted, an index keeps the order of the old version. A search in it misses rows, so a copy leaves them out, and
//! the scan does not see them either.

use sqlx::{FromRow, PgConnection};

use super::problem::PlanProblem;
use crate::ledger::unprepared;

/// A unique index over a key, and the version of one of its collations.
#[derive(Debug, FromRow)]
struct Ordered {
    index: String,
    /// `None`: the default of the database.
    collation: Option<String>,
    recorded: Option<String>,
    actual: Option<String>,
    /// Whether this server knows the version of the database's default.
    tells_default: bool,
}

const ORDERED: &str = "\
select distinct i.indexrelid::regclass::text as index, \
    case when l.collprovider <> 'd' then format('%I.%I', s.nspname, l.collname) end as collation, \
    case when l.collprovider <> 'd' then l.collversion end as recorded, \
    case when l.collprovider <> 'd' then pg_collation_actual_version(l.oid) end as actual, \
    to_regprocedure('pg_catalog.pg_database_collation_actual_version(oid)') is not null as tells_default \
from pg_index i cross join unnest(i.indcollation::oid[]) as used (id) \
join pg_collation l on l.oid = used.id join pg_namespace s on s.oid = l.collnamespace \
cross join lateral (select array_agg(a.attname::text) as names from generate_series(0, i.indnkeyatts - 1) as n \
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[n]) as key \
where i.indrelid = to_regclass($1) and i.indisunique and i.indpred is null and i.indexprs is null \
    and key.names @> $2 and key.names <@ $2 \
order by 1, 2";

/// The column is read through JSON, because servers before version 15 do not have it.
const DEFAULT: &str = "\
select quote_ident(d.datname), to_jsonb(d) ->> 'datcollversion', pg_database_collation_actual_version(d.oid) \
from pg_database d where d.datname = current_database()";

/// The unique indexes of a table (quoted) over these columns that may have another order than the server.
pub(crate) async fn outdated_order(
    connection: &mut PgConnection,
    table: &str,
    key: &[String],
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let found: Vec<Ordered> =
        unprepared::query_as(ORDERED).bind(table).bind(key).fetch_all(&mut *connection).await?;
    let mut problems = Vec::new();
    for Ordered { index, collation, recorded, actual, tells_default } in found {
        let (what, refresh, recorded, actual) = match collation {
            Some(name) => {
                let refresh = format!("alter collation {name} refresh version");
                (format!("collation {name}"), refresh, recorded, actual)
            }
            None if !tells_default => continue,
            None => {
                let (name, recorded, actual): (String, _, _) =
                    unprepared::query_as(DEFAULT).fetch_one(&mut *connection).await?;
                let what = format!("the collation of database {name}");
                (what, format!("alter database {name} refresh collation version"), recorded, actual)
            }
        };
        let (Some(recorded), Some(actual)) = (recorded, actual) else { continue };
        if recorded != actual {
            problems.push(PlanProblem::blocking(
                format!(
                    "index {index} of {table} may be in the order of version {recorded} of {what}, and the server has version \
                     {actual}, so work that follows the index could miss rows"
                ),
                format!(
                    "`reindex index concurrently {index}`, rebuild each other index that uses it, and then `{refresh}`"
                ),
            ));
        }
    }
    Ok(problems)
}
