//! Sessions that write the table while it migrates. Each writer has keys of its own, so it knows what its rows must hold.

mod external;
mod pinned;
mod session;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cutover::migration::Phase;
use fastrand::Rng;
use tokio::time::sleep;

use crate::Outcome;
use crate::oracle::{Pair, Row, Value, literal};
use crate::world::{KEYS, WRITERS, World, lock};

/// What a row may be after a write.
#[derive(Debug, Clone)]
struct After {
    phase: Phase,
    /// `None`: there is no row.
    images: Option<Pair>,
    is_unmappable: bool,
    /// Whether the new side is known.
    knows_new: bool,
}

/// One kind of change of a row, by the images that the statement names.
#[derive(Debug, Clone)]
enum Change {
    Insert { old: Option<String>, new: Option<String> },
    Update { old: Option<String>, new: Option<String> },
    Upsert { old: String },
    Delete,
    Nothing,
}

pub(crate) struct Writer {
    world: Arc<World>,
    number: usize,
    rng: Rng,
}

impl Writer {
    pub(crate) fn new(world: &Arc<World>, number: usize, seed: u64) -> Self {
        Self { world: Arc::clone(world), number, rng: Rng::with_seed(seed) }
    }

    fn value(&mut self) -> Value {
        let all = &self.world.values.all;
        all[self.rng.usize(..all.len())].clone()
    }

    /// A key without a row, if one of ten has none.
    fn without_row(&mut self) -> usize {
        let mut number = self.own();
        for _ in 0..10 {
            if !lock(&self.world.rows).contains_key(&number) {
                break;
            }
            number = self.own();
        }
        number
    }

    fn own(&mut self) -> usize {
        self.rng.usize(..KEYS / WRITERS) * WRITERS + self.number
    }

    fn old(&self, value: &Value) -> String {
        literal(value.old_text.as_deref(), self.world.shape.old_type())
    }

    fn new_literal(&self, value: &Value) -> String {
        literal(value.new_text.as_deref(), self.world.shape.pair.new)
    }

    async fn pause(&mut self) {
        sleep(Duration::from_millis(self.rng.u64(1..12))).await;
    }

    /// As a rule returns at once, sometimes after a moment, and now and then after most of a second; more often after half a
    /// second while open transactions matter.
    async fn linger(&mut self) {
        let is_moment = [&self.world.is_copying, &self.world.is_turning];
        let lasts = is_moment.iter().any(|moment| moment.load(Ordering::Relaxed)) && self.rng.bool();
        let most = if lasts { 500 } else { [0, 0, 0, 0, 0, 60, 200, 800][self.rng.usize(..8)] };
        if most > 0 {
            sleep(Duration::from_millis(self.rng.u64(most / 4..most))).await;
        }
    }

    /// What a change may leave in a phase. `None`: it is refused.
    fn after(&self, phase: Phase, before: Option<&Row>, change: &Change) -> Option<After> {
        let values = &self.world.values;
        let is_table = self.world.shape.is_table;
        let late = phase >= Phase::Retire;
        if is_table && late {
            return None;
        }
        let known = |images: Pair| After {
            phase,
            images: Some(images),
            is_unmappable: false,
            knows_new: phase != Phase::Off,
        };
        match change {
            Change::Insert { old, new } => {
                let (old, new) = (
                    old.as_deref().unwrap_or(&values.default_old),
                    new.as_deref().unwrap_or(&values.default_new),
                );
                if is_table {
                    return Some(known((old.to_owned(), values.forward_of(old)?.clone())));
                }
                values.inserted(phase, old, new).map(known)
            }
            Change::Update { old, new } => {
                let before = before?;
                let after = (old.as_deref().unwrap_or(&before.old), new.as_deref().unwrap_or(&before.new));
                if is_table {
                    return Some(known((after.0.to_owned(), values.forward_of(after.0)?.clone())));
                }
                // A write that changes nothing is not mirrored.
                let is_same = after == (before.old.as_str(), before.new.as_str());
                let knows_new = phase != Phase::Off && (before.new_written || !is_same);
                let images = values.updated(phase, (&before.old, &before.new), after);
                images.map(|images| After { knows_new, ..known(images) })
            }
            Change::Upsert { old } => {
                let insert = Change::Insert { old: Some(old.clone()), new: None };
                let proposed = self.after(phase, before, &insert)?;
                match before {
                    None => Some(proposed),
                    Some(_) => {
                        let old = proposed.images.map(|images| images.0);
                        self.after(phase, before, &Change::Update { old, new: None })
                    }
                }
            }
            Change::Delete => Some(After { images: None, ..known(Pair::default()) }),
            Change::Nothing => {
                let before = before?;
                let knows_new = before.new_written && phase != Phase::Off;
                Some(After { knows_new, ..known((before.old.clone(), before.new.clone())) })
            }
        }
    }

    /// Compares the row with what it may hold, and remembers what it holds.
    async fn judge(&self, number: usize, before: Option<&Row>, allowed: &[After], what: &str) -> Outcome {
        let (old, new) = self.world.look(number).await?;
        let fits = |after: &&After| {
            let Some((o, n)) = &after.images else {
                return if self.world.shape.is_table && after.phase >= Phase::Retire {
                    new.is_none()
                } else {
                    old.is_none() && (new.is_none() || after.phase == Phase::Off)
                };
            };
            let late = after.phase >= Phase::Retire;
            let old_fits = (late && self.world.shape.is_table)
                || after.phase == Phase::Contract
                || old.as_ref() == Some(o)
                || late && before.is_some_and(|row| row.old_behind);
            let new_fits = !after.knows_new || after.is_unmappable || new.as_ref() == Some(n);
            old_fits && new_fits && (late || old.is_some())
        };
        let Some(after) = allowed.iter().find(fits) else {
            let values = &self.world.values;
            let show = |images: &Option<Pair>| match images {
                Some((old, new)) => format!("{} and {}", values.show(Some(old)), values.show(Some(new))),
                None => "no row".to_owned(),
            };
            let shown: Vec<String> = allowed
                .iter()
                .map(|after| {
                    format!("{} in {} (new is known: {})", show(&after.images), after.phase, after.knows_new)
                })
                .collect();
            let was = show(&before.map(|row| (row.old.clone(), row.new.clone())));
            self.world.fail(format!(
                "{what}: key {} holds {} and {}, allowed: {}; it was {was}; {before:?}",
                self.world.key(number),
                values.show(old.as_ref()),
                values.show(new.as_ref()),
                shown.join(" or ")
            ));
            return Ok(());
        };
        let mut rows = lock(&self.world.rows);
        match &after.images {
            None => {
                rows.remove(&number);
                lock(&self.world.parents).remove(&number);
            }
            Some((old, new)) => {
                let is_late = after.phase >= Phase::Retire;
                let row = Row {
                    old: old.clone(),
                    new: new.clone(),
                    old_behind: is_late,
                    new_written: after.knows_new,
                    is_unmappable: after.is_unmappable,
                    phase: after.phase,
                };
                rows.insert(number, row);
            }
        }
        Ok(())
    }
}
