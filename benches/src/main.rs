//! Measures what the library costs, beside its peers, in one run.
//!
//! Each measurement prints one table and writes one file under `target/bench/`. Variants take turns within a run, so
//! that load on the machine affects all of them.
#![expect(clippy::print_stdout, reason = "a command line program")]

mod abuse;
mod backfill;
mod columns;
mod counted;
mod dual;
mod fence;
mod flags;
mod fleet;
mod foreground;
mod layers;
mod pin;
mod proxy;
mod readyz;
mod restarts;
mod shapes;
mod table;
mod timing;
mod world;

use anyhow::Result;
use clap::{Parser, ValueEnum};

/// The measurements.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Cost of a pin.
    Pin,
    /// Cost of `DualWrite` in each phase, beside LaunchDarkly's `Migrator`.
    Dual,
    /// Cost of writing two columns, beside a write of one.
    Columns,
    /// Cost of the layers around a service, per request.
    Layers,
    /// Cost of the fence for a write transaction.
    Fence,
    /// How long a fleet takes to agree on a new phase, and its load at rest.
    Flip,
    /// How long a rollback takes until no instance reads the new side.
    Rollback,
    /// Cost of a flag decision.
    Flags,
    /// Time from a toggle in Unleash until all instances decide by it.
    Killswitch,
    /// Speed of backfill and scan, and their effect on a service's writes.
    Backfill,
    /// Speed of the copy of each shape, and cost of a write that the guard trigger mirrors.
    Shapes,
    /// Whether `/readyz` answers while Postgres hangs.
    Readyz,
    /// Latency and failures of rolling restarts under load.
    Restarts,
    /// Graceful shutdown with bad clients, and what metrics report about them.
    Abuse,
}

#[derive(Parser)]
#[command(about)]
struct Args {
    /// What to measure; everything if nothing is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Measure less, to check that everything works.
    #[arg(long)]
    quick: bool,
    /// Rows of the largest table that `backfill` fills.
    #[arg(long, default_value_t = 10_000_000)]
    rows: i64,
    /// Rows of the tables that `shapes` fills.
    #[arg(long, default_value_t = 300_000)]
    shape_rows: i64,
    /// Number of restarts in `restarts`.
    #[arg(long, default_value_t = 10)]
    restarts: usize,
    /// Requests per second in `restarts`.
    #[arg(long, default_value_t = 4_000)]
    rate: u32,
    /// Requests per second in `readyz`.
    #[arg(long, default_value_t = 10_000)]
    readyz_rate: u32,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    if wanted(Part::Pin) {
        pin::run(args.quick).await?;
    }
    if wanted(Part::Dual) {
        dual::run(args.quick).await?;
    }
    if wanted(Part::Layers) {
        layers::run(args.quick)?;
    }
    if wanted(Part::Columns) {
        columns::run(args.quick).await?;
    }
    if wanted(Part::Fence) {
        fence::run(args.quick).await?;
    }
    if wanted(Part::Flip) {
        fleet::flip(args.quick).await?;
    }
    if wanted(Part::Rollback) {
        fleet::rollback(args.quick).await?;
    }
    if wanted(Part::Flags) {
        flags::decisions(args.quick).await?;
    }
    if wanted(Part::Killswitch) {
        flags::kill_switch(args.quick).await?;
    }
    if wanted(Part::Backfill) {
        backfill::run(args.quick, args.rows).await?;
    }
    if wanted(Part::Shapes) {
        shapes::run(args.quick, if args.quick { 20_000 } else { args.shape_rows }).await?;
    }
    if wanted(Part::Readyz) {
        readyz::run(args.quick, args.readyz_rate).await?;
    }
    if wanted(Part::Restarts) {
        restarts::run(args.quick, args.restarts, args.rate).await?;
    }
    if wanted(Part::Abuse) {
        abuse::run().await?;
    }
    Ok(())
}
