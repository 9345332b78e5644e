//! The command line of cutover: what a person at a terminal, or a pipeline, asks of the ledger.

mod arguments;
mod canary;
mod console;
mod end;
mod files;
mod http;
mod preflight;
mod progress;
mod rollback;
mod step;
mod text;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use arguments::{Arguments, Command};
use clap::{CommandFactory, Parser};
use cutover::ledger::Ledger;
use cutover::migration::admin::{
    Actor, AdminError, approve, count_repairs, external_writes, history, pause_work, plan, repairs, report,
    resume_work, retry_repairs, set_phase,
};
use cutover::migration::phase::Percent;
use cutover::migration::{Desired, Phase};
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Canary(canary) => return canary::run(*canary, arguments.json).await,
        Command::Completions { shell } => return completions(shell),
        Command::Man { command } => return man(command.as_deref()),
        _ => {}
    }
    let Some(url) = &arguments.database_url else {
        complain(
            "cutover: no database is given: set DATABASE_URL or --database-url to postgres://user@host/name",
        );
        return ExitCode::from(2);
    };
    let options = match connect_options(url) {
        Ok(options) => options.application_name("cutover command line"),
        Err(problem) => {
            // Without the URL itself, which may hold a password.
            complain(&format!(
                "cutover: the database URL cannot be used ({problem}); it looks like postgres://user@host/name"
            ));
            return ExitCode::from(2);
        }
    };
    if let Command::Preflight(preflight) = arguments.command {
        return preflight::run(*preflight, options, arguments.json).await;
    }
    match run(&arguments, options).await {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("cutover: {error}"));
            ExitCode::from(if matches!(error, AdminError::Ledger(_)) { 3 } else { 1 })
        }
    }
}

fn connect_options(url: &str) -> Result<PgConnectOptions, String> {
    // The parser accepts any scheme.
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err("it begins with neither postgres:// nor postgresql://".into());
    }
    url.parse().map_err(|error: sqlx::Error| error.to_string())
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

async fn run(arguments: &Arguments, options: PgConnectOptions) -> Result<ExitCode, AdminError> {
    let actor = &*actor(arguments, &options);
    if let Command::Install { grant_to } = &arguments.command {
        let ledger = Ledger::open(options).await?;
        if let Some(role) = grant_to {
            ledger.grant(role).await?;
        }
        let granted = grant_to.as_deref().map(|role| format!(" and granted to {role}")).unwrap_or_default();
        say(arguments, &"installed", || format!("schema cutover is installed{granted}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    // Only `install` may change the schema.
    let ledger = &Ledger::existing(options).await?;
    if let Some(code) = end::run(ledger, arguments, actor).await? {
        return Ok(code);
    }
    match &arguments.command {
        Command::Console(console) => return console::run(ledger, console, actor).await,
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
        Command::SetPhase { migration, phase, reason } => {
            let source = plan(ledger, migration, phase.phase).await?.desired_from;
            if let Some(flag) = source.filter(|source| source != "ledger") {
                complain(&format!(
                    "cutover: the service takes the desired phase of {migration:?} from {flag}; set it there"
                ));
                return Ok(ExitCode::from(1));
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
        Command::Status { migration, watch } => loop {
            let reports = report(ledger, migration.as_deref()).await?;
            let clear = if *watch { "\x1b[H\x1b[2J" } else { "" };
            let is_read = say(arguments, &reports, || format!("{clear}{}", text::status(&reports)));
            if !watch || !is_read {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        },
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
    clap_complete::generate(shell, &mut Arguments::command(), "cutover", &mut script);
    print(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

fn man(name: Option<&str>) -> ExitCode {
    let mut command = Arguments::command();
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

/// Prints a value as text or JSON. Returns `false` if standard output is closed, as in `cutover status --watch | head`.
fn say<T: Serialize>(arguments: &Arguments, value: &T, text: impl FnOnce() -> String) -> bool {
    let text = if arguments.json {
        match serde_json::to_string_pretty(value) {
            Ok(json) => json + "\n",
            Err(error) => format!("{error}\n"),
        }
    } else {
        text()
    };
    print(&text)
}

/// Returns `false` if standard output is closed. That never changes the exit status.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Writes a line to standard error, if that is open.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
