//! A check at commit of rows whose sides a pinned transaction writes with two statements.
//!
//! # The hazard
//!
//! Under READ COMMITTED each statement sees what others have committed before it. If the first statement finds its row, it
//! holds the row's lock, and nothing comes between. If it finds none, it holds nothing: a row that another transaction
//! inserts, or changes so that the condition holds, and commits at this moment is found by the second statement only. Then one
//! side has been written and the other has not.
//!
//! # What the trigger does
//!
//! It is deferred to the commit, so it does not matter which side is written first. A row of the old side that this transaction
//! has written was locked, so nothing is compared. Another row is compared with the new side. If they differ:
//!
//! | phase | |
//! |---|---|
//! | `expand` to `verify` | the new side of the row is recorded for repair; no request reads it yet |
//! | `ramp` | the transaction fails with SQLSTATE 40001, and can be retried |
//! | `switch` | the old side is recorded for repair; on the way back from `retire` it may be behind anyway |
//!
//! Sides that cannot be compared, because the mapping is in Rust, are recorded for repair in `ramp`, too. An error of the
//! check never fails a write: the scan still finds the row.
//!
//! Copies and repairs write one side on purpose, and are not checked. In the phases that write one side, the fence leaves out
//! the setting that the trigger's condition reads, so it is not called then.

use super::guard::{GuardTrigger, Selects, Watched};
use super::guard_conditions::{listed, same};
use super::guard_refusals::RAISE;
use crate::ledger::guard_triggers;

const REFUSE: &str = "raise exception using errcode = 'serialization_failure', \
     message = pg_catalog.format('another transaction changed a row of %s while this one wrote both sides of migration %s', \
         tg_table_name, cutover.migration_name(tg_argv[0]::integer)), \
     hint = 'Begin the transaction again.';";

/// A mapping in Rust cannot tell whether the sides differ.
const UNKNOWN: &str = "is_unknown := true; differs := true;";

/// The id of this transaction, as rows show it.
const TOP: &str = "pg_catalog.pg_current_xact_id()::pg_catalog.xid";

/// Whether `xmin` is the id of a subtransaction of this transaction: a row that is visible although its transaction is still
/// running can be no other's.
fn is_own(xmin: &str) -> String {
    format!(
        "coalesce(pg_catalog.pg_xact_status((pg_catalog.pg_current_xact_id()::pg_catalog.text::bigint \
             - pg_catalog.age({xmin}))::pg_catalog.text::pg_catalog.xid8) = 'in progress', false)"
    )
}

impl GuardTrigger {
    /// The statement that installs the function. `settings`: those under which mappings are computed.
    ///
    /// They are set only where sides are compared: set by the function's definition, they would take most of its time. The
    /// exception that ends the comparison restores them.
    pub(super) fn commit_check(&self, id: &str, selects: &Selects, settings: &[(&str, &str)]) -> String {
        let (old, new) = ("old", "new");
        let (is_own, checks) = match &self.watched {
            Watched::Columns { old: old_columns, new: columns } => (
                format!(
                    "if not ({}) or {} or old.xmin = {TOP} then return null; end if;",
                    same(old, new, old_columns),
                    same(old, new, columns),
                ),
                self.check_columns(columns, selects),
            ),
            Watched::Rows { columns, .. } => {
                let moved = format!("tg_op = 'UPDATE' and not ({})", same(old, new, &self.key));
                let look = |row: &str| {
                    let has_key = self.has_key("there", row);
                    format!("select there.xmin into writer from {} as there where {has_key};", selects.source)
                };
                let is_own = format!(
                    "if tg_op = 'DELETE' then {} if not found or writer = {TOP} then return null; end if; \
                     elsif not ({moved}) then {} if found and writer = {TOP} then return null; end if; end if;",
                    look(old),
                    look(new),
                );
                let checks = format!(
                    "if tg_op = 'DELETE' or {moved} then {} end if; \
                     if tg_op <> 'DELETE' and not differs then {} end if;",
                    self.check_row(old, columns, selects),
                    self.check_row(new, columns, selects),
                );
                (is_own, checks)
            }
        };
        let settings: String = [("row_security", "off")]
            .iter()
            .chain(settings)
            .map(|(name, value)| format!("perform pg_catalog.set_config('{name}', '{value}', true); "))
            .collect();
        let record = |row: &str| {
            self.record_as(
                "case phase when 'switch' then 'old' else 'new' end",
                row,
                "'another transaction changed it between the writes of its sides'",
            )
        };
        format!(
            "create or replace function cutover.commit_check_{id}() returns trigger language plpgsql security definer \
             set search_path = pg_catalog, pg_temp as $check$\n\
             #variable_conflict use_column\ndeclare phase text; writer xid; is_there boolean; differs boolean := false; \
             is_unknown boolean := false; present record; written record; expects boolean; \
             begin \
                 phase := pg_catalog.current_setting('cutover.both_' || tg_argv[0], true); \
                 if phase is null or phase = '' then return null; end if; \
                 begin {is_own} exception {RAISE} when others then return null; end; \
                 begin {settings}{checks} raise exception using errcode = 'ZC000'; \
                 exception when sqlstate 'ZC000' then null; {RAISE} when others then return null; end; \
                 if differs then if phase = 'ramp' and not is_unknown then {REFUSE} end if; \
                     if tg_op = 'DELETE' then {of_old} else {of_new} end if; \
                 end if; \
                 return null; \
             end $check$; \
             revoke all on function cutover.commit_check_{id}() from public",
            of_old = record(old),
            of_new = record(new),
        )
    }

