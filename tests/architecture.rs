//! Compares the imports of the code with the map in `ARCHITECTURE.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A room imports only from floors below its own. Rooms of one floor never import each other.
const FLOORS: [&[&str]; 7] = [
    &["config"],
    &["redis", "release", "scrape", "tls"],
    &["metrics", "health", "ledger", "session"],
    &["fleet", "drain"],
    &["flags", "pool", "migration"],
    &["console", "preflight", "testing"],
    &["front"],
];

/// The same inside of `migration`.
const MIGRATION_FLOORS: [&[&str]; 8] = [
    &["phase", "catalog"],
    &["runtime"],
    &["coordinator"],
    &["admin", "dual"],
    &["batch"],
    &["schema"],
    &["plan"],
    &["mirror"],
];

/// Words that only the named rooms may have in their code.
const ABSENCES: [(&str, &[&str]); 7] = [
    // Configuration comes from one visible place.
    ("std::env", &["release", "front"]),
    ("env::var", &["release", "front"]),
    // The process belongs to the author of `main`.
    ("process::exit", &[]),
    // The library's statements have no names; see `ledger::unprepared`.
    ("sqlx::query(", &["ledger"]),
    ("sqlx::query_", &["ledger"]),
    (".prepare_cached(", &[]),
    // Advisory locks have one registry.
    ("0x435", &["ledger"]),
];

/// The guard trigger's function is generated, and calls functions of the ledger.
const GENERATED: [&str; 4] = [
    "migration/schema/commit_check.rs",
    "migration/schema/guard.rs",
    "migration/schema/guard_refusals.rs",
    "migration/schema/guard_arming.rs",
];

fn floor(floors: &[&[&str]], room: &str) -> Option<usize> {
    floors.iter().position(|rooms| rooms.contains(&room))
}

