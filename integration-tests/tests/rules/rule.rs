//! The files in `integration-tests/removed-rules`.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// A rule of the library, and how to leave it out.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    /// What the rule says, and why the generator cannot notice its removal.
    pub(crate) about: String,
    /// The suite and the name of the test that notices it if the generator cannot.
    pub(crate) test: Option<(String, String)>,
    /// What the tables have to have that show it, as their description contains it.
    pub(crate) table: Option<String>,
    /// Whether what it costs is that something does not come, or does not come to an end.
    pub(crate) is_about_progress: bool,
    pub(crate) changes: Vec<Change>,
}

/// A text of a file that occurs once, and what replaces it.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) file: String,
    pub(crate) search: String,
    pub(crate) replacement: String,
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rules in the order of their names.
///
/// A file begins with text about the rule, and perhaps with `test: suite name`, or with `table: ` and a text that the
/// description of a generated table has to contain. The line `notices: time limit` says that something does not come, or does not
/// come to an end, without the rule. Each line `@@ path` begins a change: lines with `-` are searched, and lines with
/// `+` replace them. The first and the last line may be parts of lines.
pub(crate) fn rules() -> io::Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for entry in fs::read_dir(root().join("integration-tests/removed-rules"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rule") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            rules.push(parse(name, &fs::read_to_string(&path)?));
        }
    }
    rules.sort_by(|one: &Rule, other| one.name.cmp(&other.name));
    Ok(rules)
}

fn parse(name: String, text: &str) -> Rule {
    let mut rule = Rule {
        name,
        about: String::new(),
        test: None,
        table: None,
        is_about_progress: false,
        changes: Vec::new(),
    };
    for line in text.lines() {
        let add = |to: &mut String, part: &str| {
            if !to.is_empty() {
                to.push('\n');
            }
            to.push_str(part);
        };
        if let Some(file) = line.strip_prefix("@@ ") {
            rule.changes.push(Change { file: file.to_owned(), ..Change::default() });
        } else if let Some(change) = rule.changes.last_mut() {
            match line.split_at_checked(1) {
                Some(("-", part)) => add(&mut change.search, part),
                Some(("+", part)) => add(&mut change.replacement, part),
                _ => {}
            }
        } else if let Some((suite, test)) = line.strip_prefix("test: ").and_then(|test| test.split_once(' '))
        {
            rule.test = Some((suite.to_owned(), test.to_owned()));
        } else if let Some(table) = line.strip_prefix("table: ") {
            rule.table = Some(table.to_owned());
        } else if line == "notices: time limit" {
            rule.is_about_progress = true;
        } else {
            add(&mut rule.about, line);
        }
    }
    rule
}
