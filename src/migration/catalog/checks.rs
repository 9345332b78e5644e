//! Problems that the catalog alone shows. Pure: nothing here asks the server.

use super::names::{fit_name, mentions, quote};
use super::problem::PlanProblem;
use super::table::{ColumnFacts, ForeignKey, TableFacts};

/// What a migration assumes about a column of its new side.
pub(crate) struct NewColumnPlan<'a> {
    /// Quoted, with its schema where the user gave one.
    pub(crate) table: &'a str,
    /// As the catalog names it.
    pub(crate) name: &'a str,
    /// The type as the server writes it. `None` where it is not a type.
    pub(crate) sql_type: Option<&'a str>,
    /// Whether this migration made the column, or may use one that it did not make.
    pub(crate) may_use: bool,
}

/// Problems of any migration of this table, whose rows a guard trigger watches if `is_guarded`.
pub(crate) fn table_problems(table: &str, facts: &TableFacts, is_guarded: bool) -> Vec<PlanProblem> {
    let mut problems = Vec::new();
    if !facts.is_table() {
        let kind = match &*facts.kind {
            "v" => "a view",
            "m" => "a materialized view",
            "f" => "a foreign table",
            _ => "not a table",
        };
        problems.push(PlanProblem::blocking(
            format!("{table} is {kind}, which can have neither a guard trigger nor a key"),
            "name the table that holds the rows in the plan",
        ));
    }
    if facts.row_security {
        problems.push(row_security(table, facts));
    }
    problems.extend(hierarchy_problems(table, facts, is_guarded));
    problems
}

/// Problems of what a table is part of, and of what is part of it. Others can change this at any time.
pub(crate) fn hierarchy_problems(table: &str, facts: &TableFacts, is_guarded: bool) -> Vec<PlanProblem> {
    let mut problems = Vec::new();
    if let Some(parent) = facts.parents.first() {
        problems.push(PlanProblem::blocking(
            format!("table {table} is a partition or child of {parent}"),
            format!(
                "describe the migration of {parent} instead, or `{}`",
                match facts.is_partition {
                    true => format!("alter table {parent} detach partition {table}"),
                    false => format!("alter table {table} no inherit {parent}"),
                }
            ),
        ));
    }
    problems.extend(foreign_partitions(table, facts));
    if !facts.children.is_empty() {
        let children = facts.children.join(", ");
        if facts.kind != "p" && is_guarded {
            problems.push(PlanProblem::blocking(
                format!("the tables {children} inherit from {table}, and the guard trigger does not see writes of them"),
                format!(
                    "take them out of the inheritance (`alter table {} no inherit {table}`), or use \
                     `.without_guard_trigger()` if only the service writes them",
                    facts.children[0]
                ),
            ));
        }
    }
    problems
}

/// Of a foreign table the server changes the description only, and its rows are also written elsewhere.
pub(crate) fn foreign_partitions(table: &str, facts: &TableFacts) -> Vec<PlanProblem> {
    let problem = |partition: &String| {
        let statement = match &*facts.kind {
            "p" => format!("alter table {table} detach partition {partition}"),
            _ => format!("alter foreign table {partition} no inherit {table}"),
        };
        PlanProblem::blocking(
            format!(
                "partition {partition} of {table} is a foreign table, so neither its columns nor writes of its rows by \
                 others can be changed or seen here"
            ),
            format!("`{statement}` for the time of the migration"),
        )
    };
    facts.foreign_partitions.iter().map(problem).collect()
}

/// The table (quoted) can be changed by its owner only.
pub(crate) fn not_owner(table: &str, facts: &TableFacts) -> PlanProblem {
    PlanProblem::blocking(
        format!("role {} may not change {table}, because it is not the owner", facts.role),
        format!(
            "`grant {} to {}`, or let the owner's role run the migration",
            facts.owner,
            quote(&facts.role)
        ),
    )
}

/// The statement that frees the name of a column for the migration.
pub(crate) fn rename_away(table: &str, column: &str) -> String {
    let other = fit_name(format!("{column}_before"));
    format!("`alter table {table} rename column {} to {}`", quote(column), quote(&other))
}

/// Row security hides rows from a role that copies or checks them.
pub(crate) fn row_security(table: &str, facts: &TableFacts) -> PlanProblem {
    let role = quote(&facts.role);
    let policies = match &*facts.policies {
        [] => "no policy, so it sees no row".to_owned(),
        names => format!("policies {}", names.join(", ")),
    };
    let remedy = match facts.is_owner {
        true => {
            format!("`alter table {table} no force row level security`, or `alter role {role} bypassrls`")
        }
        false => format!("`alter role {role} bypassrls`"),
    };
    PlanProblem::blocking(
        format!(
            "row security filters the rows of {table} for role {role} ({policies}), so a copy would miss rows"
        ),
        remedy,
    )
}

