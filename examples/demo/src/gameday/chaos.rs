//! Random phases and faults.

use std::time::{Duration, Instant};

use cutover_testkit::Signal;

use super::day::{Day, INSTANCES};
use crate::{failure::Result, proxy::STABLE};

/// All phases but `contract`, which has no way back.
const PHASES: [&str; 9] =
    ["off", "expand", "backfill", "verify", "ramp:10", "ramp:50", "ramp:100", "switch", "retire"];

pub(super) async fn chaos(day: &mut Day) -> Result<()> {
    let end = Instant::now() + day.chaos;
    let (mut flips, mut faults) = (0_u32, 0_u32);
    while Instant::now() < end {
        for _ in 0..day.random.usize(1..6) {
            match day.random.u8(0..10) {
                0 => day.servers.switchboard.switch_off().await?,
                1 => {
                    let percent = day.random.u8(0..=100);
                    day.servers.switchboard.new_flow(percent).await?;
                }
                _ => {
                    let phase = PHASES[day.random.usize(0..PHASES.len())];
                    day.ask_for(phase).await?;
                }
            }
            flips += 1;
            pause(day, 1_500).await;
        }
        fault(day).await?;
        faults += 1;
    }
    day.outcome.notes.push(format!("{flips} changes of flags, {faults} faults"));
    // The migration still moves as desired.
    day.recovered().await?;
    day.go("ramp:50").await?;
    day.go("retire").await
}

async fn fault(day: &mut Day) -> Result<()> {
    let victim = day.random.usize(0..day.fleet.instances.len());
    let name = day.fleet.instances[victim].name().to_owned();
    match day.random.u8(0..6) {
        0 | 1 => {
            day.fault(format!("kill -9 of {name}"));
            day.signal(&name, Signal::KILL)?;
            pause(day, 3_000).await;
            day.replace(&name).await?;
        }
        2 => {
            day.fault(format!("SIGSTOP of {name}"));
            day.signal(&name, Signal::STOP)?;
            pause(day, 15_000).await;
            day.signal(&name, Signal::CONT)?;
        }
        3 => {
            day.fault(format!("{name} cannot reach Postgres"));
            if let Some(gate) = &day.fleet.find(&name)?.gate {
                gate.lose();
            }
            pause(day, 15_000).await;
            if let Some(gate) = &day.fleet.find(&name)?.gate {
                gate.open();
            }
        }
        4 => {
            day.fault("all connections to Postgres are terminated");
            day.gates.postgres.cut();
        }
        _ => {
            day.step(format!("replacing {name}"));
            day.fleet.start(2, STABLE).await?;
            day.fleet.stop(&name).await?;
        }
    }
    debug_assert_eq!(day.fleet.instances.len(), INSTANCES);
    day.recovered().await
}

async fn pause(day: &mut Day, most: u64) {
    let time = Duration::from_millis(day.random.u64(50..most));
    tokio::time::sleep(time).await;
}
