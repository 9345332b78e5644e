//! Functions of triggers on tables whose columns change their type.
//!
//! A session keeps the plans of a PL/pgSQL function with the types that the columns of `new` and `old` had. Once such a column has
//! another type, each call fails in the sessions that have called the function before. A function that was altered is compiled
//! again by every session.

use sqlx::{FromRow, PgConnection};

use crate::ledger::unprepared;
use crate::migration::catalog::PlanProblem;

/// A PL/pgSQL function of a trigger. Names are quoted.
#[derive(Debug, FromRow)]
pub(super) struct TriggerFunction {
    name: String,
    cost: f32,
    trigger: String,
    table: String,
    owner: String,
    role: String,
    is_owner: bool,
}

impl TriggerFunction {
    /// Alters nothing but the version of the function.
    pub(super) fn recompile(&self) -> String {
        format!("alter function {}() cost {}", self.name, self.cost)
    }

    /// What stands against that.
    pub(super) fn problem(&self) -> Option<PlanProblem> {
        let Self { name, trigger, table, owner, role, .. } = self;
        (!self.is_owner).then(|| {
            PlanProblem::blocking(
                format!(
                    "function {name}() of trigger {trigger} on {table} belongs to {owner}, and role {role} may not alter it: \
                     without that, each write fails in open sessions when the key has another type"
                ),
                format!("`grant {owner} to {role}`, or `alter function {name}() owner to {role}`"),
            )
        })
    }
}

/// The functions of the triggers of these tables, except the library's own.
pub(super) async fn find(
    relations: &[i64],
    connection: &mut PgConnection,
) -> Result<Vec<TriggerFunction>, sqlx::Error> {
    unprepared::query_as(
        "select distinct on (p.oid) format('%I.%I', n.nspname, p.proname) as name, p.procost as cost, \
                quote_ident(t.tgname) as trigger, t.tgrelid::regclass::text as \"table\", \
                quote_ident(pg_get_userbyid(p.proowner)) as owner, quote_ident(current_user) as role, \
                pg_has_role(p.proowner, 'usage') as is_owner \
         from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_language l on l.oid = p.prolang \
         join pg_namespace n on n.oid = p.pronamespace \
         where t.tgrelid::bigint = any ($1) and not t.tgisinternal and l.lanname = 'plpgsql' and n.nspname <> 'cutover' \
         order by p.oid, t.oid",
    )
    .bind(relations)
    .fetch_all(connection)
    .await
}
