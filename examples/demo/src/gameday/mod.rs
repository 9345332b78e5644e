//! Bad days: faults under load on real servers, each with a verdict of the independent checker.
//!
//! `make gameday` runs them all, `make gameday ARGS="kill failover"` some by name. A scenario begins with servers and
//! instances of its own, says of each fault whether requests may fail for it and until when, and ends with every
//! answer judged. [`SCENARIOS`] is the list; [`day::Day`] what they are made of.

mod canaries;
mod chaos;
mod day;
mod deploys;
mod injuries;
mod line;
mod others;
mod outages;

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
use day::{Day, Shared};
use line::{Line, Report};

/// A bad day.
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
    "kill", injuries::kill,
        "kill -9 of an instance in each phase and during each move: what it was answering breaks, nothing else does";
    "kill-driver", injuries::kill_driver,
        "kill -9 of the driver in each phase and during each move: as for any other, and another one drives";
    "kill-backfill", injuries::kill_backfill,
        "kill -9 of the instance that backfills: another goes on at the checkpoint";
    "pause", injuries::pause,
        "an instance stopped for longer than its lease in each phase: what it had begun is refused when it wakes up";
    "pause-driver", injuries::pause_driver,
        "the driver stopped for longer than its lease during each move: another one drives";
    "oom", injuries::out_of_memory,
        "an instance that gets no more memory dies: as kill -9";
    "postgres-restart", outages::postgres_restart,
        "Postgres away for some seconds: requests fail, nothing acknowledged is lost";
    "failover", outages::failover,
        "the primary dies, a synchronous standby takes over: nothing acknowledged is lost";
    "failover-lagging", outages::failover_lagging,
        "the primary dies, a standby that lagged takes over: only what it never received is gone";
    "connections-cut", outages::connections_cut,
        "every connection to Postgres is ended: what used one fails, the next request does not";
    "partition", outages::partition,
        "one instance can't reach Postgres: it takes itself out, the others go on without it";
    "database-moved", outages::database_moved,
        "the database answers at another address: new connections find it";
    "disk-full", outages::disk_full,
        "the table can't grow: writes are refused, nothing acknowledged is lost, reads go on";
    "connections-used-up", outages::connections_used_up,
        "somebody takes every connection that is left: who runs goes on, who comes is not ready until there is one";
    "long-transaction", outages::long_transaction,
        "a long transaction is in the way of every DDL: it waits without anybody behind it";
    "redis-restart", outages::redis_restart,
        "Redis comes back empty: sessions are gone, nothing else is";
    "redis-failover", outages::redis_failover,
        "a replica of Redis takes over: no session is lost";
    "unleash-down", outages::unleash_down,
        "Unleash away at a cold start: instances become ready, the migration stays where it is";
    "unleash-slow", outages::unleash_slow,
        "Unleash takes two seconds for each piece of an answer: no request waits for it";
    "unleash-nonsense", outages::unleash_nonsense,
        "Unleash answers nonsense: the last known state counts";
    "prometheus-down", outages::prometheus_down,
        "Prometheus away: the service does not notice, the judge passes nobody";
    "deploy-during-move", deploys::deploy_during_move,
        "a rolling deploy while the migration moves: no request fails";
    "roll-back", deploys::roll_back,
        "the release before is rolled out in each phase: it never becomes ready where it would do damage";
    "wrong-range", deploys::wrong_range,
        "a build that has no code for the old side, too early: it never becomes ready";
    "two-deploys", deploys::two_deploys,
        "two rolling deploys at once: no request fails";
    "settings-missing", deploys::settings_missing,
        "a build without one of its settings: it says which, and the deploy stops there";
    "strangers", others::strangers,
        "somebody writes past the library in each phase: the write is not lost, or it is refused";
    "clock-ahead", others::clock_ahead,
        "the clock of one instance is a day ahead: nothing depends on it";
    "clock-behind", others::clock_behind,
        "the clock of one instance is a day behind: nothing depends on it";
    "canary-errors", canaries::errors,
        "a canary that fails 2 % of its requests: the judge takes it back";
    "canary-panics", canaries::panics,
        "a canary that panics at 2 % of its requests: the judge takes it back";
    "canary-slow", canaries::slow,
        "a canary that takes 150 ms longer: the judge takes it back";
    "canary-leaks", canaries::leaks,
        "a canary that leaks database connections: the judge takes it back";
    "canary-never-ready", canaries::never_ready,
        "a canary that never becomes ready: nothing of it is seen, so it does not pass";
    "canary-fine", canaries::fine,
        "a canary like the stable version: it passes and is promoted";
    "flag-off", canaries::flag_off,
        "a broken path behind a flag: off again for everybody soon after the switch is flipped";
    "chaos", chaos::chaos,
        "phases asked for at random, instances killed, paused and cut off at random";
];

