//! The command line of cutover: what a person at a terminal, or a pipeline, asks of the ledger.

mod arguments;
mod canary;
mod console;
mod end;
mod files;
mod http;
mod ledgers;
mod preflight;
mod progress;
mod rollback;
mod step;
mod text;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use arguments::{Arguments, Command};
use clap::FromArgMatches;
use cutover::ledger::Ledger;
use cutover::migration::admin::{
    Actor, AdminError, approve, count_repairs, external_writes, history, pause_work, plan, repairs, report,
    resume_work, retry_repairs, set_phase,
};
use cutover::migration::phase::Percent;
use cutover::migration::{Desired, Phase};
use ledgers::{Database, databases};
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let matches = arguments::command().try_get_matches();
    let arguments = match matches.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(error) => return misused(&error),
    };
    match arguments.command {
        Command::Canary(canary) => return canary::run(*canary, arguments.json).await,
        Command::Completions { shell } => return completions(shell),
        Command::Man { command } => return man(command.as_deref()),
        _ => {}
    }
    let databases = match databases(&arguments) {
        Ok(databases) => databases,
        Err(problem) => {
            complain(&format!("cutover: {problem}"));
            return ExitCode::from(2);
        }
    };
    match (&arguments.command, &databases[..]) {
        (Command::Status { migration, watch }, _) if watch.watch => {
            watch::run(&databases, &arguments, migration.as_deref(), watch).await
        }
        (Command::Console(console), [first, ..]) => {
            let actor = actor(&arguments, &first.options);
            console::run(databases, console, &actor).await
        }
        (Command::Preflight(preflight), [database]) => {
            preflight::run(preflight, database.options.clone(), arguments.json).await
        }
        (Command::Preflight(_), _) => {
            complain("cutover: preflight looks at one ledger; choose it with --only");
            ExitCode::from(2)
        }
        _ => each(&databases, arguments).await,
    }
}

/// Prints help, or what is wrong with the arguments. An argument in the wrong place may be an address with a password.
fn misused(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    // The usage names options and no values.
    let clean = |line| if str::starts_with(line, "Usage:") { line.to_owned() } else { cutover::redact(line) };
    let lines: Vec<String> = text.lines().map(clean).collect();
    if !error.use_stderr() || text.lines().eq(&lines) {
        error.exit();
    }
    let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Runs the command on each ledger. One that changes something stops at the first ledger that fails.
async fn each(databases: &[Database], mut arguments: Arguments) -> ExitCode {
    let mut result = ExitCode::SUCCESS;
    for (index, database) in databases.iter().enumerate() {
        arguments.current.clone_from(&database.name);
        if let Some(name) = database.name.as_ref().filter(|_| !arguments.json) {
            print(&format!("ledger {name}\n"));
        }
        let code = match run(&arguments, database).await {
            Ok(code) => code,
            Err(error) => {
                failed(&arguments, &database.describe(&error));
                ExitCode::from(ledgers::code(&error))
            }
        };
        if code == ExitCode::SUCCESS {
            continue;
        }
        if result == ExitCode::SUCCESS {
            result = code;
        }
        let rest: Vec<&str> = databases[index + 1..].iter().filter_map(|one| one.name.as_deref()).collect();
        if arguments.command.is_change() && !rest.is_empty() {
            complain(&format!("cutover: stopped; the command did not run on ledger {}", rest.join(", ")));
            break;
        }
    }
    result
}

/// Reports why the command failed or was refused: as text, and with `--json` as a value, too.
fn failed(arguments: &Arguments, problem: &str) {
    let (value, line) = match &arguments.current {
        None => (serde_json::json!({"error": cutover::redact(problem)}), format!("cutover: {problem}")),
        Some(ledger) => (
            serde_json::json!({"ledger": ledger, "error": cutover::redact(problem)}),
            format!("cutover: ledger {ledger}: {problem}"),
        ),
    };
    if arguments.json {
        print(&format!("{value:#}\n"));
    }
    complain(&line);
}

/// Who is named in the history: `--actor` or `USER`, else the database role and this host.
fn actor(arguments: &Arguments, options: &PgConnectOptions) -> String {
    if let Some(actor) = arguments.actor.as_deref().map(str::trim).filter(|actor| !actor.is_empty()) {
        return actor.to_owned();
    }
    let named = |name: String| Some(name.trim().to_owned()).filter(|name| !name.is_empty());
    let host = std::env::var("HOSTNAME").ok().and_then(named);
    let host = host.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok().and_then(named));
    match host {
        Some(host) => format!("role {} on {host}", options.get_username()),
        None => format!("role {}", options.get_username()),
    }
}

