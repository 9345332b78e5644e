//! Faults of one instance: killed, paused, out of memory.

use std::time::Duration;

use cutover_testkit::{Signal, wait_until};
use futures_util::future::join_all;

use super::{day::Day, steps::found};
use crate::failure::{During, Failure, Result};

/// Each phase after `off`, in order, as a desired phase.
pub(super) const PHASES_IN_ORDER: [&str; 7] =
    ["expand", "backfill", "verify", "ramp:50", "switch", "retire", "contract"];
/// Longer than a lease.
const LONGER_THAN_LEASE: Duration = Duration::from_secs(13);

/// The kind of fault.
#[derive(Clone, Copy)]
enum InstanceFault {
    Killed,
    Paused,
    OutOfMemory,
}

/// The instance that has the fault.
#[derive(Clone, Copy)]
enum Victim {
    Driver,
    Other,
}

pub(super) async fn kill(day: &mut Day) -> Result<()> {
    in_each_phase(day, InstanceFault::Killed, Victim::Other).await
}

pub(super) async fn kill_driver(day: &mut Day) -> Result<()> {
    in_each_phase(day, InstanceFault::Killed, Victim::Driver).await
}

pub(super) async fn pause(day: &mut Day) -> Result<()> {
    in_each_phase(day, InstanceFault::Paused, Victim::Other).await
}

pub(super) async fn pause_driver(day: &mut Day) -> Result<()> {
    in_each_phase(day, InstanceFault::Paused, Victim::Driver).await
}

pub(super) async fn out_of_memory(day: &mut Day) -> Result<()> {
    in_each_phase(day, InstanceFault::OutOfMemory, Victim::Other).await
}

/// Injects the fault during each move, and again when the phase is reached.
async fn in_each_phase(day: &mut Day, fault: InstanceFault, victim: Victim) -> Result<()> {
    for phase in PHASES_IN_ORDER {
        day.ask_for(phase).await?;
        let began = std::time::Instant::now();
        let name = inject(day, fault, victim, phase).await?;
        recover(day, fault, &name).await?;
        day.walk.arrive(phase, began).await?;
        // A migration that has ended has no driver.
        if phase != "contract" {
            let name = inject(day, fault, victim, phase).await?;
            recover(day, fault, &name).await?;
        }
    }
    Ok(())
}

async fn inject(day: &mut Day, fault: InstanceFault, victim: Victim, phase: &str) -> Result<String> {
    let name = match victim {
        Victim::Driver => day.driver().await?,
        Victim::Other => day.bystander().await?,
    };
    let what = match fault {
        InstanceFault::Killed => "kill -9",
        InstanceFault::Paused => "SIGSTOP",
        InstanceFault::OutOfMemory => "memory limit",
    };
    day.fault(format!("{what} of {name} around {phase}"));
    match fault {
        InstanceFault::Killed => day.signal(&name, Signal::KILL)?,
        InstanceFault::Paused => day.signal(&name, Signal::STOP)?,
        InstanceFault::OutOfMemory => exhaust_memory(day, &name).await?,
    }
    day.noticed(&name).await?;
    Ok(name)
}

async fn recover(day: &mut Day, fault: InstanceFault, name: &str) -> Result<()> {
    match fault {
        InstanceFault::Killed | InstanceFault::OutOfMemory => day.replace(name).await?,
        InstanceFault::Paused => {
            tokio::time::sleep(LONGER_THAN_LEASE.saturating_sub(day.fault_at.elapsed())).await;
            day.signal(name, Signal::CONT)?;
        }
    }
    day.recovered().await
}

/// Lowers the memory limit of an instance below its usage, so that its next allocation fails.
async fn exhaust_memory(day: &mut Day, name: &str) -> Result<()> {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let pid = day.fleet.find(name)?.process.pid();
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
    prlimit(pid, Resource::As, limit).during("setting the memory limit of an instance")?;
    let mut parallel = 8;
    wait_until(&format!("{name} to run out of memory"), Duration::from_secs(60), || {
        // Memory kept for reuse lasts for some requests. More large bodies at the same time than before need more.
        parallel = (parallel * 2).min(1_024);
        has_ended(day, name, parallel)
    })
    .await?;
    Ok(())
}

async fn has_ended(day: &Day, name: &str, parallel: usize) -> Result<bool> {
    join_all((0..parallel).map(|_| day.post_large(name))).await;
    Ok(day.fleet.find(name)?.process.exited().is_some())
}

/// Kills the instance that backfills, several times, until the backfill is complete.
pub(super) async fn kill_backfill(day: &mut Day) -> Result<()> {
    // Enough rows that the kill happens during the backfill.
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
        let is_open = found("the backfill to be running", Duration::from_secs(60), async || {
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
        day.fault(format!("kill -9 of {name} during its backfill"));
        day.signal(&name, Signal::KILL)?;
        day.noticed(&name).await?;
        day.replace(&name).await?;
        day.recovered().await?;
        kills += 1;
    }
    if kills == 0 {
        return Err(Failure::new("the backfill ended before an instance could be killed"));
    }
    day.outcome.notes.push(format!("{kills} instances killed while they backfilled {rows} rows"));
    day.walk.arrive("backfill", began).await?;
    day.go("verify").await?;
    day.go("ramp:100").await
}
