//! Names of tables and columns: which of them are accepted, and how they are quoted.

use crate::config::Problem;
pub(crate) use crate::ledger::literal::{quote, unquote};

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

pub(crate) fn quote_table(name: &str) -> String {
    name.split('.').map(quote).collect::<Vec<_>>().join(".")
}

/// The schema, still quoted, and the bare name of a table whose name is quoted where it has to be. No schema: `None`.
pub(crate) fn split_table(name: &str) -> (Option<&str>, String) {
    let mut is_quoted = false;
    let dot = name.find(|c| {
        is_quoted ^= c == '"';
        c == '.' && !is_quoted
    });
    match dot {
        Some(at) => (Some(&name[..at]), unquote(&name[at + 1..])),
        None => (None, unquote(name)),
    }
}

/// The quoted name of an object that is in the schema of a table (quoted).
pub(crate) fn beside(table: &str, name: &str) -> String {
    split_table(table).0.map_or_else(|| quote(name), |schema| format!("{schema}.{}", quote(name)))
}

/// A name that the server does not cut. Names that are too long end in a hash, so that two of them stay different.
pub(crate) fn fit_name(name: String) -> String {
    if name.len() <= 63 {
        return name;
    }
    // FNV-1a.
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let end = name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= 54).last();
    format!("{}_{hash:08x}", &name[..end.unwrap_or_default()])
}

/// Whether a text has this name as a word of its own.
pub(crate) fn mentions(text: &str, name: &str) -> bool {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::{beside, fit_name, quote, split_table, unquote};

    #[test]
    fn a_dot_within_quotes_does_not_end_the_schema() {
        for (table, schema, bare) in [
            ("orders", None, "orders"),
            ("\"Or.ders\"", None, "Or.ders"),
            ("shop.orders", Some("shop"), "orders"),
            ("\"my.\"\"shop\".\"Or.ders\"", Some("\"my.\"\"shop\""), "Or.ders"),
        ] {
            assert_eq!(split_table(table), (schema, bare.to_owned()));
        }
        assert_eq!(beside("\"my.shop\".orders", "by note"), "\"my.shop\".\"by note\"");
    }

    #[test]
    fn long_names_stay_different() {
        let long = |last: &str| fit_name(format!("{}{last}", "é".repeat(40)));
        assert_ne!(long("a"), long("b"));
        assert!(long("a").len() <= 63 && long("a").starts_with("ééé"));
        assert_eq!(fit_name("short".to_owned()), "short");
    }

    #[test]
    fn a_quoted_name_is_one_identifier() {
        for (name, quoted) in [("orders", "\"orders\""), ("a\"; drop", "\"a\"\"; drop\"")] {
            assert_eq!(quote(name), quoted);
            assert_eq!(unquote(quoted), name);
        }
    }
}
