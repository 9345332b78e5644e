//! The service's own transactions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cutover::migration::{Error, Isolation, Migration, Phase, PinnedTx, Side};
use sqlx::{AssertSqlSafe, Executor};

use super::{After, Change, Writer};
use crate::Outcome;
use crate::oracle::{Row, Value};
use crate::shape::Key;
use crate::world::{WRITERS, lock};

impl Writer {
    /// An instance's own transactions.
    pub(crate) async fn pinned(mut self, migration: Migration) -> Outcome {
        while !self.world.is_over.load(Ordering::Relaxed) {
            let world = Arc::clone(&self.world);
            let quiet = world.quiet.read().await;
            self.pinned_write(&migration).await?;
            drop(quiet);
            self.pause().await;
        }
        Ok(())
    }

    async fn pinned_write(&mut self, migration: &Migration) -> Outcome {
        let world = Arc::clone(&self.world);
        let number = self.own();
        let before = lock(&world.rows).get(&number).cloned();
        if before.as_ref().is_some_and(|row| row.is_unmappable) {
            return Ok(());
        }
        let value = self.value();
        let choice = self.rng.u8(..8);
        let isolation = match self.rng.u8(..6) {
            // In a migration of a table an older snapshot may not see what was copied: see `TableMigration`.
            0 if !world.shape.is_table => Isolation::RepeatableRead,
            1 if !world.shape.is_table => Isolation::Serializable,
            _ => Isolation::ReadCommitted,
        };
        let tx = match migration.begin_isolated(&world.pool, isolation).await {
            Ok(tx) => tx,
            Err(error) if error.is_retryable() => return Ok(()),
            Err(error) => {
                world.fail(format!("begin failed: {error}"));
                return Ok(());
            }
        };
        let phase = tx.phase();
        if let (Some(row), 1) = (&before, choice)
            && self.may_move(row, phase)
        {
            let row = row.clone();
            return self.pinned_move(tx, number, &row).await;
        }
        if world.shape.mirrors && before.as_ref().is_some_and(|row| row.old_behind) && phase < Phase::Retire {
            return Ok(());
        }
        if choice == 2 && world.shape.on_delete == "cascade" && phase < Phase::Switch {
            return self.pinned_delete_of_parent(tx, number).await;
        }
        let deletes = before.is_some() && choice == 0;
        let statements = self.pinned_statements(number, before.is_some(), deletes, phase, &value);
        let what = format!("pinned write in {phase} ({})", statements.join("; "));
        if !self.finish(tx, &statements, &what).await {
            return Ok(());
        }
        let after = match deletes {
            true => gone(phase),
            false => self.after_pinned(phase, before.as_ref(), &value),
        };
        self.judge(number, before.as_ref(), &[after], &what).await
    }

