//! Puts all removals into one source: each function that a rule changes chooses among its bodies by an environment variable.

use std::ops::Range;

/// A rule's name, and what replaces what in one file.
pub(crate) type Edit<'a> = (&'a str, Vec<(&'a str, &'a str)>);

/// The source with all edits. The module `removed_rules` of the crate names the rule that is left out.
pub(crate) fn compose(source: &str, edits: &[Edit<'_>]) -> Result<String, String> {
    let functions = functions(source);
    let mut composed = String::new();
    let mut copied = 0;
    for body in functions {
        let mut arms = String::new();
        for (rule, pairs) in edits {
            let mut changed = source.get(body.clone()).unwrap_or_default().to_owned();
            let mut is_changed = false;
            for (search, replacement) in pairs {
                let at = find(source, search).map_err(|error| format!("rule {rule}: {error}"))?;
                if body.contains(&at) {
                    changed = changed.replacen(search, replacement, 1);
                    is_changed = true;
                }
            }
            if is_changed {
                arms += &format!("{rule:?} => {changed}, ");
            }
        }
        if !arms.is_empty() {
            let (before, original) = (&source[copied..body.start], &source[body.clone()]);
            composed +=
                &format!("{before}{{ match crate::removed_rules::removed() {{ {arms} _ => {original} }} }}");
            copied = body.end;
        }
    }
    Ok(composed + &source[copied..])
}

/// Where the text is, which must occur once.
pub(crate) fn find(source: &str, text: &str) -> Result<usize, String> {
    let mut places = source.match_indices(text);
    match (places.next(), places.next()) {
        (Some((at, _)), None) => Ok(at),
        (None, _) => Err(format!("`{text}` does not occur")),
        _ => Err(format!("`{text}` occurs more than once")),
    }
}

/// The bodies of the outermost functions, with their braces.
pub(crate) fn functions(source: &str) -> Vec<Range<usize>> {
    let bytes = source.as_bytes();
    let (mut found, mut open) = (Vec::new(), Vec::new());
    // The nesting of parentheses at which a function was announced.
    let (mut nesting, mut announced, mut inside) = (0_i32, None, false);
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let rest = &source[at..];
        match byte {
            b'/' if rest.starts_with("//") => at += rest.find('\n').unwrap_or(rest.len()),
            b'"' => at += 1 + string_end(&rest[1..]),
            b'\'' => at += quoted(rest),
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                let word = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                let after = &rest[word..];
                if matches!(&rest[..word], "r" | "br") && after.starts_with(['"', '#']) {
                    let hashes = after.len() - after.trim_start_matches('#').len();
                    let end = format!("\"{}", "#".repeat(hashes));
                    let start = word + hashes + 1;
                    at += start + rest[start..].find(&end).map_or(0, |to| to + end.len());
                    continue;
                }
                if &rest[..word] == "fn" && after.starts_with(' ') {
                    announced = Some(nesting);
                }
                at += word;
            }
            b'{' => {
                let is_body = announced.take() == Some(nesting) && !inside;
                inside |= is_body;
                open.push((at, is_body));
                at += 1;
            }
            b'}' => {
                at += 1;
                if let Some((start, true)) = open.pop() {
                    inside = false;
                    found.push(start..at);
                }
            }
            _ => {
                match byte {
                    b'(' | b'[' => nesting += 1,
                    b')' | b']' => nesting -= 1,
                    b';' if announced == Some(nesting) => announced = None,
                    _ => {}
                }
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
    }
    found
}

/// The length of a string after its opening quote, with the closing one.
fn string_end(rest: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            '"' if !is_escaped => return at + 1,
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    rest.len()
}

/// The length of a character in quotes, or of the quote that begins the name of a lifetime.
fn quoted(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((next, _))) => {
            let after = next + 1;
            after + rest[after..].find('\'').map_or(0, |to| to + 1)
        }
        (Some(_), Some((end, '\''))) => end + 1,
        _ => 1,
    }
}
