//! Holds the imports against the map in `ARCHITECTURE.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

/// A module imports only from floors below its own; rooms of one floor never import each other.
const FLOORS: [&[&str]; 8] = [
    &["release"],
    &["metrics"],
    &["health"],
    &["fleet"],
    &["drain", "flags", "pool", "session"],
    &["migration"],
    &["preflight"],
    &["front"],
];

/// The same inside of `migration`.
const MIGRATION_FLOORS: [&[&str]; 3] = [&["phase"], &["control"], &["data"]];

/// Words that must not appear in the code of a room, except in the rooms named.
const ABSENCES: [(&str, &[&str]); 3] = [
    // Who is configured by whom is visible in one place.
    ("std::env", &["release", "front"]),
    ("env::var", &["release", "front"]),
    // The process belongs to whoever wrote `main`.
    ("process::exit", &[]),
];

fn floor(floors: &[&[&str]], room: &str) -> Option<usize> {
    floors.iter().position(|rooms| rooms.contains(&room))
}

/// The rooms that a line of code names by their path from the crate's root.
fn imports<'a>(line: &'a str, root: &'a str) -> impl Iterator<Item = &'a str> {
    let code = line.split("//").next().unwrap_or_default();
    code.split(root)
        .skip(1)
        .flat_map(|rest| {
            let rest = rest.strip_prefix('{').unwrap_or(rest);
            rest.split(',').map(|name| name.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next())
        })
        .flatten()
}

fn violations(file: &Path, text: &str) -> Vec<String> {
    let parts: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
    let room = parts[0].trim_end_matches(".rs");
    let mut found = Vec::new();
    let mut check = |floors: &[&[&str]], from: &str, to: &str, number: usize| {
        let (Some(own), Some(other)) = (floor(floors, from), floor(floors, to)) else { return };
        if from != to && other >= own {
            found.push(format!("{}:{number}: `{from}` imports `{to}`", file.display()));
        }
    };
    for (number, line) in text.lines().enumerate() {
        // Tests may reach up: they build whole things.
        if line.contains("#[cfg(test)]")
            && !line.contains("mod tests;")
            && text.lines().nth(number + 1).is_some_and(|next| next.contains("mod tests {"))
        {
            break;
        }
        for to in imports(line, "crate::") {
            check(&FLOORS, room, to, number + 1);
        }
        if room == "migration" && parts.len() > 2 {
            for to in imports(line, "crate::migration::") {
                check(&MIGRATION_FLOORS, parts[1], to, number + 1);
            }
        }
    }
    for (word, allowed) in ABSENCES {
        let code = |line: &str| line.split("//").next().is_some_and(|code| code.contains(word));
        if !allowed.contains(&room) && text.lines().any(code) {
            found.push(format!("{}: has `{word}`", file.display()));
        }
    }
    found
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn every_import_goes_down_the_map() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut found = Vec::new();
    for path in files {
        let file = path.strip_prefix(&root).unwrap();
        if file == Path::new("lib.rs") || file.ends_with("tests.rs") || file.starts_with("bin") {
            continue;
        }
        let room = file.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        assert!(floor(&FLOORS, room).is_some(), "{room} has no floor: add it to the map");
        found.extend(violations(file, &fs::read_to_string(&path).unwrap()));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_map_is_the_one_in_the_document() {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    for room in FLOORS.iter().chain(&MIGRATION_FLOORS).flat_map(|rooms| rooms.iter()) {
        let there = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room).exists();
        assert!(!there || document.contains(&format!("`{room}`")), "{room} is not in ARCHITECTURE.md");
    }
}

#[test]
fn a_wrong_import_is_found() {
    let wrong = |file: &str, line: &str| !violations(Path::new(file), line).is_empty();
    assert!(wrong("health/page.rs", "use crate::drain::Drain;"));
    assert!(wrong("flags/layer.rs", "use crate::{health::Health, session::Store};"));
    assert!(wrong("migration/phase/line.rs", "use crate::migration::Migration;"));
    assert!(wrong("migration/control/gate.rs", "use crate::flags::Flags; use crate::migration::DualWrite;"));
    assert!(wrong("pool/guard.rs", "let url = std::env::var(\"DATABASE_URL\");"));
    assert!(!wrong(
        "front/builder.rs",
        "let url = std::env::var(\"DATABASE_URL\"); use crate::flags::Flags;"
    ));
    assert!(!wrong("migration/data/dual.rs", "use crate::migration::Migration; use crate::health::Health;"));
}
