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
//! seen for a while, a scan counts only while none was seen since, and from `ramp` on such writes are refused.
//!
//! A stranger holds no pin. So a copy, a scan and the moves after which writes are refused wait for the strangers'
//! transactions that are open (`cutover.record_external_write` takes a lock): what one of them has begun under one rule does not end
//! under another.
//!
//! The trigger runs with the rights and the `search_path` of whoever armed it, because a stranger may have neither; and
//! after all others, by its name, so that it sees what they have made of the row. A trigger does not fire for the replaying side of logical replication, nor with `session_replication_role = replica`.

use sqlx::PgConnection;

use crate::ledger::unprepared;
use crate::migration::batch::{MappingCode, Sides};
use crate::migration::catalog::{quote, unquote};
use crate::migration::runtime::Migration;

/// A trap for one table. Names are quoted.
#[derive(Debug, Clone)]
pub(crate) struct GuardTrigger {
    table: String,
    /// The new side, which the triggers are named after: a table can have several.
    new: String,
    /// What the trigger does. It gets the migration's number as its argument.
    body: String,
    is_row_made: bool,
}

/// Whether writes by strangers are copied on the spot, and from when on they are refused.
fn rules(forward: &MappingCode) -> (bool, &'static str) {
    match forward {
        MappingCode::Sql(_) => (true, "array['retire', 'contract']"),
        MappingCode::Rust(_) => (false, "array['ramp', 'switch', 'retire', 'contract']"),
    }
}

const REFUSE: &str = "raise exception using errcode = 'ZC003', \
     message = format('%s is no longer written by itself: migration %s is in `%s`', tg_table_name, tg_argv[0], phase), \
     detail = format('The write is %s''s, by role %s.', \
         coalesce(nullif(current_setting('application_name'), ''), 'somebody'), session_user), \
     hint = 'Write the new side, or through the service.';";

/// What every body begins with. The user's expressions come into it as they are.
fn body(mends: bool, before: &str, after: &str) -> String {
    format!(
        "\n#variable_conflict use_column\ndeclare phase text; is_old boolean; begin {before} \
         phase := cutover.record_external_write(tg_argv[0]::integer, {mends}); {after} end "
    )
}

impl GuardTrigger {
    /// For a column of `table` that moves into another one.
    pub(crate) fn on_column(table: &str, old: &str, new: &str, sides: &Sides) -> Self {
        // By their images: not every type has an `=`.
        let same = |column: &str| format!("row(old.{column})::record *= row(new.{column})::record");
        let (same_old, same_new) = (same(old), same(new));
        let mend = |column: &str, code: &MappingCode| match code {
            MappingCode::Sql(expressions) => {
                format!("select {} into new.{column} from (select new.*) as row;", expressions.join(", "))
            }
            MappingCode::Rust(_) => "null;".to_owned(),
        };
        let (forward, backward) = (mend(new, &sides.forward.code), mend(old, &sides.backward.code));
        let (mends, refused) = rules(&sides.forward.code);
        // Of an inserted row the old column may be a default: who names the new one has meant that.
        let before = format!(
            "if tg_op = 'UPDATE' and {same_old} and {same_new} then return new; end if; \
             is_old := case tg_op when 'INSERT' then new.{new} is null else not ({same_old}) end;"
        );
        let after = format!(
            "if is_old and (tg_op = 'UPDATE' or new.{old} is not null) and phase = any ({refused}) then {REFUSE} end if; \
             if phase in ('retire', 'contract') then return new; end if; \
             if is_old then {forward} else {backward} end if; \
             return new;"
        );
        let body = body(mends, &before, &after);
        Self { table: table.to_owned(), new: new.to_owned(), body, is_row_made: false }
    }

