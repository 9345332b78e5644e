//! The live demonstration behind `make demo`.
//!
//! It starts real servers and three instances of a payments service and keeps them under constant load. Meanwhile it deploys
//! two releases and moves a migration from `off` to `contract`. At the end it judges every answer that any request got.
//! Begin reading at [`story`]. [`gameday`] is `make gameday`, and [`shape`] migrates another shape.

mod args;
mod balancer;
mod board;
mod client;
mod csv_orders;
mod customers;
mod database;
mod dataset;
mod deploy;
mod failure;
mod flags;
mod gameday;
mod instances;
mod judge;
mod ledger;
mod load;
#[cfg(test)]
mod load_tests;
mod proxy;
mod report;
mod screen;
mod servers;
mod shape;
mod stats;
mod status;
mod story;
#[cfg(test)]
mod stub;
mod walk;

use std::{
    io::{Write, stderr, stdout},
    pin::pin,
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args::{Args, Command},
    board::Board,
    database::Database,
    dataset::Orders,
    failure::Result,
    report::Report,
    screen::Screen,
    servers::Servers,
    story::Story,
};

/// The exit status of a shell for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match &args.command {
        Some(Command::Gameday(asked)) => gameday::run(asked.clone()).await,
        Some(Command::Shape(asked)) => shape::run(asked.clone()).await,
        None => run(args).await,
    };
    ended.unwrap_or_else(|failure| {
        let _ = writeln!(stderr(), "demo: {failure}");
        ExitCode::FAILURE
    })
}

async fn run(args: Args) -> Result<ExitCode> {
    instances::check_programs(&args.bin_dir)?;
    let mut report = Report { rate: args.rate, seed: args.seed, broken: args.broken, ..Report::default() };
    let orders = Arc::new(read_orders(&args, &mut report)?);
    let title = format!("cutover demo: {} orders, {} requests/s", orders.len(), args.rate);
    let board = Arc::new(Board::new(title));
    let screen = Screen::start(Arc::clone(&board), args.plain);

    let mut interrupt = pin!(interrupted());
    let started = tokio::select! {
        started = Servers::start(&args, &board) => Some(started),
        () = &mut interrupt => None,
    };
    let servers = match started {
        Some(Ok(servers)) => Arc::new(servers),
        other => {
            if other.is_none() {
                board.note("interrupted: cleaning up");
            }
            screen.stop().await;
            clean_up_partial_start(&args).await;
            return other.map_or(Ok(ExitCode::from(INTERRUPTED)), |failed| failed.map(|_| ExitCode::FAILURE));
        }
    };
    report.servers = servers.versions.clone();
    report.fallbacks = servers.fallbacks.clone();
    let story =
        Story { args: args.clone(), board: Arc::clone(&board), servers: Arc::clone(&servers), orders };
    let ended = tokio::select! {
        ended = story.run(&mut report) => Some(ended),
        () = &mut interrupt => None,
    };
    if ended.is_none() {
        board.doing("interrupted: cleaning up");
    }
    let cleared = servers.clear().await;
    drop((story, servers));
    screen.stop().await;
    let Some(ended) = ended else {
        return cleared.map(|()| ExitCode::from(INTERRUPTED));
    };
    report.ended_early = ended.and(cleared).err().map(|failure| failure.to_string());
    report.seconds = board.elapsed().as_secs_f64();
    report.judge();
    report.write(&args.report)?;
    let _ = writeln!(stdout(), "\n{}Report: {}", report.table(), args.report.display());
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_orders(args: &Args, report: &mut Report) -> Result<Orders> {
    let Some(file) = &args.orders else {
        return Ok(Orders::Seeded { seed: args.seed, rows: args.rows });
    };
    let import = csv_orders::read_file(file, &args.columns)?;
    report.bad_rows = import.bad_rows;
    let mut out = stdout();
    let _ = writeln!(out, "{} orders read from {}", import.orders.len(), file.display());
    if import.bad_rows > 0 {
        let _ = writeln!(out, "{} rows cannot be used, for example:", import.bad_rows);
    }
    for bad in &import.first_bad {
        let _ = writeln!(out, "  {bad}");
    }
    Ok(Orders::imported(import.orders))
}

/// Removes what an interrupted start may have created in the user's own database.
async fn clean_up_partial_start(args: &Args) {
    if let Some(url) = &args.own.database_url {
        // The next run cleans up if this fails. The first failure is the one to report.
        let _ = Database::clear_leftovers(url).await;
    }
}

/// Returns on SIGINT, SIGTERM or SIGHUP.
async fn interrupted() {
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}
