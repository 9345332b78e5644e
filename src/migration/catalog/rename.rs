//! Renames columns within text that the server wrote: definitions of indexes and constraints.

/// Replaces every column name for which `map` has another name. String literals, functions and types stay as they are.
pub(crate) fn rename_columns(text: &str, map: impl Fn(&str) -> Option<String>) -> String {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut renamed) = (0, String::with_capacity(text.len()));
    while at < chars.len() {
        let start = at;
        match chars[at] {
            quote @ ('\'' | '"') => {
                at += 1;
                while at < chars.len() {
                    at += 1;
                    if chars[at - 1] != quote {
                        continue;
                    }
                    if chars.get(at) == Some(&quote) {
                        at += 1;
                    } else {
                        break;
                    }
                }
                let token: String = chars[start..at].iter().collect();
                let name = (quote == '"').then(|| super::names::unquote(&token)).and_then(|name| map(&name));
                renamed.push_str(&name.unwrap_or(token));
            }
            first if first.is_alphabetic() || first == '_' => {
                while at < chars.len() && (chars[at].is_alphanumeric() || "_$".contains(chars[at])) {
                    at += 1;
                }
                let token: String = chars[start..at].iter().collect();
                let is_type = renamed.ends_with("::");
                let is_called = chars.get(at) == Some(&'(');
                let name = (!is_type && !is_called).then(|| map(&token)).flatten();
                renamed.push_str(&name.unwrap_or(token));
            }
            other => {
                renamed.push(other);
                at += 1;
            }
        }
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_columns_are_renamed() {
        let map = |name: &str| match name {
            "status" => Some("\"new_status\"".to_owned()),
            "Odd name" => Some("\"new\"".to_owned()),
            _ => None,
        };
        for (text, expected) in [
            ("btree (status)", "btree (\"new_status\")"),
            ("CHECK ((status <> 'status'::text))", "CHECK ((\"new_status\" <> 'status'::text))"),
            ("(lower((\"Odd name\")::text), status(id))", "(lower((\"new\")::text), status(id))"),
            ("((status)::status = 'it''s status')", "((\"new_status\")::status = 'it''s status')"),
            ("(statuses, my_status)", "(statuses, my_status)"),
        ] {
            assert_eq!(rename_columns(text, map), expected);
        }
    }
}