    /// For a table whose rows move into another one. `key` is the key's columns.
    pub(crate) fn on_table(sides: &Sides, key: &[String]) -> Self {
        let Sides { old: table, new: target, forward, .. } = sides;
        let key: Vec<String> = key.iter().map(|column| quote(column)).collect();
        let of =
            |row: &str| key.iter().map(|column| format!("{row}.{column}")).collect::<Vec<_>>().join(", ");
        let columns = [key.as_slice(), forward.columns.as_slice()].concat().join(", ");
        let sets: Vec<String> =
            forward.columns.iter().map(|column| format!("{column} = excluded.{column}")).collect();
        let mend = match &forward.code {
            MappingCode::Sql(expressions) => format!(
                "if tg_op = 'TRUNCATE' then delete from {target}; return null; end if; \
                 if tg_op = 'DELETE' or (tg_op = 'UPDATE' and ({old_key}) is distinct from ({new_key})) then \
                     delete from {target} as gone where ({gone_key}) = ({old_key}); end if; \
                 if tg_op <> 'DELETE' then \
                     insert into {target} ({columns}) overriding system value \
                     select {key}, {values} from (select new.*) as row \
                     on conflict ({key}) do update set {sets}; end if;",
                old_key = of("old"),
                new_key = of("new"),
                gone_key = of("gone"),
                key = key.join(", "),
                values = expressions.join(", "),
                sets = sets.join(", "),
            ),
            MappingCode::Rust(_) => String::new(),
        };
        let (mends, refused) = rules(&forward.code);
        let after = format!("if phase = any ({refused}) then {REFUSE} end if; {mend} return null;");
        let body = body(mends, "", &after);
        Self { table: table.clone(), new: target.clone(), body, is_row_made: true }
    }

    /// Arms it, in the place of an earlier one.
    pub(crate) fn arm(&self, migration: &Migration) -> String {
        self.armed_as(&migration.id().to_string())
    }

    /// The same with a number that is not known yet.
    pub(crate) fn armed_as(&self, id: &str) -> String {
        let Self { table, new, body, is_row_made } = self;
        let trigger = |name: &str, when: &str, each: &str| {
            format!(
                "; drop trigger if exists {name} on {table}; \
                 create trigger {name} {when} on {table} for each {each} \
                 when (current_setting('cutover.pin', true) is distinct from '{id}') \
                 execute function cutover.guard_{id}('{id}')"
            )
        };
        let [on_rows, on_all] = triggers(new);
        let former = former(new);
        let triggers = match is_row_made {
            true => {
                trigger(&on_rows, "after insert or update or delete", "row")
                    + &trigger(&on_all, "after truncate", "statement")
            }
            false => trigger(&on_rows, "before insert or update", "row"),
        };
        // Temporary tables come last, or a stranger's would be taken for the new side. And whoever may execute the function
        // could set it on a table of his own, and write the new side with its owner's rights.
        format!(
            "select set_config('search_path', \
                 concat_ws(', ', nullif(current_setting('search_path'), ''), 'pg_temp'), true); \
             create or replace function cutover.guard_{id}() returns trigger \
             language plpgsql security definer set search_path from current as $trap${body}$trap$; \
             revoke all on function cutover.guard_{id}() from public; \
             drop trigger if exists {former} on {table}{triggers}"
        )
    }

    /// Whether this very trap is armed, with `migration`'s number where one is given. A build whose mapping is another
    /// one has another trap.
    pub(crate) async fn is_armed(
        &self,
        connection: &mut PgConnection,
        migration: Option<&Migration>,
    ) -> Result<bool, sqlx::Error> {
        let [on_rows, _] = triggers(&self.new);
        unprepared::query_scalar(
            "select exists (select from pg_trigger t join pg_proc p on p.oid = t.tgfoid \
                 where t.tgrelid = to_regclass($1) and t.tgname = $2 and p.prosrc = $3 \
                   and ($4::text is null or p.proname = 'guard_' || $4))",
        )
        .bind(&self.table)
        .bind(unquote(&on_rows))
        .bind(&self.body)
        .bind(migration.map(|migration| migration.id().to_string()))
        .fetch_one(connection)
        .await
    }
}

/// Takes the trap away from a table that may be about to go.
pub(crate) fn disarm(table: &str, new: &str, migration: &Migration) -> String {
    disarmed_as(table, new, &migration.id().to_string())
}

/// The same with a number that is not known yet.
pub(crate) fn disarmed_as(table: &str, new: &str, id: &str) -> String {
    let ([on_rows, on_all], former) = (triggers(new), former(new));
    format!(
        "drop trigger if exists {on_rows} on {table}; drop trigger if exists {on_all} on {table}; \
         drop trigger if exists {former} on {table}; drop function if exists cutover.guard_{id}()"
    )
}

/// The names of the triggers for a new side. Those of one kind fire in the order of their names.
fn triggers(new: &str) -> [String; 2] {
    ["zzz_cutover_", "zzz_cutover_all_"].map(|kind| named(kind, new))
}

/// What the trigger on rows was called when the ledger had version 1. Its function is the same, with another call.
fn former(new: &str) -> String {
    named("cutover_", new)
}

fn named(kind: &str, new: &str) -> String {
    let name: String = format!("{kind}{}", unquote(new).replace("\".\"", "_")).chars().take(63).collect();
    quote(&name)
}
