//! Installs the guard trigger, and finds out whether it is installed.

use sqlx::PgConnection;

use super::guard::{GuardTrigger, Selects, Watched};
use super::guard_conditions::same_for_dumps;
use crate::ledger::{describe_error, guard_triggers, is_refusal, unprepared};
use crate::migration::batch::MappingCode;
use crate::migration::catalog::{MAPPING_SETTINGS, Resolved, TIME_ZONE_ABBREVIATIONS, resolve};

impl GuardTrigger {
    /// The statements that install the trigger, with the user's expressions as they are. For people to read.
    pub(crate) fn arm_as_written(&self, id: &str) -> String {
        self.arm(id, &self.written(), "")
    }

    /// The statements that install the trigger, in place of an earlier one of the migration. `added`: the new columns
    /// and their types, which the table may not have yet.
    ///
    /// # Errors
    ///
    /// Why the mapping cannot be computed, or the server's error.
    pub(crate) async fn armed(
        &self,
        connection: &mut PgConnection,
        added: &[(String, String)],
        migration: i32,
    ) -> Result<Result<String, String>, sqlx::Error> {
        let mut selects = self.written();
        for (how, select) in [(&self.forward, &mut selects.forward), (&self.backward, &mut selects.backward)]
        {
            if let (MappingCode::Sql(expressions), Some(select)) = (how, select) {
                match resolve(connection, &self.table, added, expressions).await {
                    Ok(Resolved { select: resolved, .. }) => *select = resolved,
                    Err(error) if is_refusal(&error) => return Ok(Err(describe_error(&error))),
                    Err(error) => return Err(error),
                }
            }
        }
        if let Watched::Rows { target, part, .. } = &self.watched {
            if let Some((part, _)) = part {
                match resolve(connection, &self.table, &[], std::slice::from_ref(&part.condition)).await {
                    Ok(Resolved { select, .. }) => selects.condition = Some(select),
                    Err(error) if is_refusal(&error) => return Ok(Err(describe_error(&error))),
                    Err(error) => return Err(error),
                }
            }
            selects.target_partitions = leaves_of(connection, target).await?;
            let may_check = "select coalesce((select pg_has_role(relowner, 'usage') from pg_class where oid = to_regclass($1)), false)";
            selects.may_check =
                unprepared::query_scalar(may_check).bind(target).fetch_one(&mut *connection).await?;
        }
        let target = match &self.watched {
            Watched::Rows { target, .. } => Some((target, &mut selects.target)),
            Watched::Columns { .. } => None,
        };
        for (table, place) in std::iter::once((&self.table, &mut selects.source)).chain(target) {
            let name = "select quote_ident(n.nspname) || '.' || quote_ident(c.relname) from pg_class c \
                 join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass($1)";
            let qualified: Option<String> =
                unprepared::query_scalar(name).bind(table).fetch_optional(&mut *connection).await?;
            let Some(qualified) = qualified else {
                return Ok(Err(format!("table {table} does not exist")));
            };
            *place = qualified;
        }
        let is_partitioned =
            "select coalesce((select relkind = 'p' from pg_class where oid = to_regclass($1)), false)";
        selects.is_partitioned =
            unprepared::query_scalar(is_partitioned).bind(&self.table).fetch_one(&mut *connection).await?;
        selects.partitions = leaves_of(connection, &self.table).await?;
        let fingerprint: String = unprepared::query_scalar("select md5($1)")
            .bind(self.body(&self.written()))
            .fetch_one(connection)
            .await?;
        Ok(Ok(self.arm(&migration.to_string(), &selects, &fingerprint)))
    }

    /// The quoted names of the triggers of the table itself.
    pub(crate) fn names(&self, id: &str) -> Vec<String> {
        let [on_rows, on_truncate, on_nested, check_nested, on_key] = guard_triggers::names(id);
        match &self.watched {
            Watched::Columns { .. } => vec![on_rows, on_key],
            Watched::Rows { .. } => vec![on_rows, on_nested, check_nested, on_truncate],
        }
    }

    /// The statements that install each of [`names`](Self::names) on the table, without the function.
    pub(crate) fn statements_as_written(&self, id: &str) -> Vec<String> {
        self.triggers(id, &[])
    }

