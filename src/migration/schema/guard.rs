//! The guard trigger: what happens to external writes, those of builds without the library, jobs and people with `psql`.
//!
//! # The hazard
//!
//! The fleet agrees on which sides are written. An external writer writes one side only. Without the trigger a row that
//! it writes during the copy is stale on the new side, and one that it writes after `retire` is never read.
//!
//! # What the trigger does
//!
//! The expand step installs it in the transaction that makes the new side. Pinned writes pass: the fence sets
//! `cutover.pin_<id>` for the transaction, a setting per migration, and the trigger's condition reads it before any
//! function is called. What a foreign key or another trigger writes within a pinned transaction does not pass, because no
//! `DualWrite` has written its other side. Every such write is recorded with its `application_name`, and then:
//!
//! | phase | which side has authority | an external write |
//! |---|---|---|
//! | `off` to `ramp` | old | its old side is mapped to the new one, whatever the new side holds |
//! | `switch` | new | its new side is mapped to the old one; an update of the old side alone is mapped to the new one |
//! | `retire`, `contract` | new | of the old side: is refused with SQLSTATE `ZC003`; of the new side: passes |
//!
//! An update of the new side alone is mapped to the old one until `switch`. Whether an update changed a side is compared. If
//! a side without authority has several columns and an update changes some of them, the others are first computed from the
//! other side, because they may be behind.
//! For an insert Postgres does not tell which columns it named. A value that is not what the column's default gives was
//! named, and is not lost: if only the side without authority was named, its value is mapped. In all other cases authority
//! decides. A default that calls a function which is not built in, or which gives another value each time, tells nothing.
//!
//! An update counts as one of a side if the side's value changes. From `retire` on the old side is outdated. So an external
//! update that sets it to the very value that it holds passes, and means nothing to readers of the new side. A writer that
//! writes whole rows back does this all the time, and it must not fail.
//!
//! What a foreign key does to the old side is never refused.
//!
//! Where only a part of a table moves, a write counts if its row is one of the part before or after it. Where columns move
//! to a table of their own, an update counts if it changes one of them, and a delete or another key is never refused: the row
//! itself is not part of the old side. The row of that table follows, in every phase. A transaction whose snapshot is older than
//! that row cannot see it. Such a delete is recorded for repair, and from `retire` on, where the row would stay behind with values
//! that only it has, another key is refused.
//!
//! A mapping that fails does not fail the external write. The row's key is recorded for repair instead. The same happens while a
//! column has another name. A write whose key cannot be recorded counts as one that was not mirrored.
//!
//! An update of the key can move a row behind the place that a copy has reached. So such an update is mapped like one of the
//! side with authority, even if it changes neither side, and within a pinned transaction, too. A mapping in Rust cannot run
//! here; the row's key is recorded for repair then.
//!
//! If the mapping is written in Rust, the trigger cannot evaluate it. Then `backfill → verify` waits until no external
//! write was seen for a while, a scan counts only if none was seen since, and in `ramp` and `switch` such writes are refused:
//! of either side, if the mapping to the other side is in Rust, and each insert, because a mapping may make something of a
//! null. What a foreign key writes is recorded for repair. A delete of a row of a table needs no mapping, and is mirrored.
//!
//! # Mirrored writes
//!
//! A plan with `mirror_writes` lets the service write one side only. The fence then leaves the phase of the pin in
//! `cutover.pin_<id>`, and the trigger maps the write as in the table above, with these differences:
//!
//! - The phase is the pin's, not the ledger's. `runtime/columns.rs` explains why no value is lost.
//! - The write is not recorded as an external one.
//! - A mapping that fails fails the write.
//!
//! Whether a write is mirrored is a property of its transaction. So builds with and without `mirror_writes` run side by
//! side, and copies and repairs, which write one side on purpose, are not mirrored. The fence refuses a transaction that
//! relies on the trigger if the trigger is missing or disabled.
//!
//! # Copies and scans
//!
//! An external writer holds no pin. So a copy, a scan and the moves after which writes are refused wait for the external
//! transactions that are open; `cutover.record_external_write` takes a lock for this.
//!
//! # Safety
//!
//! The function runs with the rights of the role that installed it, because an external writer may have none on the new
//! side. So its `search_path` is fixed and contains no schema that others may create objects in, and the user's
//! expressions are written out with the functions, operators and types that they meant at that time. Its other settings
//! are those of the batches. No other role may execute it: a role that could would attach it to a table of its own and write
//! the new side with its owner's rights.
//!
//! The trigger fires after all others, by its name, so it sees what they made of the row. It is enabled with `ENABLE
//! ALWAYS`, so it also fires with `session_replication_role = replica`. Each partition has its own trigger for `TRUNCATE`.
//! While a trigger is disabled, the moves that external writers could spoil wait for it. `ledger/guard_looks.rs` says how
//! rows that came past it are noticed.

