//! `cutover preflight`: what would break a build here, as far as that can be told without its code.

use std::process::ExitCode;
use std::str::FromStr;

use super::complain;
use super::print;
use clap::Args;
use cutover::migration::MigrationSpec;
use cutover::migration::{Phase, PhaseRange};
use cutover::preflight::Preflight;
use sqlx::postgres::PgConnectOptions;

/// The service's own binary knows more: run it with CUTOVER_PREFLIGHT=1 where you can.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The fleet: the service's name, unless it was given another one
    #[arg(long)]
    fleet: String,
    /// What the build can run of a migration, such as status=off..=contract; may be repeated
    #[arg(long = "range", value_name = "NAME=LOWEST..=HIGHEST")]
    ranges: Vec<Range>,
    /// Connections of each instance's pool
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pool: u32,
    /// Instances at most: replicas, surge, and those that are still terminating
    #[arg(long)]
    instances: Option<usize>,
    /// A Redis that has to answer
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// A flag server that has to have the flags
    #[arg(long, env = "UNLEASH_URL")]
    unleash_url: Option<String>,
    /// A backend token of it
    #[arg(long, env = "UNLEASH_TOKEN", hide_env_values = true, default_value = "")]
    unleash_token: String,
    /// A flag that the build declares; may be repeated
    #[arg(long = "flag", value_name = "FLAG")]
    flags: Vec<String>,
}

/// A migration's name and the phases of it that a build can run.
#[derive(Clone)]
struct Range(String, PhaseRange);

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(name, range)| Some((name, range.split_once("..=")?)));
        let Some((name, (lowest, highest))) = parts else {
            return Err("write for example status=off..=contract".into());
        };
        let phase = |text: &str| text.parse::<Phase>().map_err(|error| error.to_string());
        let range = PhaseRange::new(phase(lowest)?..=phase(highest)?);
        let range = range.ok_or_else(|| format!("{lowest} comes after {highest}: the range is empty"))?;
        Ok(Self(name.to_owned(), range))
    }
}

/// Exit status 0 for no problem, 1 for some, 2 for arguments that can't be used.
pub(crate) async fn run(arguments: Arguments, options: PgConnectOptions, json: bool) -> ExitCode {
    let specs =
        arguments.ranges.into_iter().map(|Range(name, range)| MigrationSpec::new(name, range)).collect();
    let mut preflight =
        Preflight::new().ledger(options, arguments.fleet, specs).budget(arguments.pool, arguments.instances);
    if let Some(url) = arguments.redis_url {
        match deadpool_redis::Config::from_url(url).create_pool(Some(deadpool_redis::Runtime::Tokio1)) {
            Ok(pool) => preflight = preflight.check(cutover::health::Check::redis(&pool)),
            Err(error) => {
                complain(&format!("cutover: --redis-url: {error}"));
                return ExitCode::from(2);
            }
        }
    }
    if arguments.unleash_url.is_none() {
        preflight = preflight.flags(None, arguments.flags.clone());
    }
    if let Some(url) = arguments.unleash_url {
        let options =
            cutover::flags::UnleashOptions::new(url, arguments.unleash_token, "cutover", "preflight");
        match cutover::flags::Flags::unleash(options) {
            Ok(flags) => preflight = preflight.flags(flags, arguments.flags),
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