    /// Whether the row `alias` has the key of `row`.
    fn has_key(&self, alias: &str, row: &str) -> String {
        format!("({}) = ({})", listed(alias, &self.key), listed(row, &self.key))
    }

    /// Sets `differs` for a row of which only the new columns were written. A first statement that writes the old columns makes
    /// the row one of this transaction.
    fn check_columns(&self, new: &[String], selects: &Selects) -> String {
        let source = &selects.source;
        let is_row = self.has_key("there", "new");
        let compare = match &selects.forward {
            Some(select) => {
                let values: Vec<String> = (0..new.len()).map(|n| format!("mapped.v{n}")).collect();
                format!(
                    "select there.* into present from {source} as there where {is_row}; \
                     is_there := found; written := present; \
                     select {} into {} from (select there.* from {source} as there where {is_row}) as cutover_row \
                         cross join lateral ({select}) as mapped; \
                     differs := is_there and not ({});",
                    values.join(", "),
                    listed("written", new),
                    same("written", "present", new),
                )
            }
            None => UNKNOWN.to_owned(),
        };
        format!("if not {} then {compare} end if;", is_own("old.xmin"))
    }

    /// Sets `differs` for the row of the old table that has the key of `row`, unless this transaction wrote it.
    fn check_row(&self, row: &str, columns: &[String], selects: &Selects) -> String {
        let Selects { source, target, .. } = selects;
        let has_key = |alias: &str| self.has_key(alias, row);
        let condition = selects.condition.as_ref().map_or_else(String::new, |condition| {
            format!(" cross join lateral ({condition}) as part where part.v0")
        });
        let of_source =
            format!("(select there.* from {source} as there where {}) as cutover_row", has_key("there"));
        let compare = match &selects.forward {
            Some(select) => {
                let values: Vec<String> = (0..columns.len()).map(|n| format!("mapped.v{n}")).collect();
                format!(
                    "written := present; \
                     select {values} into {written} from (select cutover_row.* from {of_source}{condition}) as cutover_row \
                         cross join lateral ({select}) as mapped; \
                     differs := not ({same});",
                    values = values.join(", "),
                    written = listed("written", columns),
                    same = same("written", "present", columns),
                )
            }
            None => UNKNOWN.to_owned(),
        };
        let compare = if columns.is_empty() { String::new() } else { compare };
        format!(
            "select there.xmin into writer from {source} as there where {of_old}; \
             is_there := found; \
             if not is_there or writer <> {TOP} and not {own} then \
                 expects := is_there and exists (select from {of_source}{condition}); \
                 select there.* into present from {target} as there where {of_new}; \
                 if found <> expects then differs := true; is_unknown := false; \
                 elsif expects then {compare} end if; \
             end if;",
            of_old = has_key("there"),
            of_new = has_key("there"),
            own = is_own("writer"),
        )
    }

    /// The statements that install the trigger.
    pub(super) fn commit_check_triggers(&self, id: &str, selects: &Selects) -> Vec<String> {
        let name = guard_triggers::commit_check(id);
        let is_both = format!(
            "current_setting('cutover.both_{id}', true) <> '' and pg_trigger_depth() = 0 \
             and current_setting('cutover.copying', true) is distinct from 'on'"
        );
        let (table, event, when, partitions) = match &self.watched {
            // Named here, a column could not get another type: the server refuses it for the sake of the trigger. And for a row
            // that moves to another partition, it evaluates the condition without system columns.
            Watched::Columns { .. } => {
                let is_first =
                    if selects.is_partitioned { "" } else { " and old.xmin <> pg_current_xact_id()::xid" };
                (&self.table, "update", format!("{is_both}{is_first}"), &selects.partitions)
            }
            Watched::Rows { target, .. } => {
                (target, "insert or update or delete", is_both, &selects.target_partitions)
            }
        };
        let mut statements = vec![
            format!("drop trigger if exists {name} on {table}"),
            format!(
                "create constraint trigger {name} after {event} on {table} deferrable initially deferred for each row \
                 when ({when}) execute function cutover.commit_check_{id}('{id}')"
            ),
        ];
        statements.extend(
            std::iter::once(table)
                .chain(partitions)
                .map(|one| format!("alter table {one} enable always trigger {name}")),
        );
        statements
    }
}