async fn run(arguments: &Arguments, database: &Database) -> Result<ExitCode, AdminError> {
    let actor = &*actor(arguments, &database.options);
    if let Command::Install { grant_to } = &arguments.command {
        let ledger = Ledger::open(database.options.clone()).await?;
        if let Some(role) = grant_to {
            ledger.grant(role).await?;
        }
        let granted = grant_to.as_deref().map(|role| format!(" and granted to {role}")).unwrap_or_default();
        say(arguments, &"installed", || format!("schema cutover is installed{granted}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let ledger = database.ledger().await?;
    if let Some(code) = end::run(ledger, arguments, actor).await? {
        return Ok(code);
    }
    match &arguments.command {
        Command::Expand(step) => {
            return step::run(ledger, arguments, actor, step, Phase::Expand.into()).await;
        }
        Command::Backfill(step) => {
            return step::run(ledger, arguments, actor, step, Phase::Backfill.into()).await;
        }
        Command::Verify(step) => {
            return step::run(ledger, arguments, actor, step, Phase::Verify.into()).await;
        }
        Command::Ramp { step, percent } => {
            let mut to = Desired::from(Phase::Ramp);
            to.ramp = percent.and_then(Percent::new).unwrap_or(to.ramp);
            return step::run(ledger, arguments, actor, step, to).await;
        }
        Command::Switch(step) => {
            return step::run(ledger, arguments, actor, step, Phase::Switch.into()).await;
        }
        Command::Retire(step) => {
            return step::run(ledger, arguments, actor, step, Phase::Retire.into()).await;
        }
        Command::Contract(step) => return step::contract(ledger, arguments, actor, step).await,
        Command::Rollback(step) => return rollback::run(ledger, arguments, actor, step).await,
        Command::SetPhase { migration, phase, dry_run, reason } => {
            let now = plan(ledger, migration, phase.phase).await?;
            if let Some(flag) = now.desired_from.as_deref().filter(|source| *source != "ledger") {
                let problem =
                    format!("the service takes the desired phase of {migration:?} from {flag}; set it there");
                failed(arguments, &problem);
                return Ok(ExitCode::from(1));
            }
            if *dry_run {
                say(arguments, &now, || format!("dry run: nothing is changed\n{}", text::way(&now, *phase)));
                return Ok(ExitCode::SUCCESS);
            }
            set_phase(ledger, migration, *phase, Actor::with_reason(actor, reason)).await?;
            say(arguments, &phase.to_string(), || format!("{migration}: desired phase set to {phase}\n"));
        }
        Command::Approve { migration, reason } => {
            let expires = approve(ledger, migration, Actor::with_reason(actor, reason)).await?;
            say(arguments, &expires, || {
                format!(
                    "{migration}: the drop of its old side is approved; the approval expires at {expires}\n"
                )
            });
        }
        Command::Pause { migration, reason } => {
            pause_work(ledger, migration, Actor::with_reason(actor, reason)).await?;
            say(arguments, &"paused", || format!("{migration}: backfills and scans are paused\n"));
        }
        Command::Resume { migration, reason } => {
            resume_work(ledger, migration, Actor::with_reason(actor, reason)).await?;
            say(arguments, &"resumed", || format!("{migration}: backfills and scans are resumed\n"));
        }
        Command::Plan { migration, write_files: Some(directory), .. } => {
            return files::run(ledger, arguments, migration, directory).await;
        }
        Command::Repairs { migration: Some(migration), retry: true, reason, dry_run, .. } => {
            let actor = Actor::with_reason(actor, reason);
            retry(ledger, arguments, actor, migration, *dry_run).await?;
        }
        _ => show(ledger, arguments).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn retry(
    ledger: &Ledger,
    arguments: &Arguments,
    actor: Actor<'_>,
    migration: &str,
    dry_run: bool,
) -> Result<(), AdminError> {
    if dry_run {
        let rows = count_repairs(ledger, migration).await?;
        say(arguments, &rows, || format!("{migration}: would retry {}\n", text::rows(rows)));
    } else {
        let rows = retry_repairs(ledger, migration, actor).await?;
        let shown = i64::try_from(rows).unwrap_or(i64::MAX);
        say(arguments, &rows, || format!("{migration}: retrying {}\n", text::rows(shown)));
    }
    Ok(())
}

/// The commands that only read.
async fn show(ledger: &Ledger, arguments: &Arguments) -> Result<(), AdminError> {
    match &arguments.command {
        Command::Status { migration, .. } => {
            let reports = report(ledger, migration.as_deref()).await?;
            say(arguments, &reports, || text::status(&reports));
        }
        Command::Explain { migration } => {
            let reports = report(ledger, migration.as_deref()).await?;
            say(arguments, &reports, || text::explain(&reports));
        }
        Command::Plan { migration, to, .. } => {
            let report = plan(ledger, migration, *to).await?;
            say(arguments, &report, || text::plan(&report));
        }
        Command::Repairs { migration, limit, .. } => {
            let rows = repairs(ledger, migration.as_deref(), *limit).await?;
            say(arguments, &rows, || text::repairs(&rows));
        }
        Command::ExternalWrites { migration, limit } => {
            let writers = external_writes(ledger, migration.as_deref(), *limit).await?;
            say(arguments, &writers, || text::external_writes(&writers));
        }
        Command::History { migration, limit } => {
            let events = history(ledger, migration.as_deref(), *limit).await?;
            say(arguments, &events, || text::history(&events));
        }
        // The other commands have been handled.
        _ => {}
    }
    Ok(())
}

fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut arguments::command(), "cutover", &mut script);
    print(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

fn man(name: Option<&str>) -> ExitCode {
    let mut command = arguments::command();
    command.build();
    let command = match name {
        None => command,
        Some(name) => match command.find_subcommand(name) {
            Some(found) => found.clone(),
            None => {
                complain(&format!("cutover: there is no command {name:?}; `cutover --help` lists them"));
                return ExitCode::from(2);
            }
        },
    };
    let mut page = Vec::new();
    // Writing into memory does not fail.
    let _ = clap_mangen::Man::new(command).render(&mut page);
    print(&String::from_utf8_lossy(&page));
    ExitCode::SUCCESS
}

/// Prints a value as text or JSON.
fn say<T: Serialize>(arguments: &Arguments, value: &T, text: impl FnOnce() -> String) {
    let json = match &arguments.current {
        _ if !arguments.json => {
            print(&printable(&text()));
            return;
        }
        None => serde_json::to_string_pretty(value),
        Some(ledger) => serde_json::to_string_pretty(&serde_json::json!({"ledger": ledger, "result": value})),
    };
    print(&json.map_or_else(|error| format!("{error}\n"), |json| json + "\n"));
}

/// Returns `false` if standard output is closed, as in `cutover status --watch | head`. That never changes the exit status.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Writes a line to standard error, if that is open, without secrets.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(&cutover::redact(line)));
}

/// Text in which a terminal finds no commands. A reason, a key or an error may hold some, because others write them.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}
