//! The command line: what a person at a terminal, or a pipeline, asks of the ledger.

mod canary;
mod http;
mod moves;
mod preflight;
mod screen;
mod text;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use cutover::ledger::Ledger;
use cutover::migration::admin::{
    AdminError, approve, history, pause_work, plan, repairs, report, resume_work, retry_repairs, set_phase,
    strangers, unrepaired,
};
use cutover::migration::{Desired, Phase};
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;

/// Looks after migrations that a fleet of instances agrees on.
///
/// Exit status: 0 done; 1 refused, or nothing of that name; 2 wrong usage; 3 the ledger can't be used; 4 not done yet
/// when the waiting ended.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The database whose ledger it is
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true)]
    database_url: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Who is named in the history
    #[arg(long, env = "USER", default_value = "unknown", global = true)]
    actor: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install or upgrade schema `cutover`, with a role that may create it
    Install {
        /// Grant the use of the ledger to this role, the one that the service runs as
        #[arg(long)]
        grant_to: Option<String>,
    },
    /// Show migrations, their instances and what they wait for
    Status {
        /// Only this one: `name` or `fleet/name`
        migration: Option<String>,
        /// Show it anew every second, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Say in sentences what migrations wait for, for how long and on whom
    Explain {
        /// Only this one: `name` or `fleet/name`
        migration: Option<String>,
    },
    /// Ask for a phase: off, expand, backfill, verify, ramp[:percent], switch, retire or contract
    Desired {
        /// `name` or `fleet/name`
        migration: String,
        /// Where it shall go, one step at a time
        phase: Desired,
    },
    /// Approve that the old side of a migration in `retire` is dropped
    Approve {
        /// `name` or `fleet/name`
        migration: String,
        /// Why, for the history
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Show the steps that lie ahead: what each needs, whether it holds, and the statements
    Plan {
        /// `name` or `fleet/name`
        migration: String,
        /// As far as this phase
        #[arg(long, default_value_t = Phase::Contract)]
        to: Phase,
    },
    /// Make the new side exist and have both sides written: from `off` to `expand`
    Expand(moves::Move),
    /// Copy the rows: from `expand` to a complete new side in `backfill`; or hold up the work on rows, or let it go on
    Backfill {
        #[command(flatten)]
        go: moves::Move,
        /// Hold up the work on its rows (backfill, reverse backfill, scan) on every instance: batches under way still end
        #[arg(long, group = "what", conflicts_with_all = ["dry_run", "no_wait", "timeout"])]
        pause: bool,
        /// Let that work go on where it stopped
        #[arg(long, group = "what", conflicts_with_all = ["dry_run", "no_wait", "timeout"])]
        resume: bool,
    },
    /// Compare both sides: from `backfill` to a clean scan in `verify`; exit status 1 where they differ
    Verify(moves::Move),
    /// Approve and drop the old side: from `retire` to `contract`. There is no way back
    Contract {
        #[command(flatten)]
        go: moves::Move,
        /// Why, for the history
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Judge a canary by its metrics in Prometheus, compared with those of the stable version
    ///
    /// Exit status: 0 the canary may go on; 1 it failed; 2 wrong usage; 3 Prometheus does not answer or has no data; 4 too
    /// few requests for a verdict.
    Canary(Box<canary::Canary>),
    /// Show rows whose sides are known to differ: key, error, since when, how often it was tried
    Repairs {
        /// Only this one: `name` or `fleet/name`
        migration: Option<String>,
        /// Try all of the migration's again at once, also those that were given up
        #[arg(long, requires = "migration")]
        retry: bool,
        /// Say how many that would be; change nothing
        #[arg(long, requires = "retry")]
        dry_run: bool,
        /// How many rows
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show who writes a migrating table past the library: who, how often, since when
    Strangers {
        /// Only this one: `name` or `fleet/name`
        migration: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Say everything that would break a build here, as far as that can be told without its code
    ///
    /// Exit status: 0 no problem; 1 some.
    Preflight(Box<preflight::Arguments>),
    /// Show what happened, the latest first
    History {
        /// Only this one: `name` or `fleet/name`
        migration: Option<String>,
        /// How many events
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Canary(canary) = arguments.command {
        return canary::run(*canary, arguments.json).await;
    }
    let Some(url) = &arguments.database_url else {
        complain("cutover: no database: set DATABASE_URL or give --database-url");
        return ExitCode::from(2);
    };
    let options = match connect_options(url) {
        Ok(options) => options.application_name("cutover command line"),
        Err(problem) => {
            // Not the address itself: it may hold a password.
            complain(&format!(
                "cutover: the database's address can't be read ({problem}); it looks like postgres://user@host/name"
            ));
            return ExitCode::from(2);
        }
    };
    if let Command::Preflight(asked) = arguments.command {
        return preflight::run(*asked, options, arguments.json).await;
    }
    match run(&arguments, options).await {
        Ok(code) => code,
        Err(AdminError::Ledger(error)) => {
            complain(&format!("cutover: {error}"));
            ExitCode::from(3)
        }
        Err(error) => {
            complain(&format!("cutover: {error}"));
            ExitCode::from(1)
        }
    }
}

fn connect_options(url: &str) -> Result<PgConnectOptions, String> {
    // The parser takes any scheme for Postgres's.
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err("it begins with neither postgres:// nor postgresql://".into());
    }
    url.parse().map_err(|error: sqlx::Error| error.to_string())
}

async fn run(arguments: &Arguments, options: PgConnectOptions) -> Result<ExitCode, AdminError> {
    if let Command::Install { grant_to } = &arguments.command {
        let ledger = Ledger::open(options).await?;
        if let Some(role) = grant_to {
            ledger.grant(role).await?;
        }
        let granted = grant_to.as_deref().map(|role| format!(" and granted to {role}")).unwrap_or_default();
        say(arguments, &"installed", || format!("schema cutover is installed{granted}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    // Only `install` installs.
    let ledger = Ledger::existing(options).await?;
    match &arguments.command {
        Command::Install { .. } | Command::Canary(_) | Command::Preflight(_) => {}
        Command::Status { migration, watch } => loop {
            let reports = report(&ledger, migration.as_deref()).await?;
            let clear = if *watch { "\x1b[H\x1b[2J" } else { "" };
            let is_heard = say(arguments, &reports, || format!("{clear}{}", text::status(&reports)));
            if !watch || !is_heard {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        },
        Command::Explain { migration } => {
            let reports = report(&ledger, migration.as_deref()).await?;
            say(arguments, &reports, || reports.iter().map(text::explain).collect());
        }
        Command::Desired { migration, phase } => {
            set_phase(&ledger, migration, *phase, &arguments.actor).await?;
            say(arguments, &phase.to_string(), || format!("{migration}: asked for {phase}\n"));
        }
        Command::Approve { migration, reason } => {
            approve(&ledger, migration, &arguments.actor, reason).await?;
            say(arguments, &"approved", || format!("{migration}: the drop of its old side is approved\n"));
        }
        Command::Plan { migration, to } => {
            let report = plan(&ledger, migration, *to).await?;
            say(arguments, &report, || text::plan(&report));
        }
        Command::Expand(go) => return moves::run(&ledger, arguments, go, Phase::Expand).await,
        Command::Verify(go) => return moves::run(&ledger, arguments, go, Phase::Verify).await,
        Command::Contract { go, reason } => return moves::contract(&ledger, arguments, go, reason).await,
        Command::Backfill { go, pause: false, resume: false } => {
            return moves::run(&ledger, arguments, go, Phase::Backfill).await;
        }
        Command::Backfill { go: moves::Move { migration, .. }, pause: true, .. } => {
            pause_work(&ledger, migration, &arguments.actor).await?;
            say(arguments, &"paused", || format!("{migration}: the work on its rows is paused\n"));
        }
        Command::Backfill { go: moves::Move { migration, .. }, .. } => {
            resume_work(&ledger, migration, &arguments.actor).await?;
            say(arguments, &"resumed", || format!("{migration}: the work on its rows goes on\n"));
        }
        Command::Repairs { migration: Some(migration), retry: true, dry_run: true, .. } => {
            let rows = unrepaired(&ledger, migration).await?;
            say(arguments, &rows, || format!("{migration}: {rows} rows would be tried again\n"));
        }
        Command::Repairs { migration: Some(migration), retry: true, .. } => {
            let rows = retry_repairs(&ledger, migration, &arguments.actor).await?;
            say(arguments, &rows, || format!("{migration}: {rows} rows are tried again\n"));
        }
        Command::Repairs { migration, limit, .. } => {
            let rows = repairs(&ledger, migration.as_deref(), *limit).await?;
            say(arguments, &rows, || text::repairs(&rows));
        }
        Command::Strangers { migration, limit } => {
            let seen = strangers(&ledger, migration.as_deref(), *limit).await?;
            say(arguments, &seen, || text::strangers(&seen));
        }
        Command::History { migration, limit } => {
            let events = history(&ledger, migration.as_deref(), *limit).await?;
            say(arguments, &events, || text::history(&events));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `false` when nobody reads it any more, as after `cutover status --watch | head`.
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

/// `false` when nobody reads standard output any more; that never changes the exit status.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Says it on standard error, should anybody read that.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
