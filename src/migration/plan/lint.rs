//! Checks the statements of the user with Squawk.

use squawk_linter::{Linter, Rule};
use squawk_syntax::SourceFile;

use crate::config::Problem;

/// Rules of style, and what this library does itself: every statement runs in a transaction under a `lock_timeout`.
const LEFT_OUT: [Rule; 11] = [
    Rule::PreferBigintOverInt,
    Rule::PreferBigintOverSmallint,
    Rule::PreferIdentity,
    Rule::PreferRepack,
    Rule::PreferRobustStmts,
    Rule::PreferTextField,
    Rule::PreferTimestampTz,
    Rule::BanCharField,
    Rule::RequireTimeoutSettings,
    Rule::RequireLockTimeout,
    Rule::RequireStatementTimeout,
];

/// Allows a statement that Squawk cannot parse, although this is not one of its rules.
const SYNTAX_ERROR: &str = "syntax-error";

/// Reports every broken rule that is not allowed as a problem of the statement's field. All statements are linted
/// together, because a change of a table that another of them has just created blocks no session.
pub(crate) fn check(statements: &[(&'static str, String)], allowed: &[String], problems: &mut Vec<Problem>) {
    let mut text = String::new();
    let mut ends = Vec::new();
    for (field, statement) in statements {
        let parsed = SourceFile::parse(statement);
        if let Some(error) = parsed.errors().first() {
            if !allowed.iter().any(|rule| rule == SYNTAX_ERROR) {
                problems.push(refusal(
                    field,
                    statement,
                    &format!("cannot be parsed: {}", error.message()),
                    SYNTAX_ERROR,
                ));
            }
            continue;
        }
        text.push_str(statement);
        text.push_str(";\n");
        ends.push((text.len(), *field, statement));
    }
    let mut linter = Linter::with_rules(&[], &LEFT_OUT);
    linter.settings.assume_in_transaction = true;
    for violation in linter.lint(&SourceFile::parse(&text), &text) {
        let rule = violation.code.to_string();
        let at = usize::from(violation.text_range.start());
        let Some((_, field, statement)) = ends.iter().find(|(end, ..)| at < *end) else { continue };
        // `contract` is there to drop things.
        let is_expected = *field == "contract_sql" && rule.starts_with("ban-drop-");
        if is_expected || allowed.contains(&rule) {
            continue;
        }
        let help = violation.help.map(|help| format!(" {help}")).unwrap_or_default();
        problems.push(refusal(field, statement, &format!("{}{help}", violation.message), &rule));
    }
}

fn refusal(field: &'static str, statement: &str, why: &str, rule: &str) -> Problem {
    let problem =
        format!("`{statement}`: {why} (rule `{rule}`; if it is harmless here, use `.allow(\"{rule}\")`)");
    Problem::new(field, problem)
}

/// Reports allowed names that are not rules.
pub(crate) fn check_rules(allowed: &[String], problems: &mut Vec<Problem>) {
    for name in allowed {
        if name != SYNTAX_ERROR && name.parse::<Rule>().is_err() {
            let rules = Linter::with_rules(&[], &LEFT_OUT).rules;
            let mut known: Vec<String> = rules.iter().map(ToString::to_string).collect();
            known.push(SYNTAX_ERROR.to_owned());
            known.sort();
            problems.push(Problem::new(
                "allow",
                format!("{name:?} is not a rule of Squawk; the rules are {}", known.join(", ")),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(field: &'static str, statement: &str, allowed: &[&str]) -> Vec<String> {
        let mut problems = Vec::new();
        let allowed: Vec<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        check(&[(field, statement.to_owned())], &allowed, &mut problems);
        problems.into_iter().map(|problem| problem.problem).collect()
    }

    #[test]
    fn a_blocking_statement_is_refused_unless_its_rule_is_allowed() {
        for (statement, rule) in [
            ("create index by_status on orders (status)", "require-concurrent-index-creation"),
            ("alter table orders alter column id type bigint", "changing-column-type"),
            ("alter table orders rename column a to b", "renaming-column"),
            ("alter table orders drop column note", "ban-drop-column"),
            ("alter table orders add constraint c check (a > 0)", "constraint-missing-not-valid"),
            ("alter table orders alter column a set not null", "adding-not-nullable-field"),
        ] {
            let found = problems("expand_sql", statement, &[]);
            assert!(found.iter().any(|problem| problem.contains(rule)), "{statement}: {found:?}");
            let found = problems("expand_sql", statement, &[rule]);
            assert!(!found.iter().any(|problem| problem.contains(rule)), "{statement}: {found:?}");
        }
    }

    #[test]
    fn a_harmless_statement_passes() {
        for statement in [
            "alter table orders add column if not exists note text",
            "create table notes (id int primary key, text varchar(20))",
            "comment on column orders.note is 'what was said'",
        ] {
            assert_eq!(problems("expand_sql", statement, &[]), Vec::<String>::new(), "{statement}");
        }
        assert_eq!(problems("contract_sql", "drop view old_orders", &[]), Vec::<String>::new());
        assert!(problems("expand_sql", "alter tabel orders", &[])[0].contains("allow(\"syntax-error\")"));
        assert_eq!(problems("expand_sql", "alter tabel orders", &["syntax-error"]), Vec::<String>::new());
    }

    #[test]
    fn a_table_created_by_the_plan_may_be_altered() {
        let alter = "alter table notes add constraint long check (length(text) > 3)";
        let create = "create table notes (id int primary key, text text) -- of people\n";
        let check = |statements: &[(&'static str, String)]| {
            let mut problems = Vec::new();
            check(statements, &[], &mut problems);
            problems
        };
        let (create, alter) = (("create", create.to_owned()), ("expand_sql", alter.to_owned()));
        assert_eq!(check(&[create.clone(), alter.clone()]).len(), 0);
        let found = check(&[alter]);
        assert_eq!((found.len(), &*found[0].field), (1, "expand_sql"), "{found:?}");
    }

    #[test]
    fn an_unknown_rule_is_reported() {
        let mut problems = Vec::new();
        check_rules(&["ban-everything".to_owned(), "ban-drop-view".to_owned()], &mut problems);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].problem.contains("ban-drop-table, ban-drop-type"), "{problems:?}");
    }
}
