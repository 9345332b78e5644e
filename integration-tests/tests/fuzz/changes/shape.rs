//! A random table, and the change of its schema.

use cutover::ConfigError;
use cutover::migration::SchemaChange;
use fastrand::Rng;
use sqlx::PgPool;

use crate::pairs::INTEGER_TO_BIGINT;
use crate::shape::settings_of;
use crate::world::QUIET;

/// What a foreign key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Refuse,
    Cascade,
    SetNull,
}

/// A foreign key of column `d`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reference {
    /// What follows the referenced column.
    rest: &'static str,
    pub(crate) on_delete: Action,
    pub(crate) on_update: Action,
    /// The constraint holds at the end of the transaction only.
    pub(crate) is_deferred: bool,
}

const fn reference(rest: &'static str, on_delete: Action, on_update: Action) -> Reference {
    Reference { rest, on_delete, on_update, is_deferred: false }
}

const REFERENCES: [Reference; 6] = [
    reference("", Action::Refuse, Action::Refuse),
    reference("on delete cascade", Action::Cascade, Action::Refuse),
    reference("on delete set null on update cascade", Action::SetNull, Action::Cascade),
    reference("match full on update set null", Action::Refuse, Action::SetNull),
    reference("on delete cascade on update cascade", Action::Cascade, Action::Cascade),
    Reference {
        is_deferred: true,
        ..reference("deferrable initially deferred", Action::Refuse, Action::Refuse)
    },
];

/// A check of column `c`: its expression, and the values that it refuses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check {
    expression: &'static str,
    pub(crate) refuses: fn(i64) -> bool,
}

const CHECKS: [Check; 6] = [
    Check { expression: "@ >= 0", refuses: |c| c < 0 },
    // It fails for some values.
    Check { expression: "100 / @ > 1", refuses: |c| c == 0 || 100 / c <= 1 },
    Check { expression: "is_good(@)", refuses: |c| c % 7 == 0 },
    Check { expression: "@ between 1 and 90 -- as agreed", refuses: |c| !(1..=90).contains(&c) },
    Check {
        expression: "case when @ is null then true else @ <> 7 and @ > -2 end",
        refuses: |c| c == 7 || c < -1,
    },
    Check { expression: "@::text ~ '^[0-9]+$' and note is not null", refuses: |c| c < 0 },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    Nothing,
    Column,
    Table,
    Index,
}

/// What makes the change impossible, so that it must be refused before `expand`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    Violated,
    NameTaken,
    RowSecurity,
    NoKey,
    NoColumn,
    Subquery,
    InPrimaryKey,
    NeededColumn,
    OfConstraint,
    PartitionKey,
}

const FLAWS: [Flaw; 10] = [
    Flaw::Violated,
    Flaw::NameTaken,
    Flaw::RowSecurity,
    Flaw::NoKey,
    Flaw::NoColumn,
    Flaw::Subquery,
    Flaw::InPrimaryKey,
    Flaw::NeededColumn,
    Flaw::OfConstraint,
    Flaw::PartitionKey,
];

/// The names of the columns, some of which mean something elsewhere.
const NAMES: [[&str; 5]; 4] = [
    ["a", "b", "c", "d", "legacy"],
    ["phase", "comparison", "is_default", "is_forbidden", "tg_op"],
    ["A", "Bb", "new", "old", "Legacy"],
    ["user", "cutover_row", "key", "what", "select"],
];

