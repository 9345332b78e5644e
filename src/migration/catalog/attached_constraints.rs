//! Constraints of the old side that the new one lacks: checks, and foreign keys in both directions.

use super::attachments::{Attachments, ConstraintFacts, Partition};
use super::counterpart::{
    Attached, Counterpart, OTHER_TWIN, Step, Trial, attached, base, list, statement, twin,
};
use super::names::{fit_name, quote};
use crate::ledger::literal::text as literal;
use crate::ledger::plans::is_same_table;

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

/// The same for a foreign key. Before version 18 a partitioned table has none that is not valid, so each partition gets one of
/// its own, which the server attaches without a scan.
fn add_key(
    (table, partitions): (&str, Option<&Vec<Partition>>),
    name: &str,
    definition: &str,
    found: Option<&ConstraintFacts>,
) -> Vec<Step> {
    let (None, Some(partitions)) = (found, partitions) else {
        return add_and_validate(table, name, definition, found);
    };
    let mut steps = Vec::new();
    for partition in partitions {
        let of_partition = add_and_validate(&partition.table, name, definition, None);
        // An earlier attempt may have been interrupted.
        steps.extend(match partition.foreign_keys.get(name) {
            None => of_partition,
            Some(false) => of_partition[1..].to_vec(),
            Some(true) => Vec::new(),
        });
    }
    steps.push(statement(format!("alter table {table} add constraint {} {definition}", quote(name))));
    steps
}

/// The comment on a constraint that these steps add.
pub(super) fn with_comment(
    mut steps: Vec<Step>,
    table: &str,
    name: &str,
    comment: Option<&String>,
) -> Vec<Step> {
    steps.extend(comment.map(|comment| {
        let name = quote(name);
        statement(format!("comment on constraint {name} on {table} is {}", literal(comment)))
    }));
    steps
}

/// The checks that the new side lacks. Each of its checks stands for one of the old side: for one that reads the same, or else
/// for any over the same columns, because the mapping may ask for another expression.
pub(super) fn checks(sides: &Counterpart<'_>, old: &Attachments, new: &Attachments) -> Vec<Attached> {
    let mut free: Vec<&ConstraintFacts> = new.constraints.iter().filter(|one| one.kind == "c").collect();
    let of_side = old.constraints.iter().filter(|one| one.kind == "c" && sides.concerns(&one.columns));
    let mut wanted: Vec<&ConstraintFacts> = of_side.collect();
    let mut found = Vec::new();
    for has_text in [true, false] {
        wanted.retain(|constraint| {
            let at = free.iter().position(|other| stands_for(sides, constraint, other, has_text));
            let Some(other) = at.map(|at| free.remove(at)) else { return true };
            if constraint.is_valid && !other.is_valid {
                found.push(check(sides, constraint, Some(other)));
            }
            false
        });
    }
    found.extend(wanted.into_iter().map(|constraint| check(sides, constraint, None)));
    found
}

/// Whether a check of the new side is over the same columns, and, if it `has_text`, has the name that the library gives it or
/// reads the same.
fn stands_for(
    sides: &Counterpart<'_>,
    constraint: &ConstraintFacts,
    other: &ConstraintFacts,
    has_text: bool,
) -> bool {
    let Some(mut columns) = sides.map_all(&constraint.columns) else { return false };
    let mut others = other.columns.clone();
    columns.sort();
    others.sort();
    let plain = |text: &str| text.trim_end_matches(" NOT VALID").replace('"', "");
    let reads_same = || {
        other.name == sides.name(&constraint.name)
            || plain(&other.definition) == plain(&sides.rename(&constraint.definition))
    };
    columns == others && (!has_text || reads_same())
}

