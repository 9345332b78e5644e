//! A random table, and the migration of it.

use fastrand::Rng;

use crate::attached::{Attached, can_attach};
use crate::key::{KEYS, Key};
use crate::pairs::{PAIRS, Pair};
use crate::rust_pairs::{RUST_PAIRS, RustPair};

/// Settings that must not change what is stored.
const SETTINGS: [&str; 17] = [
    "set timezone = 'Pacific/Auckland'",
    "set timezone = 'America/St_Johns'",
    "set datestyle = 'German, DMY'",
    "set datestyle = 'SQL, DMY'",
    "set intervalstyle = 'iso_8601'",
    "set intervalstyle = 'sql_standard'",
    "set bytea_output = 'escape'",
    "set extra_float_digits = -15",
    "set array_nulls = off",
    "set xmloption = 'document'",
    "set xmlbinary = 'hex'",
    "set quote_all_identifiers = on",
    "set default_text_search_config = 'pg_catalog.german'",
    "set transform_null_equals = on",
    "set escape_string_warning = off",
    "set standard_conforming_strings = off",
    "set timezone_abbreviations = 'Australia'",
];

/// These settings in a random order, without those that change what a writer of these types says itself. Sometimes none.
pub(crate) fn settings_of(pair: &Pair, rng: &mut Rng) -> Vec<&'static str> {
    let says = |ty: &str| pair.old.contains(ty) || pair.new.contains(ty);
    let mut chosen = if rng.u8(..).is_multiple_of(4) { Vec::new() } else { SETTINGS.to_vec() };
    chosen.retain(|setting| {
        !(setting.contains("array_nulls") && says("[]") || setting.contains("xmloption") && says("xml"))
    });
    rng.shuffle(&mut chosen);
    chosen
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Partitions {
    None,
    Hash,
    /// Two levels: by region, and by hash.
    Region,
}

/// What makes the plan impossible, so that it must be refused before `expand`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    Children,
    NotNull,
    Check,
    Generated,
    Action,
    Clock,
    TakenName,
    RowSecurity,
    Index,
    /// A rule replaces some updates.
    Rule,
    /// A trigger fires after the guard trigger.
    LateTrigger,
    /// The new type makes the server rewrite the table.
    Rewrite,
}

const FLAWS: [Flaw; 11] = [
    Flaw::Children,
    Flaw::NotNull,
    Flaw::Check,
    Flaw::Generated,
    Flaw::Action,
    Flaw::Clock,
    Flaw::TakenName,
    Flaw::RowSecurity,
    Flaw::Index,
    Flaw::Rule,
    Flaw::LateTrigger,
];

/// A table and its migration. Everything follows from the seed.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) pair: Pair,
    pub(crate) key: Key,
    pub(crate) partitions: Partitions,
    /// Whether the rows move to another table.
    pub(crate) is_table: bool,
    /// The columns of the old side move to a table of their own, and the rows stay.
    pub(crate) is_apart: bool,
    /// Only a part of the rows move, and the table stays.
    pub(crate) has_part: bool,
    /// The other table is partitioned by a hash of its key.
    pub(crate) has_new_partitions: bool,
    /// A default of the old column.
    pub(crate) old_default: bool,
    /// A default of the new column, which `expand` adds.
    pub(crate) new_default: bool,
    /// A unique constraint of the old side, as whose counterpart the new side gets an index before `ramp`.
    pub(crate) has_constraint: bool,
    /// The new side refers to a table of the values.
    pub(crate) has_lookup: bool,
    pub(crate) has_trigger: bool,
    pub(crate) has_index: bool,
    /// Whether an ordinary role owns the table and runs the service.
    pub(crate) own_role: bool,
    /// Row security that does not filter what the service's role reads.
    pub(crate) harmless_row_security: bool,
    pub(crate) flaw: Option<Flaw>,
    /// What the foreign key to `parents` does.
    pub(crate) on_delete: &'static str,
    pub(crate) names_key: bool,
    /// Settings of the sessions of the service.
    pub(crate) settings: Vec<&'static str>,
    /// Connections of the driver's work are cut, and one of two instances is killed.
    pub(crate) has_faults: bool,
    /// The service writes one side, and the guard trigger the other one.
    pub(crate) mirrors: bool,
    /// A second column moves in the same migration.
    pub(crate) has_second: bool,
    /// Another migration moves another column of the table.
    pub(crate) has_beside: bool,
    /// The mapping is in Rust.
    pub(crate) rust_pair: Option<RustPair>,
    /// The service writes through `DualWrite`.
    pub(crate) is_dual: bool,
    /// More is attached to the old side, and all of it is carried over.
    pub(crate) attached: Option<Attached>,
    /// Instances of other builds come and go.
    pub(crate) has_guests: bool,
}

