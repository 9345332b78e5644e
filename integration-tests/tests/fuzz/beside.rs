//! A second migration of the same table, which goes its own way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cutover::migration::{BatchOptions, ColumnMigration, MigrationSpec, Phase, PhaseRange};
use fastrand::Rng;
use tokio::time::sleep;

use crate::Outcome;
use crate::base::Base;
use crate::damage::Kind;
use crate::life::Subject;
use crate::world::World;

/// How long a step may take, while the other migration holds locks and the writers do.
const STEP: Duration = Duration::from_secs(160);

/// Where it can go. The old column stays, so that writers of it need not stop.
const PLACES: [&str; 5] = ["verify", "ramp:50", "switch", "verify", "off"];

impl World {
    /// Column `note` becomes `note_2`. The service knows nothing of it, so all its writes of `note` are external.
    pub(crate) fn spec_beside(&self) -> Outcome<Option<MigrationSpec>> {
        if !self.shape.has_beside {
            return Ok(None);
        }
        let batches = BatchOptions { min_rows: 15, max_rows: 30, ..BatchOptions::default() };
        let plan = ColumnMigration::new(self.work.clone(), "subject")
            .column("note", "note_2", "text")
            .forward("upper(note)")
            .backward("lower(note_2)")
            .batches(batches)
            .carry_over()
            .let_triggers_fire()
            .build()?;
        Ok(Some(MigrationSpec::new("beside", PhaseRange::FULL).plan(plan)))
    }

    /// Compares the columns of the second migration.
    pub(crate) async fn judge_beside(&self, wish: &str) -> Outcome {
        if !self.shape.has_beside || self.phase_of("beside").await?.0 < Phase::Verify {
            return Ok(());
        }
        let _quiet = self.quiet.write().await;
        let query = "select string_agg(format('%s: %s', note, note_2), '; ') from subject \
            where note_2 is distinct from upper(note)";
        let differs: Option<String> = sqlx::query_scalar(query).fetch_one(&self.control).await?;
        if let Some(differs) = differs {
            let text = format!("at {wish}: the other migration has different sides: {differs}");
            self.fail(Kind::Stale, text);
        }
        Ok(())
    }
}

/// Moves the second migration until the first one ends.
pub(crate) async fn walk<S: Subject>(world: Arc<S>, seed: u64) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    while !world.is_over.load(Ordering::Relaxed) {
        let wish = PLACES[rng.usize(..PLACES.len())];
        go(&world, wish).await?;
        sleep(Duration::from_millis(rng.u64(..500))).await;
    }
    Ok(())
}

async fn go(world: &Base, wish: &str) -> Outcome {
    let target: Phase = wish.split(':').next().unwrap_or(wish).parse()?;
    let update = "update cutover.migrations set desired = $1 where name = 'beside'";
    sqlx::query(update).bind(wish).execute(&world.control).await?;
    let began = Instant::now();
    while !world.is_over.load(Ordering::Relaxed) {
        let (phase, waits_for) = world.phase_of("beside").await?;
        if phase == target {
            return Ok(());
        }
        if began.elapsed() > STEP {
            let text =
                format!("the other migration did not reach {wish}: in {phase}, waits for {waits_for:?}");
            world.fail(Kind::Stuck, text);
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
