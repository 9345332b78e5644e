//! The service's own transactions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cutover::migration::{DualWrite, Error, Isolation, Migration, Phase, PinnedTx, Rows, Side, SideColumns};
use sqlx::{AssertSqlSafe, Executor};

use super::{After, Change, Writer};
use crate::Outcome;
use crate::base::lock;
use crate::key::Key;
use crate::oracle::{Row, Value};
use crate::world::WRITERS;

impl Writer {
    /// An instance's own transactions.
    pub(crate) async fn pinned(mut self, migration: Migration) -> Outcome {
        while !self.world.is_over.load(Ordering::Relaxed) {
            let world = Arc::clone(&self.world);
            let quiet = world.quiet.read().await;
            let migration = world.instance(&migration, &mut self.rng);
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
        let is_table = world.shape.is_table || world.shape.is_apart;
        let isolation = match self.rng.u8(..6) {
            // In a migration of a table an older snapshot may not see what was copied: see `TableMigration`.
            0 if !is_table => Isolation::RepeatableRead,
            1 if !is_table => Isolation::Serializable,
            _ => Isolation::ReadCommitted,
        };
        let tx = match migration.begin_isolated(&world.pool, isolation).await {
            Ok(tx) => tx,
            Err(error) if error.is_retryable() => return Ok(()),
            Err(error) => {
                world.fail_write(&error, format!("begin failed: {error}"));
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
        let (exists, deletes) = (before.is_some(), before.is_some() && choice == 0);
        let statements = match world.shape.mirrors {
            true => {
                let columns = migration.columns(&tx)?;
                let one = self.mirrored_statement(&columns, number, exists, deletes, &value);
                Statements { old: None, new: None, at_once: Some(one) }
            }
            false => self.pinned_statements(number, exists, deletes, phase, &value),
        };
        let what = format!("pinned write in {phase} ({statements:?})");
        let mut tx = tx;
        let wrote = match world.shape.mirrors || !world.moves(number) {
            true => execute(&mut tx, statements.at_once.unwrap_or_default()).await,
            false => self.run_pinned(migration, &mut tx, statements).await,
        };
        if !self.finish(tx, wrote, &what).await {
            return Ok(());
        }
        let after = match deletes {
            true => gone(phase),
            false => self.after_pinned(number, phase, before.as_ref(), &value),
        };
        self.judge(number, before.as_ref(), &[after], &what).await
    }

    /// Commits what was written. Returns whether the transaction is committed.
    async fn finish(&mut self, tx: PinnedTx, wrote: Result<(), Error>, what: &str) -> bool {
        self.linger().await;
        let outcome = match wrote {
            Ok(()) => tx.commit().await,
            Err(error) => Err(error),
        };
        match &outcome {
            Ok(()) => {
                self.world.writes.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.is_retryable() => {
                self.world.refusals.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                self.world.fail_write(error, format!("{what} failed: {error}"));
            }
        }
        outcome.is_ok()
    }

    /// What a write of this value leaves.
    fn after_pinned(&self, number: usize, phase: Phase, before: Option<&Row>, value: &Value) -> After {
        let (values, old, new) = (&self.world.values, value.old.clone(), value.new.clone());
        if self.world.shape.mirrors && phase <= Phase::Switch {
            let (old, new) = if phase < Phase::Switch { (Some(old), None) } else { (None, Some(new)) };
            let change = match before {
                Some(_) => Change::Update { old, new },
                None => Change::Insert { old, new },
            };
            if let Some(after) = self.after(number, phase, before, &change) {
                return after;
            }
        }
        let old = match phase {
            Phase::Retire | Phase::Contract if self.world.moves(number) => {
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
        !shape.is_table
            && !shape.is_apart
            && shape.key != Key::IdentityAlways
            && (!row.old_behind || phase >= Phase::Retire)
    }

    /// Gives the row another key, and writes neither side.
    async fn pinned_move(&mut self, mut tx: PinnedTx, from: usize, before: &Row) -> Outcome {
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
        let wrote = execute(&mut tx, moves).await;
        if self.finish(tx, wrote, &what).await {
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
    async fn pinned_delete_of_parent(&mut self, mut tx: PinnedTx, number: usize) -> Outcome {
        let (phase, world) = (tx.phase(), Arc::clone(&self.world));
        let parent = lock(&world.parents).get(&number).copied();
        let Some(parent) = parent.filter(|parent| *parent >= WRITERS) else { return Ok(()) };
        let deletes = format!("delete from parents where id = {parent}");
        let what = format!("pinned cascade in {phase} (`{deletes}`)");
        let wrote = execute(&mut tx, deletes).await;
        if self.finish(tx, wrote, &what).await {
            for row in world.rows_of(parent) {
                let before = lock(&world.rows).get(&row).cloned();
                self.judge(row, before.as_ref(), &[gone(phase)], &what).await?;
            }
        }
        Ok(())
    }

    /// The statements of a write, for each side that the phase writes.
    fn pinned_statements(
        &self,
        number: usize,
        exists: bool,
        deletes: bool,
        phase: Phase,
        value: &Value,
    ) -> Statements {
        let world = &self.world;
        let (key, is_row, names) = (world.key(number), world.is_row(number), world.shape.key.names());
        let overriding = world.overriding();
        let all = self.all();
        let [set_old, set_new] = [Side::Old, Side::New].map(|side| self.sets(side, value, &all));
        let [(old_columns, old), (new_columns, new)] =
            [Side::Old, Side::New].map(|side| self.lists(side, value, &all));
        let is_table = world.shape.is_table;
        let (writes_old, writes_new) = (phase.writes(Side::Old), phase.writes(Side::New));
        let insert = |columns: &str, values: &str| {
            format!("insert into subject ({names}, {columns}) {overriding} values ({key}, {values})")
        };
        let old = match (deletes, is_table, exists) {
            (true, ..) => format!("delete from subject where {is_row}"),
            (_, true, _) => format!(
                "insert into subject ({names}, parent, old_c) {overriding} values ({key}, null, {old}) \
                 on conflict ({names}) do update set old_c = excluded.old_c"
            ),
            (_, _, true) => format!("update subject set {set_old} where {is_row}"),
            _ => insert(&old_columns, &old),
        };
        if !world.moves(number) {
            return Statements { old: None, new: None, at_once: Some(old) };
        }
        let table = world.shape.new_table();
        if world.shape.is_apart {
            let new = self.statement_apart(number, (exists, deletes, writes_old), value);
            return Statements {
                old: writes_old.then_some(old),
                new: writes_new.then_some(new),
                at_once: None,
            };
        }
        let new = match (deletes, is_table && writes_old, exists || writes_old) {
            (true, ..) => format!("delete from {table} where {is_row}"),
            (_, true, _) => format!(
                "insert into subject_2 ({names}, parent, note, new_c) select {names}, parent, note, {new} from subject \
                 where {is_row} on conflict ({names}) do update set parent = excluded.parent, note = excluded.note, \
                 new_c = excluded.new_c"
            ),
            (_, _, true) => format!("update {table} set {set_new} where {is_row}"),
            _ if is_table => format!("insert into {table} ({names}, new_c) values ({key}, {new})"),
            _ => insert(&new_columns, &new),
        };
        let at_once = (!is_table && writes_old && writes_new).then(|| match (deletes, exists) {
            (true, _) => old.clone(),
            (_, true) => format!("update subject set {set_old}, {set_new} where {is_row}"),
            _ => {
                let (columns, values) = (format!("{old_columns}, {new_columns}"), self.both(value));
                insert(&columns, &values)
            }
        });
        Statements { old: writes_old.then_some(old), new: writes_new.then_some(new), at_once }
    }

    /// The statements for columns in a table of their own. If the old side is not written, the row itself comes with them.
    fn statement_apart(
        &self,
        number: usize,
        (exists, deletes, writes_old): (bool, bool, bool),
        value: &Value,
    ) -> String {
        let world = &self.world;
        let (key, is_row, names) = (world.key(number), world.is_row(number), world.shape.key.names());
        let (_, new) = self.lists(Side::New, value, &self.all());
        let columns = match deletes || value.new_texts[0].is_none() {
            true => format!("delete from subject_2 where {is_row}"),
            false => format!(
                "insert into subject_2 ({names}, new_c) values ({key}, {new}) \
                 on conflict ({names}) do update set new_c = excluded.new_c"
            ),
        };
        let row = match (writes_old, deletes, exists) {
            (true, ..) | (_, false, true) => String::new(),
            (_, true, _) => format!("delete from subject where {is_row}; "),
            _ => format!("insert into subject ({names}) {} values ({key}); ", world.overriding()),
        };
        format!("{row}{columns}")
    }

    /// The literals of both sides.
    fn both(&self, value: &Value) -> String {
        let sides = [Side::Old, Side::New].map(|side| self.lists(side, value, &self.all()).1);
        sides.join(", ")
    }

    /// The statement of a write of one side, which the guard trigger mirrors to the other one.
    fn mirrored_statement(
        &self,
        columns: &SideColumns,
        number: usize,
        exists: bool,
        deletes: bool,
        value: &Value,
    ) -> String {
        let world = &self.world;
        let (_, values) = self.lists(columns.side(), value, &self.all());
        let is_row = world.is_row(number);
        match (deletes, exists) {
            (true, _) => format!("delete from subject where {is_row}"),
            (_, true) => format!("update subject set ({columns}) = row({values}) where {is_row}"),
            _ => format!(
                "insert into subject ({}, {columns}) {} values ({}, {values})",
                world.shape.key.names(),
                world.overriding(),
                world.key(number)
            ),
        }
    }

    /// Runs the statements in the transaction as an application does: at once, or each side through `DualWrite`.
    async fn run_pinned(
        &self,
        migration: &Migration,
        tx: &mut PinnedTx,
        statements: Statements,
    ) -> Result<(), Error> {
        let Statements { old, new, at_once } = statements;
        if !self.world.shape.is_dual {
            let separate = old.into_iter().chain(new);
            for statement in at_once.map_or_else(|| separate.collect::<Vec<_>>(), |one| vec![one]) {
                tx.execute(AssertSqlSafe(statement)).await?;
            }
            return Ok(());
        }
        DualWrite::new(migration.clone(), old.unwrap_or_default(), new.unwrap_or_default())
            .write_with(tx, Rows::unknown(), write_side, write_side)
            .await
    }
}

/// The statements of a pinned write.
#[derive(Debug)]
struct Statements {
    old: Option<String>,
    new: Option<String>,
    /// Both sides in one statement.
    at_once: Option<String>,
}

async fn execute(tx: &mut PinnedTx, statement: String) -> Result<(), Error> {
    tx.execute(AssertSqlSafe(statement)).await?;
    Ok(())
}

#[expect(clippy::ptr_arg, reason = "the repositories are `String`s")]
async fn write_side(statement: &String, tx: &mut PinnedTx) -> Result<(), Error> {
    execute(tx, statement.clone()).await
}

fn gone(phase: Phase) -> After {
    After { phase, images: None, is_unmappable: false, knows_new: phase != Phase::Off }
}
