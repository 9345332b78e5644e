//! Names of tables and columns: which are accepted, and how they are quoted.

use crate::config::Problem;

/// Whether the text is a name that needs no thought: letters, digits and `_`.
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
            format!("{name:?} is no plain name: letters, digits and `_`, at most 63, no digit first"),
        ));
    }
}

/// A table's name, which may have its schema's in front.
pub(crate) fn check_table(field: &'static str, name: &str, problems: &mut Vec<Problem>) {
    if name.split('.').count() > 2 || !name.split('.').all(is_plain) {
        problems.push(Problem::new(
            field,
            format!("{name:?} is no plain name: write `orders` or `billing.orders`"),
        ));
    }
}

pub(crate) fn quote(name: &str) -> String {
    format!("\"{name}\"")
}

pub(crate) fn unquote(name: &str) -> String {
    let inner = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).unwrap_or(name);
    inner.replace("\"\"", "\"")
}

pub(crate) fn quote_table(name: &str) -> String {
    name.split('.').map(quote).collect::<Vec<_>>().join(".")
}