use super::guard_conditions::{
    Comparisons, RENAMED, UNSEEN, follow_key, listed, looks_at_part, notice_if_renamed, pass_if_renamed,
    same, written,
};
use super::guard_refusals::{NOT_MIRRORED, RAISE, REFUSE, REFUSE_UNMAPPED, refused};
use crate::migration::batch::{MappingCode, Part, Sides};
use crate::migration::catalog::quote;

/// The guard trigger of one migration on the table of its old side. Names are quoted.
#[derive(Debug, Clone)]
pub(crate) struct GuardTrigger {
    pub(super) table: String,
    pub(super) watched: Watched,
    pub(super) key: Vec<String>,
    pub(super) forward: MappingCode,
    pub(super) backward: MappingCode,
}

#[derive(Debug, Clone)]
pub(super) enum Watched {
    /// Columns of both sides in the table.
    Columns { old: Vec<String>, new: Vec<String> },
    /// The rows of a table, or a part of it that has these columns of the old table. `columns`: those of the target besides
    /// the key.
    Rows { target: String, columns: Vec<String>, part: Option<(Part, Vec<String>)> },
}

/// Both mappings as a `select` over a row that is called `cutover_row`, without its `from`; `None` in Rust. And the tables,
/// as the function names them.
pub(super) struct Selects {
    pub(super) forward: Option<String>,
    pub(super) backward: Option<String>,
    /// The condition of the part that moves.
    pub(super) condition: Option<String>,
    /// The table that has the trigger.
    pub(super) source: String,
    /// The table that the trigger writes.
    pub(super) target: String,
    /// The table that has the trigger is partitioned.
    pub(super) is_partitioned: bool,
    /// The partitions that hold rows.
    pub(super) partitions: Vec<String>,
    pub(super) target_partitions: Vec<String>,
    /// Whether this role may install a trigger on the table that gets the check at commit.
    pub(super) may_check: bool,
}

impl GuardTrigger {
    /// For columns of a table that move to other columns of it. `key`: columns as the catalog names them.
    pub(crate) fn on_columns_of(sides: &Sides, key: &[String]) -> Self {
        let (old, new) = (sides.backward.columns.clone(), sides.forward.columns.clone());
        Self::over(Watched::Columns { old, new }, sides, key)
    }

    /// For all rows of a table, which move to another one.
    pub(crate) fn on_table(sides: &Sides, key: &[String]) -> Self {
        let part = sides.part.clone().map(|part| (part, sides.backward.columns.clone()));
        let columns = sides.forward.columns.clone();
        let watched = Watched::Rows { target: sides.new.clone(), columns, part };
        Self::over(watched, sides, key)
    }

    fn over(watched: Watched, sides: &Sides, key: &[String]) -> Self {
        let key = key.iter().map(|column| quote(column)).collect();
        let (forward, backward) = (sides.forward.code.clone(), sides.backward.code.clone());
        Self { table: sides.old.clone(), watched, key, forward, backward }
    }

    pub(super) fn written(&self) -> Selects {
        let (backward, condition, target) = match &self.watched {
            Watched::Columns { .. } => (written(&self.backward), None, String::new()),
            Watched::Rows { target, part, .. } => {
                let condition = part.as_ref().map(|(part, _)| format!("select ({}\n) as v0", part.condition));
                (None, condition, target.clone())
            }
        };
        let (forward, source) = (written(&self.forward), self.table.clone());
        let (is_partitioned, partitions, target_partitions) = (false, Vec::new(), Vec::new());
        Selects {
            forward,
            backward,
            condition,
            source,
            target,
            is_partitioned,
            partitions,
            target_partitions,
            may_check: true,
        }
    }

