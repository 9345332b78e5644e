//! What is attached to the old side and missing on the new one, with the statements that give the new side the same. Pure:
//! nothing here asks the server.

use super::attachments::{Attachments, ConstraintFacts, IndexFacts};
use super::names::{quote, unquote};
use super::rename::rename_columns;
use crate::ledger::plans::is_same_table;

/// The two sides, as far as attachments are concerned.
#[derive(Debug, Clone)]
pub(crate) struct Counterpart<'a> {
    /// Both tables, quoted; the same for a migration of a column.
    pub(crate) old_table: &'a str,
    pub(crate) new_table: &'a str,
    /// Columns of the old side that hold the same thing as a column of the new side, and that column.
    pub(crate) columns: &'a [(String, String)],
    /// Columns of the old side, in a migration of columns, that no single column of the new side replaces.
    pub(crate) unmatched: &'a [String],
    /// The columns of the old side; empty if it is a table.
    pub(crate) moving: &'a [String],
}

/// Something that is attached to the old side and that the new side lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    /// The name by which it can be waived.
    pub(crate) name: String,
    pub(crate) what: String,
    /// What gives the new side the same; empty if that cannot be derived.
    pub(crate) steps: Vec<Step>,
    /// A query whether rows violate it, which has to be answered before it is added to a table under load.
    pub(crate) violated: Option<String>,
    /// Whether the library may do it on its own.
    pub(crate) is_automatic: bool,
}

/// A statement that gives the new side the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// An index on the new side's table, built concurrently: its name, and what follows the table's.
    Index { name: String, is_unique: bool, on: String },
    /// A statement that holds its lock for a moment only, or a weak one.
    Statement(String),
}

impl Step {
    /// The statement, for an index on `table`.
    pub(crate) fn sql(&self, table: &str) -> String {
        match self {
            Step::Index { name, is_unique, on } => {
                let unique = if *is_unique { "unique " } else { "" };
                format!("create {unique}index concurrently {} on {table} {on}", quote(name))
            }
            Step::Statement(statement) => statement.clone(),
        }
    }
}

impl Counterpart<'_> {
    fn is_one_table(&self) -> bool {
        self.old_table == self.new_table
    }

    /// Whether something that needs these columns belongs to the old side.
    fn concerns(&self, columns: &[String]) -> bool {
        self.moving.is_empty() || columns.iter().any(|column| self.moving.contains(column))
    }

    fn moved(&self, column: &str) -> Option<&str> {
        self.columns.iter().find(|(old, _)| old == column).map(|(_, new)| &**new)
    }

    fn map(&self, column: &str) -> Option<String> {
        let same = || {
            (self.is_one_table() && !self.unmatched.iter().any(|one| one == column))
                .then(|| column.to_owned())
        };
        self.moved(column).map(str::to_owned).or_else(same)
    }

    fn map_all(&self, columns: &[String]) -> Option<Vec<String>> {
        columns.iter().map(|column| self.map(column)).collect()
    }

    fn rename(&self, text: &str) -> String {
        rename_columns(text, |column| self.moved(column).map(quote))
    }

    /// A name for the copy of an object.
    fn name(&self, old: &str) -> String {
        let pairs = match self.is_one_table() {
            true => self.columns.to_vec(),
            false => vec![(base(self.old_table), base(self.new_table))],
        };
        let renamed = pairs.iter().fold(old.to_owned(), |name, (old, new)| name.replacen(&**old, new, 1));
        let name = if renamed == old { format!("{old}_new") } else { renamed };
        name.chars().take(63).collect()
    }
}

/// A table's name without its schema.
fn base(table: &str) -> String {
    unquote(table.rsplit('.').next().unwrap_or(table))
}

