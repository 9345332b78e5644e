//! Sessions that write the table while it migrates. Each writer has keys of its own, so it knows what its rows must hold.

mod external;
mod pinned;
mod session;

pub(crate) use session::{ISOLATIONS, LEVELS, TRANSIENT, linger, outside, run, run_pinned};

use std::sync::Arc;
use std::time::Duration;

use cutover::migration::{Phase, Side};
use fastrand::Rng;
use tokio::time::sleep;

use crate::Outcome;
use crate::base::lock;
use crate::damage::Kind;
use crate::oracle::{Pair, Row, Value};
use crate::world::{KEYS, WRITERS, World};

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
    Insert {
        old: Option<String>,
        new: Option<String>,
    },
    Update {
        old: Option<String>,
        new: Option<String>,
    },
    /// An insert that becomes an update of these columns of the old side where the row exists.
    Upsert {
        old: String,
        named: Vec<bool>,
    },
    Delete,
    /// A delete by a foreign key.
    Cascade,
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

    /// Which columns of a side a statement names.
    fn named(&mut self) -> Vec<bool> {
        match self.world.shape.has_second {
            true => [[true, true], [true, false], [false, true]][self.rng.usize(..3)].to_vec(),
            false => vec![true],
        }
    }

    fn all(&self) -> Vec<bool> {
        vec![true; self.world.shape.columns()[0].len()]
    }

    /// The columns of a side that a statement names, and their literals, separated by commas.
    fn lists(&self, side: Side, value: &Value, named: &[bool]) -> (String, String) {
        let [old, new] = self.world.shape.columns();
        let columns = if side == Side::Old { old } else { new };
        let literals = self.world.literals(side, value);
        let all = columns.iter().zip(literals).zip(named).filter(|(_, named)| **named);
        let (columns, literals): (Vec<&str>, Vec<String>) =
            all.map(|((column, text), _)| (*column, text)).unzip();
        (columns.join(", "), literals.join(", "))
    }

    /// What an update assigns.
    fn sets(&self, side: Side, value: &Value, named: &[bool]) -> String {
        let (columns, literals) = self.lists(side, value, named);
        format!("({columns}) = row({literals})")
    }

    async fn pause(&mut self) {
        sleep(Duration::from_millis(self.rng.u64(1..12))).await;
    }

    async fn linger(&mut self) {
        linger(&self.world, &mut self.rng).await;
    }

    /// What a change may leave in a phase. `None`: it is refused.
    fn after(&self, number: usize, phase: Phase, before: Option<&Row>, change: &Change) -> Option<After> {
        let values = &self.world.values;
        if !self.world.moves(number) {
            return self.after_beside(phase, before, change);
        }
        let is_table = self.world.shape.is_table;
        let is_rust = self.world.shape.rust_pair.is_some();
        let is_refused = phase >= if is_rust { Phase::Ramp } else { Phase::Retire };
        if is_table && is_refused && !matches!(change, Change::Cascade) {
            return None;
        }
        if is_rust && phase < Phase::Retire {
            return self.after_unmapped(phase, before, change);
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
                    return Some(known((old.to_owned(), values.forward_of(old)?)));
                }
                if self.world.shape.is_apart && !is_refused {
                    return Some(known((old.to_owned(), values.forward_of(old)?)));
                }
                values.inserted(phase, old, new).map(known)
            }
            Change::Update { old, new } => {
                let before = before?;
                let after = (old.as_deref().unwrap_or(&before.old), new.as_deref().unwrap_or(&before.new));
                if is_table {
                    return Some(known((after.0.to_owned(), values.forward_of(after.0)?)));
                }
                // A write that changes nothing is not mirrored.
                let is_apart = self.world.shape.is_apart && !is_refused && after.0 != before.old;
                if is_apart {
                    return Some(known((after.0.to_owned(), values.forward_of(after.0)?)));
                }
                let is_same = after == (before.old.as_str(), before.new.as_str());
                let knows_new = phase != Phase::Off && (before.new_written || !is_same);
                let images = values.updated(phase, (&before.old, &before.new), after);
                images.map(|images| After { knows_new, ..known(images) })
            }
            // The trigger fires after the rows of two tables, and sees what became of them.
            Change::Upsert { old, named } if self.world.shape.is_apart && before.is_some() => {
                let old = before.map(|row| values.with(&row.old, named, old));
                self.after(number, phase, before, &Change::Update { old, new: None })
            }
            Change::Upsert { old, named } => {
                let insert = Change::Insert { old: Some(old.clone()), new: None };
                let proposed = self.after(number, phase, before, &insert)?;
                match before {
                    None => Some(proposed),
                    Some(row) => {
                        let old = proposed.images.map(|images| values.with(&row.old, named, &images.0));
                        self.after(number, phase, before, &Change::Update { old, new: None })
                    }
                }
            }
            Change::Delete | Change::Cascade => Some(After { images: None, ..known(Pair::default()) }),
            Change::Nothing => {
                let before = before?;
                let knows_new = before.new_written && phase != Phase::Off;
                Some(After { knows_new, ..known((before.old.clone(), before.new.clone())) })
            }
        }
    }

    /// What a change leaves of a row that does not move.
    fn after_beside(&self, phase: Phase, before: Option<&Row>, change: &Change) -> Option<After> {
        let values = &self.world.values;
        let old = match change {
            Change::Insert { old, .. } => Some(old.as_ref().unwrap_or(&values.default_old).clone()),
            Change::Update { old, .. } => Some(old.as_ref().unwrap_or(&before?.old).clone()),
            Change::Upsert { old, named } => {
                Some(before.map_or_else(|| old.clone(), |row| values.with(&row.old, named, old)))
            }
            Change::Nothing => Some(before?.old.clone()),
            Change::Delete | Change::Cascade => None,
        };
        let images = match old {
            Some(old) => Some((old.clone(), values.forward_of(&old)?)),
            None => None,
        };
        Some(After { phase, images, is_unmappable: false, knows_new: true })
    }

    /// What a change may leave where the mapping is in Rust, which the guard trigger cannot run. `None`: it is refused.
    ///
    /// A copy brings the new side up to date until `verify`. From `ramp` on, what has to be mapped is refused.
    fn after_unmapped(&self, phase: Phase, before: Option<&Row>, change: &Change) -> Option<After> {
        let values = &self.world.values;
        let is_later = phase >= Phase::Ramp;
        let maps_back = self.world.shape.rust_pair.is_some_and(|rust| rust.backward.is_none());
        let images = match change {
            Change::Insert { old, new } if is_later => {
                let old = old.as_ref().unwrap_or(&values.default_old);
                let new = new.as_ref().unwrap_or(&values.default_new);
                let is_mapped = maps_back && !values.maps_forward(phase, old, new);
                Some(is_mapped.then(|| values.inserted(phase, old, new))??)
            }
            Change::Upsert { old, named } if is_later => {
                let insert = Change::Insert { old: Some(old.clone()), new: None };
                let proposed = self.after_unmapped(phase, before, &insert)?;
                let Some(before) = before else { return Some(proposed) };
                let old = proposed.images.map(|images| values.with(&before.old, named, &images.0));
                return self.after_unmapped(phase, Some(before), &Change::Update { old, new: None });
            }
            Change::Upsert { old, named } => {
                let old = before.map_or_else(|| old.clone(), |row| values.with(&row.old, named, old));
                Some((old.clone(), values.forward_of(&old)?))
            }
            Change::Insert { old, .. } => {
                let old = old.as_ref().unwrap_or(&values.default_old);
                Some((old.clone(), values.forward_of(old)?))
            }
            Change::Update { old, new } => {
                let before = before?;
                let (old, new) = (old.as_ref().unwrap_or(&before.old), new.as_ref().unwrap_or(&before.new));
                let is_same = old == &before.old && new == &before.new;
                match is_later && !is_same {
                    true if old == &before.old && maps_back => Some((values.back_of(new)?, new.clone())),
                    true => return None,
                    false => Some((old.clone(), values.forward_of(old)?)),
                }
            }
            Change::Nothing => before.map(|row| (row.old.clone(), row.new.clone())),
            Change::Delete | Change::Cascade => None,
        };
        if images.is_none() {
            return Some(After { phase, images, is_unmappable: false, knows_new: phase != Phase::Off });
        }
        // A write that does not change the row leaves the new side as it was. In two tables a row with another key is a new one.
        let is_moved = self.world.shape.is_table && matches!(change, Change::Nothing);
        let is_same = !is_moved
            && before.is_some_and(|row| row.new_written)
            && images.as_ref().map(|(old, _)| old) == before.map(|row| &row.old);
        Some(After { phase, images, is_unmappable: false, knows_new: is_later || is_same })
    }

    /// Compares the row with what it may hold, and remembers what it holds.
    async fn judge(&self, number: usize, before: Option<&Row>, allowed: &[After], what: &str) -> Outcome {
        let (mut old, mut new) = self.world.look(number).await?;
        let mut is_stale = false;
        let moves = self.world.moves(number);
        let fits = |after: &&After, old: &Option<String>, new: &Option<String>| {
            if !moves {
                return new.is_none() && old.as_ref() == after.images.as_ref().map(|(old, _)| old);
            }
            let Some((o, n)) = &after.images else {
                return if !after.knows_new {
                    old.is_none()
                } else if self.world.shape.is_table && after.phase >= Phase::Retire {
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
        if !allowed.iter().any(|after| fits(&after, &old, &new)) {
            // A transaction with an older snapshot does not see the copy of its row. Its write is repaired, from `verify` on.
            if self.world.phase().await?.0 < Phase::Verify && self.world.waits_for_repair(number).await? {
                lock(&self.world.stale).insert(number);
                is_stale = true;
            } else {
                self.world.wait_for_repairs().await?;
                (old, new) = self.world.look(number).await?;
            }
        }
        let unknown: Vec<After> =
            allowed.iter().map(|after| After { knows_new: false, ..after.clone() }).collect();
        let allowed = if is_stale { &*unknown } else { allowed };
        let Some(after) = allowed.iter().find(|after| fits(after, &old, &new)) else {
            let repairs = self.world.pending_repairs().await?;
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
            let text = format!(
                "{what}: key {} holds {} and {}, allowed: {}; it was {was}; {before:?}; repairs: {repairs}",
                self.world.key(number),
                values.show(old.as_ref()),
                values.show(new.as_ref()),
                shown.join(" or ")
            );
            self.world.fail(kind_of(allowed, before, (old.as_ref(), new.as_ref())), text);
            return Ok(());
        };
        if !after.knows_new && self.world.shape.rust_pair.is_some() {
            lock(&self.world.stale).insert(number);
        }
        let mut rows = lock(&self.world.rows);
        match &after.images {
            None => {
                rows.remove(&number);
                lock(&self.world.parents).remove(&number);
            }
            Some((old, new)) => {
                let is_late = moves && after.phase >= Phase::Retire;
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

/// The kind of damage if a row holds what it may not.
fn kind_of(allowed: &[After], before: Option<&Row>, (old, new): (Option<&String>, Option<&String>)) -> Kind {
    let is_present = |after: &After| after.images.is_some();
    match before {
        // No outcome is allowed, so the write should have been refused.
        _ if allowed.is_empty() => Kind::Refused,
        _ if !allowed.iter().any(is_present) => Kind::Orphan,
        _ if allowed.iter().all(is_present) && (old.is_none() || new.is_none()) => Kind::Lost,
        Some(row) if old == Some(&row.old) || new == Some(&row.new) => Kind::Stale,
        _ => Kind::Wrong,
    }
}