    /// What the function executes. It gets the migration's id as its argument.
    pub(super) fn body(&self, selects: &Selects) -> String {
        // With a mapping in Rust, what passes in `ramp` and `switch` is mirrored or recorded for repair.
        let mut is_mirrored = if selects.forward.is_some() { "true" } else { "null" }.to_owned();
        let (before, after) = match &self.watched {
            Watched::Columns { old, new } => self.on_columns(old, new, selects),
            Watched::Rows { columns, part, .. } => {
                is_mirrored = format!("case when is_renamed then false else {is_mirrored} end");
                let looks = looks_at_part(&self.key, part.as_ref(), selects.condition.as_deref());
                let before = notice_if_renamed(&self.key, [&selects.source, &selects.target], &looks);
                (before, self.on_rows(columns, part.as_ref(), selects))
            }
        };
        format!(
            "#variable_conflict use_column\ndeclare phase text; writes_old boolean; maps_forward boolean; \
             named_old boolean; named_new boolean; is_named boolean; comparison text; written record; agrees boolean; \
             is_pinned boolean; named record; given record; moved boolean := true; moves boolean := true; \
             is_renamed boolean := false; moves_key boolean := false; \
             begin {before} phase := cutover.record_external_write(tg_argv[0]::integer, {is_mirrored}); {after} end "
        )
    }

