//! Writes by strangers: builds without the library, jobs of the night, people with `psql`.
//!
//! # The hazard
//!
//! The fleet agrees on what is written; whoever is not of it writes the old side alone. Its row is on neither page of
//! the protocol: written while the copy is made it is stale on the new side, written after `retire` nobody reads it.
//!
//! # What is done about it
//!
//! The expand step arms a trigger, in the statement that makes the new side. It lets pinned writes pass (the fence leaves
//! the migration's number in a setting of the transaction, `cutover.pin`, which ends with it), and for all others:
//!
//! | phase | a write of the old side |
//! |---|---|
//! | until `switch` | is written down with its `application_name`, and copied to the new side on the spot |
//! | `retire`, `contract` | is refused with SQLSTATE `ZC003` |
//!
//! Where the mapping is not SQL nothing can be copied on the spot. Then `backfill → verify` waits until no stranger was
//! seen for a while, the scan finds what there was, and from `ramp` on such writes are refused.
//!
//! A trigger does not fire for the replaying side of logical replication, nor with `session_replication_role = replica`.

use crate::migration::control::Migration;

use super::mapping::How;
use super::sql::{Sides, quote, unquote};

/// A trap for one table. Names are quoted.
#[derive(Debug, Clone)]
pub(super) struct Trap {
    table: String,
    trigger: String,
    /// What the trigger does, once it knows the phase.
    body: String,
    is_row_made: bool,
    /// Whether the stranger's write is copied on the spot.
    mends: bool,
}

impl Trap {
    /// For a column of `table` that moves into another one.
    pub(super) fn on_column(table: &str, old: &str, new: &str, sides: &Sides) -> Self {
        let same = |column: &str| format!("old.{column} is not distinct from new.{column}");
        let (same_old, same_new) = (same(old), same(new));
        let mend = |column: &str, how: &How| match how {
            How::Sql(expressions) => {
                format!("select {} into new.{column} from (select new.*) as row;", expressions.join(", "))
            }
            How::Rust(_) => "null;".to_owned(),
        };
        let (forward, backward) = (mend(new, &sides.forward.how), mend(old, &sides.backward.how));
        let body = format!(
            "if tg_op = 'UPDATE' and {same_old} and {same_new} then return new; end if; \
             is_old := case tg_op when 'INSERT' then new.{old} is not null or new.{new} is null else not ({same_old}) end; \
             phase := cutover.stranger(:id, :mends); \
             if is_old and (tg_op = 'UPDATE' or new.{old} is not null) and phase = any (:refused) then :refuse end if; \
             if phase in ('retire', 'contract') then return new; end if; \
             if is_old then {forward} else {backward} end if; \
             return new;"
        );
        let mends = matches!(sides.forward.how, How::Sql(_));
        Self { table: table.to_owned(), trigger: trigger(new), body, is_row_made: false, mends }
    }

    /// For a table whose rows move into another one. `key` is the key's columns.
    pub(super) fn on_table(sides: &Sides, key: &[String]) -> Self {
        let Sides { old: table, new: target, forward, .. } = sides;
        let key: Vec<String> = key.iter().map(|column| quote(column)).collect();
        let of =
            |row: &str| key.iter().map(|column| format!("{row}.{column}")).collect::<Vec<_>>().join(", ");
        let columns = [key.as_slice(), forward.columns.as_slice()].concat().join(", ");
        let sets: Vec<String> =
            forward.columns.iter().map(|column| format!("{column} = excluded.{column}")).collect();
        let mend = match &forward.how {
            How::Sql(expressions) => format!(
                "if tg_op = 'DELETE' or (tg_op = 'UPDATE' and ({old_key}) is distinct from ({new_key})) then \
                     delete from {target} as gone where ({gone_key}) = ({old_key}); end if; \
                 if tg_op <> 'DELETE' then \
                     insert into {target} ({columns}) select {key}, {values} from (select new.*) as row \
                     on conflict ({key}) do update set {sets}; end if;",
                old_key = of("old"),
                new_key = of("new"),
                gone_key = of("gone"),
                key = key.join(", "),
                values = expressions.join(", "),
                sets = sets.join(", "),
            ),
            How::Rust(_) => String::new(),
        };
        let body = format!(
            "phase := cutover.stranger(:id, :mends); if phase = any (:refused) then :refuse end if; {mend} return null;"
        );
        let mends = matches!(forward.how, How::Sql(_));
        Self { table: table.clone(), trigger: trigger(target), body, is_row_made: true, mends }
    }

    /// Arms it, in the place of an earlier one.
    pub(super) fn arm(&self, migration: &Migration) -> String {
        self.armed_as(&migration.id().to_string())
    }

    /// The same with a number that is not known yet.
    pub(super) fn armed_as(&self, id: &str) -> String {
        let Self { table, trigger, .. } = self;
        let refused = match self.mends {
            true => "array['retire', 'contract']",
            false => "array['ramp', 'switch', 'retire', 'contract']",
        };
        let refuse = "raise exception using errcode = 'ZC003', \
                 message = format('%s is no longer written by itself: migration %s is in `%s`', tg_table_name, :id, phase), \
                 detail = format('The write is %s''s, by role %s.', \
                     coalesce(nullif(current_setting('application_name'), ''), 'somebody'), session_user), \
                 hint = 'Write the new side, or through the service.';";
        let body = self
            .body
            .replace(":refused", refused)
            .replace(":refuse", refuse)
            .replace(":mends", if self.mends { "true" } else { "false" })
            .replace(":id", id);
        let when =
            if self.is_row_made { "after insert or update or delete" } else { "before insert or update" };
        format!(
            "create or replace function cutover.trap_{id}() returns trigger language plpgsql as $trap$ \n\
             #variable_conflict use_column\n\
             declare phase text; is_old boolean; begin {body} end $trap$; \
             drop trigger if exists {trigger} on {table}; \
             create trigger {trigger} {when} on {table} for each row \
             when (current_setting('cutover.pin', true) is distinct from '{id}') execute function cutover.trap_{id}()"
        )
    }
}

/// The name of the trigger for a new side, as the catalog has it.
pub(super) fn name(new: &str) -> String {
    unquote(&trigger(new))
}

/// Takes the trap away from a table that may be about to go.
pub(super) fn disarm(table: &str, new: &str, migration: &Migration) -> String {
    disarmed_as(table, new, &migration.id().to_string())
}

/// The same with a number that is not known yet.
pub(super) fn disarmed_as(table: &str, new: &str, id: &str) -> String {
    let trigger = trigger(new);
    format!("drop trigger if exists {trigger} on {table}; drop function if exists cutover.trap_{id}()")
}

/// One for each new side, since a table can have several.
fn trigger(new: &str) -> String {
    let name: String = format!("cutover_{}", unquote(new).replace("\".\"", "_")).chars().take(63).collect();
    quote(&name)
}
