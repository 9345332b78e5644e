use crate::config::redact;

/// The limit for texts on a health page. Error texts of drivers can be longer.
const MAX_CHARS: usize = 400;

/// Prepares a text for a page that is readable in the whole cluster: without secrets, on one line, and cut to a few hundred
/// characters.
pub(super) fn one_line(text: &str) -> String {
    let clean = redact(text);
    let words = clean.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_text_becomes_one_short_line_without_secrets() {
        let clean = one_line(&format!("a\r\nb\u{0}c token=hunter2 {}", "ä".repeat(1000)));
        assert!(clean.starts_with("a b c token=*** ä"), "{clean}");
        assert_eq!(clean.chars().count(), super::MAX_CHARS);
    }
}
