//! The triggers of a change without data: they see who writes what the change forbids or drops.
//!
//! They have the names and the function of a guard trigger, so that whatever looks for guard triggers finds them.

use sqlx::PgConnection;

use super::guard_triggers::names;
use super::literal::{text, unquote};
use super::unprepared;

/// What the triggers of one change look for. Names are quoted.
#[derive(Debug, Clone)]
pub(crate) struct WriteWatch {
    pub(crate) table: String,
    /// A condition over `new`: the change forbids the row.
    pub(crate) forbidden: Option<String>,
    /// The condition can stand in `WHEN`, so that the function is called for forbidden rows only.
    pub(crate) is_simple: bool,
    pub(crate) dropped: Option<Dropped>,
}

/// What the change drops, if writers can be seen to use it.
#[derive(Debug, Clone)]
pub(crate) enum Dropped {
    Column(String),
    Table,
}

impl WriteWatch {
    /// The quoted names of its triggers on the table itself.
    pub(crate) fn names(&self, id: &str) -> Vec<String> {
        let [on_rows, on_truncate, on_drop, ..] = names(id);
        let forbids = self.forbidden.is_some().then_some(on_rows);
        let (on_drop, on_truncate) = match &self.dropped {
            None => (None, None),
            Some(Dropped::Column(_)) => (Some(on_drop), None),
            Some(Dropped::Table) => (Some(on_drop), Some(on_truncate)),
        };
        [forbids, on_drop, on_truncate].into_iter().flatten().collect()
    }

    /// What the function executes.
    fn body(&self, id: &str) -> String {
        let drops = match &self.dropped {
            None => String::new(),
            Some(dropped) => {
                let (what, unless_default) = match dropped {
                    Dropped::Table => ("Table".to_owned(), String::new()),
                    Dropped::Column(column) => {
                        let name = unquote(column);
                        let literal = text(&name);
                        let is_default = format!(
                            "if tg_op = 'INSERT' then \
                                 comparison := cutover.comparison_with_default(tg_relid, {literal}); \
                                 if comparison is null then return new; end if; \
                                 execute comparison into is_default using new.{column}; \
                                 if is_default then return new; end if; \
                             end if; "
                        );
                        (format!("Column {} of table", name.replace('%', "%%")), is_default)
                    }
                };
                let message = text(&format!(
                    "{what} %s is about to be dropped and is no longer written: migration %s is in `%s`"
                ));
                format!(
                    "if tg_argv[0] = 'drop' then \
                         if tg_level = 'ROW' and cutover.is_foreign_key_action() then \
                             if tg_op = 'DELETE' then return old; end if; \
                             return new; \
                         end if; \
                         {unless_default}\
                         phase := cutover.record_external_write({id}, false); \
                         if phase in ('retire', 'contract') then \
                             raise exception using errcode = 'ZC003', \
                                 message = pg_catalog.format({message}, tg_table_name, cutover.migration_name({id}), phase), \
                                 detail = pg_catalog.format('The write came from application %s, role %s.', \
                                     coalesce(nullif(pg_catalog.current_setting('application_name'), ''), 'unnamed'), \
                                     session_user), \
                                 hint = 'Deploy a build that does not write it, or go back to `switch`.'; \
                         end if; \
                         if tg_op = 'DELETE' then return old; end if; \
                         if tg_op = 'TRUNCATE' then return null; end if; \
                         return new; \
                     end if; "
                )
            }
        };
        let forbids = self.forbidden.as_ref().map_or(String::new(), |forbidden| {
            // The constraint would refuse a row for which its expression fails, but not before it is there.
            format!(
                "begin is_forbidden := {forbidden}; exception when others then is_forbidden := true; end; \
                 if is_forbidden then perform cutover.record_external_write({id}, false); end if; "
            )
        });
        format!(
            "#variable_conflict use_column\ndeclare phase text; comparison text; is_default boolean; is_forbidden boolean; \
             begin {drops}{forbids}return new; end"
        )
    }

    /// The statements that install the triggers, also on these partitions (with their schemas). `fingerprint`: the MD5 of
    /// the text that [`is_installed`] looks for.
    pub(crate) fn install(&self, id: &str, partitions: &[String], fingerprint: &str) -> String {
        let (table, body) = (self.table.as_str(), self.body(id));
        let [on_rows, on_truncate, on_drop, ..] = names(id);
        let trigger = |table: &str, name: &str, event: &str, level: &str, when: &str, argument: &str| {
            format!(
                "; drop trigger if exists {name} on {table}; \
                 create trigger {name} before {event} on {table} for each {level}{when} \
                 execute function cutover.guard_{id}('{argument}'); \
                 alter table {table} enable always trigger {name}"
            )
        };
        let (mut triggers, mut on_each_row) = (String::new(), Vec::new());
        if let Some(forbidden) = &self.forbidden {
            let when = if self.is_simple { format!(" when ({forbidden})") } else { String::new() };
            triggers += &trigger(table, &on_rows, "insert or update", "row", &when, "add");
            on_each_row.push(&on_rows);
        }
        match &self.dropped {
            None => {}
            Some(Dropped::Column(column)) => {
                triggers +=
                    &trigger(table, &on_drop, &format!("insert or update of {column}"), "row", "", "drop");
                on_each_row.push(&on_drop);
            }
            Some(Dropped::Table) => {
                triggers += &trigger(table, &on_drop, "insert or update or delete", "row", "", "drop");
                on_each_row.push(&on_drop);
                for table in std::iter::once(table).chain(partitions.iter().map(String::as_str)) {
                    triggers += &trigger(table, &on_truncate, "truncate", "statement", "", "drop");
                }
            }
        }
        // Older servers enable the trigger on the partitioned table only.
        for partition in partitions {
            for name in &on_each_row {
                triggers += &format!("; alter table {partition} enable always trigger {name}");
            }
        }
        format!(
            "create or replace function cutover.guard_{id}() returns trigger language plpgsql security definer \
             set search_path = pg_catalog, pg_temp as $guard$\n-- {fingerprint}\n{body}$guard$; \
             revoke all on function cutover.guard_{id}() from public{triggers}"
        )
    }
}

/// Whether the triggers of a change with this description are installed on the table with this oid.
pub(crate) async fn is_installed(
    connection: &mut PgConnection,
    relation: i64,
    migration: i32,
    described: &str,
) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar(
        "select exists (select from pg_trigger t join pg_proc p on p.oid = t.tgfoid \
             join pg_namespace n on n.oid = p.pronamespace and n.nspname = 'cutover' \
             where t.tgrelid = $1::oid and p.proname = 'guard_' || $2::text and t.tgenabled = 'A' \
               and strpos(p.prosrc, md5($3)) > 0)",
    )
    .bind(relation)
    .bind(migration.to_string())
    .bind(described)
    .fetch_one(connection)
    .await
}

/// Whether any trigger of the migration is left.
pub(crate) async fn is_left(connection: &mut PgConnection, migration: i32) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar("select to_regprocedure('cutover.guard_' || $1::text || '()') is not null")
        .bind(migration.to_string())
        .fetch_one(connection)
        .await
}
