//! The arguments of the command line. The comments are its help texts.

use clap::{Parser, Subcommand};
use cutover::migration::{Desired, Phase};

use crate::{canary, console, end, preflight, step};

const EXIT_STATUS: &str = "\
Exit status:
  0  Done. `preflight`: no problem. `canary`: passed
  1  Refused, or there is no migration of that name. `verify`: the sides differ.
     `preflight`: problems. `canary`: failed
  2  Wrong usage
  3  The ledger cannot be used. `canary`: Prometheus cannot be used
  4  Not done when the wait ended, after --timeout or Ctrl-C. `canary`: too few requests to decide

A migration is named as `name`, or as `fleet/name` if several fleets use the name.";

/// Moves and inspects the database migrations of a fleet
#[derive(Parser)]
#[command(name = "cutover", version, after_help = EXIT_STATUS, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The database that holds the ledger, as postgres://user@host/name
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true)]
    pub(crate) database_url: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Who does this, for the history. Default: the database role and the name of this host
    #[arg(long, env = "USER", hide_env_values = true, global = true)]
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
        /// Refresh every second until interrupted
        #[arg(long)]
        watch: bool,
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
        /// drops the old side ends with `.later`: rename it when the migration is in `contract`
        #[arg(long, value_name = "DIRECTORY", conflicts_with = "to")]
        write_files: Option<std::path::PathBuf>,
    },
    /// Move from `off` to `expand`: create the new side and write both sides
    Expand(step::Step),
    /// Move from `expand` to `backfill`: copy all rows to the new side
    Backfill(step::Step),
    /// Move from `backfill` to `verify`: compare all rows of both sides. Exit status 1 if they differ
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
    ///
    /// Exit status: 0 every instance reads only the old side; 1 there is no way back, or another person has set a later phase;
    /// 4 not done when the wait ended.
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
        /// Also drop what `expand` made
        #[arg(long)]
        drop_new_side: bool,
    },
    /// Move an ended migration to the archive, so that its name can be used again. Prints its history as JSON with --json
    Forget {
        /// The migration: `name` or `fleet/name`
        migration: String,
        /// Show what would be archived; change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Set the desired phase and return. The migration moves there, one phase at a time
    SetPhase {
        /// The migration: `name` or `fleet/name`
        migration: String,
        /// off, expand, backfill, verify, ramp or ramp:PERCENT, switch, retire or contract
        phase: Desired,
        /// Why, for the history
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Approve the drop of the old side of a migration in `retire`
    Approve {
        /// The migration: `name` or `fleet/name`
        migration: String,
        /// Why, for the history
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Pause backfills and scans of a migration on every instance. Running batches end first
    Pause {
        /// The migration: `name` or `fleet/name`
        migration: String,
        /// Why, for the history
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Resume backfills and scans of a migration where they stopped
    Resume {
        /// The migration: `name` or `fleet/name`
        migration: String,
        /// Why, for the history
        #[arg(long, default_value = "")]
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
        #[arg(long, default_value = "", requires = "retry")]
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
    /// Report every problem that a new build would have in this environment. Exit status 1 if there is one
    ///
    /// Without the build's code this cannot check everything. The service's own binary runs all checks when it is
    /// started with CUTOVER_PREFLIGHT=1.
    Preflight(Box<preflight::Arguments>),
    /// Compare a canary with the stable version by their metrics in Prometheus
    ///
    /// Exit status: 0 passed; 1 failed; 3 Prometheus cannot be used; 4 too few requests to decide.
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
