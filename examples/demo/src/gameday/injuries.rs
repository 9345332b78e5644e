//! One instance is hurt: killed, stopped, starved.

use std::time::Duration;

use cutover_testkit::{Signal, wait_until};
use futures_util::future::join_all;

use super::day::{Day, found};
use crate::failure::{During, Failure, Result};

/// Each phase after `off`, in order, as it is asked for.
pub(super) const WAY: [&str; 7] = ["expand", "backfill", "verify", "ramp:50", "switch", "retire", "contract"];
/// Longer than a lease.
const BEYOND_THE_LEASE: Duration = Duration::from_secs(13);

/// What is done to it.
#[derive(Clone, Copy)]
enum Injury {
    Killed,
    Paused,
    OutOfMemory,
}

/// Whom it is done to.
#[derive(Clone, Copy)]
enum Victim {
    Driver,
    Other,
}

pub(super) async fn kill(day: &mut Day) -> Result<()> {
    in_each_phase(day, Injury::Killed, Victim::Other).await
}

pub(super) async fn kill_driver(day: &mut Day) -> Result<()> {
    in_each_phase(day, Injury::Killed, Victim::Driver).await
}

pub(super) async fn pause(day: &mut Day) -> Result<()> {
    in_each_phase(day, Injury::Paused, Victim::Other).await
}

pub(super) async fn pause_driver(day: &mut Day) -> Result<()> {
    in_each_phase(day, Injury::Paused, Victim::Driver).await
}

pub(super) async fn out_of_memory(day: &mut Day) -> Result<()> {
    in_each_phase(day, Injury::OutOfMemory, Victim::Other).await
}

/// Hurts an instance while each move is on its way, and another one when the phase has been reached.
async fn in_each_phase(day: &mut Day, injury: Injury, victim: Victim) -> Result<()> {
    for phase in WAY {
        day.ask_for(phase).await?;
        let began = std::time::Instant::now();
        let hurt = hurt(day, injury, victim, phase).await?;
        heal(day, injury, &hurt).await?;
        day.walk.arrive(phase, began).await?;
        let hurt = self::hurt(day, injury, victim, phase).await?;
        heal(day, injury, &hurt).await?;
    }
    Ok(())
}

async fn hurt(day: &mut Day, injury: Injury, victim: Victim, phase: &str) -> Result<String> {
    let name = match victim {
        Victim::Driver => day.driver().await?,
        Victim::Other => day.bystander().await?,
    };
    let what = match injury {
        Injury::Killed => "kill -9",
        Injury::Paused => "SIGSTOP",
        Injury::OutOfMemory => "no more memory",
    };
    day.fault(format!("{what} of {name} around {phase}"));
    match injury {
        Injury::Killed => day.signal(&name, Signal::KILL)?,
        Injury::Paused => day.signal(&name, Signal::STOP)?,
        Injury::OutOfMemory => starve(day, &name).await?,
    }
    day.noticed(&name).await?;
    Ok(name)
}

async fn heal(day: &mut Day, injury: Injury, name: &str) -> Result<()> {
    match injury {
        Injury::Killed | Injury::OutOfMemory => day.replace(name).await?,
        Injury::Paused => {
            tokio::time::sleep(BEYOND_THE_LEASE.saturating_sub(day.fault_at.elapsed())).await;
            day.signal(name, Signal::CONT)?;
        }
    }
    day.recovered().await
}

/// Lowers the limit of its memory to what it has, so that the next page it asks for is refused.
async fn starve(day: &mut Day, name: &str) -> Result<()> {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let pid = day.fleet.find(name)?.process.pid();
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
    prlimit(pid, Resource::As, limit).during("limiting an instance's memory")?;
    let mut at_once = 8;
    wait_until(&format!("{name} to run out of memory"), Duration::from_secs(60), || {
        // What it keeps for reuse lasts for some requests; more large bodies at once than ever before need more.
        at_once = (at_once * 2).min(1_024);
        starved(day, name, at_once)
    })
    .await?;
    Ok(())
}

async fn starved(day: &Day, name: &str, at_once: usize) -> Result<bool> {
    join_all((0..at_once).map(|_| day.post_large(name))).await;
    Ok(day.fleet.find(name)?.process.exited().is_some())
}

/// Kills whoever backfills, again and again, until the backfill is done all the same.
pub(super) async fn kill_backfill(day: &mut Day) -> Result<()> {
    // Large enough to be met in the middle.
    let rows = 500_000;
    day.sql(&format!(
        "insert into orders (customer, amount_cents, old_payment_status) \
         select 'bulk', n, case n % 5 when 0 then 'PAID' when 1 then ' paid' when 2 then 'void' when 3 then null \
         else 'SHIPPED' end from generate_series(1, {rows}) n"
    ))
    .await?;
    day.go("expand").await?;
    day.ask_for("backfill").await?;
    let began = std::time::Instant::now();
    let mut kills = 0;
    while kills < 3 {
        let is_open = found("the backfill to be under way", Duration::from_secs(60), async || {
            let open: Option<bool> = sqlx::query_scalar(
                "select finished_at is null and rows_done > 0 from cutover.jobs where kind = 'backfill'",
            )
            .fetch_optional(&day.servers.database.pool)
            .await?;
            let is_done = open == Some(false) && day.is_new_complete().await?;
            Ok((open == Some(true) || is_done).then_some(!is_done))
        });
        if !is_open.await? {
            break;
        }
        let name = day.driver().await?;
        day.fault(format!("kill -9 of {name}, which backfills"));
        day.signal(&name, Signal::KILL)?;
        day.noticed(&name).await?;
        day.replace(&name).await?;
        day.recovered().await?;
        kills += 1;
    }
    if kills == 0 {
        return Err(Failure::new("the backfill was over before anybody could be killed"));
    }
    day.line.notes.push(format!("{kills} instances killed while they backfilled {rows} rows"));
    day.walk.arrive("backfill", began).await?;
    day.go("verify").await?;
    day.go("ramp:100").await
}
