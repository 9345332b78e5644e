//! Each rule of `integration-tests/removed-rules` is left out once, and the generator of tables has to notice.
//!
//! `make fuzz-rules` builds the library once with all removals. An environment variable chooses the rule that is left out.
//! `RULES="one two"` tries these only; `SECONDS` is the limit for each.

mod compose;
mod rule;
mod source;

use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use crate::compose::find;
use crate::rule::{Rule, root, rules};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[test]
fn every_removal_applies_to_the_source() -> Outcome {
    let rules = rules()?;
    assert!(!rules.is_empty());
    for rule in &rules {
        assert!(!rule.changes.is_empty() && !rule.about.is_empty(), "{}", rule.name);
        for change in &rule.changes {
            let source = fs::read_to_string(root().join(&change.file))?;
            let at = find(&source, &change.search)
                .map_err(|e| format!("{} in {}: {e}", rule.name, change.file))?;
            let is_sql = change.file.ends_with(".sql");
            let functions = compose::functions(&source);
            let is_within = functions.iter().any(|body| body.contains(&at));
            assert!(is_sql || is_within, "{}: `{}` is not in a function", rule.name, change.search);
        }
    }
    source::composed(&rules)?;
    Ok(())
}

#[test]
#[ignore = "takes up to two minutes for each rule; `make fuzz-rules` runs it"]
fn each_removed_rule_is_noticed() -> Outcome {
    let rules = rules()?;
    let chosen = env::var("RULES").unwrap_or_default();
    let chosen = |rule: &&Rule| chosen.is_empty() || chosen.split(' ').any(|one| one == rule.name);
    let chosen: Vec<&Rule> = rules.iter().filter(chosen).collect();
    let suites = chosen.iter().map(|rule| suite(rule)).collect();
    let programs = source::build(&rules, &suites)?;
    let mut missed = Vec::new();
    for rule in chosen {
        let began = Instant::now();
        let program = programs.get(suite(rule)).ok_or_else(|| format!("no suite {}", suite(rule)))?;
        let found = notices(program, rule)?;
        let seconds = began.elapsed().as_secs();
        println!("{:28} {seconds:4} s  {}", rule.name, found.as_deref().unwrap_or("not found"));
        if found.is_none() {
            missed.push(rule.name.as_str());
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:?}");
    Ok(())
}

/// The suite that has to notice that the rule is left out.
fn suite(rule: &Rule) -> &str {
    rule.test.as_ref().map_or("fuzz", |(suite, _)| suite)
}

/// What the generator, or the rule's own test, says first about a library without this rule.
fn notices(program: &str, rule: &Rule) -> Outcome<Option<String>> {
    let mut command = Command::new(program);
    match &rule.test {
        None => command.args(["--nocapture", "random_tables"]),
        Some((_, test)) => command.args(["--exact", test]),
    };
    let output = command
        .current_dir(root().join("integration-tests"))
        .env("CUTOVER_REMOVED_RULE", &rule.name)
        .env("CUTOVER_FUZZ_FIRST", "1")
        .env("CUTOVER_FUZZ_TABLE", rule.table.as_deref().unwrap_or_default())
        .env("SECONDS", env::var("SECONDS").unwrap_or_else(|_| "110".to_owned()))
        .env("RUST_BACKTRACE", "0")
        .stderr(Stdio::null())
        .output()?;
    fs::write(source::folder().join(format!("{}.log", rule.name)), &output.stdout)?;
    let text = String::from_utf8_lossy(&output.stdout);
    if rule.test.is_some() {
        return Ok(text.lines().find(|line| line.ends_with("... FAILED")).map(str::to_owned));
    }
    let found = text.lines().find(|line| line.starts_with("CUTOVER_FUZZ_SEED="));
    Ok(found.map(|line| line.chars().take(200).collect()))
}
