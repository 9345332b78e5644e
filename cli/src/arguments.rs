//! The arguments of the command line. The comments are its help texts.

use clap::{CommandFactory, Parser, Subcommand};
use cutover::migration::{Desired, Phase};

use crate::{canary, console, end, preflight, step, watch};

const NAMES: &str = "A migration is named as `name`, or as `fleet/name` if several fleets use the name.";

/// The exit statuses of a command, or of all if `command` is none.
fn exit_statuses(command: &str) -> String {
    let rows: &[(u8, &str)] = match command {
        "status" | "explain" | "plan" | "history" | "external-writes" => {
            &[(0, "Done"), (1, "There is no migration of that name"), LEDGER]
        }
        "install" => &[(0, "Done"), LEDGER],
        "expand" | "backfill" | "ramp" | "switch" | "retire" | "contract" => {
            &[(0, "Done"), (1, "Refused, or another person has set an earlier phase"), LEDGER, NOT_DONE]
        }
        "verify" => &[(0, "Done"), (1, "The sides differ, or refused"), LEDGER, NOT_DONE],
        "rollback" => &[
            (0, "Every instance reads only the old side"),
            (1, "There is no way back, or another person has set a later phase"),
            LEDGER,
            NOT_DONE,
        ],
        "preflight" => &[(0, "No problem"), (1, "Problems")],
        "console" => &[(0, "Ended by Ctrl-C"), (1, "It could not go on"), LEDGER],
        "canary" => &[
            (0, "Passed"),
            (1, "Failed"),
            (3, "Prometheus cannot be used, or has no data"),
            (4, "Too few requests to decide"),
        ],
        "completions" | "man" => &[(0, "Done")],
        "" => &[
            (0, "Done. `preflight`: no problem. `canary`: passed"),
            (
                1,
                "Refused, or there is no migration of that name. `verify`: the sides differ. `preflight`: problems. `canary`: failed",
            ),
            (3, "The ledger cannot be used. `canary`: Prometheus cannot be used"),
            (
                4,
                "Not done when the wait ended, after --timeout or Ctrl-C. `canary`: too few requests to decide",
            ),
        ],
        _ => &[(0, "Done"), (1, "Refused, or there is no migration of that name"), LEDGER],
    };
    let mut rows = rows.to_vec();
    rows.push((2, "Wrong usage"));
    rows.sort_unstable();
    rows.iter()
        .fold("Exit status:".to_owned(), |text, (code, meaning)| format!("{text}\n  {code}  {meaning}"))
}

/// The heading of the options that every command has.
const COMMON: &str = "Options of every command";
const LEDGER: (u8, &str) = (3, "The ledger cannot be used");
const NOT_DONE: (u8, &str) = (4, "Not done when the wait ended, after --timeout or Ctrl-C");

/// The command line, with the exit statuses in the help of each command.
pub(crate) fn command() -> clap::Command {
    Arguments::command().after_help(format!("{}\n\n{NAMES}", exit_statuses(""))).mut_subcommands(|sub| {
        let statuses = exit_statuses(sub.get_name());
        sub.after_help(statuses)
    })
}

impl Command {
    /// Whether it changes something. On several ledgers, such a command stops at the first that fails.
    pub(crate) fn is_change(&self) -> bool {
        match self {
            Self::Status { .. } | Self::Explain { .. } | Self::Plan { .. } => false,
            Self::History { .. } | Self::ExternalWrites { .. } => false,
            Self::Repairs { retry, .. } => *retry,
            _ => true,
        }
    }
}