    /// Runs the statements and commits. Returns whether the transaction is committed.
    async fn finish(&mut self, mut tx: PinnedTx, statements: &[String], what: &str) -> bool {
        let wrote = execute_all(&mut tx, statements).await;
        self.linger().await;
        let outcome = match wrote {
            Ok(()) => tx.commit().await,
            Err(error) => Err(Error::Database(error)),
        };
        match &outcome {
            Ok(()) => {
                self.world.writes.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.is_retryable() => {
                self.world.refusals.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.world.fail(format!("{what} failed: {error}")),
        }
        outcome.is_ok()
    }

    /// What a write of this value leaves.
    fn after_pinned(&self, phase: Phase, before: Option<&Row>, value: &Value) -> After {
        let (values, old, new) = (&self.world.values, value.old.clone(), value.new.clone());
        if self.world.shape.mirrors && phase <= Phase::Switch {
            let (old, new) = if phase < Phase::Switch { (Some(old), None) } else { (None, Some(new)) };
            let change = match before {
                Some(_) => Change::Update { old, new },
                None => Change::Insert { old, new },
            };
            if let Some(after) = self.after(phase, before, &change) {
                return after;
            }
        }
        let old = match phase {
            Phase::Retire | Phase::Contract => {
                before.map_or(values.default_old.clone(), |row| row.old.clone())
            }
            _ => value.old.clone(),
        };
        let images = Some((old, value.new.clone()));
        After { phase, images, is_unmappable: false, knows_new: phase != Phase::Off }
    }

    /// Whether the key of a row of one table with both sides can change. What the old side of a row that is behind holds
    /// depends on the copy back.
    fn may_move(&self, row: &Row, phase: Phase) -> bool {
        let shape = &self.world.shape;
        !shape.is_table && shape.key != Key::IdentityAlways && (!row.old_behind || phase >= Phase::Retire)
    }

    /// Gives the row another key, and writes neither side.
    async fn pinned_move(&mut self, tx: PinnedTx, from: usize, before: &Row) -> Outcome {
        let (to, phase, world) = (self.own(), tx.phase(), Arc::clone(&self.world));
        if lock(&world.rows).contains_key(&to) {
            return Ok(());
        }
        let moves = format!(
            "update subject set ({}) = row({}) where {}",
            world.shape.key.names(),
            world.key(to),
            world.is_row(from)
        );
        let what = format!("pinned move in {phase} (`{moves}`)");
        if self.finish(tx, std::slice::from_ref(&moves), &what).await {
            let parent = lock(&world.parents).remove(&from);
            self.judge(from, Some(before), &[gone(phase)], &what).await?;
            let images = Some((before.old.clone(), before.new.clone()));
            let knows_new = before.new_written && phase != Phase::Off;
            let there = After { phase, images, is_unmappable: false, knows_new };
            self.judge(to, Some(before), &[there], &what).await?;
            lock(&world.parents).extend(parent.map(|parent| (to, parent)));
        }
        Ok(())
    }

    /// Deletes the row's parent, and with it the row and the others of this parent, which are this writer's own.
    async fn pinned_delete_of_parent(&mut self, tx: PinnedTx, number: usize) -> Outcome {
        let (phase, world) = (tx.phase(), Arc::clone(&self.world));
        let parent = lock(&world.parents).get(&number).copied();
        let Some(parent) = parent.filter(|parent| *parent >= WRITERS) else { return Ok(()) };
        let deletes = format!("delete from parents where id = {parent}");
        let what = format!("pinned cascade in {phase} (`{deletes}`)");
        if self.finish(tx, &[deletes], &what).await {
            for row in world.rows_of(parent) {
                let before = lock(&world.rows).get(&row).cloned();
                self.judge(row, before.as_ref(), &[gone(phase)], &what).await?;
            }
        }
        Ok(())
    }

    fn pinned_statements(
        &self,
        number: usize,
        exists: bool,
        deletes: bool,
        phase: Phase,
        value: &Value,
    ) -> Vec<String> {
        let world = &self.world;
        let (key, is_row, names) = (world.key(number), world.is_row(number), world.shape.key.names());
        let (overriding, old, new) = (world.overriding(), self.old(value), self.new_literal(value));
        let (writes_old, writes_new) = match world.shape.mirrors {
            true => (phase < Phase::Switch, phase >= Phase::Switch),
            false => (phase.writes(Side::Old), phase.writes(Side::New)),
        };
        let mut statements = Vec::new();
        if !world.shape.is_table {
            statements.push(match (exists, deletes) {
                (_, true) => format!("delete from subject where {is_row}"),
                (true, _) => {
                    let mut sets = Vec::new();
                    if writes_old {
                        sets.push(format!("old_c = {old}"));
                    }
                    if writes_new {
                        sets.push(format!("new_c = {new}"));
                    }
                    format!("update subject set {} where {is_row}", sets.join(", "))
                }
                (false, _) => {
                    let (mut columns, mut list) = (vec![names], vec![key]);
                    if writes_old {
                        columns.push("old_c".to_owned());
                        list.push(old);
                    }
                    if writes_new {
                        columns.push("new_c".to_owned());
                        list.push(new);
                    }
                    format!(
                        "insert into subject ({}) {overriding} values ({})",
                        columns.join(", "),
                        list.join(", ")
                    )
                }
            });
            return statements;
        }
        if writes_old {
            statements.push(match (exists, deletes) {
                (_, true) => format!("delete from subject where {is_row}"),
                _ => format!(
                    "insert into subject ({names}, parent, old_c) {overriding} values ({key}, null, {old}) \
                     on conflict ({names}) do update set old_c = excluded.old_c"
                ),
            });
        }
        if writes_new {
            statements.push(match (writes_old, exists, deletes) {
                (_, _, true) => format!("delete from subject_2 where {is_row}"),
                (true, ..) => format!(
                    "insert into subject_2 ({names}, parent, note, new_c) select {names}, parent, note, {new} from subject \
                     where {is_row} on conflict ({names}) do update set parent = excluded.parent, note = excluded.note, \
                     new_c = excluded.new_c"
                ),
                (false, true, _) => format!("update subject_2 set new_c = {new} where {is_row}"),
                _ => format!("insert into subject_2 ({names}, new_c) values ({key}, {new})"),
            });
        }
        statements
    }
}

fn gone(phase: Phase) -> After {
    After { phase, images: None, is_unmappable: false, knows_new: phase != Phase::Off }
}

async fn execute_all(tx: &mut PinnedTx, statements: &[String]) -> Result<(), sqlx::Error> {
    for statement in statements {
        tx.execute(AssertSqlSafe(&**statement)).await?;
    }
    Ok(())
}
