//! The migration of a table whose two sides are columns or tables.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cutover::migration::{Migration, MigrationSpec, Phase, PhaseRange};
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Outcome;
use crate::base::lock;
use crate::judge::judge;
use crate::life::{BETWEEN, Subject, arrive};
use crate::world::{QUIET, WRITERS, World};
use crate::writers::Writer;

impl Subject for World {
    fn flaw(&self) -> Option<String> {
        self.shape.flaw.map(|flaw| format!("{flaw:?}"))
    }

    fn spec(&self, range: PhaseRange, is_earlier: bool) -> Outcome<MigrationSpec> {
        let mut spec = MigrationSpec::new("subject", range).soak(Duration::ZERO);
        if self.shape.rust_pair.is_some() {
            spec = spec.external_write_quiet_period(QUIET);
        }
        Ok(match (self.shape.is_table, self.shape.is_apart) {
            (true, _) => spec.plan(self.table_plan()?),
            (_, true) => spec.plan(self.plan_apart()?),
            _ => spec.plan(self.column_plan(is_earlier)?),
        })
    }

    fn beside(&self) -> Outcome<Option<MigrationSpec>> {
        self.spec_beside()
    }

    fn spawn(self: &Arc<Self>, writers: &mut JoinSet<Outcome>, rng: &mut Rng, migration: &Migration) {
        for number in 0..WRITERS {
            let writer = Writer::new(self, number, rng.u64(..));
            match number % 2 {
                0 => writers.spawn(writer.external()),
                _ => writers.spawn(writer.pinned(migration.clone())),
            };
        }
    }

    async fn before(&self, last: &str, wish: &str) -> Outcome {
        if (last, wish) == ("retire", "switch") {
            for moment in [&self.is_turning, &self.is_moment] {
                moment.store(true, Ordering::Relaxed);
            }
            sleep(BETWEEN).await;
        }
        if wish == "contract" {
            self.release_old_table().await?;
        }
        if self.shape.rust_pair.is_none() {
            return Ok(());
        }
        let quiet = self.quiet.write().await;
        let (phase, _) = self.phase().await?;
        let is_copied = ["off", "expand", "backfill"].contains(&wish);
        let is_scanned = !is_copied && (wish == "verify" || phase < Phase::Ramp);
        self.rests.store(is_scanned, Ordering::Relaxed);
        drop(quiet);
        if wish == "verify" && phase == Phase::Backfill {
            // What the copy has passed before the writers rested is copied again.
            self.desire("expand").await?;
            arrive(self, "expand", false).await?;
        }
        Ok(())
    }

    async fn during(&self, wish: &str, is_chosen: bool) -> Outcome {
        if wish == "backfill" && is_chosen { self.disturb_a_copy().await } else { Ok(()) }
    }

    fn left(&self) -> String {
        let rows = lock(&self.rows);
        let wrong: Vec<&usize> =
            rows.iter().filter(|(_, row)| row.is_unmappable).map(|(number, _)| number).collect();
        format!("rows {wrong:?} hold values that cannot be mapped, to be corrected: {:?}", self.corrects)
    }

    async fn judge(&self, wish: &str) -> Outcome {
        for moment in [&self.is_turning, &self.is_moment] {
            moment.store(false, Ordering::Relaxed);
        }
        // From `ramp` on, the guard trigger refuses what it cannot map.
        self.rests.store(self.rests.load(Ordering::Relaxed) && wish == "verify", Ordering::Relaxed);
        sleep(BETWEEN).await;
        judge(self, wish).await?;
        if self.phase().await?.0 >= Phase::Ramp {
            self.judge_attached(wish).await?;
        }
        self.judge_beside(wish).await
    }
}
