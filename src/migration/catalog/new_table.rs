//! What others can make of a new table after `expand`. Pure.

use super::checks::{hierarchy_problems, row_security};
use super::interference::rules;
use super::names::quote;
use super::problem::PlanProblem;
use super::table::TableFacts;

/// What others may have made of the new table since `expand`, and what may keep rows from it.
pub(crate) fn new_table_now(tables: [&str; 2], old: &TableFacts, new: &TableFacts) -> Vec<PlanProblem> {
    let table = tables[1];
    let mut problems = rules(table, new, &["INSERT", "UPDATE", "DELETE"]);
    problems.extend(hierarchy_problems(table, new, false));
    problems.extend(heirs(table, new));
    if new.row_security {
        problems.push(row_security(table, new));
    }
    if new.persistence != old.persistence {
        let unlogged = if new.persistence == "u" { table } else { tables[0] };
        problems.push(PlanProblem::blocking(
            format!("table {unlogged} is unlogged and the other side is not, so a crash of the server empties one side"),
            format!("`alter table {unlogged} set logged`"),
        ));
    }
    problems
}

/// Tables that inherit from the new table. Their rows are read as rows of it, and its key does not hold for them.
pub(crate) fn heirs(table: &str, new: &TableFacts) -> Option<PlanProblem> {
    let child = new.children.first().filter(|_| new.kind != "p")?;
    Some(PlanProblem::blocking(
        format!(
            "the tables {} inherit from {table}, so their rows are read as rows of the new side, and the key of {table} does not \
             hold for them",
            new.children.join(", ")
        ),
        format!("`alter table {child} no inherit {table}`"),
    ))
}

/// From `retire` on, the old table gets no rows.
pub(crate) fn refers_to_old(tables: [&str; 2], old: &TableFacts, new: &TableFacts) -> Vec<PlanProblem> {
    let keys = new.foreign_keys.iter().filter(|key| key.referenced == old.relation);
    keys.map(|key| {
        let (name, table) = (quote(&key.name), tables[1]);
        PlanProblem::blocking(
            format!(
                "constraint {name} of {table} ({}) refers to the old table, so every insert would fail from `retire` on",
                key.definition
            ),
            format!("`alter table {table} drop constraint {name}`"),
        )
    })
    .collect()
}
