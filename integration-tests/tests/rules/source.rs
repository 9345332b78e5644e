//! A copy of the sources with all removals in it, and its build.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::Outcome;
use crate::compose::{Edit, compose};
use crate::rule::{Rule, root};

const SCHEMA: &str = "src/ledger/schema/mod.rs";
/// Where the schema's statements run.
const RUNS: &str = "tx.execute(step.sql)";

/// The name of the rule that is left out, for [`compose`].
const REMOVED: &str = "
mod removed_rules {
    pub(crate) fn removed() -> &'static str {
        static REMOVED: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        REMOVED.get_or_init(|| std::env::var(\"CUTOVER_REMOVED_RULE\").unwrap_or_default())
    }
}
";

/// The files that differ from the library's own.
pub(crate) fn composed(rules: &[Rule]) -> Outcome<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let mut runs = Vec::new();
    for rule in rules {
        let mut schema = fs::read_to_string(root().join("src/ledger/schema/1.sql"))?;
        let mut is_changed = false;
        for change in rule.changes.iter().filter(|change| change.file.ends_with(".sql")) {
            schema = schema.replacen(&change.search, &change.replacement, 1);
            is_changed = true;
        }
        if is_changed {
            files.insert(format!("src/ledger/schema/{}.sql", rule.name), schema);
            runs.push((rule.name.as_str(), format!("tx.execute(include_str!(\"{}.sql\"))", rule.name)));
        }
    }
    let sources: BTreeSet<&str> = rules.iter().flat_map(|rule| &rule.changes).map(|one| &*one.file).collect();
    for file in sources.into_iter().chain([SCHEMA]).filter(|file| file.ends_with(".rs")) {
        let mut edits: Vec<Edit<'_>> = Vec::new();
        for rule in rules {
            let of_file = rule.changes.iter().filter(|change| change.file == file);
            edits.push((&rule.name, of_file.map(|one| (&*one.search, &*one.replacement)).collect()));
        }
        if file == SCHEMA {
            edits.extend(runs.iter().map(|(rule, run)| (*rule, vec![(RUNS, run.as_str())])));
        }
        let source = fs::read_to_string(root().join(file))?;
        files.insert(file.to_owned(), compose(&source, &edits).map_err(|error| format!("{file}: {error}"))?);
    }
    let library = "src/lib.rs";
    files.insert(library.to_owned(), fs::read_to_string(root().join(library))? + REMOVED);
    Ok(files)
}

/// The folder of the copy, of its build, and of what the generator prints.
pub(crate) fn folder() -> PathBuf {
    root().join("target/removed-rules")
}

/// Builds these suites over a library with all removals, and returns the path of each program.
///
/// The build has a folder of its own: cargo does not tell apart what it compiles for a workspace and for its copy.
pub(crate) fn build(rules: &[Rule], suites: &BTreeSet<&str>) -> Outcome<BTreeMap<String, String>> {
    let copy = folder().join("source");
    let listed =
        run(Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(root()))?;
    let mut files = composed(rules)?;
    fs::create_dir_all(&copy)?;
    for path in listed.lines().filter(|path| root().join(path).is_file()) {
        if !files.contains_key(path) {
            write(&copy.join(path), &fs::read(root().join(path))?)?;
        }
    }
    for path in run(Command::new("find").arg(&copy).args(["-type", "f"]))?.lines().map(PathBuf::from) {
        let name = path.strip_prefix(&copy)?.to_string_lossy().into_owned();
        if !files.contains_key(&name) && !root().join(&name).is_file() {
            fs::remove_file(path)?;
        }
    }
    while let Some((path, text)) = files.pop_first() {
        write(&copy.join(path), text.as_bytes())?;
    }
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built = Command::new(cargo)
        .args(["test", "--workspace", "--all-features", "--no-run"])
        .args(suites.iter().flat_map(|suite| ["--test", suite]))
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", folder().canonicalize()?.join("target"))
        .output()?;
    let text = String::from_utf8_lossy(&built.stderr);
    if !built.status.success() {
        return Err(format!("the build failed: {text}").into());
    }
    let programs = text.lines().filter_map(|line| {
        let (suite, program) = line.trim().strip_prefix("Executable tests/")?.split_once(" (")?;
        let suite = suite.trim_end_matches("/main.rs").trim_end_matches(".rs");
        Some((suite.to_owned(), program.strip_suffix(')')?.to_owned()))
    });
    let copy = copy.canonicalize()?;
    Ok(programs.map(|(suite, one)| (suite, copy.join(one).to_string_lossy().into_owned())).collect())
}

/// Leaves files that are the same alone, so that they are not compiled again.
fn write(path: &Path, text: &[u8]) -> Outcome {
    if fs::read(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    Ok(fs::write(path, text)?)
}

fn run(command: &mut Command) -> Outcome<String> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
