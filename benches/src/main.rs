//! Measures what the library costs, side by side with what it is compared to, in one run.
//!
//! Every question has one table on the screen and one file under `target/bench/`. Variants that are compared
//! take turns within the same run, so that a busy machine is busy for all of them.
#![expect(clippy::print_stdout, reason = "a program for people")]

mod abuse;
mod backfill;
mod columns;
mod counted;
mod dual;
mod fence;
mod flags;
mod fleet;
mod layers;
mod pin;
mod proxy;
mod readyz;
mod restarts;
mod table;
mod timing;
mod world;

use anyhow::Result;
use clap::{Parser, ValueEnum};

/// The questions.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What a pin costs an operation.
    Pin,
    /// What `DualWrite` costs in each phase, beside LaunchDarkly's `Migrator`.
    Dual,
    /// What a dual write of two columns costs, beside a write of one.
    Columns,
    /// What the layers around a service cost a request.
    Layers,
    /// What the fence costs a write transaction.
    Fence,
    /// How long the fleet takes to agree on a new phase, and what it costs at rest.
    Flip,
    /// How long it takes until nobody reads the new side any more.
    Rollback,
    /// What a flag decision costs.
    Flags,
    /// How long after a toggle in Unleash all instances decide anew.
    Killswitch,
    /// How fast rows are filled and compared, and what that costs everybody else.
    Backfill,
    /// Whether `/readyz` answers while Postgres hangs.
    Readyz,
    /// What rolling restarts under load cost.
    Restarts,
    /// How servers end that are abused, and what their metrics say of it.
    Abuse,
}

#[derive(Parser)]
#[command(about)]
struct Args {
    /// What to measure; everything when nothing is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Measure less, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// How many rows `backfill` fills.
    #[arg(long, default_value_t = 300_000)]
    rows: i64,
    /// How often an instance is replaced in `restarts`.
    #[arg(long, default_value_t = 100)]
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
