//! Texts as literals, and names, for statements that are sent without parameters.
//!
//! A statement with parameters takes two round trips, and several statements without them are one message.

/// A text. It means the same whether or not the session has `standard_conforming_strings`.
pub(crate) fn text(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A name, quoted.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The name without its quotes, if it has them.
pub(crate) fn unquote(name: &str) -> String {
    let inner = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).unwrap_or(name);
    inner.replace("\"\"", "\"")
}

/// An array of texts.
pub(crate) fn texts<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    let quoted =
        texts.into_iter().map(|text| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")));
    format!("{}::text[]", text(&format!("{{{}}}", quoted.collect::<Vec<_>>().join(","))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_only_their_quotes() {
        for (name, plain) in [("status", "status"), ("\"Old \"\"x\"\"\"", "Old \"x\""), ("\"a\"", "a")] {
            assert_eq!(unquote(name), plain);
        }
    }

    #[test]
    fn quotes_and_backslashes_are_escaped() {
        assert_eq!(text("it's"), "'it''s'");
        assert_eq!(text(r"it's \ "), r"E'it''s \\ '");
        assert_eq!(
            texts(&["a\"b".to_owned(), r"\'".to_owned(), String::new()]),
            r#"E'{"a\\"b","\\\\''",""}'::text[]"#
        );
        assert_eq!(texts(&[]), "'{}'::text[]");
    }
}
