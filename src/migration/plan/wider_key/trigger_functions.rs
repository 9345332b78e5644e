//! PL/pgSQL functions that use rows of tables whose columns change their type.
//!
//! A session keeps the plans of such a function with the types that the columns of a row had, for example of `new`. Once a column
//! has another type, each call fails in the sessions that have called the function before. A function that was altered is compiled
//! again by every session.

use sqlx::{FromRow, PgConnection};

use crate::ledger::unprepared;
use crate::migration::catalog::PlanProblem;

/// A PL/pgSQL function of a trigger, or one that may use rows of a table. Names are quoted.
#[derive(Debug, FromRow)]
pub(super) struct TriggerFunction {
    /// The name with the types of the parameters.
    signature: String,
    is_definer: bool,
    trigger: Option<String>,
    table: Option<String>,
    owner: String,
    role: String,
    is_owner: bool,
}

impl TriggerFunction {
    /// Alters nothing but the version of the function.
    pub(super) fn recompile(&self) -> String {
        let security = if self.is_definer { "definer" } else { "invoker" };
        format!("alter routine {} security {security}", self.signature)
    }

    /// What stands against that.
    pub(super) fn problem(&self) -> Option<PlanProblem> {
        let Self { signature, owner, role, .. } = self;
        let (Some(trigger), Some(table), false) = (&self.trigger, &self.table, self.is_owner) else {
            return None;
        };
        Some(PlanProblem::blocking(
            format!(
                "function {signature} of trigger {trigger} on {table} belongs to {owner}, and role {role} may not alter it: \
                 without that, each write fails in open sessions when the key has another type"
            ),
            format!("`grant {owner} to {role}`, or `alter function {signature} owner to {role}`"),
        ))
    }
}

/// The functions of the triggers of these tables, and those of the role that name one of the tables, except the library's own.
pub(super) async fn find(
    relations: &[i64],
    connection: &mut PgConnection,
) -> Result<Vec<TriggerFunction>, sqlx::Error> {
    unprepared::query_as(
        "select distinct on (p.oid) p.prosecdef as is_definer, \
                format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as signature, \
                quote_ident(t.tgname) as trigger, t.tgrelid::regclass::text as \"table\", \
                quote_ident(pg_get_userbyid(p.proowner)) as owner, quote_ident(current_user) as role, \
                pg_has_role(p.proowner, 'usage') as is_owner \
         from pg_proc p join pg_language l on l.oid = p.prolang join pg_namespace n on n.oid = p.pronamespace \
         left join pg_trigger t on t.tgfoid = p.oid and t.tgrelid::bigint = any ($1) and not t.tgisinternal \
         where l.lanname = 'plpgsql' and n.nspname <> 'cutover' \
           and (t.oid is not null or pg_has_role(p.proowner, 'usage') and exists (select from pg_class c \
               where c.oid::bigint = any ($1) and strpos(p.prosrc, c.relname) > 0)) \
         order by p.oid, t.oid",
    )
    .bind(relations)
    .fetch_all(connection)
    .await
}
