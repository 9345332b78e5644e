//! The game day: faults under load on real servers, each scenario judged by the independent checker.
//!
//! `make gameday` runs all scenarios, `make gameday ARGS="kill failover"` some of them. A scenario starts its own servers and
//! instances, declares for each fault whether requests may fail and until when, and ends with the judgement of every answer.
//! [`SCENARIOS`] is the list, and [`day::Day`] what scenarios are made of.

mod canaries;
mod chaos;
mod day;
mod deploys;
mod external;
mod history;
mod instance_faults;
mod operations;
mod outages;
mod outcome;
mod steps;
mod world;

use std::{
    io::{Write, stdout},
    path::PathBuf,
    pin::pin,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::LocalBoxFuture;

use crate::{
    INTERRUPTED,
    args::Args,
    board::Board,
    failure::{Failure, Result},
    instances, interrupted,
    screen::Screen,
};
use day::Day;
use outcome::{Outcome, Report};
use world::Shared;

/// A scenario.
struct Scenario {
    name: &'static str,
    promise: &'static str,
    run: for<'a> fn(&'a mut Day) -> LocalBoxFuture<'a, Result<()>>,
}

macro_rules! scenarios {
    ($($name:literal, $run:expr, $promise:literal;)*) => {
        [$(Scenario { name: $name, promise: $promise, run: |day| Box::pin($run(day)) }),*]
    };
}

const SCENARIOS: &[Scenario] = &scenarios![
    "kill", instance_faults::kill,
        "kill -9 of an instance in each phase and during each move: only its own open requests fail";
    "kill-driver", instance_faults::kill_driver,
        "kill -9 of the driver in each phase and during each move: another instance takes over";
    "kill-backfill", instance_faults::kill_backfill,
        "kill -9 of the instance that backfills: another one continues at the checkpoint";
    "pause", instance_faults::pause,
        "an instance paused for longer than its lease, in each phase: its open writes are refused afterwards";
    "pause-driver", instance_faults::pause_driver,
        "the driver paused for longer than its lease, during each move: another instance takes over";
    "oom", instance_faults::out_of_memory,
        "an instance runs out of memory: same as kill -9";
    "postgres-restart", outages::postgres_restart,
        "Postgres is down for some seconds: requests fail, no acknowledged write is lost";
    "failover", outages::failover,
        "failover to a synchronous standby: no acknowledged write is lost";
    "failover-lagging", outages::failover_lagging,
        "failover to a lagging standby: only writes that it never received are lost";
    "connections-cut", outages::connections_cut,
        "all connections to Postgres are terminated: open requests fail, the next ones do not";
    "partition", outages::partition,
        "one instance cannot reach Postgres: it becomes unready, the others go on without it";
    "database-moved", outages::database_moved,
        "the database moves to another address: new connections follow";
    "disk-full", outages::disk_full,
        "the disk of the table is full: writes fail, reads go on, no acknowledged write is lost";
    "connections-exhausted", outages::connections_exhausted,
        "another program takes all free connections: running instances go on";
    "long-transaction", outages::long_transaction,
        "a long transaction blocks DDL: the DDL waits, and no request queues behind it";
    "redis-restart", outages::redis_restart,
        "Redis restarts empty: only sessions are lost";
    "redis-failover", outages::redis_failover,
        "a replica of Redis takes over: no session is lost";
    "redis-demoted", operations::redis_demoted,
        "the primary of Redis becomes a replica and stays up: its connections are replaced, no session is lost";
    "primary-frozen", operations::primary_frozen,
        "Postgres is frozen for longer than a lease: requests fail meanwhile, no acknowledged write is lost";
    "commit-stalled", operations::commit_stalled,
        "commits wait for a standby that does not exist: the number of connections stays within its bound";
    "pooler", operations::pooler,
        "the instances connect through PgBouncer: no statement fails";
    "start-in-outage", operations::start_in_outage,
        "an instance starts without Postgres and Redis: it is alive, says why it is not ready, and becomes ready";
    "token-revoked", operations::token_revoked,
        "Unleash refuses the instances' token: the migration stays in its phase, no request fails";
    "flag-archived", operations::flag_archived,
        "the migration's flag is archived: the migration stays in its phase and says so";
    "leader-of-flags-killed", operations::leader_of_flags_killed,
        "kill -9 of the instance that polls Unleash for the fleet: another instance takes over";
    "unleash-down", outages::unleash_down,
        "Unleash is down at the start of an instance: it becomes ready, and the migration stays in its phase";
    "unleash-slow", outages::unleash_slow,
        "Unleash delays each part of a response by two seconds: no request waits for it";
    "unleash-invalid", outages::unleash_invalid,
        "Unleash sends invalid responses: the last known state stays in use";
    "prometheus-down", outages::prometheus_down,
        "Prometheus is down: the service is not affected, and the judge passes no canary";
    "prometheus-restarted", canaries::prometheus_restarted,
        "Prometheus is away for four seconds while a canary is judged: the canary still passes";
    "deploy-during-move", deploys::deploy_during_move,
        "a rolling deploy during a move: no request fails";
    "roll-back", deploys::roll_back,
        "a rollback to the previous release in each phase: it never becomes ready";
    "wrong-range", deploys::wrong_range,
        "a build without code for the old side is deployed too early: it never becomes ready";
    "two-deploys", deploys::two_deploys,
        "two rolling deploys at the same time: no request fails";
    "missing-settings", deploys::missing_settings,
        "an instance lacks a required setting: it names the setting, and the deploy stops";
    "external-writers", external::external_writers,
        "another program writes the table in each phase: its writes are mirrored or refused, never lost";
    "clock-ahead", external::clock_ahead,
        "the clock of one instance is a day ahead: no effect";
    "clock-behind", external::clock_behind,
        "the clock of one instance is a day behind: no effect";
    "canary-errors", canaries::errors,
        "a canary fails 2 % of its requests: the judge fails it";
    "canary-panics", canaries::panics,
        "a canary panics in 2 % of its requests: the judge fails it";
    "canary-slow", canaries::slow,
        "a canary takes 150 ms longer: the judge fails it";
    "canary-leaks", canaries::leaks,
        "a canary leaks database connections: the judge fails it";
    "canary-never-ready", canaries::never_ready,
        "a canary never becomes ready: without data it does not pass";
    "canary-good", canaries::good,
        "a canary is as good as the stable version: it passes and is promoted";
    "flag-off", canaries::flag_off,
        "a broken code path behind a flag: no user gets it soon after the flag is switched off";
    "chaos", chaos::chaos,
        "random phases, and instances killed, paused and cut off at random: no unexpected failure";
];

