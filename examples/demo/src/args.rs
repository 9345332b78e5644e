//! The command line and the environment.

use std::path::PathBuf;

use clap::Parser;

use crate::csv_orders::ColumnName;
use crate::gameday::GameDay;
use crate::shape::ShapeArgs;

/// Deploys a payments service twice and migrates its table from beginning to end, under load, and judges every answer
///
/// The demo starts its own servers and removes them at the end. To use yours, set DATABASE_URL, REDIS_URL and UNLEASH_URL
/// (with UNLEASH_ADMIN_TOKEN and UNLEASH_TOKEN). There it creates its own schemas and flags, and drops them at the end.
#[derive(Clone, Debug, Parser)]
#[command(name = "demo", version)]
pub(crate) struct Args {
    /// Number of orders in the table
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=50_000_000))]
    pub(crate) rows: u64,
    /// Requests per second
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    pub(crate) rate: u32,
    /// A CSV file with your own orders: columns customer, amount_cents, status and, optionally, id
    #[arg(long, value_name = "FILE.csv")]
    pub(crate) orders: Option<PathBuf>,
    /// The names that these columns have in the file, if they differ, such as status=order_status,customer=client
    #[arg(long, value_name = "COLUMN=NAME,…", value_delimiter = ',', requires = "orders")]
    pub(crate) columns: Vec<ColumnName>,
    /// Print one line per second instead of a live screen (the default if the output is not a terminal)
    #[arg(long)]
    pub(crate) plain: bool,
    /// File for the report
    #[arg(long, default_value = "target/demo/report.json")]
    pub(crate) report: PathBuf,
    /// Folder of the binaries payments-1, payments-2 and payments-3
    #[arg(long, default_value = "target/release")]
    pub(crate) bin_dir: PathBuf,
    /// Remove one safety rule from the service; the demo then succeeds if the checker finds the damage
    #[arg(long = "break", value_name = "RULE", value_enum)]
    pub(crate) broken: Option<Rule>,
    /// After the first migration has ended, run a second one of the same table
    #[arg(long, conflicts_with = "broken")]
    pub(crate) second: bool,
    /// Seed of the generated orders and requests
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Servers of your own.
    #[command(flatten)]
    pub(crate) own: OwnServers,
    /// Another program than the demo.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Inject faults under load on real servers, and judge each scenario
    Gameday(GameDay),
    /// Migrate another shape under load, forward, half way back, and forward again
    Shape(ShapeArgs),
}

/// A safety rule that can be removed from a build of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rule {
    /// Epochs close without waiting for every instance's acknowledgement.
    Agree,
    /// The backfill selects rows whose new column is NULL, instead of comparing.
    Compare,
    /// A drain stops accepting connections before the proxy knows.
    Drain,
}

impl Rule {
    /// The rule's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Agree => "agree",
            Self::Compare => "compare",
            Self::Drain => "drain",
        }
    }
}

/// Servers that already run.
#[derive(Clone, Default, clap::Args)]
pub(crate) struct OwnServers {
    /// Your Postgres: postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: Option<String>,
    /// Your Redis: redis://host:port
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub(crate) redis_url: Option<String>,
    /// Your Unleash: http://host:port
    #[arg(long, env = "UNLEASH_URL", requires_all = ["unleash_admin_token", "unleash_token"])]
    pub(crate) unleash_url: Option<String>,
    /// A token that may create and change flags
    #[arg(long, env = "UNLEASH_ADMIN_TOKEN", hide_env_values = true)]
    pub(crate) unleash_admin_token: Option<String>,
    /// A backend token of environment `development`, for the service
    #[arg(long, env = "UNLEASH_TOKEN", hide_env_values = true)]
    pub(crate) unleash_token: Option<String>,
}

/// Shows which URLs are set, but no URL or token: they are secrets.
impl std::fmt::Debug for OwnServers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnServers")
            .field("database_url", &self.database_url.is_some())
            .field("redis_url", &self.redis_url.is_some())
            .field("unleash_url", &self.unleash_url.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn invalid_options_are_named() {
        let refused = |args: &[&str]| Args::try_parse_from(args).unwrap_err().to_string();
        assert!(refused(&["demo", "--rows", "0"]).contains("--rows"));
        assert!(refused(&["demo", "--rate", "1"]).contains("--rate"));
        let error = refused(&["demo", "--unleash-url", "http://127.0.0.1:1"]);
        assert!(error.contains("--unleash-admin-token"), "{error}");
    }

    #[test]
    fn debug_shows_no_secret() {
        let args = Args::parse_from(["demo", "--database-url", "postgres://u:hunter2@h/d"]);
        assert!(!format!("{args:?}").contains("hunter2"));
    }
}
