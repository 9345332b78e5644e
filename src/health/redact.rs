/// Error texts of drivers can be long; a health page is not a log.
const MAX_CHARS: usize = 400;

/// Makes a text fit for a page that anybody in the cluster can read: no user or password
/// of a URL, no `password=` value, one line, cut to a few hundred characters.
///
/// It rather removes too much: a password may hold any character but a blank, so all
/// between `://` and the last `@` of a word goes.
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
    fn no_form_of_a_password_survives() {
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
    fn the_rest_of_the_text_stays() {
        assert_eq!(
            redact("connect to postgres://me:pw@db:5432/app: refused"),
            "connect to postgres://***@db:5432/app: refused"
        );
        assert_eq!(redact("mail a@b about http://x/"), "mail a@b about http://x/");
    }

    #[test]
    fn a_text_is_one_short_line() {
        let clean = redact(&format!("a\r\nb\u{0}c {}", "ä".repeat(1000)));
        assert!(clean.starts_with("a b c ä"));
        assert_eq!(clean.chars().count(), super::MAX_CHARS);
    }
}