    /// The parts of the function before and after it learns the phase.
    fn on_columns(&self, old: &[String], new: &[String], selects: &Selects) -> (String, String) {
        let Comparisons { same_old, same_new, agrees, names_old, names_new, has_old, has_new, same_key } =
            Comparisons::of(old, new, &self.key);
        let record_moved = self.record_as(
            "case phase when 'switch' then 'old' else 'new' end",
            "new",
            "'its key has changed, so a copy may have missed it'",
        );
        // A transaction of an earlier epoch may still be open when a copy begins.
        let unless_moved = |otherwise: &str| {
            format!(
                "if tg_op = 'UPDATE' and {same_old} and {same_new} then \
                     if phase in ('expand', 'backfill', 'switch') then {record_moved} end if; \
                 else {otherwise} end if;"
            )
        };
        let side = "case when maps_forward or phase <> 'switch' then 'new' else 'old' end";
        let not_mirrored = format!(
            "if is_pinned then {NOT_MIRRORED} end if; if phase in ('ramp', 'switch') then {} end if;",
            self.record_as(side, "new", "'its mapping is in Rust'")
        );
        // A mapping back in Rust needs one there in Rust.
        let unmapped = match (&selects.forward, &selects.backward) {
            (Some(_), _) => "false",
            (None, Some(_)) => "maps_forward",
            (None, None) => "true",
        };
        let map = |columns: &[String], select: &Option<String>| match select {
            Some(select) => {
                let values: Vec<String> = (0..columns.len()).map(|n| format!("v{n}")).collect();
                format!(
                    "select {} into {} from ({select} from (select new.*) as cutover_row) as mapped;",
                    values.join(", "),
                    listed("new", columns)
                )
            }
            None => unless_moved(&not_mirrored),
        };
        let (mut forward, mut backward) = (map(new, &selects.forward), map(old, &selects.backward));
        if selects.forward.is_some() {
            // An old value that only has another spelling stays as it is.
            backward = format!(
                "written := new; \
                 begin {forward} agrees := {agrees}; exception {RAISE} when others then agrees := false; end; \
                 new := written; \
                 if not agrees then {backward} end if;"
            );
        } else if selects.backward.is_some() {
            backward = unless_moved(&backward);
        }
        if selects.forward.is_some() && selects.backward.is_some() {
            // A write of some columns of the side that may be behind: its other columns are brought up to date first.
            let complete = |columns: &[String], phases: &str, update: &str, map: &str| {
                let [_, _, ..] = columns else { return map.to_owned() };
                let kept = columns.iter().map(|column| {
                    let same = same("old", "named", std::slice::from_ref(column));
                    format!("if {same} then named.{column} := new.{column}; end if;")
                });
                format!(
                    "if tg_op = 'UPDATE' and {phases} then named := new; new := old; {update} {} new := named; end if; {map}",
                    kept.collect::<Vec<_>>().join(" ")
                )
            };
            (forward, backward) = (
                complete(old, "phase = 'switch'", &backward, &forward),
                complete(new, "phase <> 'switch'", &forward, &backward),
            );
        }
        // An update that moves a row to another partition fires the triggers of an update, and then those of an insert.
        // The second time nothing is left to do.
        let moved = format!(
            "pg_catalog.md5(row({}, {}, {})::pg_catalog.text)",
            listed("new", &self.key),
            listed("new", old),
            listed("new", new)
        );
        let may_move = selects.is_partitioned;
        let pass_if_renamed =
            pass_if_renamed(&[old, new, &self.key].concat(), |side| self.record_as(side, "new", RENAMED));
        let before = format!(
            "{pass_if_renamed} if tg_op = 'INSERT' and {may_move} \
                 and pg_catalog.current_setting('cutover.moved_' || tg_argv[0], true) = {moved} then return new; end if; \
             <<mapping>> begin if tg_op = 'UPDATE' and {same_old} and {same_new} and {same_key} then exit mapping; end if; \
             phase := pg_catalog.current_setting('cutover.pin_' || tg_argv[0], true); \
             is_pinned := phase <> '' and pg_catalog.pg_trigger_depth() = 1; \
             if is_pinned and phase = 'on' then is_pinned := false; phase := cutover.phase_for_guard(tg_argv[0]::integer); \
             elsif is_pinned is not true then"
        );
        // The default of the old column is not null: then an insert that leaves it out looks like one that names it.
        let after = format!(
            "end if; \
             if phase in ('retire', 'contract') then \
                 if tg_op = 'UPDATE' then writes_old := not ({same_old}); \
                 else {names_old} writes_old := named_old or is_pinned is not true and {has_old} and not {has_new}; end if; \
                 if writes_old then \
                     if not cutover.is_foreign_key_action() then {REFUSE} end if; \
                 end if; \
             end if; \
             if phase in ('retire', 'contract') then exit mapping; end if; \
             if tg_op = 'UPDATE' then \
                 if phase = 'switch' then maps_forward := {same_new} and not ({same_old}); \
                 else maps_forward := {same_new} or not ({same_old}); end if; \
             elsif phase = 'switch' then \
                 {names_old} maps_forward := named_old; \
                 if named_old then {names_new} maps_forward := not named_new; end if; \
             else \
                 {names_new} maps_forward := not named_new; \
                 if named_new then {names_old} maps_forward := named_old; end if; \
             end if; \
             if phase in ('ramp', 'switch') and {unmapped} and is_pinned is not true \
                 and not (tg_op = 'UPDATE' and {same_old} and {same_new}) and not cutover.is_foreign_key_action() then \
                 {REFUSE_UNMAPPED} end if; \
             given := new; \
             begin if maps_forward then {forward} else {backward} end if; \
             exception {RAISE} when others then if is_pinned then raise; end if; new := given; {record} end; \
             end; \
             if tg_op = 'UPDATE' and {may_move} then \
                 perform pg_catalog.set_config('cutover.moved_' || tg_argv[0], {moved}, true); end if; \
             return new;",
            record = self.record(side, "new"),
        );
        (before, after)
    }