/// Problems of the migration of this column. `table` is quoted, `old` is as the catalog names it.
pub(crate) fn old_column_problems(table: &str, old: &str, facts: &TableFacts) -> Vec<PlanProblem> {
    let mut problems = Vec::new();
    match facts.column(old) {
        None => problems.push(PlanProblem::blocking(
            format!("column {} of {table} does not exist", quote(old)),
            name_another(old, "", facts),
        )),
        Some(column) => {
            problems.extend(old_column(table, column));
            problems.extend(actions_on_old(table, old, facts));
        }
    }
    for trigger in facts.triggers.iter().filter(|trigger| mentions(&trigger.body, old)) {
        problems.push(PlanProblem::warning(
            format!(
                "trigger {} of {} may depend on column {}: its function {} names the column",
                quote(&trigger.name),
                trigger.table,
                quote(old),
                trigger.function
            ),
            format!(
                "change the function before `contract`, or drop it: `drop trigger {} on {}`",
                quote(&trigger.name),
                trigger.table
            ),
        ));
    }
    problems
}

/// What the role may do with the old column and not with the new one, which it has to read and write from `expand` on.
/// Privileges on a table hold for a column that is added later; those on columns do not.
pub(crate) fn privilege_problems(table: &str, old: &str, new: &str, facts: &TableFacts) -> Vec<PlanProblem> {
    let Some(of_old) = facts.column(old) else { return Vec::new() };
    let there = facts.column(new);
    let of_new = there.map_or(&facts.privileges, |column| &column.privileges);
    let lacks = of_old.privileges.iter().filter(|name| !of_new.contains(name));
    lacks
        .map(|name| {
            let (role, column) = (quote(&facts.role), quote(new));
            let grant = match there {
                Some(_) => format!("`grant {name} ({column}) on {table} to {role}`"),
                None => format!(
                    "`grant {name} on {table} to {role}`; after `expand`, a grant on column {column} can replace it"
                ),
            };
            PlanProblem::blocking(
                format!(
                    "role {role} has the privilege {} on column {} of {table}, and would not have it on column {column}, so \
                     its statements would fail from `expand` on",
                    name.to_uppercase(),
                    quote(old)
                ),
                grant,
            )
        })
        .collect()
}

/// The same for two tables (quoted).
pub(crate) fn table_privilege_problems(
    tables: [&str; 2],
    old: &TableFacts,
    new: &TableFacts,
) -> Vec<PlanProblem> {
    let lacks = old.privileges.iter().filter(|name| !new.privileges.contains(name));
    lacks
        .map(|name| {
            let role = quote(&new.role);
            PlanProblem::blocking(
                format!(
                    "role {role} has the privilege {} on {} and not on {}, so its statements would fail from `expand` on",
                    name.to_uppercase(),
                    tables[0],
                    tables[1]
                ),
                format!("`grant {name} on {} to {role}`", tables[1]),
            )
        })
        .collect()
}

/// How many letters a misspelt name may have wrong.
const MAX_EDITS: usize = 3;

/// What to do about an old column that does not exist.
fn name_another(old: &str, new: &str, facts: &TableFacts) -> String {
    let others = facts.columns.iter().filter(|column| column.name != new);
    let nearest = others.map(|column| (strsim::damerau_levenshtein(&column.name, old), &column.name)).min();
    match nearest.filter(|(edits, _)| *edits <= MAX_EDITS) {
        Some((_, name)) => format!("correct its name in `.column(…)`: did you mean {}?", quote(name)),
        None => "name an existing column in `.column(…)`".to_owned(),
    }
}

/// Why a table without the old column, but with the new one, may not have been created in this shape.
pub(crate) fn takes_over(table: &str, old: &str, new: &str, facts: &TableFacts) -> PlanProblem {
    PlanProblem::blocking(
        format!(
            "column {} of {table} does not exist, and the plan takes over column {} (`use_existing_column`) of a table \
             that holds rows, so the name of the old column may be misspelt",
            quote(old),
            quote(new)
        ),
        name_another(old, new, facts),
    )
}

/// Why this column cannot be left out of an insert, or be dropped, as far as the catalog shows it.
pub(crate) fn old_column(table: &str, old: &ColumnFacts) -> Vec<PlanProblem> {
    let column = quote(&old.name);
    let mut problems = Vec::new();
    if old.is_generated {
        problems.push(generated(table, old));
        return problems;
    }
    if old.in_primary_key {
        problems.push(PlanProblem::blocking(
            format!(
                "column {column} is part of the primary key of {table}, which would be lost when the column is dropped"
            ),
            "make an `integer` key a `bigint` with a WiderKey; for another type, move the table with a TableMigration to one whose \
             key has that type",
        ));
    } else if old.is_identity || old.sequence.is_some() {
        let sequence = old.sequence.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
        problems.push(PlanProblem::blocking(
            format!(
                "column {column} of {table} draws from a sequence{sequence} that would be dropped with it"
            ),
            "move the table with a TableMigration to one whose column draws from its own sequence",
        ));
    } else if old.not_null && !old.has_default {
        problems.push(PlanProblem::blocking(
            format!(
                "column {column} is NOT NULL without a default, so every insert would fail from `retire` on"
            ),
            format!("`alter table {table} alter column {column} drop not null`"),
        ));
    }
    problems
}

