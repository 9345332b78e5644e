//! Removes secrets from texts that leave the process.

use std::ops::Range;

use super::known;

/// The ends of names whose values are secret.
const NAMES: [&str; 21] = [
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
    "secret_key",
    "secret-key",
    "secretkey",
    "access_key",
    "access-key",
    "accesskey",
    "signature",
    "auth",
];
/// `://`, `@`, and what stands between a name and its value, in a text that is part of a URL.
const ENCODED_SCHEME_END: &str = "%3a%2f%2f";
const ENCODED_AT: &str = "%40";
const ENCODED_ASSIGNMENTS: [&str; 2] = ["%3d", "%3a"];
/// A private key in the form of PEM is what stands between lines with these words.
const PEM_BEGIN: &str = "-----begin ";
const PEM_END: &str = "-----end ";
/// Headers whose values are secret to the end of the line.
const HEADERS: [&str; 2] = ["authorization", "cookie"];
/// Words that are followed by a secret, and words behind them that are none.
const SCHEMES: [&str; 2] = ["bearer", "basic"];
const PROSE: [&str; 6] = ["token", "tokens", "auth", "authentication", "login", "access"];

/// Replaces secrets in `text` by `***`: the userinfo of URLs and of addresses without a scheme, the values of names such as
/// `password` and `token` in URLs, JSON, connection strings, options, SQL and `Debug` output, what follows `Authorization:`,
/// `Bearer` and `Basic`, private keys, and the secrets of this process that are [known](known::remember).
///
/// It removes too much rather than too little. A password in a URL can contain any character, so everything between `://`
/// and the last `@` of a word is removed, and a value without quotes ends only at a blank.
pub fn redact(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut secrets = [
        userinfos(&lower),
        bare_userinfos(&lower),
        values(&lower),
        credentials(&lower),
        private_keys(&lower),
        known::find(&lower),
    ]
    .concat();
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
    let starts = ["://", ENCODED_SCHEME_END].into_iter().flat_map(|separator| text.match_indices(separator));
    let starts = starts.map(|(at, separator)| at + separator.len());
    let userinfo = |start| {
        let word = until(text, start, |c| c.is_whitespace() || c.is_control());
        let word = &text[word];
        if let Some(at) = word.rfind('@').into_iter().chain(word.rfind(ENCODED_AT)).max() {
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

/// The parts of words like `user:secret@host`, which have no scheme, before the `@`.
fn bare_userinfos(text: &str) -> Vec<Range<usize>> {
    let is_end = |c: char| c.is_whitespace() || c.is_control() || "\"'`()[]{}<>,;=".contains(c);
    let ats = text.match_indices('@').map(|(at, _)| at);
    let userinfo = |at: usize| {
        let start = text[..at]
            .rfind(is_end)
            .map_or(0, |blank| blank + text[blank..].chars().next().map_or(1, char::len_utf8));
        let word = &text[start..at];
        (word.contains(':') && !word.contains("://")).then_some(start..at)
    };
    ats.filter_map(userinfo).collect()
}

/// Private keys in the form of PEM, without the lines around them. One whose end is cut off goes to the end of the text.
fn private_keys(text: &str) -> Vec<Range<usize>> {
    let begins = text.match_indices(PEM_BEGIN).map(|(at, mark)| at + mark.len());
    let key = |begin: usize| {
        let label = until(text, begin, |c| c == '-');
        let end = text[label.end..].find(PEM_END).map_or(text.len(), |end| label.end + end);
        text[label.clone()].contains("private key").then_some(label.end..end)
    };
    begins.filter_map(key).collect()
}

/// The values of names that are secret.
fn values(text: &str) -> Vec<Range<usize>> {
    let named = NAMES.iter().flat_map(|name| text.match_indices(name));
    let lines = HEADERS.iter().flat_map(|name| text.match_indices(name));
    let named = named.filter_map(|(at, name)| {
        let end = at + name.len();
        Some(value(text, behind_name(text, end).or_else(|| behind_blank(text, at, end))?))
    });
    let lines = lines.filter_map(|(at, name)| {
        let start = behind_name(text, at + name.len())?;
        let quoted = value(text, start);
        // A header's value has several words.
        let line = until(text, start, is_line_end);
        Some(if text[start..].trim_start_matches('\\').starts_with(['"', '\'']) { quoted } else { line })
    });
    named.chain(lines).collect()
}

/// The start of the value behind a name that ends at `at`, if `=`, `:` or `=>` follows it, or a comma that follows a name in
/// quotes. The name may be in quotes.
fn behind_name(text: &str, at: usize) -> Option<usize> {
    let name_end = text[at..].trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
    let unquoted = name_end.trim_start_matches(['\\', '"', '\'', '`', ']']);
    let is_quoted = unquoted.len() < name_end.len();
    let rest = unquoted.trim_start();
    let encoded = || ENCODED_ASSIGNMENTS.iter().find_map(|assignment| rest.strip_prefix(assignment));
    let pair = || rest.strip_prefix(',').filter(|_| is_quoted);
    let assigned = rest.strip_prefix("=>").or_else(|| rest.strip_prefix(['=', ':']));
    let rest = assigned.or_else(encoded).or_else(pair)?;
    // `token::parse` is a path.
    let is_path = rest.starts_with(':');
    (!is_path).then(|| text.len() - rest.trim_start().len())
}

/// The start of the value behind a name from `start` to `end` and a blank: a word in quotes, as in SQL, or any word behind
/// a command's option.
fn behind_blank(text: &str, start: usize, end: usize) -> Option<usize> {
    let rest = &text[end..];
    let value = rest.trim_start();
    let word = text[..start].rfind(char::is_whitespace).map_or(text, |blank| text[blank..].trim_start());
    let is_option = word.starts_with("--");
    let is_value = value.len() < rest.len() && (is_option || value.starts_with(['"', '\'']));
    is_value.then(|| text.len() - value.len())
}

/// A value that starts at `at`: to the closing quote, or else to the next blank that no backslash precedes.
fn value(text: &str, at: usize) -> Range<usize> {
    // `Debug` writes `Some("…")`.
    let rest = &text[at..];
    let wrapper = rest.find(['"', '\'']).filter(|quote| {
        let before = rest[..*quote].trim_end_matches('\\');
        before.is_empty() || before == "some("
    });
    let Some(quote) = wrapper else {
        let mut end = until(text, at, |c| c.is_whitespace() || c.is_control());
        while text[end.clone()].ends_with('\\') && text[end.end..].starts_with(' ') {
            end.end = until(text, end.end + 1, |c| c.is_whitespace() || c.is_control()).end;
        }
        return end;
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
            r"host=db password=a\ hunter2 user=me",
            "[(\"authorization\", \"hunter2\"), (\"accept\", \"*/*\")]",
            "[(\"x-api-key\", \"hunter2\")]",
            "AWS_SECRET_ACCESS_KEY=hunter2",
            "https://s3/x?X-Amz-Signature=hunter2&a=b",
            "create role app password 'hunter2'",
            "refused token \"hunter2\"",
            "cutover --unleash-token hunter2 canary",
            "could not resolve me:hunter2@db",
            "next=https%3A%2F%2Fme%3Ahunter2%40db%2Fapp",
            "query: a%26password%3Dhunter2",
            "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
            "key -----BEGIN PRIVATE KEY-----\nhunter2",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\\nhunter2\\n-----END ENCRYPTED PRIVATE KEY-----",
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
        for seed in 0..4_000 {
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
                format!("run with --password {word} now"),
                format!("a?next=x%26password%3D{word} failed"),
                format!("[(\"x-token\", {blank:?})]"),
                format!("-----BEGIN PRIVATE KEY-----\n{blank}\n-----END PRIVATE KEY-----"),
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
            "password authentication failed for user \"app\"",
            "git@host:path and a:b",
            r#"{"mail":"a@b"}"#,
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        ] {
            assert_eq!(redact(text), text);
        }
    }
}