fn list(columns: &[String]) -> String {
    columns.iter().map(|column| quote(column)).collect::<Vec<_>>().join(", ")
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Everything that `old` has attached and `new` lacks.
pub(crate) fn missing(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Vec<Attached> {
    let mut found = sequences(sides, old, new);
    found.extend(old.indexes.iter().filter_map(|index| of_index(sides, index, new)));
    found.extend(old.constraints.iter().filter_map(|constraint| match &*constraint.kind {
        "f" => foreign_key(sides, constraint, new),
        _ => check(sides, constraint, new),
    }));
    found.extend(old.referencing.iter().filter_map(|key| referencing(sides, key, new)));
    found.extend(grants(sides, old, new));
    found.extend(of_columns(sides, old, new));
    found.extend(statistics(sides, old, new));
    found.extend(publications(sides, old, new));
    found.extend(replica_identity(sides, old, new));
    found
}

fn attached(name: &str, what: String, steps: Vec<Step>) -> Attached {
    Attached { name: name.to_owned(), what, steps, violated: None, is_automatic: true }
}

fn statement(text: String) -> Step {
    Step::Statement(text)
}

fn of_index(sides: &Counterpart<'_>, index: &IndexFacts, new: &Attachments) -> Option<Attached> {
    if !index.is_valid || index.is_primary || !sides.concerns(&index.refers_to) {
        return None;
    }
    let kind = match index.constraint.as_deref() {
        Some("x") => "exclusion constraint",
        Some(_) => "unique constraint",
        None if index.is_unique => "unique index",
        None => "index",
    };
    let on = index.definition.split_once(" USING ").map_or("", |(_, on)| on);
    let what = format!("{kind} {} of {} (using {on})", quote(&index.name), sides.old_table);
    let mapped: Option<Vec<Option<String>>> = index
        .columns
        .iter()
        .map(|column| {
            column.as_ref().map(|column| sides.map(column)).map_or(Some(None), |name| name.map(Some))
        })
        .collect();
    let (Some(mapped), Some(needs)) = (mapped, sides.map_all(&index.refers_to)) else {
        return Some(attached(&index.name, what, Vec::new()));
    };
    let is_same = |other: &&IndexFacts| {
        other.is_valid
            && other.columns == mapped
            && (other.is_unique || !index.is_unique)
            && other.has_predicate == index.has_predicate
            && needs.iter().all(|column| other.refers_to.contains(column))
            && (index.constraint.as_deref() == Some("x")) == (other.constraint.as_deref() == Some("x"))
    };
    if new.indexes.iter().any(|other| is_same(&other)) {
        return None;
    }
    let (name, table) = (sides.name(&index.name), sides.new_table);
    if index.constraint.as_deref() == Some("x") {
        let definition = sides.rename(index.constraint_definition.as_deref().unwrap_or_default());
        let add = format!("alter table {table} add constraint {} {definition}", quote(&name));
        return Some(Attached { is_automatic: false, ..attached(&index.name, what, vec![statement(add)]) });
    }
    let on = format!("using {}", sides.rename(on));
    let mut steps = vec![Step::Index { name: name.clone(), is_unique: index.is_unique, on }];
    if let Some(definition) = &index.constraint_definition {
        let deferrable = definition.find(" DEFERRABLE").map_or("", |at| &definition[at..]);
        let name = quote(&name);
        steps.push(statement(format!(
            "alter table {table} add constraint {name} unique using index {name}{deferrable}"
        )));
    }
    Some(attached(&index.name, what, steps))
}

/// The statements that add a constraint without a scan under a strong lock. `found`: one that is there and not validated.
fn add_and_validate(table: &str, name: &str, definition: &str, found: Option<&ConstraintFacts>) -> Vec<Step> {
    let validate = |name: &str| statement(format!("alter table {table} validate constraint {}", quote(name)));
    match found {
        Some(found) => vec![validate(&found.name)],
        None => vec![
            statement(format!("alter table {table} add constraint {} {definition} not valid", quote(name))),
            validate(name),
        ],
    }
}

fn check(sides: &Counterpart<'_>, constraint: &ConstraintFacts, new: &Attachments) -> Option<Attached> {
    if !sides.concerns(&constraint.columns) {
        return None;
    }
    let definition = constraint.definition.trim_end_matches(" NOT VALID");
    let what = format!("constraint {} of {} ({definition})", quote(&constraint.name), sides.old_table);
    let Some(mut columns) = sides.map_all(&constraint.columns) else {
        return Some(attached(&constraint.name, what, Vec::new()));
    };
    columns.sort();
    let is_same = |other: &&ConstraintFacts| {
        let mut others = other.columns.clone();
        others.sort();
        other.kind == "c" && others == columns
    };
    let mut found = new.constraints.iter().filter(is_same);
    if found.clone().any(|other| other.is_valid || !constraint.is_valid) {
        return None;
    }
    let renamed = sides.rename(definition);
    let expression = renamed.trim_start_matches("CHECK ").trim_end_matches(" NO INHERIT");
    let table = sides.new_table;
    let steps = add_and_validate(table, &sides.name(&constraint.name), &renamed, found.next());
    Some(Attached {
        violated: Some(format!("select exists (select from {table} where not {expression})")),
        ..attached(&constraint.name, what, steps)
    })
}

/// What follows the referenced columns of a foreign key: actions, match type, deferrability.
pub(crate) fn actions(definition: &str) -> &str {
    let rest = definition.split_once(" REFERENCES ").map_or("", |(_, rest)| rest);
    rest.split_once(')').map_or("", |(_, rest)| rest).trim_end_matches(" NOT VALID")
}

/// Whether rows of `table` have values in `columns` that no row of the referenced table has.
fn dangling(table: &str, columns: &[String], referenced: &str, referenced_columns: &[String]) -> String {
    let all = |text: fn(&String) -> String, columns: &[String]| columns.iter().map(text).collect::<Vec<_>>();
    let given = all(|column| format!("t.{} is not null", quote(column)), columns).join(" and ");
    let equal: Vec<String> = columns
        .iter()
        .zip(referenced_columns)
        .map(|(column, other)| format!("r.{} = t.{}", quote(other), quote(column)))
        .collect();
    format!(
        "select exists (select from {table} as t where {given} \
         and not exists (select from {referenced} as r where {}))",
        equal.join(" and ")
    )
}

fn foreign_key(sides: &Counterpart<'_>, key: &ConstraintFacts, new: &Attachments) -> Option<Attached> {
    if !sides.concerns(&key.columns) {
        return None;
    }
    let what = format!("constraint {} of {} ({})", quote(&key.name), sides.old_table, key.definition);
    let referenced = key.referenced.as_deref().unwrap_or_default();
    let is_self = is_same_table(referenced, &key.table);
    let target = if is_self { sides.new_table } else { referenced };
    let target_columns = if is_self && !sides.is_one_table() {
        sides.map_all(&key.referenced_columns)
    } else {
        Some(key.referenced_columns.clone())
    };
    let (Some(columns), Some(target_columns)) = (sides.map_all(&key.columns), target_columns) else {
        return Some(attached(&key.name, what, Vec::new()));
    };
    let is_same = |other: &&ConstraintFacts| {
        other.kind == "f"
            && other.columns == columns
            && other.referenced_columns == target_columns
            && other.referenced.as_deref().is_some_and(|other| is_same_table(other, target))
    };
    let mut found = new.constraints.iter().filter(is_same);
    if found.clone().any(|other| other.is_valid || !key.is_valid) {
        return None;
    }
    let definition = format!(
        "foreign key ({}) references {target} ({}){}",
        list(&columns),
        list(&target_columns),
        sides.rename(actions(&key.definition))
    );
    let steps = add_and_validate(sides.new_table, &sides.name(&key.name), &definition, found.next());
    Some(Attached {
        violated: Some(dangling(sides.new_table, &columns, target, &target_columns)),
        ..attached(&key.name, what, steps)
    })
}

/// A foreign key of another table that refers to the old side.
fn referencing(sides: &Counterpart<'_>, key: &ConstraintFacts, new: &Attachments) -> Option<Attached> {
    if !sides.concerns(&key.referenced_columns) {
        return None;
    }
    let what = format!(
        "constraint {} of {}, which refers to {} ({})",
        quote(&key.name),
        key.table,
        sides.old_table,
        key.definition
    );
    let Some(target_columns) = sides.map_all(&key.referenced_columns) else {
        return Some(attached(&key.name, what, Vec::new()));
    };
    let is_same = |other: &&ConstraintFacts| {
        other.table == key.table && other.columns == key.columns && other.referenced_columns == target_columns
    };
    let mut found = new.referencing.iter().filter(is_same);
    if found.clone().any(|other| other.is_valid || !key.is_valid) {
        return None;
    }
    let definition = format!(
        "foreign key ({}) references {} ({}){}",
        list(&key.columns),
        sides.new_table,
        list(&target_columns),
        actions(&key.definition)
    );
    let name = format!("{}_new", key.name).chars().take(63).collect::<String>();
    Some(Attached {
        violated: Some(dangling(&key.table, &key.columns, sides.new_table, &target_columns)),
        ..attached(&key.name, what, add_and_validate(&key.table, &name, &definition, found.next()))
    })
}

fn grants(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Option<Attached> {
    let mut steps = Vec::new();
    let (mut named, mut underived) = (Vec::new(), Vec::new());
    for grant in &old.grants {
        let column = match &grant.column {
            None if sides.is_one_table() => continue,
            None => None,
            Some(column) => match sides.moved(column) {
                Some(column) => Some(column.to_owned()),
                None if sides.unmatched.contains(column) => {
                    underived.push(format!(
                        "{} for {} on column {}",
                        grant.privilege,
                        grant.role,
                        quote(column)
                    ));
                    continue;
                }
                None => continue,
            },
        };
        let is_there = new.grants.iter().any(|other| {
            (other.column == column || other.column.is_none())
                && other.role == grant.role
                && other.privilege == grant.privilege
                && (other.is_grantable || !grant.is_grantable)
        });
        if is_there {
            continue;
        }
        let of = column.map(|column| format!(" ({})", quote(&column))).unwrap_or_default();
        let option = if grant.is_grantable { " with grant option" } else { "" };
        named.push(format!("{} for {}", grant.privilege, grant.role));
        steps.push(statement(format!(
            "grant {}{of} on {} to {}{option}",
            grant.privilege, sides.new_table, grant.role
        )));
    }
    let is_automatic = underived.is_empty();
    if !is_automatic {
        // A statement for some of them would pass for all.
        steps.clear();
    }
    named.extend(underived);
    let what = || format!("privileges on the old side ({})", named.join(", "));
    (!named.is_empty()).then(|| Attached { is_automatic, ..attached("privileges", what(), steps) })
}

/// Comments and statistics targets.
fn of_columns(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Vec<Attached> {
    let (mut comments, mut targets) = (Vec::new(), Vec::new());
    if let (true, Some(comment), None) = (sides.moving.is_empty(), &old.comment, &new.comment) {
        comments.push(statement(format!("comment on table {} is {}", sides.new_table, literal(comment))));
    }
    for column in &old.columns {
        // Before `expand` there may be no such column yet.
        let concerned = sides.concerns(std::slice::from_ref(&column.name));
        let Some(name) = sides.moved(&column.name).filter(|_| concerned) else { continue };
        let other = new.column(name);
        let (table, name) = (sides.new_table, quote(name));
        if let (Some(comment), None) = (&column.comment, other.and_then(|other| other.comment.as_ref())) {
            comments.push(statement(format!("comment on column {table}.{name} is {}", literal(comment))));
        }
        if let (Some(target), None) =
            (column.statistics_target, other.and_then(|other| other.statistics_target))
        {
            targets
                .push(statement(format!("alter table {table} alter column {name} set statistics {target}")));
        }
        if let (Some(options), None) = (&column.options, other.and_then(|other| other.options.as_ref())) {
            targets.push(statement(format!(
                "alter table {table} alter column {name} set ({})",
                options.join(", ")
            )));
        }
    }
    let mut found = Vec::new();
    if !comments.is_empty() {
        found.push(attached("comment", "the comment on the old side".to_owned(), comments));
    }
    if !targets.is_empty() {
        found.push(attached(
            "statistics target",
            "the statistics target of the old side".to_owned(),
            targets,
        ));
    }
    found
}

fn statistics(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Vec<Attached> {
    let of_old = old.statistics.iter().filter(|statistics| sides.concerns(&statistics.columns));
    let missing = of_old.filter_map(|statistics| {
        let what = format!("statistics {} of {}", quote(&statistics.name), sides.old_table);
        let Some(mut columns) = sides.map_all(&statistics.columns) else {
            return Some(attached(&statistics.name, what, Vec::new()));
        };
        columns.sort();
        let is_there = new.statistics.iter().any(|other| {
            let mut others = other.columns.clone();
            others.sort();
            others == columns
        });
        let definition = &statistics.definition;
        let kinds = definition.split_once(" (").filter(|(before, _)| !before.contains(" ON "));
        let kinds = kinds.and_then(|(_, rest)| rest.split_once(')')).map(|(kinds, _)| format!(" ({kinds})"));
        let on = definition
            .split_once(" ON ")
            .and_then(|(_, rest)| rest.rsplit_once(" FROM "))
            .map_or("", |(on, _)| on);
        let create = format!(
            "create statistics {}{} on {} from {}",
            quote(&sides.name(&statistics.name)),
            kinds.unwrap_or_default(),
            sides.rename(on),
            sides.new_table
        );
        (!is_there).then(|| attached(&statistics.name, what, vec![statement(create)]))
    });
    missing.collect()
}

/// A subscriber needs the column or table first, so the library never changes a publication itself.
fn publications(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Vec<Attached> {
    let table = sides.new_table;
    let mut found = Vec::new();
    for publication in &old.publications {
        let name = quote(&publication.name);
        let other = new.publications.iter().find(|other| other.name == publication.name);
        let filter = publication.filter.as_ref().map(|filter| format!(" where {filter}")).unwrap_or_default();
        let (what, steps) = match (&publication.columns, sides.is_one_table()) {
            (None, true) => continue,
            (Some(columns), true) => {
                let lacks = |(old, new): &&(String, String)| columns.contains(old) && !columns.contains(new);
                let added: Vec<String> =
                    sides.columns.iter().filter(lacks).map(|(_, new)| new.clone()).collect();
                if added.is_empty() {
                    continue;
                }
                let all = list(&[columns.clone(), added].concat());
                let drop = format!("alter publication {name} drop table {table}");
                let add = format!("alter publication {name} add table {table} ({all}){filter}");
                // In one transaction, so that no change between the two is missed.
                let both = format!("begin; {drop}; {add}; commit");
                (format!("column list of publication {name} for {table}"), vec![statement(both)])
            }
            (_, false) if other.is_some() => continue,
            (columns, false) => {
                let columns = match columns.as_ref().map(|columns| sides.map_all(columns)) {
                    Some(Some(columns)) => format!(" ({})", list(&columns)),
                    Some(None) | None => String::new(),
                };
                let add = format!("alter publication {name} add table {table}{columns}");
                (format!("publication {name} of {}", sides.old_table), vec![statement(add)])
            }
        };
        found.push(Attached { is_automatic: false, ..attached(&publication.name, what, steps) });
    }
    found
}

/// An index that identifies rows for logical replication goes with its column, and then the server refuses every update
/// and delete of a published table.
fn replica_identity(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Option<Attached> {
    let table = sides.new_table;
    let (what, to) = if sides.is_one_table() {
        let index = old.indexes.iter().find(|index| index.is_replica_identity)?;
        if !sides.concerns(&index.refers_to) {
            return None;
        }
        let has_key = old.indexes.iter().any(|index| index.is_primary);
        let to = if has_key { "default" } else { "full" };
        (format!("replica identity of {table}, which is index {}", quote(&index.name)), to)
    } else {
        if old.replica_identity != "f" || new.replica_identity != "d" {
            return None;
        }
        (format!("replica identity of {} (full)", sides.old_table), "full")
    };
    let set = format!("alter table {table} replica identity {to}");
    // It is part of what subscribers expect.
    Some(Attached { is_automatic: false, ..attached("replica identity", what, vec![statement(set)]) })
}

/// If the new table's column drew from a sequence of its own, it would give values that rows have already.
fn sequences(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Vec<Attached> {
    if sides.is_one_table() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let concerned = |name: &String| sides.concerns(std::slice::from_ref(name));
    for column in old.columns.iter().filter(|one| !one.sequences.is_empty() && concerned(&one.name)) {
        let other = sides.moved(&column.name).and_then(|name| new.column(name));
        let sequence = &column.sequences[0];
        let what = format!("sequence {sequence} of column {} of {}", quote(&column.name), sides.old_table);
        let Some(other) = other else {
            found.push(attached(&base(sequence), what, Vec::new()));
            continue;
        };
        if other.sequences.contains(sequence) {
            continue;
        }
        let alter = format!("alter table {} alter column {}", sides.new_table, quote(&other.name));
        let mut steps = Vec::new();
        if !other.identity.is_empty() {
            steps.push(statement(format!("{alter} drop identity")));
        }
        steps.push(statement(format!("{alter} set default nextval({})", literal(sequence))));
        found.push(attached(&base(sequence), what, steps));
    }
    found
}