/// A table and the change. Everything follows from the seed.
#[derive(Debug, Clone)]
pub(crate) struct ChangeShape {
    pub(crate) table: &'static str,
    pub(crate) names: [&'static str; 5],
    pub(crate) is_partitioned: bool,
    /// The type of the column that becomes unique.
    pub(crate) unique_type: &'static str,
    pub(crate) not_null: bool,
    pub(crate) unique: bool,
    pub(crate) check: Option<Check>,
    pub(crate) reference: Option<Reference>,
    /// The foreign key refers to the table itself.
    pub(crate) is_self: bool,
    pub(crate) removal: Removal,
    pub(crate) has_default: bool,
    pub(crate) has_trigger: bool,
    pub(crate) own_role: bool,
    pub(crate) settings: Vec<&'static str>,
    pub(crate) has_faults: bool,
    pub(crate) has_guests: bool,
    pub(crate) change_flaw: Option<Flaw>,
}

/// A name in SQL.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

impl ChangeShape {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let change_flaw = rng.u8(..).is_multiple_of(3).then(|| FLAWS[rng.usize(..FLAWS.len())]);
        let removal = match (rng.u8(..8), change_flaw) {
            (_, Some(Flaw::InPrimaryKey | Flaw::NeededColumn | Flaw::PartitionKey)) => Removal::Column,
            (_, Some(Flaw::OfConstraint)) => Removal::Index,
            (0..=2, _) => Removal::Column,
            (3, None | Some(Flaw::RowSecurity)) => Removal::Table,
            (4, _) => Removal::Index,
            _ => Removal::Nothing,
        };
        let is_table = removal == Removal::Table;
        let mut adds = |is_needed: bool| !is_table && (rng.bool() || is_needed);
        let not_null = adds(removal == Removal::Nothing || change_flaw == Some(Flaw::Violated));
        let (unique, check) =
            (adds(false), adds(matches!(change_flaw, Some(Flaw::NameTaken | Flaw::Subquery))));
        let has_reference = adds(change_flaw == Some(Flaw::NoKey));
        let mut reference = REFERENCES[rng.usize(..REFERENCES.len())];
        let is_self = rng.u8(..).is_multiple_of(3) && change_flaw != Some(Flaw::NoKey);
        if is_self && reference.on_update != Action::Refuse {
            reference = REFERENCES[rng.usize(..2)];
        }
        let is_partitioned = change_flaw == Some(Flaw::PartitionKey)
            || rng.u8(..).is_multiple_of(3)
                && !matches!(change_flaw, Some(Flaw::InPrimaryKey | Flaw::OfConstraint));
        Self {
            table: ["subject", "subject", "Subject"][rng.usize(..3)],
            names: NAMES[rng.usize(..NAMES.len())],
            is_partitioned,
            unique_type: ["integer", "numeric", "text collate ci"][rng.usize(..3)],
            not_null,
            unique: unique && !is_partitioned,
            check: check.then(|| CHECKS[rng.usize(..CHECKS.len())]),
            reference: has_reference.then_some(reference),
            is_self,
            removal,
            has_default: rng.bool(),
            has_trigger: rng.u8(..).is_multiple_of(3),
            own_role: rng.bool() || change_flaw == Some(Flaw::RowSecurity),
            settings: settings_of(&INTEGER_TO_BIGINT, rng),
            has_faults: rng.u8(..).is_multiple_of(4) && change_flaw.is_none(),
            has_guests: rng.u8(..).is_multiple_of(4) && change_flaw.is_none(),
            change_flaw,
        }
    }

    pub(crate) fn table(&self) -> String {
        quoted(self.table)
    }

    /// The quoted name of a column: 0 to 4 are those of [`NAMES`].
    pub(crate) fn column(&self, number: usize) -> String {
        quoted(self.names[number])
    }

    fn expression(&self, check: Check) -> String {
        match self.change_flaw {
            Some(Flaw::Subquery) => "(select true)".to_owned(),
            _ => check.expression.replace('@', &self.column(2)),
        }
    }

    /// The table and the column to which `d` refers.
    fn referenced(&self, quotes: bool) -> String {
        match self.is_self {
            true if quotes => format!("{} (id)", self.table()),
            true => format!("{} (id)", self.table),
            false if self.change_flaw == Some(Flaw::NoKey) => "owners (other)".to_owned(),
            false => "owners (id)".to_owned(),
        }
    }

