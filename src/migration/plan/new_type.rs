//! What may stand where a column's type is described.

use crate::config::Problem;

/// Words that make more of a column than a type, each with what to use instead.
const MORE_THAN_A_TYPE: [(&[&str], &str); 6] = [
    (
        &["default"],
        "leave the default out, or set it for later inserts with `.expand_sql(\"alter table … alter column … set default …\")`",
    ),
    (&["null"], "leave it out and use `.not_null()`"),
    (
        &["serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"],
        "write `bigint` or `integer`; a column that draws from a sequence is moved with a TableMigration",
    ),
    (&["generated", "identity"], "write the type alone; such a column is moved with a TableMigration"),
    (
        &["references", "check", "constraint", "exclude"],
        "leave it out and use `.expand_sql(\"alter table … add constraint … not valid\")`",
    ),
    (&["unique", "primary"], "leave it out and use `.unique_index(…)`"),
];

/// A type is only a type: anything more would rewrite or lock the table, or give the new side values that no mapping
/// computed.
pub(crate) fn check(new_type: &str, problems: &mut Vec<Problem>) {
    let field = "column.new_type";
    let is_type = |c: char| c.is_ascii_alphanumeric() || "_ ,.()[]\"".contains(c);
    let words: Vec<String> = new_type
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .map(str::to_ascii_lowercase)
        .collect();
    let more: Vec<_> = MORE_THAN_A_TYPE
        .iter()
        .filter(|(names, _)| words.iter().any(|word| names.contains(&&**word)))
        .collect();
    for (_, remedy) in &more {
        problems.push(Problem::new(field, format!("{new_type:?} is more than a type: {remedy}")));
    }
    if more.is_empty() && (new_type.trim().is_empty() || !new_type.chars().all(is_type)) {
        problems.push(Problem::new(
            field,
            format!("{new_type:?} is not a type: write for example `text` or `numeric(12, 2)`"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_with_a_default_or_a_constraint_is_refused() {
        for text in [
            "integer default 0",
            "uuid DEFAULT gen_random_uuid()",
            "bigserial",
            "text not null",
            "bigint references customers",
            "int generated always as identity",
            "text unique",
            "",
            "text; drop table x",
        ] {
            let mut problems = Vec::new();
            check(text, &mut problems);
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        }
        for text in ["text", "numeric(12, 2)", "timestamp(3) with time zone", "text[]", "app.\"Status\""] {
            let mut problems = Vec::new();
            check(text, &mut problems);
            assert_eq!(problems, [], "{text}");
        }
    }
}
