//! Removes secrets from texts that leave the process.

use std::ops::Range;

/// The ends of names whose values are secret.
const NAMES: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "pass",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "private_key",
    "credential",
    "credentials",
];
/// Headers whose values are secret to the end of the line.
const HEADERS: [&str; 2] = ["authorization", "cookie"];
/// Words that are followed by a secret, and words behind them that are none.
const SCHEMES: [&str; 2] = ["bearer", "basic"];
const PROSE: [&str; 6] = ["token", "tokens", "auth", "authentication", "login", "access"];

/// Replaces secrets in `text` by `***`: the userinfo of URLs, the values of names such as `password` and `token` in URLs,
/// JSON, connection strings and `Debug` output, and what follows `Authorization:`, `Bearer` and `Basic`.
///
/// It removes too much rather than too little. A password in a URL can contain any character, so everything between `://`
/// and the last `@` of a word is removed, and a value without quotes ends only at a blank.
pub(crate) fn redact(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut secrets = [userinfos(&lower), values(&lower), credentials(&lower)].concat();
    secrets.sort_by_key(|secret| secret.start);
    let (mut clean, mut end) = (String::with_capacity(text.len()), 0);
    for secret in secrets.into_iter().filter(|secret| !secret.is_empty()) {
        if secret.start >= end {
            clean.push_str(&text[end..secret.start]);
            clean.push_str("***");
        }
        end = end.max(secret.end);
    }
    clean + &text[end..]
}

/// From `at` to the next character for which `is_end` is true.
fn until(text: &str, at: usize, is_end: impl Fn(char) -> bool) -> Range<usize> {
    at..text[at..].find(is_end).map_or(text.len(), |end| at + end)
}

fn is_line_end(character: char) -> bool {
    matches!(character, '\r' | '\n')
}

/// The parts of URLs between `://` and the last `@`.
fn userinfos(text: &str) -> Vec<Range<usize>> {
    let starts = text.match_indices("://").map(|(at, separator)| at + separator.len());
    let userinfo = |start| {
        let word = until(text, start, |c| c.is_whitespace() || c.is_control());
        if let Some(at) = text[word.clone()].rfind('@') {
            return Some(start..start + at);
        }
        // A password may contain a blank. `user:pa` is then followed by an `@` later in the line; `host:5432` is not one.
        let authority = &text[until(text, start, |c| c.is_whitespace() || "/?#".contains(c))];
        let (_, behind) = authority.split_once(':')?;
        if behind.trim_matches(['"', '\'', ')', ',', ';', ':', '.']).bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let line = until(text, start, is_line_end);
        text[line].rfind('@').map(|at| start..start + at)
    };
    starts.filter_map(userinfo).collect()
}

/// The values of names that are secret.
fn values(text: &str) -> Vec<Range<usize>> {
    let named = NAMES.iter().flat_map(|name| text.match_indices(name));
    let lines = HEADERS.iter().flat_map(|name| text.match_indices(name));
    let named = named.filter_map(|(at, name)| Some(value(text, behind_name(text, at + name.len())?)));
    let lines = lines.filter_map(|(at, name)| {
        let start = behind_name(text, at + name.len())?;
        let quoted = value(text, start);
        // A header's value has several words.
        let line = until(text, start, is_line_end);
        Some(if text[start..].trim_start_matches('\\').starts_with(['"', '\'']) { quoted } else { line })
    });
    named.chain(lines).collect()
}

/// The start of the value behind a name that ends at `at`, if `=`, `:` or `=>` follows it. The name may be in quotes.
fn behind_name(text: &str, at: usize) -> Option<usize> {
    let rest = text[at..].trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
    let rest = rest.trim_start_matches(['\\', '"', '\'', '`', ']']).trim_start();
    let rest = rest.strip_prefix("=>").or_else(|| rest.strip_prefix(['=', ':']))?;
    // `token::parse` is a path.
    let is_path = rest.starts_with(':');
    (!is_path).then(|| text.len() - rest.trim_start().len())
}

/// A value that starts at `at`: to the closing quote, or else to the next blank.
fn value(text: &str, at: usize) -> Range<usize> {
    // `Debug` writes `Some("…")`.
    let rest = &text[at..];
    let wrapper = rest.find(['"', '\'']).filter(|quote| {
        let before = rest[..*quote].trim_end_matches('\\');
        before.is_empty() || before == "some("
    });
    let Some(quote) = wrapper else {
        return until(text, at, |c| c.is_whitespace() || c.is_control());
    };
    let escapes = rest[..quote].bytes().rev().take_while(|byte| *byte == b'\\').count();
    let mark = rest.as_bytes()[quote];
    let inside = at + quote + 1;
    let mut backslashes = 0;
    for (offset, byte) in text[inside..].bytes().enumerate() {
        match byte {
            b'\\' => backslashes += 1,
            // In JSON within JSON, the quote that ends the value has as many backslashes as the one that began it.
            _ if byte == mark && (backslashes == escapes || escapes == 0 && backslashes % 2 == 0) => {
                return inside..inside + offset - backslashes;
            }
            _ => backslashes = 0,
        }
    }
    inside..text.len()
}

