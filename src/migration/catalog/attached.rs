//! What is attached to the old side and missing on the new one, with the statements that give the new side the same. Pure:
//! nothing here asks the server.

use super::attached_constraints::{checks, foreign_key, referencing, referring_name, with_comment};
use super::attachments::{Attachments, ConstraintFacts, IndexFacts};
use super::counterpart::{Attached, Counterpart, Step, Trial, attached, base, list, statement, twin};
use super::names::{beside, quote};
use super::rename::rename_columns;
use super::replication::replica_identity;
use crate::ledger::literal::text as literal;

/// Everything that `old` has attached and `new` lacks.
pub(crate) fn missing(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Vec<Attached> {
    let mut found = sequences(sides, old, new);
    found.extend(indexes(sides, old, new));
    found.extend(checks(sides, old, new));
    let keys = old.constraints.iter().filter(|constraint| constraint.kind == "f");
    found.extend(keys.filter_map(|key| foreign_key(sides, key, new)));
    found.extend(old.referencing.iter().filter_map(|key| referencing(sides, key, new)));
    found.extend(grants(sides, old, new));
    found.extend(of_columns(sides, old, new));
    found.extend(statistics(sides, old, new));
    found.extend(publications(sides, old, new));
    found.extend(replica_identity(sides, old, new));
    found
}

/// The indexes that the new side lacks. An index of the new side that has expressions or a condition stands for one of the old
/// side, because these are not compared: for one of the name that the library gives it, or else for any over the same columns.
fn indexes(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Vec<Attached> {
    let is_plain = |index: &IndexFacts| !index.has_predicate && index.columns.iter().all(Option::is_some);
    let mut wanted: Vec<&IndexFacts> = old.indexes.iter().collect();
    wanted.retain(|index| index.is_valid && !index.is_primary && sides.concerns(&index.refers_to));
    let mut taken: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for has_name in [true, false] {
        wanted.retain(|index| {
            let name = sides.name(&index.name);
            let Some(other) = new.indexes.iter().find(|other| {
                (!has_name || other.name == name)
                    && (is_plain(index) || !taken.contains(&&*other.name))
                    && is_same_index(sides, index, other)
            }) else {
                return true;
            };
            taken.push(&other.name);
            // An earlier attempt may have been interrupted after the index was built.
            let constraint =
                constraint_of(sides, index, new).filter(|_| has_name && other.constraint.is_none());
            found.extend(constraint.map(|step| attached(&index.name, of_kind(sides, index), vec![step])));
            false
        });
    }
    found.extend(wanted.into_iter().map(|index| of_index(sides, index, new)));
    found
}

/// Where the columns of an index are on the new side, each `None` for an expression. `None` if one of them is nowhere.
fn mapped_columns(sides: &Counterpart<'_>, index: &IndexFacts) -> Option<Vec<Option<String>>> {
    let mapped = |column: &Option<String>| match column {
        Some(column) => sides.map(column).map(Some),
        None => Some(None),
    };
    index.columns.iter().map(mapped).collect()
}

fn is_same_index(sides: &Counterpart<'_>, index: &IndexFacts, other: &IndexFacts) -> bool {
    let is_exclusion = |index: &IndexFacts| index.constraint.as_deref() == Some("x");
    other.is_valid
        && mapped_columns(sides, index).is_some_and(|columns| columns == other.columns)
        && (other.is_unique || !index.is_unique)
        && other.has_predicate == index.has_predicate
        && sides
            .map_all(&index.refers_to)
            .is_some_and(|needs| needs.iter().all(|column| other.refers_to.contains(column)))
        && is_exclusion(index) == is_exclusion(other)
}

/// What follows the index's table.
fn on_columns(index: &IndexFacts) -> &str {
    index.definition.split_once(" USING ").map_or("", |(_, on)| on)
}

/// The same for the new side, in the tablespace of the index, which its definition does not tell.
fn in_its_tablespace(sides: &Counterpart<'_>, index: &IndexFacts) -> String {
    let on = on_columns(index);
    let Some(tablespace) = &index.tablespace else { return sides.rename(on) };
    let predicate =
        index.predicate.as_ref().map(|predicate| format!(" WHERE {predicate}")).unwrap_or_default();
    let Some(before) = on.strip_suffix(&*predicate) else { return sides.rename(on) };
    format!("{} tablespace {tablespace}{}", sides.rename(before), sides.rename(&predicate))
}

fn of_kind(sides: &Counterpart<'_>, index: &IndexFacts) -> String {
    let kind = match index.constraint.as_deref() {
        Some("x") => "exclusion constraint",
        Some(_) => "unique constraint",
        None if index.is_unique => "unique index",
        None => "index",
    };
    format!("{kind} {} of {} (using {})", quote(&index.name), sides.old_table, on_columns(index))
}

/// The statement that makes a constraint of the counterpart of an index. On a partitioned table the server has none, and the
/// index alone refuses the same rows.
fn constraint_of(sides: &Counterpart<'_>, index: &IndexFacts, new: &Attachments) -> Option<Step> {
    index.constraint.as_ref()?;
    if new.partitions.is_some() {
        return None;
    }
    let deferrable = deferrable(index);
    let (table, name) = (sides.new_table, quote(&sides.name(&index.name)));
    Some(statement(format!(
        "alter table {table} add constraint {name} unique using index {name}{deferrable}"
    )))
}

/// How the constraint of an index is deferred; empty if it is not.
fn deferrable(index: &IndexFacts) -> &str {
    let definition = index.constraint_definition.as_deref().unwrap_or_default();
    definition.find(" DEFERRABLE").map_or("", |at| &definition[at..])
}

fn of_index(sides: &Counterpart<'_>, index: &IndexFacts, new: &Attachments) -> Attached {
    let what = of_kind(sides, index);
    if mapped_columns(sides, index).is_none() || sides.map_all(&index.refers_to).is_none() {
        return attached(&index.name, what, Vec::new());
    }
    let (name, table) = (sides.name(&index.name), sides.new_table);
    // An index becomes neither of them.
    let is_partitioned_and_deferrable = new.partitions.is_some() && !deferrable(index).is_empty();
    if index.constraint.as_deref() == Some("x") || is_partitioned_and_deferrable {
        let definition = sides.rename(index.constraint_definition.as_deref().unwrap_or_default());
        let add = format!("alter table {table} add constraint {} {definition}", quote(&name));
        return Attached {
            is_automatic: false,
            trial: sides.trial("alter table", &format!("add {definition}")),
            ..attached(&index.name, what, vec![statement(add)])
        };
    }
    let on = format!("using {}", in_its_tablespace(sides, index));
    let create = if index.is_unique { "create unique index on" } else { "create index on" };
    let trial = sides.trial(create, &on);
    let mut steps = vec![Step::Index { name: name.clone(), is_unique: index.is_unique, on }];
    if let Some(constraint) = constraint_of(sides, index, new) {
        steps.push(constraint);
        steps = with_comment(steps, table, &name, index.constraint_comment.as_ref());
    }
    if let Some(comment) = &index.comment {
        steps.push(statement(format!("comment on index {} is {}", beside(table, &name), literal(comment))));
    }
    Attached { trial, ..attached(&index.name, what, steps) }
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
    comments.extend(comments_on_objects(sides, old, new));
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

/// The comments on indexes and constraints that the library has added. An attempt may have been interrupted before them.
fn comments_on_objects(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Vec<Step> {
    let table = sides.new_table;
    let mut steps = Vec::new();
    let mut on = |what: String, comment: &Option<String>, other: &Option<String>| {
        if let (Some(comment), None) = (comment, other) {
            steps.push(statement(format!("comment on {what} is {}", literal(comment))));
        }
    };
    for index in old.indexes.iter().filter(|index| sides.concerns(&index.refers_to)) {
        let name = sides.name(&index.name);
        let Some(other) = new.indexes.iter().find(|other| other.name == name) else { continue };
        on(format!("index {}", beside(table, &name)), &index.comment, &other.comment);
        if other.constraint.is_some() {
            let constraint = format!("constraint {} on {table}", quote(&name));
            on(constraint, &index.constraint_comment, &other.constraint_comment);
        }
    }
    for constraint in old.constraints.iter().filter(|one| sides.concerns(&one.columns)) {
        let name = sides.name(&constraint.name);
        let Some(other) = new.constraints.iter().find(|other| other.name == name) else { continue };
        on(format!("constraint {} on {table}", quote(&name)), &constraint.comment, &other.comment);
    }
    for key in old.referencing.iter().filter(|key| sides.concerns(&key.referenced_columns)) {
        let name = referring_name(sides, key);
        let is_its = |other: &&ConstraintFacts| other.name == name && other.table == key.table;
        let Some(other) = new.referencing.iter().find(is_its) else { continue };
        on(format!("constraint {} on {}", quote(&name), key.table), &key.comment, &other.comment);
    }
    steps
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
        let create = |name: &str, table: &str| {
            let kinds = kinds.as_deref().unwrap_or_default();
            format!("create statistics {name}{kinds} on {} from {table}", sides.rename(on))
        };
        let step = statement(create(&quote(&sides.name(&statistics.name)), sides.new_table));
        let statement = create("pg_temp.cutover_statistics", &twin(sides.new_table));
        let trial = Some(Trial { statement, other: None, dangling: None });
        (!is_there).then(|| Attached { trial, ..attached(&statistics.name, what, vec![step]) })
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
        let filter =
            publication.filter.as_ref().map(|filter| format!(" where ({filter})")).unwrap_or_default();
        let names = |columns: &[String]| {
            let none = |name: &str| columns.iter().any(|one| one == name).then(String::new);
            rename_columns(&filter, none) != filter
        };
        let filters_old = sides.is_one_table() && names(sides.moving);
        let (what, steps) = match (&publication.columns, sides.is_one_table()) {
            // A row filter on the old side passes no row that `retire` writes. Where updates are published, its columns are part
            // of the replica identity, which is another attachment.
            (columns, true) if filters_old => {
                let what = format!("row filter{filter} of publication {name} for {table}");
                let listed = columns.as_ref().map(|columns| sides.map_all(columns).unwrap_or_default());
                let is_derived = !publication.publishes_changes
                    && !names(sides.unmatched)
                    && listed.as_ref().is_none_or(|all| !all.is_empty());
                let columns = listed.map(|all| format!(" ({})", list(&all))).unwrap_or_default();
                let both = format!(
                    "begin; alter publication {name} drop table {table}; \
                     alter publication {name} add table {table}{columns}{}; commit",
                    sides.rename(&filter)
                );
                (what, if is_derived { vec![statement(both)] } else { Vec::new() })
            }
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
                let add =
                    format!("alter publication {name} add table {table}{columns}{}", sides.rename(&filter));
                let kept: Vec<String> = old.columns.iter().map(|column| column.name.clone()).collect();
                let lost: Vec<String> = kept.into_iter().filter(|name| sides.moved(name).is_none()).collect();
                let steps = if names(&lost) { Vec::new() } else { vec![statement(add)] };
                (format!("publication {name} of {}", sides.old_table), steps)
            }
        };
        found.push(Attached { is_automatic: false, ..attached(&publication.name, what, steps) });
    }
    found
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