/// Moves and inspects the database migrations of a fleet
#[derive(Parser)]
#[command(name = "cutover", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The database that holds the ledger, as postgres://user@host/name
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true, help_heading = COMMON)]
    pub(crate) database_url: Option<String>,
    /// One of several databases with a ledger, such as shards or regions; repeatable. With them, DATABASE_URL is not used.
    /// A command that changes something goes through them in this order, waits for each, and stops at the first that fails.
    /// CUTOVER_LEDGERS has the same, separated by spaces
    #[arg(
        long = "ledger",
        env = "CUTOVER_LEDGERS",
        hide_env_values = true,
        value_name = "NAME=URL",
        global = true, help_heading = COMMON
    )]
    pub(crate) ledgers: Vec<String>,
    /// Only this one of the ledgers
    #[arg(long, value_name = "NAME", global = true, help_heading = COMMON)]
    pub(crate) only: Option<String>,
    /// The ledger of the values that are printed, if there are several.
    #[arg(skip)]
    pub(crate) current: Option<String>,
    /// Print JSON. With --ledger, one value for each ledger
    #[arg(long, global = true, help_heading = COMMON)]
    pub(crate) json: bool,
    /// Who does this, for the history. Without it and USER: the database role and the name of this host
    #[arg(long, env = "USER", hide_env_values = true, global = true, help_heading = COMMON)]
    pub(crate) actor: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Install or upgrade schema `cutover`. Needs a role that may create schemas
    Install {
        /// Also grant this role, the one that the service uses, what it needs in the schema
        #[arg(long, value_name = "ROLE")]
        grant_to: Option<String>,
    },
    /// Show phase, blockers, progress and instances of migrations
    Status {
        /// Only this migration: `name` or `fleet/name`
        migration: Option<String>,
        #[command(flatten)]
        watch: watch::Watch,
    },
    /// Explain in sentences what migrations wait for, for how long, and which instances are involved
    Explain {
        /// Only this migration: `name` or `fleet/name`
        migration: Option<String>,
    },
    /// Show the steps ahead: what each requires, whether that holds now, and its SQL
    Plan {
        /// The migration: `name` or `fleet/name`
        migration: String,
        /// The last phase to show
        #[arg(long, value_name = "PHASE", default_value_t = Phase::Contract)]
        to: Phase,
        /// Write the schema changes as files for `sqlx migrate` or a similar tool, and show nothing. The name of the file that
        /// drops the old side, or ends a change without data, ends with `.later`: rename it when the migration is in `contract`
        #[arg(long, value_name = "DIRECTORY", conflicts_with = "to")]
        write_files: Option<std::path::PathBuf>,
    },
    /// Move from `off` to `expand`: create the new side and write both sides
    Expand(step::Step),
    /// Move from `expand` to `backfill`: copy all rows to the new side
    Backfill(step::Step),
    /// Move from `backfill` to `verify`: compare all rows of both sides
    Verify(step::Step),
    /// Move from `verify` to `ramp`: read the new side for a part of the keys
    Ramp {
        #[command(flatten)]
        step: step::Step,
        /// The part of the keys that is read from the new side
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
        percent: Option<u8>,
    },
    /// Move from `ramp` to `switch`: read the new side, and still write both
    Switch(step::Step),
    /// Move from `switch` to `retire`: write the new side only
    Retire(step::Step),
    /// Approve and move from `retire` to `contract`: drop the old side. This cannot be undone
    Contract(step::Step),
    /// Go back to reading the old side only, by the shortest safe way, from any phase before `contract`
    ///
    /// Shows the steps first: what each changes, what it requires, and how many rows the reverse backfill copies. Both sides
    /// are still written at the end. A migration that reads only the old side stays where it is.
    Rollback(step::Step),
    /// Record that a migration in `contract` is finished, after a person has dropped its old side
    Finish(end::End),
    /// Record that a migration is finished from the start: this database was created with the new side only
    ///
    /// If the migration is not in the ledger yet, name its fleet too: fleet/name.
    Baseline(end::End),
    /// Give up a migration in `off`: remove its guard trigger. Needs the rights of the table's owner
    Abandon {
        #[command(flatten)]
        end: end::End,
        /// Also drop the new side. What `expand_sql` of the plan made beside it is left
        #[arg(long)]
        drop_new_side: bool,
    },
    /// Move an ended migration to the archive, so that its name can be used again. Prints its history as JSON with --json
    Forget(end::End),
    /// Set the desired phase and return. The migration moves there, one phase at a time
    SetPhase {
        /// The migration: `name` or `fleet/name`
        migration: String,
        /// off, expand, backfill, verify, ramp or ramp:PERCENT, switch, retire or contract
        phase: Desired,
        /// Show the way there, what it requires and its SQL; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Why, for the history
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Approve the drop of the old side of a migration in `retire`
    Approve {
        /// The migration: `name` or `fleet/name`
        migration: String,
        /// Why, for the history
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Pause backfills and scans of a migration on every instance. Running batches end first
    Pause {
        /// The migration: `name` or `fleet/name`
        migration: String,
        /// Why, for the history
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Resume backfills and scans of a migration where they stopped
    Resume {
        /// The migration: `name` or `fleet/name`
        migration: String,
        /// Why, for the history
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Show rows whose sides are known to differ, with the error and the next attempt to repair them
    Repairs {
        /// Only this migration: `name` or `fleet/name`
        migration: Option<String>,
        /// Retry all repairs of the migration now, also those that were given up
        #[arg(long, requires = "migration")]
        retry: bool,
        /// With --retry: why, for the history
        #[arg(long, default_value = "", hide_default_value = true, requires = "retry")]
        reason: String,
        /// With --retry: show how many rows that would be, and change nothing
        #[arg(long, requires = "retry")]
        dry_run: bool,
        /// Show at most this many rows
        #[arg(long, value_name = "ROWS", default_value_t = 20)]
        limit: u32,
    },
    /// Show which applications write a migrating table without the library, how often and when
    ExternalWrites {
        /// Only this migration: `name` or `fleet/name`
        migration: Option<String>,
        /// Show at most this many writers
        #[arg(long, value_name = "WRITERS", default_value_t = 20)]
        limit: u32,
    },
    /// Show what happened, newest first
    History {
        /// Only this migration: `name` or `fleet/name`
        migration: Option<String>,
        /// Show at most this many events
        #[arg(long, value_name = "EVENTS", default_value_t = 20)]
        limit: u32,
    },
    /// Serve a web page that shows the migrations of this database, live, and can move them
    Console(console::Console),
    /// Report every problem that a new build would have in this environment
    ///
    /// Without the build's code this cannot check everything. The service's own binary runs all checks when it is
    /// started with CUTOVER_PREFLIGHT=1.
    Preflight(Box<preflight::Arguments>),
    /// Compare a canary with the stable version by their metrics in Prometheus
    Canary(Box<canary::Canary>),
    /// Print a completion script for a shell
    ///
    /// For example: cutover completions bash > /etc/bash_completion.d/cutover
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or that of one command
    ///
    /// For example: cutover man | man -l -
    Man {
        /// The command
        command: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_of_every_command_lists_exit_statuses() {
        let mut command = command();
        command.build();
        command.clone().debug_assert();
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            let help = sub.render_help().to_string();
            assert!(help.contains("Exit status:\n  0  ") && help.contains("\n  2  Wrong usage"), "{help}");
        }
    }
}