/// The server can make an ordinary column of a generated one only if it is stored.
fn generated(table: &str, found: &ColumnFacts) -> PlanProblem {
    let column = quote(&found.name);
    let remedy = match found.is_virtual {
        true => format!(
            "`alter table {table} drop column {column}, add column {column} {}`, and fill it: a virtual column stores no values",
            found.sql_type
        ),
        false => format!("`alter table {table} alter column {column} drop expression`"),
    };
    PlanProblem::blocking(format!("column {column} of {table} is generated, so it cannot be written"), remedy)
}

/// Foreign keys that change the old column when the referenced row changes, or that need it. One can be added at any time.
pub(crate) fn actions_on_old(table: &str, old: &str, facts: &TableFacts) -> Vec<PlanProblem> {
    let of_key = |key| [foreign_key(table, old, key), match_full(table, old, key)];
    facts.foreign_keys.iter().flat_map(of_key).flatten().collect()
}

/// Without one of its columns, a row does not fulfil such a key.
fn match_full(table: &str, old: &str, key: &ForeignKey) -> Option<PlanProblem> {
    let is_over_several = key.columns.len() > 1 && key.columns.iter().any(|column| column == old);
    let name = quote(&key.name);
    (is_over_several && key.definition.contains(" MATCH FULL")).then(|| {
        PlanProblem::blocking(
            format!(
                "constraint {name} of {table} ({}) is MATCH FULL, so an insert without column {} fails, as every insert would \
                 from `retire` on",
                key.definition,
                quote(old)
            ),
            format!("`alter table {table} drop constraint {name}`"),
        )
    })
}

fn foreign_key(table: &str, old: &str, key: &ForeignKey) -> Option<PlanProblem> {
    if !key.has_action || !key.columns.iter().any(|column| column == old) {
        return None;
    }
    let name = quote(&key.name);
    let end = [" ON DELETE ", " ON UPDATE "].iter().filter_map(|action| key.definition.find(action)).min();
    let plain = &key.definition[..end.unwrap_or(key.definition.len())];
    Some(PlanProblem::blocking(
        format!(
            "constraint {name} of {table} ({}) changes column {} when the referenced row changes, and the new side \
             would not change with it",
            key.definition,
            quote(old)
        ),
        format!(
            "replace it by one without an action: `alter table {table} drop constraint {name}, add constraint {name} \
             {plain} not valid`"
        ),
    ))
}

/// Problems of this column as one of the new side.
pub(crate) fn new_column_problems(plan: &NewColumnPlan<'_>, facts: &TableFacts) -> Vec<PlanProblem> {
    let (table, column) = (plan.table, quote(plan.name));
    let Some(new) = facts.column(plan.name) else { return Vec::new() };
    let mut problems = Vec::new();
    if let Some(planned) = plan.sql_type.filter(|planned| *planned != new.sql_type) {
        problems.push(PlanProblem::blocking(
            format!("column {column} of {table} exists with type {} instead of {planned}", new.sql_type),
            format!(
                "describe it with type `{}`, choose another name, or drop it: `alter table {table} drop column {column}`",
                new.sql_type
            ),
        ));
    }
    if new.is_generated {
        problems.push(generated(table, new));
    }
    if !plan.may_use {
        problems.push(PlanProblem::blocking(
            format!(
                "column {column} of {table} exists and was not added by this migration, which would overwrite its values"
            ),
            format!(
                "choose another name, drop it (`alter table {table} drop column {column}`), or use \
                 `.use_existing_column()`"
            ),
        ));
    }
    problems
}

/// Problems of this table as a new side. `has_foreign_rows`: it holds rows, and this migration neither created it nor
/// may use it. `is_made_by_plan`: it does not exist yet, and a statement of the plan makes it.
pub(crate) fn new_table_problems(
    table: &str,
    facts: &TableFacts,
    has_foreign_rows: bool,
    is_made_by_plan: bool,
) -> Vec<PlanProblem> {
    let mut problems = table_problems(table, facts, false);
    for key in facts.foreign_keys.iter().filter(|key| key.is_to_itself) {
        let name = quote(&key.name);
        problems.push(PlanProblem::blocking(
            format!(
                "constraint {name} of {table} ({}) refers to the table itself, and rows are copied in the order of the key, \
                 in which a row may come before the one that it refers to",
                key.definition
            ),
            format!(
                "{}; in `verify` run `alter table {table} add constraint {name} {} not valid`, then `alter table {table} \
                 validate constraint {name}`",
                match is_made_by_plan {
                    true => "leave it out of `.create(…)`".to_owned(),
                    false => format!("leave it out until the copy has ended: `alter table {table} drop constraint {name}`"),
                },
                key.definition.trim_end_matches(" NOT VALID")
            ),
        ));
    }
    if has_foreign_rows {
        problems.push(PlanProblem::blocking(
            format!(
                "table {table} holds rows and was not created by this migration, which would delete the rows that the \
                 old table does not have"
            ),
            format!("empty it (`truncate {table}`), choose another name, or use `.use_existing_table()`"),
        ));
    }
    problems
}
