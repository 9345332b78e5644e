//! Constraints of the old side that the new one lacks: checks, and foreign keys in both directions.

use super::attachments::{Attachments, ConstraintFacts};
use super::counterpart::{Attached, Counterpart, Step, attached, list, statement};
use super::names::quote;
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

pub(super) fn check(
    sides: &Counterpart<'_>,
    constraint: &ConstraintFacts,
    new: &Attachments,
) -> Option<Attached> {
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
