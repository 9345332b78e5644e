//! Names of tables and columns: which of them are accepted, and how they are quoted.

use crate::config::Problem;

/// Whether the text consists of letters, digits and `_`, and so means the same quoted and in code.
pub(crate) fn is_plain(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.len() <= 63
}

pub(crate) fn check_name(field: &'static str, name: &str, problems: &mut Vec<Problem>) {
    if !is_plain(name) {
        problems.push(Problem::new(
            field,
            format!(
                "{name:?} is not a plain name: use letters, digits and `_`, at most 63, and no digit first"
            ),
        ));
    }
}

/// A table's name, which may carry its schema.
pub(crate) fn check_table(field: &'static str, name: &str, problems: &mut Vec<Problem>) {
    if name.split('.').count() > 2 || !name.split('.').all(is_plain) {
        problems.push(Problem::new(
            field,
            format!("{name:?} is not a plain name: write `orders` or `billing.orders`"),
        ));
    }
}

pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(crate) fn unquote(name: &str) -> String {
    let inner = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).unwrap_or(name);
    inner.replace("\"\"", "\"")
}

pub(crate) fn quote_table(name: &str) -> String {
    name.split('.').map(quote).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::{quote, unquote};

    #[test]
    fn a_quoted_name_is_one_identifier() {
        for (name, quoted) in [("orders", "\"orders\""), ("a\"; drop", "\"a\"\"; drop\"")] {
            assert_eq!(quote(name), quoted);
            assert_eq!(unquote(quoted), name);
        }
    }
}
