//! What stands between a statement and the rows that it writes: rules, and triggers that fire after the guard trigger. Pure.

use super::names::{fit_name, mentions, quote};
use super::problem::PlanProblem;
use super::table::{Rule, TableFacts};
use crate::ledger::guard_triggers;

/// Rules for these events: a copy of rows, and the service, would not write what they say.
pub(crate) fn rules(table: &str, facts: &TableFacts, events: &[&str]) -> Vec<PlanProblem> {
    let matching = facts.rules.iter().filter(|rule| events.contains(&&*rule.event));
    matching
        .map(|rule| {
            let name = quote(&rule.name);
            PlanProblem::blocking(
                format!(
                    "rule {name} of {table} rewrites every {}, so a copy may not reach the rows",
                    rule.event
                ),
                format!("`alter table {table} disable rule {name}`, and use a trigger instead"),
            )
        })
        .collect()
}

/// Rules that replace an insert, and name one of these columns. They may discard an insert that does not name it.
pub(crate) fn losing_rules(table: &str, facts: &TableFacts, columns: &[String]) -> Vec<PlanProblem> {
    let names_one = |rule: &&Rule| columns.iter().any(|column| mentions(&rule.definition, column));
    let losing =
        facts.rules.iter().filter(|rule| rule.event == "INSERT" && rule.is_instead).filter(names_one);
    losing
        .map(|rule| {
            let name = quote(&rule.name);
            PlanProblem::blocking(
                format!("rule {name} of {table} replaces inserts, depending on a column that moves"),
                format!("`alter table {table} disable rule {name}`, and use a trigger instead"),
            )
        })
        .collect()
}

/// Triggers that fire after the guard trigger of columns, which maps what they are given.
pub(crate) fn late_triggers(facts: &TableFacts) -> Vec<PlanProblem> {
    let late = |name: &str| name > guard_triggers::PREFIX;
    let late = facts.triggers.iter().filter(|trigger| trigger.may_change_rows && late(&trigger.name));
    late.map(|trigger| {
        let (table, name) = (&trigger.table, quote(&trigger.name));
        let earlier = fit_name(format!("a_{}", trigger.name));
        PlanProblem::blocking(
            format!(
                "trigger {name} of {table} fires after the guard trigger, because its name comes later, so what it makes of \
                 an external write is not mapped"
            ),
            format!("`alter trigger {name} on {table} rename to {}`", quote(&earlier)),
        )
    })
    .collect()
}