/// The default of the second column on both sides.
pub(crate) const SECOND: [&str; 2] = ["SECOND", "second"];

/// How far apart the pairs of types of consecutive tables are; prime, so that all have their turn.
const STRIDE: u64 = 37;

/// Whether adding a column of the new type rewrites the table: it is a domain with a constraint.
fn rewrites(pair: &Pair) -> bool {
    matches!(pair.new, "short_text" | "positive")
}

/// Whether both columns may be part of a unique index.
fn is_indexable(pair: &Pair) -> bool {
    let is_plain = |ty: &str| {
        ["text", "integer", "bigint", "numeric", "boolean", "uuid", "date", "timestamp", "smallint", "jsonb"]
            .iter()
            .any(|plain| ty.starts_with(plain) && !ty.contains("[]"))
    };
    is_plain(pair.old) && is_plain(pair.new)
}

/// One of three tables that migrate has values that cannot be mapped, and one has values that are equal and not the same.
fn pair_of(number: u64, has_flaw: bool) -> Pair {
    let is_partial = |pair: &&Pair| pair.unmappable.is_some() && !rewrites(pair);
    let partial: Vec<Pair> = PAIRS.iter().filter(is_partial).copied().collect();
    let of = |number: u64, list: usize| usize::try_from(number % list as u64).unwrap_or(0);
    let is_weak = |pair: &&Pair| ["numeric", "interval", "jsonb"].iter().any(|ty| pair.new.starts_with(ty));
    let weak: Vec<Pair> = PAIRS.iter().filter(is_weak).copied().collect();
    match number % 3 {
        0 if !has_flaw => partial[of(number / 3, partial.len())],
        1 if !has_flaw => weak[of(number / 3, weak.len())],
        _ => PAIRS[of(number.wrapping_mul(STRIDE), PAIRS.len())],
    }
}

