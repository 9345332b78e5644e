//! `cutover preflight`: the problems that a build would have here, as far as they can be found without its code.

use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use cutover::migration::{MigrationSpec, Phase, PhaseRange};
use cutover::preflight::Preflight;
use sqlx::postgres::PgConnectOptions;

use super::{complain, print};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The fleet; by default a fleet has the name of its service
    #[arg(long)]
    fleet: String,
    /// The phases that the build supports of a migration, such as status=off..=contract; may be repeated
    #[arg(long = "range", value_name = "NAME=MIN..=MAX")]
    ranges: Vec<Range>,
    /// Size of each instance's connection pool
    #[arg(long, value_name = "CONNECTIONS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pool: u32,
    /// The largest number of instances at a time: replicas, surge and terminating ones
    #[arg(long)]
    instances: Option<usize>,
    /// None of the build's own statements has a name, so the pooler need not keep prepared statements
    #[arg(long, env = "CUTOVER_UNNAMED_STATEMENTS")]
    unnamed_statements: bool,
    /// Check that this Redis answers
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// Check that this Unleash server has the flags
    #[arg(long, env = "UNLEASH_URL", hide_env_values = true)]
    unleash_url: Option<String>,
    /// A backend token of the Unleash server
    #[arg(
        long,
        env = "UNLEASH_TOKEN",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true
    )]
    unleash_token: String,
    /// A flag that the build declares; may be repeated
    #[arg(long = "flag", value_name = "FLAG")]
    flags: Vec<String>,
}

/// A migration's name and the phases that a build supports.
#[derive(Clone)]
struct Range(String, PhaseRange);

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(name, range)| Some((name, range.split_once("..=")?)));
        let Some((name, (min, max))) = parts else {
            return Err("it is not a range of phases; write for example status=off..=contract".into());
        };
        let phase = |text: &str| text.parse::<Phase>().map_err(|error| error.to_string());
        let range = PhaseRange::new(phase(min)?..=phase(max)?);
        let range = range.ok_or_else(|| format!("the range is empty, because {min} comes after {max}"))?;
        Ok(Self(name.to_owned(), range))
    }
}

/// Exit status 0: no problem; 1: problems; 2: the arguments cannot be used.
pub(crate) async fn run(arguments: &Arguments, options: PgConnectOptions, json: bool) -> ExitCode {
    let specs = arguments.ranges.iter().map(|Range(name, range)| MigrationSpec::new(name, *range)).collect();
    let mut preflight =
        Preflight::new().ledger(options, &arguments.fleet, specs).budget(arguments.pool, arguments.instances);
    if arguments.unnamed_statements {
        preflight = preflight.unnamed_statements();
    }
    // An empty variable is the same as none.
    let given = |url: &Option<String>| url.clone().filter(|url| !url.is_empty());
    if let Some(url) = given(&arguments.redis_url) {
        match deadpool_redis::Config::from_url(&url).create_pool(Some(deadpool_redis::Runtime::Tokio1)) {
            Ok(pool) => preflight = preflight.check(cutover::health::Check::redis(&pool)),
            Err(error) => {
                complain(&format!("cutover: --redis-url: {error}; it looks like redis://host:6379"));
                return ExitCode::from(2);
            }
        }
    }
    let unleash_url = given(&arguments.unleash_url);
    if unleash_url.is_none() {
        preflight = preflight.flags(None, arguments.flags.clone());
    }
    if let Some(url) = &unleash_url {
        let options =
            cutover::flags::UnleashOptions::new(url, &arguments.unleash_token, "cutover", "preflight");
        match cutover::flags::Flags::unleash(options) {
            Ok(flags) => preflight = preflight.flags(flags, arguments.flags.clone()),
            Err(error) => {
                complain(&format!("cutover: {error}"));
                return ExitCode::from(2);
            }
        }
    }
    let report = preflight.run().await;
    let text =
        if json { serde_json::to_string_pretty(&report).unwrap_or_default() } else { report.to_string() };
    print(&format!("{text}\n"));
    ExitCode::from(u8::from(!report.passed))
}
