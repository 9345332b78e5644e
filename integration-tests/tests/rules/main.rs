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

/// What the generator's oracle, or the rule's own test, says first about a library without this rule. With the rule, the same
/// table or test has to pass.
fn notices(program: &str, rule: &Rule) -> Outcome<Option<String>> {
    let Some((_, test)) = &rule.test else { return tables_notice(program, rule) };
    let text = run(Command::new(program).args(["--exact", test]), rule, true)?;
    let counts = |message: &String| rule.is_about_progress || !is_time_limit(message);
    let Some(message) = failure(&text).filter(counts) else { return Ok(None) };
    let with_rule = run(Command::new(program).args(["--exact", test]), rule, false)?;
    Ok(with_rule.contains("test result: ok. 1 passed").then_some(message))
}

fn tables_notice(program: &str, rule: &Rule) -> Outcome<Option<String>> {
    let kinds = kinds(rule);
    let generator = || {
        let mut command = Command::new(program);
        command
            .args(["--nocapture", "random_tables"])
            .env("CUTOVER_FUZZ_FIRST", kinds.join(" "))
            .env("CUTOVER_FUZZ_TABLE", rule.table.as_deref().unwrap_or_default())
            .env("SECONDS", env::var("SECONDS").unwrap_or_else(|_| "110".to_owned()));
        command
    };
    let text = run(&mut generator(), rule, true)?;
    let shows = |line: &&str| kinds.iter().any(|kind| line.contains(&format!(" phases: {kind}: ")));
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("CUTOVER_FUZZ_SEED="));
    let Some(line) = lines.find(|line| shows(line)) else { return Ok(None) };
    let seed = line.split(' ').next().unwrap_or_default();
    let with_rule = run(generator().env("CUTOVER_FUZZ_SEED", seed), rule, false)?;
    let passes = with_rule.contains("test result: ok. 1 passed");
    Ok(passes.then(|| line.chars().take(240).collect()))
}

/// The kinds of damage that show that a rule is left out, in the words of the generator. Neither a time limit nor an error of the
/// test itself shows anything.
fn kinds(rule: &Rule) -> Vec<&'static str> {
    let mut kinds = vec!["lost", "wrong", "stale", "orphan", "refused", "misjudged", "schema"];
    kinds.extend(rule.is_about_progress.then_some("stuck"));
    kinds
}

/// Whether a test failed because it waited for too long.
fn is_time_limit(message: &str) -> bool {
    ["TimedOut", "Elapsed", "deadline"].iter().any(|words| message.contains(words))
}

/// The first words about the failure of the test.
fn failure(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("\nfailures:\n")?;
    let is_title = |line: &str| {
        line.is_empty()
            || line.starts_with("---- ")
            || line.contains(" panicked at ")
            || line.starts_with("note: ")
    };
    // The text that a test prints comes before that of its failure.
    let panicked = rest
        .split_once(" panicked at ")
        .map(|(_, after)| after.split_once('\n').map_or("", |(_, text)| text));
    let error = rest.lines().find(|line| line.starts_with("Error: "));
    let message = panicked.or(error)?.lines().find(|line| !is_title(line))?;
    Some(message.chars().take(240).collect())
}

/// What the program prints, without the rule or with it.
fn run(command: &mut Command, rule: &Rule, is_removed: bool) -> Outcome<String> {
    let output = command
        .current_dir(root().join("integration-tests"))
        .env("CUTOVER_REMOVED_RULE", if is_removed { &*rule.name } else { "" })
        .env("RUST_BACKTRACE", "0")
        .stderr(Stdio::null())
        .output()?;
    let name = format!("{}{}.log", rule.name, if is_removed { "" } else { "-kept" });
    fs::write(source::folder().join(name), &output.stdout)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
