//! Commands that end a migration: finish, baseline, abandon, forget.

use std::fmt::Write;
use std::process::ExitCode;

use cutover::ledger::Ledger;
use cutover::migration::admin::{Actor, AdminError, EndReport, abandon, baseline, finish, forget};

use super::arguments::{Arguments, Command};
use super::say;

#[derive(clap::Args)]
pub(crate) struct End {
    /// The migration: `name` or `fleet/name`
    migration: String,
    /// Check everything and show what would be done; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Why, for the history
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// Runs one of the four commands; `None` if the command is another one.
pub(crate) async fn run(
    ledger: &Ledger,
    arguments: &Arguments,
    actor: &str,
) -> Result<Option<ExitCode>, AdminError> {
    let report = match &arguments.command {
        Command::Finish(End { migration, dry_run, reason }) => {
            finish(ledger, migration, Actor::with_reason(actor, reason), *dry_run).await?
        }
        Command::Baseline(End { migration, dry_run, reason }) => {
            baseline(ledger, migration, Actor::with_reason(actor, reason), *dry_run).await?
        }
        Command::Abandon { end: End { migration, dry_run, reason }, drop_new_side } => {
            abandon(ledger, migration, *drop_new_side, Actor::with_reason(actor, reason), *dry_run).await?
        }
        Command::Forget(End { migration, dry_run, reason }) => {
            forget(ledger, migration, Actor::with_reason(actor, reason), *dry_run).await?
        }
        _ => return Ok(None),
    };
    say(arguments, &report, || shown(&report));
    Ok(Some(ExitCode::SUCCESS))
}

fn shown(report: &EndReport) -> String {
    let EndReport { fleet, name, ended_as, statements, left, .. } = report;
    let mut text = match report.dry_run {
        true => format!("dry run: nothing is changed\n{fleet}/{name} would be {ended_as}\n"),
        false => format!("{fleet}/{name} is {ended_as}\n"),
    };
    for statement in statements {
        let _ = writeln!(text, "  {statement}");
    }
    if !left.is_empty() {
        let _ = writeln!(text, "what `expand` made is left; to remove it:");
    }
    for statement in left {
        let _ = writeln!(text, "  {statement}");
    }
    text
}