/// Options of the game day.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GameDay {
    /// Scenarios to run; all if none is named
    scenarios: Vec<String>,
    /// List the scenarios and what is expected of each
    #[arg(long)]
    list: bool,
    /// Number of orders in the table
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    rows: u64,
    /// Requests per second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    rate: u32,
    /// Duration of `chaos` in seconds
    #[arg(long, default_value_t = 60)]
    chaos_seconds: u64,
    /// Seed of orders, requests and random choices; their timing still depends on the machine
    #[arg(long)]
    seed: Option<u64>,
    /// Print one line per second instead of a live screen (the default if the output is not a terminal)
    #[arg(long)]
    plain: bool,
    /// File for the report
    #[arg(long, default_value = "target/gameday/report.json")]
    report: PathBuf,
    /// Folder of the binaries payments-1, payments-2, payments-3 and cutover
    #[arg(long, default_value = "target/release")]
    bin_dir: PathBuf,
}

pub(crate) async fn run(asked: GameDay) -> Result<ExitCode> {
    if asked.list {
        let mut out = stdout();
        for scenario in SCENARIOS {
            let _ = writeln!(out, "{:<20} {}", scenario.name, scenario.promise);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&asked.scenarios)?;
    instances::check_programs(&asked.bin_dir)?;
    let seed = asked.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000));
    let args = Args {
        rows: asked.rows,
        rate: asked.rate,
        columns: Vec::new(),
        orders: None,
        plain: asked.plain,
        report: asked.report.clone(),
        bin_dir: asked.bin_dir.clone(),
        broken: None,
        second: false,
        seed,
        own: Default::default(),
        command: None,
    };
    let board = Arc::new(Board::new(format!("cutover game day, seed {seed}")));
    let screen = Screen::start(Arc::clone(&board), asked.plain);
    let mut outcomes = Vec::new();
    let mut interrupt = pin!(interrupted());
    let ended = tokio::select! {
        ended = all(&args, Duration::from_secs(asked.chaos_seconds), &chosen, &board, &mut outcomes) => Some(ended),
        () = &mut interrupt => None,
    };
    screen.stop().await;
    let Some(ended) = ended else { return Ok(ExitCode::from(INTERRUPTED)) };
    ended?;
    let report = Report::of(outcomes);
    report.write(&asked.report)?;
    let _ = writeln!(stdout(), "\n{}seed {seed}; report: {}", report.table(), asked.report.display());
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn all(
    args: &Args,
    chaos: Duration,
    chosen: &[&Scenario],
    board: &Arc<Board>,
    outcomes: &mut Vec<Outcome>,
) -> Result<()> {
    board.doing("starting Unleash");
    let shared = Shared::start().await?;
    for (number, scenario) in chosen.iter().enumerate() {
        board.note(format!("{} of {}: {}: {}", number + 1, chosen.len(), scenario.name, scenario.promise));
        let began = Instant::now();
        let outcome = Outcome {
            scenario: scenario.name.to_owned(),
            promise: scenario.promise,
            seed: args.seed,
            ..Outcome::default()
        };
        let mut outcome = match Day::begin(args, chaos, &shared, Arc::clone(board), outcome).await {
            Ok(mut day) => {
                let ran = (scenario.run)(&mut day).await;
                day.end(ran).await
            }
            Err((mut outcome, failure)) => {
                outcome.ended_early = Some(format!("the scenario could not start: {failure}"));
                outcome
            }
        };
        outcome.seconds = began.elapsed().as_secs_f64();
        outcome.judge();
        board.note(format!(
            "{} {}: {} requests, {} failed, {} of them unexpectedly, {} lost writes, {} stale reads",
            scenario.name,
            if outcome.passed { "passed" } else { "FAILED" },
            outcome.requests,
            outcome.failed,
            outcome.failed_unexpected,
            outcome.lost_writes,
            outcome.stale_reads
        ));
        outcomes.push(outcome);
    }
    Ok(())
}

fn choose(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(SCENARIOS.iter().collect());
    }
    let find = |name: &String| match SCENARIOS.iter().find(|scenario| scenario.name == name) {
        Some(scenario) => Ok(scenario),
        None => {
            let known: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
            Err(Failure::new(format!(
                "there is no scenario {name:?}; the scenarios are {}",
                known.join(", ")
            )))
        }
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_scenarios_are_refused_with_the_list() {
        assert_eq!(choose(&[]).unwrap().len(), SCENARIOS.len());
        assert_eq!(choose(&["kill".to_owned()]).unwrap()[0].name, "kill");
        let error = choose(&["kil".to_owned()]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("\"kil\"") && error.contains("failover-lagging"), "{error}");
    }
}
