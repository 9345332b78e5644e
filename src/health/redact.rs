/// The limit for texts on a health page. Error texts of drivers can be longer.
const MAX_CHARS: usize = 400;

/// Prepares a text for a page that is readable in the whole cluster: it removes the userinfo of URLs and the values of
/// `password=`, `token=` and `secret=`, makes it one line, and cuts it to a few hundred characters.
///
/// It removes too much rather than too little. A password can contain any character except a blank, so everything
/// between `://` and the last `@` of a word is removed.
pub(super) fn redact(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let clean: Vec<_> = words
        .filter(|word| !word.is_empty())
        .map(|word| without_password_value(&without_userinfo(word)))
        .collect();
    clean.join(" ").chars().take(MAX_CHARS).collect()
}

fn without_userinfo(word: &str) -> String {
    match (word.find("://"), word.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            format!("{}://***{}", &word[..scheme], &word[at..])
        }
        _ => word.to_owned(),
    }
}

fn without_password_value(word: &str) -> String {
    let lower = word.to_ascii_lowercase();
    for key in ["password=", "password:", "token=", "secret="] {
        if let Some(start) = lower.find(key) {
            return format!("{}***", &word[..start + key.len()]);
        }
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn passwords_are_removed_in_every_form() {
        for text in [
            "connect to postgres://user:hunter2@db:5432/app failed",
            "postgres://user:hunt@hunter2/er@db/app",
            "redis://:hunter2@cache",
            "host=db password=hunter2 user=me",
            "host=db PASSWORD='hunter2' user=me",
            "bad url \"postgres://me:hunter2@db\"",
            "postgres://db/app?password=hunter2&x=y",
        ] {
            let clean = redact(text);
            assert!(!clean.contains("hunter2"), "{clean}");
        }
    }

    #[test]
    fn text_without_secrets_is_kept() {
        assert_eq!(
            redact("connect to postgres://me:pw@db:5432/app: refused"),
            "connect to postgres://***@db:5432/app: refused"
        );
        assert_eq!(redact("mail a@b about http://x/"), "mail a@b about http://x/");
    }

    #[test]
    fn a_text_becomes_one_short_line() {
        let clean = redact(&format!("a\r\nb\u{0}c {}", "ä".repeat(1000)));
        assert!(clean.starts_with("a b c ä"));
        assert_eq!(clean.chars().count(), super::MAX_CHARS);
    }
}