    fn triggers(&self, id: &str, partitions: &[String]) -> Vec<String> {
        let table = &self.table;
        let trigger = |table: &str, name: &str, event: &str, when: &str, arguments: &str| {
            format!(
                "drop trigger if exists {name} on {table}; \
                 create trigger {name} {event} when ({when}) \
                 execute function cutover.guard_{id}({arguments}); \
                 alter table {table} enable always trigger {name}"
            )
        };
        let [on_rows, on_truncate, on_nested, check_nested, on_key] = guard_triggers::names(id);
        let is_unpinned = format!("current_setting('cutover.pin_{id}', true) is distinct from 'on'");
        let is_watched = format!("{is_unpinned} or pg_trigger_depth() > 0");
        let (own, nested) = (format!("'{id}'"), format!("'{id}', 'nested'"));
        let mut triggers = Vec::new();
        match &self.watched {
            Watched::Columns { .. } => {
                let event = format!("before insert or update on {table} for each row");
                triggers.push(trigger(table, &on_rows, &event, &is_watched, &own));
                let event = format!("before update of {} on {table} for each row", self.key.join(", "));
                let is_moved =
                    format!("not ({is_watched}) and not ({})", same_for_dumps("old", "new", &self.key));
                triggers.push(trigger(table, &on_key, &event, &is_moved, &own));
            }
            Watched::Rows { .. } => {
                let events = format!("insert or update or delete on {table} for each row");
                let direct = format!("{is_unpinned} and pg_trigger_depth() = 0");
                triggers.push(trigger(table, &on_rows, &format!("after {events}"), &direct, &own));
                // An AFTER trigger runs when the statement is over. Whether a foreign key made a nested write is known
                // before.
                let is_nested = "pg_trigger_depth() > 0";
                triggers.push(trigger(table, &on_nested, &format!("after {events}"), is_nested, &nested));
                triggers.push(trigger(table, &check_nested, &format!("before {events}"), is_nested, &nested));
                for table in std::iter::once(table).chain(partitions) {
                    let event = format!("after truncate on {table} for each statement");
                    triggers.push(trigger(table, &on_truncate, &event, &is_watched, &own));
                }
            }
        }
        // Older servers enable the trigger on the partitioned table only.
        let on_each_row = self.names(id).into_iter().filter(|name| *name != on_truncate);
        let on_each_row: Vec<String> = on_each_row.collect();
        triggers.extend(partitions.iter().flat_map(|one| {
            on_each_row.iter().map(move |name| format!("alter table {one} enable always trigger {name}"))
        }));
        triggers
    }

    fn arm(&self, id: &str, selects: &Selects, fingerprint: &str) -> String {
        let body = self.body(selects);
        let mut triggers = self.triggers(id, &selects.partitions);
        if selects.may_check {
            triggers.extend(self.commit_check_triggers(id, selects));
        }
        let triggers = triggers.join("; ");
        let has_zones = [&selects.forward, &selects.backward, &selects.condition]
            .into_iter()
            .flatten()
            .any(|select| select.contains("with time zone"));
        let in_use: Vec<(&str, &str)> = MAPPING_SETTINGS
            .iter()
            .copied()
            .filter(|(name, _)| *name != TIME_ZONE_ABBREVIATIONS || has_zones)
            .collect();
        let settings: Vec<String> =
            in_use.iter().map(|(name, value)| format!("set {name} = '{value}'")).collect();
        let settings = settings.join(" ");
        let check = self.commit_check(id, selects, &in_use);
        // First the lock, which the triggers need anyway: two instances that replace a function at once would fail.
        format!(
            "lock table {table} in access exclusive mode; \
             create or replace function cutover.guard_{id}() returns trigger language plpgsql security definer \
             set search_path = pg_catalog, pg_temp set row_security = off {settings} as $guard$\n-- {fingerprint}\n{body}$guard$; \
             revoke all on function cutover.guard_{id}() from public; {check}; {triggers}",
            table = self.table
        )
    }

    /// Whether this very trigger is installed on the table with this oid. A build with another mapping has another one.
    pub(crate) async fn is_armed(
        &self,
        connection: &mut PgConnection,
        relation: i64,
        migration: i32,
    ) -> Result<bool, sqlx::Error> {
        let [on_rows, on_truncate, ..] = guard_triggers::names(&migration.to_string());
        unprepared::query_scalar(
            "select exists (select from pg_trigger t join pg_proc p on p.oid = t.tgfoid \
                 join pg_namespace n on n.oid = p.pronamespace and n.nspname = 'cutover' \
                 where t.tgrelid = $1::oid and p.proname = 'guard_' || $2::text and t.tgname = $6 and t.tgenabled = 'A' \
                   and strpos(p.prosrc, md5($3)) > 0) \
             and (not $4 or not exists (select from pg_partition_tree($1::oid::regclass) p where p.isleaf \
                 and not exists (select from pg_trigger t where t.tgrelid = p.relid and t.tgname = $5)))",
        )
        .bind(relation)
        .bind(migration.to_string())
        .bind(self.body(&self.written()))
        .bind(matches!(self.watched, Watched::Rows { .. }))
        .bind(on_truncate.trim_matches('"'))
        .bind(on_rows.trim_matches('"'))
        .fetch_one(connection)
        .await
    }
}

/// The partitions of a table that hold rows.
async fn leaves_of(connection: &mut PgConnection, table: &str) -> Result<Vec<String>, sqlx::Error> {
    let leaves = "select quote_ident(n.nspname) || '.' || quote_ident(c.relname) \
         from pg_partition_tree(to_regclass($1)) p join pg_class c on c.oid = p.relid \
         join pg_namespace n on n.oid = c.relnamespace where p.isleaf and c.oid <> to_regclass($1) order by c.oid";
    unprepared::query_scalar(leaves).bind(table).fetch_all(connection).await
}