impl Shape {
    /// Consecutive seeds go through all pairs of types, and every second one through all flaws: such a table takes a second.
    pub(crate) fn random(seed: u64, rng: &mut Rng) -> Self {
        let of = |number: u64, list: usize| usize::try_from(number % list as u64).unwrap_or(0);
        let flaw = seed.is_multiple_of(2).then(|| FLAWS[of(seed / 2, FLAWS.len())]);
        let is_table = rng.u8(..).is_multiple_of(3) && flaw.is_none();
        let key = KEYS[rng.usize(..KEYS.len())];
        let partitions = match (rng.u8(..) % 3, key) {
            (0, Key::Region) => Partitions::Region,
            (0, Key::Identity | Key::IdentityAlways) => Partitions::None,
            (0, _) => Partitions::Hash,
            _ => Partitions::None,
        };
        let partitions = if flaw == Some(Flaw::Children) { Partitions::None } else { partitions };
        let rust_pair =
            (flaw.is_none() && (seed / 2) % 4 == 3).then(|| RUST_PAIRS[of(seed / 8, RUST_PAIRS.len())]);
        let pair = rust_pair.map_or_else(|| pair_of(seed / 2, flaw.is_some()), |rust| rust.pair);
        let flaw = flaw.or((!is_table && rewrites(&pair)).then_some(Flaw::Rewrite));
        let is_apart = !is_table && flaw.is_none() && rust_pair.is_none() && rng.u8(..).is_multiple_of(4);
        let own_role = rng.bool() || flaw == Some(Flaw::RowSecurity);
        let mut shape = Self {
            pair,
            key,
            partitions,
            is_table,
            is_apart,
            has_part: is_table && key.is_numbered() && (seed / 3) % 4 != 3,
            has_new_partitions: is_table && rng.u8(..).is_multiple_of(3),
            old_default: rng.u8(..).is_multiple_of(4)
                && !is_apart
                && !matches!(flaw, Some(Flaw::NotNull | Flaw::Check)),
            new_default: rng.u8(..).is_multiple_of(4) && !is_table && !is_apart,
            has_constraint: flaw.is_none()
                && !is_apart
                && rust_pair.is_none()
                && is_indexable(&pair)
                && (seed / 5).is_multiple_of(2),
            has_lookup: pair.looks_up() && flaw.is_none(),
            has_trigger: rng.u8(..).is_multiple_of(3),
            has_index: rng.u8(..).is_multiple_of(3) && !is_apart || flaw == Some(Flaw::Index),
            own_role,
            harmless_row_security: own_role && rng.u8(..).is_multiple_of(4),
            flaw,
            on_delete: ["cascade", "cascade", "set null", "no action", "set default"][rng.usize(..5)],
            names_key: rng.bool(),
            settings: settings_of(&pair, rng),
            mirrors: rng.u8(..).is_multiple_of(4) && !is_table && !is_apart && rust_pair.is_none(),
            has_faults: rng.u8(..).is_multiple_of(4) && flaw.is_none(),
            has_second: rng.u8(..).is_multiple_of(3)
                && !is_table
                && !is_apart
                && flaw.is_none()
                && rust_pair.is_none(),
            has_beside: rng.u8(..).is_multiple_of(4) && !is_table && !is_apart && flaw.is_none(),
            rust_pair,
            is_dual: rng.bool() || rust_pair.is_some(),
            attached: None,
            has_guests: false,
        };
        let attached = Attached::random(rng);
        shape.has_guests = rng.u8(..).is_multiple_of(4) && flaw.is_none();
        shape.attached = (rng.u8(..).is_multiple_of(3) && can_attach(&shape)).then_some(attached);
        shape
    }

    /// Statements that make the table, without rows.
    pub(crate) fn create(&self) -> String {
        let keys: Vec<String> = self
            .key
            .columns()
            .iter()
            .map(|(name, ty)| {
                let more = match self.key {
                    Key::Identity => " generated by default as identity",
                    Key::IdentityAlways => " generated always as identity",
                    _ => "",
                };
                format!("{name} {ty}{more}")
            })
            .collect();
        let by = match self.partitions {
            Partitions::None => String::new(),
            Partitions::Hash => format!(" partition by hash ({})", self.key.names()),
            Partitions::Region => " partition by list (region)".to_owned(),
        };
        let partitions = match self.partitions {
            Partitions::None => "",
            Partitions::Hash => {
                "create table subject_0 partition of subject for values with (modulus 2, remainder 0); \
                 create table subject_1 partition of subject for values with (modulus 2, remainder 1); "
            }
            Partitions::Region => {
                "create table subject_a partition of subject for values in ('a'); \
                 create table subject_b partition of subject for values in ('b') partition by hash (id); \
                 create table subject_b0 partition of subject_b for values with (modulus 2, remainder 0); \
                 create table subject_b1 partition of subject_b for values with (modulus 2, remainder 1); \
                 create table subject_rest partition of subject default; "
            }
        };
        let old_more = match self.flaw {
            Some(Flaw::NotNull) => " not null",
            Some(Flaw::Check) => " check (old_c is not null)",
            _ => "",
        };
        let old_default = match self.old_default {
            true => format!(" default ({})::{}", self.pair.values[0], self.old_type()),
            false => String::new(),
        };
        let second =
            if self.has_second { format!("old_d text default '{}', ", SECOND[0]) } else { String::new() };
        let mut text = format!(
            "create table parents (id integer primary key, name text); \
             insert into parents select g, 'p' from generate_series(0, 99) g; \
             create table subject ({}, parent integer default 0 references parents on delete {}, note text, \
                 updated_at timestamptz, {second}old_c {}{old_default}{old_more}, primary key ({})){by}; {partitions}",
            keys.join(", "),
            self.on_delete,
            self.pair.old,
            self.key.names()
        );
        if self.has_trigger {
            text += "create function touch() returns trigger language plpgsql as $$ begin \
                     new.updated_at := clock_timestamp(); return new; end $$; \
                 create trigger touch before update on subject for each row execute function touch(); \
                 create table audit (id bigint generated always as identity, what text); \
                 create function audit() returns trigger language plpgsql security definer as $$ begin \
                     insert into public.audit (what) values (tg_op); return null; end $$; \
                 create trigger audit after insert or delete on subject for each row execute function audit(); ";
        }
        if self.partitions == Partitions::Hash {
            // An insert into the partitioned table takes the default of that one.
            text += "alter table subject_1 alter old_c drop default; ";
        }
        if self.harmless_row_security || self.flaw == Some(Flaw::RowSecurity) {
            text += "alter table subject enable row level security; \
                 create policy mine on subject using (nullif(current_setting('app.tenant', true), '') is not null); ";
        }
        if self.constrains() {
            text += &format!("alter table subject add constraint odd unique (old_c, {}); ", self.key.names());
        }
        text += match self.flaw {
            Some(Flaw::Children) => "create table subject_child () inherits (subject); ",
            Some(Flaw::Generated) => {
                "alter table subject drop column old_c; \
                 alter table subject add column old_c text generated always as (note) stored; "
            }
            Some(Flaw::TakenName) => "alter table subject add column new_c text; ",
            Some(Flaw::RowSecurity) => "alter table subject force row level security; ",
            Some(Flaw::Rule) => {
                "create rule some as on update to subject where old.note = 'n' do instead nothing; "
            }
            Some(Flaw::LateTrigger) => {
                "create function late() returns trigger language plpgsql as $$ begin return new; end $$; \
                 create trigger zzzz before insert on subject for each row execute function late(); "
            }
            _ => "",
        };
        if self.flaw == Some(Flaw::Action) {
            text += &format!(
                "create table choices (value {0} primary key); \
                 alter table subject add foreign key (old_c) references choices on update cascade; ",
                self.pair.old
            );
        }
        text + &self.attach()
    }