/// The code of a file without its comments and without its module of tests, with one space for every run of white space.
fn code(text: &str) -> String {
    let mut lines = Vec::new();
    let mut rest = text.lines().peekable();
    while let Some(line) = rest.next() {
        // Tests may import from above: they build whole services.
        if line.contains("#[cfg(test)]") && rest.peek().is_some_and(|next| next.contains("mod tests {")) {
            break;
        }
        lines.push(line.split("//").next().unwrap_or_default());
    }
    lines.join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every path that a `use` tree names: `a::{b, c::d}` gives `a::b` and `a::c::d`.
fn paths(tree: &str, before: &str, into: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, inner)) = tree.split_once('{').map(|(head, rest)| (head, rest.trim_end_matches('}')))
    else {
        let path = tree.split(" as ").next().unwrap_or_default();
        into.push(format!("{before}{path}"));
        return;
    };
    // The closing brace of this tree is the last one; those of inner trees are balanced.
    let inner = &tree[head.len() + 1..tree.rfind('}').unwrap_or(head.len() + 1 + inner.len())];
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[start..at].trim().is_empty() {
                    paths(&inner[start..at], &format!("{before}{head}"), into);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// What a file names of its own crate, as paths from the root: in `use` declarations and inline.
fn imports(file: &Path, text: &str) -> BTreeSet<Vec<String>> {
    let code = code(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let tree = code[at + 4..].split(';').next().unwrap_or_default();
        if tree.starts_with("crate::") || tree.starts_with("super::") {
            paths(tree, "", &mut found);
        }
    }
    for (at, _) in code.match_indices("crate::") {
        let end = code[at..]
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
            .unwrap_or(code.len() - at);
        found.push(code[at..at + end].to_owned());
    }
    let own: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
    let mut module: Vec<&str> = own.iter().map(|part| part.trim_end_matches(".rs")).collect();
    if module.last() == Some(&"mod") {
        module.pop();
    }
    let absolute = |path: &String| -> Vec<String> {
        let mut segments: Vec<&str> =
            path.split("::").map(str::trim).filter(|part| !part.is_empty()).collect();
        let mut base = Vec::new();
        if segments.first() == Some(&"super") {
            base = module.clone();
            while segments.first() == Some(&"super") {
                base.pop();
                segments.remove(0);
            }
        } else {
            segments.remove(0);
        }
        base.into_iter().chain(segments).map(str::to_owned).collect()
    };
    found.iter().map(absolute).filter(|path| !path.is_empty()).collect()
}

fn room_of(path: &[String]) -> Option<&str> {
    path.first().map(String::as_str)
}

fn violations(file: &Path, text: &str) -> Vec<String> {
    let parts: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
    let room = parts[0].trim_end_matches(".rs");
    let mut found = BTreeSet::new();
    let mut check = |floors: &[&[&str]], from: &str, to: &str| {
        let (Some(own), Some(other)) = (floor(floors, from), floor(floors, to)) else { return };
        if from != to && other >= own {
            found.insert(format!("{}: `{from}` imports `{to}`", file.display()));
        }
    };
    for path in imports(file, text) {
        check(&FLOORS, room, room_of(&path).unwrap_or_default());
        if room == "migration" && parts.len() > 2 && path[0] == "migration" {
            check(&MIGRATION_FLOORS, parts[1], path.get(1).map_or("", String::as_str));
        }
    }
    let code = code(text);
    for (word, allowed) in ABSENCES {
        if !allowed.contains(&room) && code.contains(word) {
            found.insert(format!("{}: has `{word}`", file.display()));
        }
    }
    found.into_iter().collect()
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

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The library's files, relative to `src`, with their texts.
fn files() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    sources(&src(), &mut files);
    let own = |path: &PathBuf| path.strip_prefix(src()).unwrap().to_owned();
    files
        .iter()
        .map(|path| (own(path), fs::read_to_string(path).unwrap()))
        .filter(|(file, _)| file != Path::new("lib.rs") && !file.to_string_lossy().ends_with("tests.rs"))
        .collect()
}

#[test]
fn every_import_goes_down_the_map() {
    let mut found = Vec::new();
    for (file, text) in files() {
        let room = file.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        assert!(floor(&FLOORS, room).is_some(), "{room} has no floor: add it to the map");
        found.extend(violations(&file, &text));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The texts of a file's string literals, without its comments and tests.
fn literals(text: &str) -> Vec<String> {
    // An escaped quotation mark, and one in a `char`, ends no literal.
    let code = code(text).replace("\\\"", "'").replace("'\"'", "' '");
    code.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether the text is SQL on a table or function of schema `cutover`, rather than a name in prose or a setting.
fn is_ledger_sql(text: &str) -> bool {
    let lower = text.to_lowercase();
    let after = ["from ", "join ", "update ", "into ", "select ", "table ", "on ", "perform ", ", "];
    after.iter().any(|word| {
        lower.match_indices(&format!("{word}cutover.")).any(|(at, found)| {
            let name: String = lower[at + found.len()..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            !name.is_empty() && !["pin", "copying", "rs"].contains(&&*name)
        })
    })
}

/// Statements that run outside of a transaction and are more than one message: behind a pooler, the messages may reach
/// different sessions.
fn split_statements(text: &str) -> Vec<String> {
    let code = code(text);
    let calls = ["fetch_one", "fetch_optional", "fetch_all", "execute"];
    let pools = ["pool", "&pool", "&self.pool", "self.pool()", "&self.pool()", "&*self.pool()"];
    let mut found = Vec::new();
    for (call, pool) in calls.iter().flat_map(|call| pools.map(|pool| (call, pool))) {
        for (at, call) in code.match_indices(&format!("{call}({pool})")) {
            let start = code[..at].rfind(';').map_or(0, |end| end + 1);
            if !code[start..at].contains("raw_sql(") {
                found.push(format!("{}{call}", &code[start..at]));
            }
        }
    }
    found
}

#[test]
fn a_statement_outside_of_a_transaction_is_one_message() {
    let mut found = Vec::new();
    for (file, text) in files() {
        let split = split_statements(&text);
        found.extend(split.iter().map(|one| format!("{}: use `raw_sql` for {one}", file.display())));
        // A session of its own, for what cannot run in a transaction, and a connection for the service's own statement.
        let has_session = ["migration/schema/ensure_indexes.rs", "migration/mirror/handle.rs"]
            .iter()
            .any(|one| file == Path::new(one));
        // Transactions without a time limit.
        let mut unlimited = vec!["pool.begin()", "pool().begin()"];
        unlimited.extend((!has_session).then_some("pool.acquire()"));
        unlimited.retain(|call| file.starts_with("migration") && code(&text).contains(call));
        found.extend(unlimited.iter().map(|call| format!("{}: `{call}`: use `begin_work`", file.display())));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert_eq!(split_statements("a; unprepared::query(\"x\") .fetch_one(pool).await").len(), 1);
    assert_eq!(split_statements("a; sqlx::raw_sql(\"x\").fetch_one(pool).await"), [""; 0]);
}

#[test]
fn statements_on_the_ledger_are_in_the_ledger() {
    let found: Vec<String> = files()
        .into_iter()
        .filter(|(file, text)| {
            !file.starts_with("ledger")
                && !GENERATED.iter().any(|one| file == Path::new(one))
                && literals(text).iter().any(|literal| is_ledger_sql(literal))
        })
        .map(|(file, _)| file.display().to_string())
        .collect();
    assert!(found.is_empty(), "move the statements of these files into `ledger`: {found:#?}");
}

#[test]
fn a_statement_on_the_ledger_is_found() {
    let found = |line: &str| literals(line).iter().any(|literal| is_ledger_sql(literal));
    assert!(found("query(\"update cutover.jobs set x = 1\")"));
    assert!(found("query(\"select 1 \\\n from cutover.jobs j\")"));
    assert!(found("format!(\"{limits}select paused_at from cutover.migrations\")"));
    assert!(!found("// \"update cutover.jobs\""));
    assert!(!found("let text = \"see column `desired` of `cutover.migrations`\";"));
    assert!(!found("\"set local cutover.pin = ''\""));
}

/// Files of one folder that import each other in a circle. A `mod.rs` only lists and re-exports, so it is left out.
fn cycles(files: &[(PathBuf, String)]) -> Vec<String> {
    let module = |file: &Path| {
        file.with_extension("").iter().map(|p| p.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let nodes: BTreeMap<Vec<String>, &str> = files
        .iter()
        .filter(|(file, _)| !file.ends_with("mod.rs"))
        .map(|(file, text)| (module(file), text.as_str()))
        .collect();
    let mut edges: BTreeMap<&Vec<String>, BTreeSet<&Vec<String>>> = BTreeMap::new();
    for (from, text) in &nodes {
        for path in imports(&PathBuf::from_iter(from).with_extension("rs"), text) {
            let to = (1..=path.len()).rev().find_map(|end| nodes.get_key_value(&path[..end]));
            let Some((to, _)) =
                to.filter(|(to, _)| *to != from && to[..to.len() - 1] == from[..from.len() - 1])
            else {
                continue;
            };
            edges.entry(from).or_default().insert(to);
        }
    }
    let reaches = |from: &Vec<String>, goal: &Vec<String>| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(at) = next.pop() {
            for to in edges.get(at).into_iter().flatten() {
                if *to == goal {
                    return true;
                }
                if seen.insert(*to) {
                    next.push(to);
                }
            }
        }
        false
    };
    nodes.keys().filter(|node| reaches(node, node)).map(|node| node.join("/")).collect()
}

#[test]
fn no_files_of_a_room_import_each_other_in_a_circle() {
    let found = cycles(&files());
    assert!(found.is_empty(), "in a circle of imports:\n{}", found.join("\n"));
}

/// The rows of the document's tables whose first cell is a floor's number, as `floor, rooms`.
fn documented(section: &str) -> Vec<(usize, BTreeSet<String>)> {
    let document = fs::read_to_string(src().join("../ARCHITECTURE.md")).unwrap();
    let section = document.split(section).nth(1).expect("the section");
    section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let rooms = cells[2].split('`').skip(1).step_by(2).map(str::to_owned).collect();
            Some((cells[1].parse().ok()?, rooms))
        })
        .collect()
}

#[test]
fn the_map_is_the_one_in_the_document() {
    let map = |floors: &[&[&str]]| -> Vec<(usize, BTreeSet<String>)> {
        let rooms = |floor: &&[&str]| floor.iter().map(|room| (*room).to_owned()).collect();
        floors.iter().map(rooms).enumerate().collect()
    };
    assert_eq!(documented("## The map"), map(&FLOORS));
    assert_eq!(documented("### Inside `migration`"), map(&MIGRATION_FLOORS));
}

#[test]
fn a_wrong_import_is_found() {
    let wrong = |file: &str, line: &str| !violations(Path::new(file), line).is_empty();
    assert!(wrong("health/page.rs", "use crate::drain::Drain;"));
    assert!(wrong("flags/layer.rs", "use crate::{health::Health,\n    pool::Guard};"));
    assert!(wrong("migration/phase/line.rs", "use crate::migration::runtime::Migration;"));
    assert!(wrong("migration/phase/line.rs", "use super::super::runtime::Migration;"));
    assert!(wrong("migration/runtime/gate.rs", "fn f() -> crate::migration::plan::Plan {}"));
    assert!(wrong("migration/admin/steps.rs", "use crate::migration::dual::DualWrite;"));
    assert!(wrong("pool/guard.rs", "let url = std::env::var(\"DATABASE_URL\");"));
    assert!(wrong("migration/schema/index.rs", "const LOCK: i32 = 0x4356_0000;"));
    assert!(wrong("migration/mirror/postgres.rs", "let row = sqlx::query(\"select 1\");"));
    assert!(!wrong("front/builder.rs", "let url = std::env::var(\"X\"); use crate::flags::Flags;"));
    assert!(!wrong(
        "migration/plan/column.rs",
        "use crate::migration::runtime::Migration; use crate::health::Health;"
    ));
}

#[test]
fn a_circle_of_imports_is_found() {
    let file = |name: &str, text: &str| (PathBuf::from(name), text.to_owned());
    let circle = [
        file("drain/a.rs", "use super::b::B;"),
        file("drain/b.rs", "use crate::drain::{c::C};"),
        file("drain/c.rs", "use super::a::{self, A};"),
        file("drain/d.rs", "use super::a::A;"),
    ];
    assert_eq!(cycles(&circle), ["drain/a", "drain/b", "drain/c"]);
    assert!(cycles(&circle[1..]).is_empty());
}
