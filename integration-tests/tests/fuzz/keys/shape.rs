//! A random table with an integer key, and the tables that refer to it.

use fastrand::Rng;

use crate::pairs::INTEGER_TO_BIGINT;
use crate::shape::settings_of;

/// Where the key's values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Always,
    ByDefault,
    Serial,
    /// Only from the statements.
    Plain,
}

/// What a foreign key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    Restrict,
    Cascade,
    SetNull,
    SetDefault,
}

impl Action {
    fn sql(self) -> &'static str {
        match self {
            Self::Nothing => "no action",
            Self::Restrict => "restrict",
            Self::Cascade => "cascade",
            Self::SetNull => "set null",
            Self::SetDefault => "set default",
        }
    }
}

/// A column that refers to the key.
#[derive(Debug, Clone)]
pub(crate) struct Referring {
    pub(crate) ty: &'static str,
    pub(crate) not_null: bool,
    /// The key that always exists.
    pub(crate) has_default: bool,
    pub(crate) on_delete: Action,
    pub(crate) on_update: Action,
    indexed: bool,
    deferrable: bool,
    /// A trigger of the table changes the column in statements that do not name it.
    pub(crate) has_trigger: bool,
}

/// What makes the plan impossible, so that it must be refused before `expand`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A rule replaces some updates of the table.
    Rule,
    /// The same for a table that refers to the key.
    RuleOfReferring,
    /// A trigger fires after the one that keeps both columns equal.
    LateTrigger,
    LateTriggerOfReferring,
    View,
    Check,
    Index,
    TakenName,
    Children,
    RowSecurity,
    SeveralColumns,
}

const FLAWS: [Flaw; 11] = [
    Flaw::Rule,
    Flaw::RuleOfReferring,
    Flaw::LateTrigger,
    Flaw::LateTriggerOfReferring,
    Flaw::View,
    Flaw::Check,
    Flaw::Index,
    Flaw::TakenName,
    Flaw::Children,
    Flaw::RowSecurity,
    Flaw::SeveralColumns,
];

/// The tables of the migration, named `subject` and `lines_0`, `lines_1`, ….
#[derive(Debug, Clone)]
pub(crate) struct KeyShape {
    pub(crate) source: Source,
    pub(crate) ty: &'static str,
    /// The table refers to itself.
    pub(crate) parent: Option<Referring>,
    pub(crate) lines: Vec<Referring>,
    has_triggers: bool,
    pub(crate) own_role: bool,
    pub(crate) settings: Vec<&'static str>,
    pub(crate) has_faults: bool,
    pub(crate) has_guests: bool,
    pub(crate) key_flaw: Option<Flaw>,
}