    /// Whether the old side has a constraint whose columns all have counterparts on the new side.
    pub(crate) fn constrains(&self) -> bool {
        self.has_constraint && (self.pair.forward == "old_c" || !self.is_table && !self.has_second)
    }

    /// The old column's type, without a collation.
    pub(crate) fn old_type(&self) -> &'static str {
        self.pair.old.split(" collate").next().unwrap_or(self.pair.old)
    }

    /// The columns of the old side, and those of the new one.
    pub(crate) fn columns(&self) -> [&'static [&'static str]; 2] {
        match self.has_second {
            true => [&["old_c", "old_d"], &["new_c", "new_d"]],
            false => [&["old_c"], &["new_c"]],
        }
    }

    /// The types of the columns of both sides, without a collation.
    pub(crate) fn types(&self) -> [Vec<&'static str>; 2] {
        let mut types = [vec![self.old_type()], vec![self.pair.new]];
        if self.has_second {
            types.iter_mut().for_each(|types| types.push("text"));
        }
        types
    }

    /// The table that is written through the new side.
    pub(crate) fn new_table(&self) -> &'static str {
        if self.is_table || self.is_apart { "subject_2" } else { "subject" }
    }

    /// What holds the new side of each row. Without a row of their own, columns apart hold nothing.
    pub(crate) fn new_rows(&self) -> String {
        match self.is_apart {
            true => {
                format!("(select * from subject left join subject_2 using ({})) as joined", self.key.names())
            }
            false => self.new_table().to_owned(),
        }
    }

    /// The statement that makes the new table.
    pub(crate) fn create_new(&self) -> String {
        let columns: Vec<String> =
            self.key.columns().iter().map(|(name, ty)| format!("{name} {ty}")).collect();
        format!(
            "create table subject_2 ({}, {}new_c {}{}, primary key ({})){}",
            columns.join(", "),
            if self.is_apart { "" } else { "parent integer, note text, " },
            self.pair.new,
            if self.has_lookup { " references moods" } else { "" },
            self.key.names(),
            match self.has_new_partitions {
                true => format!(" partition by hash ({})", self.key.names()),
                false => String::new(),
            }
        )
    }
}