/// What follows `Bearer` and `Basic`.
fn credentials(text: &str) -> Vec<Range<usize>> {
    let schemes = SCHEMES.iter().flat_map(|scheme| text.match_indices(scheme));
    let credential = |(at, scheme): (usize, &str)| {
        let rest = &text[at + scheme.len()..];
        let start = text.len() - rest.trim_start().len();
        let word = until(text, start, |c| c.is_whitespace() || c.is_control());
        let is_prose =
            PROSE.contains(&text[word.clone()].trim_end_matches(|c: char| c.is_ascii_punctuation()));
        (rest.starts_with(char::is_whitespace) && !is_prose).then_some(word)
    };
    schemes.filter_map(credential).collect()
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn secrets_are_removed_in_every_form() {
        for text in [
            "connect to postgres://user:hunter2@db:5432/app failed",
            "postgres://user:hunt@hunter2/er@db/app",
            "redis://:hunter2@cache",
            "host=db password=hunter2 user=me",
            "host=db password = hunter2 user=me",
            "host=db PASSWORD='hunt hunter2' user=me",
            "bad url \"postgres://me:hunter2@db\"",
            "postgres://db/app?password=hunter2&x=y",
            r#"{"user":"me","password":"a \" hunter2"}"#,
            r#"{"log":"{\"client_secret\":\"hunter2\"}"}"#,
            "Options { password: Some(\"a hunter2\"), port: 1 }",
            "authorization: Bearer hunter2",
            "request with Bearer hunter2 was refused",
            "Authorization: Basic aHVudGVyMg== hunter2",
            "DATABASE_PASSWORD=hunter2",
            "x-api-key: hunter2",
            "{'token' => 'hunter2'}",
        ] {
            let clean = redact(text);
            assert!(!clean.contains("hunter2") && !clean.contains("aHVudGVyMg"), "{clean}");
        }
    }

    /// A secret of random characters between two recognizable halves, in every form.
    #[test]
    fn no_part_of_a_random_secret_is_left() {
        const ODD: &[char] = &[
            '@', ':', '/', '?', '#', '%', '&', '=', ',', ';', '"', '\'', '\\', '{', '}', '(', ')', '$', '[',
            'ä', '€',
        ];
        for seed in 0..20_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let odd: String = (0..random.usize(0..6)).map(|_| random.choice(ODD).unwrap_or(&'x')).collect();
            let word = format!("hunter{odd}zebra");
            let blank = format!("hunter{odd} zebra");
            // With a blank, the end of such a password can be ambiguous.
            let unusual = blank.replace(['@', '/', '?', '#'], "");
            let json = serde_json::to_string(&blank).unwrap();
            let nested = serde_json::to_string(&format!("{{\"password\":{json}}}")).unwrap();
            let texts = [
                format!("connect to postgres://me:{word}@db:5432/app failed"),
                format!("connect to postgres://me:{unusual}@db:5432/app failed"),
                format!("redis://:{word}@cache"),
                format!("host=db password={word} user=me"),
                format!("host=db PASSWORD = {word} user=me"),
                format!("secret: {word}"),
                format!("{{\"user\":\"me\",\"token\":{json},\"x\":1}}"),
                format!("{{\"user\": \"me\", \"api_key\" : {json} }}"),
                format!("{{\"log\":{nested}}}"),
                format!("Options {{ password: Some({blank:?}), port: 1 }}"),
                format!("Authorization: Bearer {word}"),
                format!("sent bearer {word} to it"),
                format!("Cookie: id={word}; other={word}"),
            ];
            for text in texts {
                let clean = redact(&text);
                assert!(!clean.contains("hunter") && !clean.contains("zebra"), "{text}\n{clean}");
            }
        }
    }

    #[test]
    fn text_without_secrets_is_kept() {
        assert_eq!(
            redact("connect to postgres://me:pw@db:5432/app: refused"),
            "connect to postgres://***@db:5432/app: refused"
        );
        for text in [
            "mail a@b about http://x/",
            "http://db:5432: refused by a@b",
            "log in with a bearer token, or with basic authentication",
            "tokenizer::Token::parse failed",
            "pass  redis: ok",
            "the password is empty",
        ] {
            assert_eq!(redact(text), text);
        }
    }
}