/// What can be asked for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GameDay {
    /// Which scenarios; all of them if none is named
    scenarios: Vec<String>,
    /// List the scenarios and what is promised for each
    #[arg(long)]
    list: bool,
    /// Orders in the table
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    rows: u64,
    /// Requests per second, all together
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    rate: u32,
    /// Seconds that `chaos` lasts
    #[arg(long, default_value_t = 60)]
    chaos_seconds: u64,
    /// Makes the same orders, requests and choices again; how they fall in time is the machine's affair
    #[arg(long)]
    seed: Option<u64>,
    /// Lines instead of a live screen (also when the output is no terminal)
    #[arg(long)]
    plain: bool,
    /// Where the report goes
    #[arg(long, default_value = "target/gameday/report.json")]
    report: PathBuf,
    /// Where the binaries payments-1, payments-2, payments-3 and cutover are
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
        orders: None,
        plain: asked.plain,
        report: asked.report.clone(),
        bin_dir: asked.bin_dir.clone(),
        broken: None,
        seed,
        own: Default::default(),
        command: None,
    };
    let board = Arc::new(Board::new(format!("cutover game day, seed {seed}")));
    let screen = Screen::start(Arc::clone(&board), asked.plain);
    let mut lines = Vec::new();
    let mut interrupt = pin!(interrupted());
    let ended = tokio::select! {
        ended = all(&args, Duration::from_secs(asked.chaos_seconds), &chosen, &board, &mut lines) => Some(ended),
        () = &mut interrupt => None,
    };
    screen.stop().await;
    let Some(ended) = ended else { return Ok(ExitCode::from(INTERRUPTED)) };
    ended?;
    let report = Report::of(lines);
    report.write(&asked.report)?;
    let _ =
        writeln!(stdout(), "\n{}seed {seed}; the report is in {}", report.table(), asked.report.display());
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn all(
    args: &Args,
    chaos: Duration,
    chosen: &[&Scenario],
    board: &Arc<Board>,
    lines: &mut Vec<Line>,
) -> Result<()> {
    board.doing("starting Unleash");
    let shared = Shared::start().await?;
    for (number, scenario) in chosen.iter().enumerate() {
        board.note(format!("{} of {}: {}: {}", number + 1, chosen.len(), scenario.name, scenario.promise));
        let began = Instant::now();
        let line = Line {
            scenario: scenario.name.to_owned(),
            promise: scenario.promise,
            seed: args.seed,
            ..Line::default()
        };
        let mut line = match Day::begin(args, chaos, &shared, Arc::clone(board), line).await {
            Ok(mut day) => {
                let ran = (scenario.run)(&mut day).await;
                day.end(ran).await
            }
            Err((mut line, failure)) => {
                line.ended_early = Some(format!("it could not begin: {failure}"));
                line
            }
        };
        line.seconds = began.elapsed().as_secs_f64();
        line.judge();
        board.note(format!(
            "{} {}: {} requests, {} failed, {} of them unpromised, {} lost, {} stale",
            scenario.name,
            if line.passed { "passed" } else { "FAILED" },
            line.requests,
            line.failed,
            line.failed_unpromised,
            line.lost_writes,
            line.stale_reads
        ));
        lines.push(line);
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
            Err(Failure::new(format!("there is no scenario {name:?}; there are {}", known.join(", "))))
        }
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_others_refused_with_those_there_are() {
        assert_eq!(choose(&[]).unwrap().len(), SCENARIOS.len());
        assert_eq!(choose(&["kill".to_owned()]).unwrap()[0].name, "kill");
        let error = choose(&["kil".to_owned()]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("\"kil\"") && error.contains("failover-lagging"), "{error}");
    }
}