    fn on_rows(&self, columns: &[String], part: Option<&(Part, Vec<String>)>, selects: &Selects) -> String {
        let target = &selects.target;
        let of = |row: &str| listed(row, &self.key);
        let key = self.key.join(", ");
        let all = [self.key.as_slice(), columns].concat().join(", ");
        let sets: Vec<String> =
            columns.iter().map(|column| format!("{column} = excluded.{column}")).collect();
        let values: Vec<String> = (0..columns.len()).map(|n| format!("v{n}")).collect();
        let (old_key, gone_key) = (of("old"), of("gone"));
        let of_row = of("cutover_row");
        let record_unseen = |row: &str| self.record_as("'new'", row, UNSEEN);
        // What a foreign key does is never refused, so from `ramp` on the row is repaired.
        let copy_row = match &selects.forward {
            Some(select) => format!(
                "insert into {target} ({all}) overriding system value \
                 select {of_row}, {values} from (select new.*) as cutover_row \
                     cross join lateral ({select}) as mapped \
                 on conflict ({key}) do update set {sets};",
                values = values.join(", "),
                sets = sets.join(", "),
            ),
            None => {
                let record = self.record_as("'new'", "new", "'its mapping is in Rust'");
                format!("if phase in ('ramp', 'switch') then {record} end if;")
            }
        };
        // A delete needs no mapping.
        let copy = format!(
            "if is_renamed then \
                 begin if tg_op in ('UPDATE', 'DELETE') then {record_renamed_old} end if; \
                     if tg_op in ('INSERT', 'UPDATE') then {record_renamed_new} end if; \
                 exception when undefined_column or datatype_mismatch then null; end; \
                 return null; end if; \
             if tg_op = 'TRUNCATE' then \
                     delete from {target} as gone where not exists (select from {table} as there where ({there_key}) = ({gone_key})); \
                     return null; end if; \
                 begin \
                     if tg_op = 'DELETE' or (tg_op = 'UPDATE' and (not moves or not {same_key})) then \
                         delete from {target} as gone where ({gone_key}) = ({old_key}); \
                         if not found and (moved or phase = 'retire') and phase <> 'contract' \
                             and pg_catalog.current_setting('transaction_isolation') <> 'read committed' then \
                             {record_unseen} end if; \
                     end if; \
                     if tg_op <> 'DELETE' and moves then \
                         {copy_row} end if; \
                 exception {RAISE} when others then \
                     if tg_op <> 'INSERT' then {record_old} end if; \
                     if tg_op <> 'DELETE' then {record_new} end if; \
                 end;",
            same_key = same("old", "new", &self.key),
            table = selects.source,
            there_key = of("there"),
            record_unseen = record_unseen("old"),
            record_renamed_old = self.record_as("'new'", "old", RENAMED),
            record_renamed_new = self.record_as("'new'", "new", RENAMED),
            record_old = self.record("'new'", "old"),
            record_new = self.record("'new'", "new"),
        );
        let (kept, follow_key) = match part {
            Some((Part { keeps_rows: true, .. }, _)) => (
                " and tg_op not in ('DELETE', 'TRUNCATE') and not moves_key",
                follow_key(
                    target,
                    &self.key,
                    refused(&self.forward),
                    &[record_unseen("old"), record_unseen("new")].concat(),
                ),
            ),
            _ => ("", String::new()),
        };
        format!(
            "if tg_when = 'BEFORE' then \
                 if phase in ({refused}){kept} and not cutover.is_foreign_key_action() then {REFUSE} end if; \
                 if tg_op = 'DELETE' then return old; end if; \
                 return new; \
             end if; \
             if phase in ({refused}){kept} then \
                 if tg_nargs = 1 then {REFUSE} end if; \
                 if phase in ('retire', 'contract') then return null; end if; \
             end if; \
             {follow_key} {copy} return null;",
            refused = refused(&self.forward)
        )
    }

    /// Records the key of a row whose `side` is behind, with the error.
    fn record(&self, side: &str, row: &str) -> String {
        self.record_as(side, row, "sqlerrm")
    }

    pub(super) fn record_as(&self, side: &str, row: &str, reason: &str) -> String {
        let values: Vec<String> = self.key.iter().map(|column| format!("{row}.{column}")).collect();
        let key = match &*values {
            [only] => format!("pg_catalog.to_jsonb({only})"),
            several => format!("pg_catalog.jsonb_build_array({})", several.join(", ")),
        };
        format!("perform cutover.record_external_repair(tg_argv[0]::integer, {side}, {key}, {reason});")
    }
}
