//! What can be asked for on the command line and in the environment.

use std::path::PathBuf;

use clap::Parser;

use crate::gameday::GameDay;

/// Deploys a payments service twice and migrates its table from end to end, under load, and judges
/// every answer.
///
/// Servers are thrown away afterwards. Name your own with DATABASE_URL, REDIS_URL and UNLEASH_URL
/// (with UNLEASH_ADMIN_TOKEN and UNLEASH_TOKEN): there the demo keeps to schemas that it makes, and
/// drops them at the end.
#[derive(Clone, Debug, Parser)]
#[command(name = "demo", version)]
pub(crate) struct Args {
    /// Orders in the table.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=50_000_000))]
    pub(crate) rows: u64,
    /// Requests per second, all together.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    pub(crate) rate: u32,
    /// Your own orders instead of made-up ones: a CSV file with columns customer, amount_cents, status
    /// and perhaps id.
    #[arg(long, value_name = "FILE.csv")]
    pub(crate) orders: Option<PathBuf>,
    /// One line a second instead of a live screen (also when the output is no terminal).
    #[arg(long)]
    pub(crate) plain: bool,
    /// Where the report goes.
    #[arg(long, default_value = "target/demo/report.json")]
    pub(crate) report: PathBuf,
    /// Where the binaries payments-1, payments-2 and payments-3 are.
    #[arg(long, default_value = "target/release")]
    pub(crate) bin_dir: PathBuf,
    /// Takes one safety rule out of the service. Then it is success if the checker finds the damage.
    #[arg(long = "break", value_name = "RULE", value_enum)]
    pub(crate) broken: Option<Rule>,
    /// Makes the same orders and the same requests again.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// A server of your own.
    #[command(flatten)]
    pub(crate) own: OwnServers,
    /// Something else than the demo.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Bad days: faults under load on real servers, each judged
    Gameday(GameDay),
}

/// A safety rule that a build of the service can lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rule {
    /// Epochs are closed without waiting for every instance to agree.
    Agree,
    /// The backfill looks for NULL instead of comparing.
    Compare,
    /// A drain stops accepting before the proxy knows.
    Drain,
}

/// Servers that are there already.
#[derive(Clone, Default, clap::Args)]
pub(crate) struct OwnServers {
    /// postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: Option<String>,
    /// redis://host:port
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub(crate) redis_url: Option<String>,
    /// http://host:port
    #[arg(long, env = "UNLEASH_URL", requires_all = ["unleash_admin_token", "unleash_token"])]
    pub(crate) unleash_url: Option<String>,
    /// May create and change flags.
    #[arg(long, env = "UNLEASH_ADMIN_TOKEN", hide_env_values = true)]
    pub(crate) unleash_admin_token: Option<String>,
    /// What the service reads flags with (a backend token of environment `development`).
    #[arg(long, env = "UNLEASH_TOKEN", hide_env_values = true)]
    pub(crate) unleash_token: Option<String>,
}

/// URLs and tokens are secrets; which of them are set is not.
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
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn nonsense_is_refused_by_name() {
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
