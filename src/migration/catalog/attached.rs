//! What is attached to the old side and missing on the new one, with the statements that give the new side the same. Pure:
//! nothing here asks the server.

use super::attached_constraints::{check, foreign_key, referencing};
use super::attachments::{Attachments, IndexFacts};
use super::counterpart::{Attached, Counterpart, Step, attached, base, list, statement};
use super::names::quote;
use crate::ledger::literal::text as literal;

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