fn referring(types: &[&'static str], rng: &mut Rng) -> Referring {
    const ACTIONS: [Action; 6] = [
        Action::Nothing,
        Action::Restrict,
        Action::Cascade,
        Action::Cascade,
        Action::SetNull,
        Action::SetDefault,
    ];
    let not_null = rng.u8(..).is_multiple_of(3);
    let has_default = rng.bool();
    let mut action = || match ACTIONS[rng.usize(..ACTIONS.len())] {
        Action::SetNull if not_null => Action::Cascade,
        Action::SetDefault if !has_default && not_null => Action::Nothing,
        other => other,
    };
    let (on_delete, on_update) = (action(), action());
    Referring {
        ty: types[rng.usize(..types.len())],
        not_null,
        has_default,
        on_delete,
        on_update,
        indexed: rng.bool(),
        deferrable: rng.u8(..).is_multiple_of(3),
        has_trigger: rng.u8(..).is_multiple_of(3),
    }
}

impl KeyShape {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        const SOURCES: [Source; 4] = [Source::Always, Source::ByDefault, Source::Serial, Source::Plain];
        let key_flaw = rng.u8(..).is_multiple_of(3).then(|| FLAWS[rng.usize(..FLAWS.len())]);
        let ty = if rng.u8(..).is_multiple_of(4) { "smallint" } else { "integer" };
        let types: &[&str] =
            if ty == "smallint" { &["smallint", "integer"] } else { &["integer", "integer", "bigint"] };
        let needs_lines = matches!(
            key_flaw,
            Some(Flaw::RuleOfReferring | Flaw::LateTriggerOfReferring | Flaw::SeveralColumns)
        );
        let lines = rng.usize(if needs_lines { 1..3 } else { 0..3 });
        let mut lines: Vec<Referring> = (0..lines).map(|_| referring(types, rng)).collect();
        if let (true, Some(one)) = (needs_lines, lines.first_mut()) {
            // A column that is `bigint` does not move.
            one.ty = ty;
        }
        Self {
            source: SOURCES[rng.usize(..SOURCES.len())],
            ty,
            parent: rng
                .u8(..)
                .is_multiple_of(3)
                .then(|| Referring { not_null: false, ..referring(types, rng) }),
            lines,
            has_triggers: rng.u8(..).is_multiple_of(3),
            own_role: rng.bool() || key_flaw == Some(Flaw::RowSecurity),
            settings: settings_of(&INTEGER_TO_BIGINT, rng),
            has_faults: rng.u8(..).is_multiple_of(4) && key_flaw.is_none(),
            has_guests: rng.u8(..).is_multiple_of(4) && key_flaw.is_none(),
            key_flaw,
        }
    }

    /// The tables that refer to the key, with the column that does.
    pub(crate) fn referring(&self) -> Vec<(String, &'static str, &Referring)> {
        let parent = self.parent.iter().map(|one| ("subject".to_owned(), "parent", one));
        parent
            .chain(self.lines.iter().enumerate().map(|(n, one)| (format!("lines_{n}"), "node", one)))
            .collect()
    }

    /// Statements that make the tables, with the key that always exists.
    pub(crate) fn create(&self) -> String {
        let key = match self.source {
            Source::Always => format!("{} generated always as identity", self.ty),
            Source::ByDefault => format!("{} generated by default as identity", self.ty),
            Source::Serial if self.ty == "smallint" => "smallserial".to_owned(),
            Source::Serial => "serial".to_owned(),
            Source::Plain => self.ty.to_owned(),
        };
        let column = |one: &Referring| {
            format!(
                "{}{}{}",
                one.ty,
                if one.not_null { " not null" } else { "" },
                if one.has_default { " default 1" } else { "" }
            )
        };
        let mut text = format!(
            "create table subject (id {key} primary key, note text{}); create table parents (id bigint); ",
            self.parent.as_ref().map_or(String::new(), |one| format!(", parent {}", column(one)))
        );
        for (table, name, one) in self.referring() {
            if name == "node" {
                text += &format!(
                    "create table {table} (id bigint primary key, note text, node {}); ",
                    column(one)
                );
            }
            text += &format!(
                "alter table {table} add constraint {table}_refers foreign key ({name}) references subject \
                 on delete {} on update {}{}; ",
                one.on_delete.sql(),
                one.on_update.sql(),
                if one.deferrable { " deferrable initially deferred" } else { "" }
            );
            if one.indexed {
                text += &format!("create index {table}_by_{name} on {table} ({name}, note); ");
            }
            if one.has_trigger {
                text += &format!(
                    "create function detach_{table}() returns trigger language plpgsql as $$ begin \
                         if new.note = 'detach' then new.{name} := {}; end if; return new; end $$; \
                     create trigger detach before insert or update on {table} for each row execute function detach_{table}(); ",
                    if one.not_null { "1" } else { "null" }
                );
            }
        }
        if self.has_triggers {
            text += "create table audit (id bigint generated always as identity, what text); \
                 create function audit() returns trigger language plpgsql security definer as $$ begin \
                     insert into public.audit (what) values (tg_op || coalesce(new.id, old.id)); return null; end $$; \
                 create trigger audit after insert or update or delete on subject for each row execute function audit(); ";
        }
        text + &self.flawed()
    }

    fn flawed(&self) -> String {
        let late = |table: &str, column: &str| {
            format!(
                "create function late() returns trigger language plpgsql as $$ begin new.{column} := new.{column}; return new; end $$; \
                 create trigger zzzz before insert or update on {table} for each row execute function late(); "
            )
        };
        let rule = |table: &str| {
            format!("create rule quiet as on update to {table} where old.note = 'n' do instead nothing; ")
        };
        match self.key_flaw {
            None => String::new(),
            Some(Flaw::Rule) => rule("subject"),
            Some(Flaw::RuleOfReferring) => rule("lines_0"),
            Some(Flaw::LateTrigger) => late("subject", "note"),
            Some(Flaw::LateTriggerOfReferring) => late("lines_0", "node"),
            Some(Flaw::View) => "create view seen as select id from subject; ".to_owned(),
            Some(Flaw::Check) => "alter table subject add check (id > -5); ".to_owned(),
            Some(Flaw::Index) => "create index by_both on subject (note, id); ".to_owned(),
            Some(Flaw::TakenName) => "alter table subject add column id_old text; ".to_owned(),
            Some(Flaw::Children) => "create table child () inherits (subject); ".to_owned(),
            Some(Flaw::RowSecurity) => "alter table subject enable row level security; \
                 alter table subject force row level security; create policy mine on subject using (note is not null); ".to_owned(),
            Some(Flaw::SeveralColumns) => "alter table subject add unique (id, note); \
                 create table pairs (id bigint primary key, node integer, note text, foreign key (node, note) references subject (id, note)); ".to_owned(),
        }
    }
}