    fn removed_column(&self) -> &'static str {
        match self.change_flaw {
            Some(Flaw::InPrimaryKey | Flaw::PartitionKey) => "id",
            _ => self.names[4],
        }
    }

    pub(crate) fn plan(&self, pool: PgPool) -> Result<SchemaChange, ConfigError> {
        let mut builder = SchemaChange::new(pool, self.table).quiet_period(QUIET).without_read_check();
        if self.not_null {
            builder = builder.not_null(self.names[0]);
        }
        if self.change_flaw == Some(Flaw::NoColumn) {
            builder = builder.not_null("no_such_column");
        }
        if self.unique {
            builder = builder.unique("Odd_b", &[self.names[1]]);
        }
        if let Some(check) = self.check {
            builder = builder.check("Odd_c", &self.expression(check));
        }
        if let Some(reference) = self.reference {
            let references = format!("{} {}", self.referenced(false), reference.rest);
            builder = builder.foreign_key("Odd_d", &[self.names[3]], &references);
        }
        match self.removal {
            Removal::Nothing => builder,
            Removal::Column => builder.drop_column(self.removed_column()),
            Removal::Table => builder.drop_table(),
            Removal::Index if self.change_flaw == Some(Flaw::OfConstraint) => {
                builder.drop_index("notes_once")
            }
            Removal::Index => builder.drop_index("By_note"),
        }
        .build()
    }

    /// The statements that a person would run while the service is down.
    pub(crate) fn directly(&self) -> String {
        let table = self.table();
        let mut text = String::new();
        let mut alter = |what: String| text += &format!("alter table {table} {what}; ");
        if self.not_null {
            alter(format!("alter {} set not null", self.column(0)));
        }
        if self.unique {
            alter(format!("add constraint \"Odd_b\" unique ({})", self.column(1)));
        }
        if let Some(check) = self.check {
            alter(format!("add constraint \"Odd_c\" check ({}\n)", self.expression(check)));
        }
        if let Some(reference) = self.reference {
            let (column, references) = (self.column(3), self.referenced(true));
            alter(format!(
                "add constraint \"Odd_d\" foreign key ({column}) references {references} {}",
                reference.rest
            ));
        }
        match self.removal {
            Removal::Nothing => {}
            Removal::Column => alter(format!("drop column {}", self.column(4))),
            Removal::Table => text += &format!("drop table {table}; "),
            Removal::Index => text += "drop index \"By_note\"; ",
        }
        text
    }

    /// Statements that make the tables, without rows.
    pub(crate) fn create(&self) -> String {
        let [a, b, c, d, legacy] = [0, 1, 2, 3, 4].map(|number| self.column(number));
        let table = self.table();
        let more = match (self.change_flaw, self.has_default) {
            (Some(Flaw::NeededColumn), _) => " not null",
            (_, true) => " not null default 'usual'",
            (_, false) => "",
        };
        let mut text = format!(
            "create table owners (id bigint primary key, other bigint); create table parents (id bigint); \
             create function is_good(integer) returns boolean language sql immutable as 'select $1 % 7 <> 0'; \
             create table {table} (id bigint primary key, note text, {a} text, {b} {}, {c} integer, {d} bigint, {legacy} text{more}){}; \
             create index \"By_note\" on {table} (note); ",
            self.unique_type,
            if self.is_partitioned { " partition by hash (id)" } else { "" },
        );
        if self.is_partitioned {
            for remainder in 0..2 {
                text += &format!(
                    "create table part_{remainder} partition of {table} for values with (modulus 2, remainder {remainder}); "
                );
            }
        }
        if self.has_trigger {
            text += &format!(
                "create function touch() returns trigger language plpgsql as $$ begin \
                     new.note := new.note || ''; return new; end $$; \
                 create trigger touch before insert or update on {table} for each row execute function touch(); "
            );
        }
        text + &match self.change_flaw {
            Some(Flaw::NameTaken) => {
                format!("alter table {table} add constraint \"Odd_c\" check (id is not null); ")
            }
            Some(Flaw::RowSecurity) => format!(
                "alter table {table} enable row level security; alter table {table} force row level security; \
                 create policy mine on {table} using (id > 5); "
            ),
            Some(Flaw::OfConstraint) => {
                format!("alter table {table} add constraint notes_once unique (note, id); ")
            }
            _ => String::new(),
        }
    }
}