/// `found`: a check of the new side that is not validated.
fn check(sides: &Counterpart<'_>, constraint: &ConstraintFacts, found: Option<&ConstraintFacts>) -> Attached {
    let definition = constraint.definition.trim_end_matches(" NOT VALID");
    let what = format!("constraint {} of {} ({definition})", quote(&constraint.name), sides.old_table);
    if sides.map_all(&constraint.columns).is_none() {
        return attached(&constraint.name, what, Vec::new());
    }
    let renamed = sides.rename(definition);
    let expression = renamed.trim_start_matches("CHECK ").trim_end_matches(" NO INHERIT");
    let (table, name) = (sides.new_table, sides.name(&constraint.name));
    let mut steps = add_and_validate(table, &name, &renamed, found);
    if found.is_none() {
        steps = with_comment(steps, table, &name, constraint.comment.as_ref());
    }
    Attached {
        violated: Some(format!("select exists (select from {table} where not {expression})")),
        trial: sides.trial("alter table", &format!("add {renamed}")),
        ..attached(&constraint.name, what, steps)
    }
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

/// Whether rows of `table`, a twin of the one that has the key, refer to no row. `None` if they refer to each other.
pub(crate) fn refers_to_none(table: &str, key: &ConstraintFacts) -> Option<String> {
    let referenced = key.referenced.as_deref()?;
    (key.kind == "f" && !is_same_table(referenced, &key.table))
        .then(|| dangling(table, &key.columns, referenced, &key.referenced_columns))
}

pub(super) fn foreign_key(
    sides: &Counterpart<'_>,
    key: &ConstraintFacts,
    new: &Attachments,
) -> Option<Attached> {
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
    let definition_to = |target: &str| {
        let (columns, target_columns) = (list(&columns), list(&target_columns));
        let actions = sides.rename(actions(&key.definition));
        format!("foreign key ({columns}) references {target} ({target_columns}){actions}")
    };
    let is_to_itself = is_same_table(target, sides.new_table);
    let new_twin = twin(sides.new_table);
    let other_twin = if is_to_itself { &*new_twin } else { OTHER_TWIN };
    let trial = Trial {
        statement: format!("alter table {new_twin} add {}", definition_to(other_twin)),
        other: (!is_to_itself).then(|| target.to_owned()),
        dangling: (!is_to_itself).then(|| dangling(&new_twin, &columns, target, &target_columns)),
    };
    let definition = definition_to(target);
    let (table, name, found) = (sides.new_table, sides.name(&key.name), found.next());
    let mut steps = add_key((table, new.partitions.as_ref()), &name, &definition, found);
    if found.is_none() {
        steps = with_comment(steps, table, &name, key.comment.as_ref());
    }
    Some(Attached {
        violated: Some(dangling(sides.new_table, &columns, target, &target_columns)),
        other_table: Some(target.to_owned()),
        trial: Some(trial),
        ..attached(&key.name, what, steps)
    })
}

/// The name of the counterpart of a foreign key of another table.
pub(super) fn referring_name(sides: &Counterpart<'_>, key: &ConstraintFacts) -> String {
    let new_side = match (sides.is_one_table(), sides.columns) {
        (true, [(_, new), ..]) => new.clone(),
        _ => base(sides.new_table),
    };
    fit_name(format!("{}_{new_side}", key.name))
}

/// A foreign key of another table that refers to the old side.
pub(super) fn referencing(
    sides: &Counterpart<'_>,
    key: &ConstraintFacts,
    new: &Attachments,
) -> Option<Attached> {
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
    let definition_to = |target: &str| {
        let (columns, target_columns) = (list(&key.columns), list(&target_columns));
        format!("foreign key ({columns}) references {target} ({target_columns}){}", actions(&key.definition))
    };
    let statement = format!("alter table {OTHER_TWIN} add {}", definition_to(&twin(sides.new_table)));
    let trial = Some(Trial { statement, other: Some(key.table.clone()), dangling: None });
    let definition = definition_to(sides.new_table);
    let name = referring_name(sides, key);
    let found = found.next();
    let mut steps = add_key((&key.table, key.partitions.as_ref()), &name, &definition, found);
    if found.is_none() {
        steps = with_comment(steps, &key.table, &name, key.comment.as_ref());
    }
    Some(Attached {
        violated: Some(dangling(&key.table, &key.columns, sides.new_table, &target_columns)),
        other_table: Some(key.table.clone()),
        trial,
        ..attached(&key.name, what, steps)
    })
}
