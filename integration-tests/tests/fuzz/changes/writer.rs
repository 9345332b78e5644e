//! Sessions that write the table, and the one that it refers to.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cutover::migration::{Migration, Phase};
use fastrand::Rng;
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::sleep;

use super::model::{Change, Row, Rows};
use super::shape::Removal;
use super::world::{ChangeWorld, first_id};
use crate::Outcome;
use crate::base::lock;
use crate::damage::{Kind, code_of};
use crate::pairs::INTEGER_TO_BIGINT;
use crate::shape::settings_of;
use crate::writers::{ISOLATIONS, LEVELS, TRANSIENT, outside, run, run_pinned};

/// What a server answers to a write that a constraint, or the end of what is dropped, refuses.
const REFUSALS: [&str; 8] = ["23502", "23503", "23505", "23514", "22012", "ZC003", "42703", "42P01"];

pub(crate) struct Writer {
    world: Arc<ChangeWorld>,
    number: usize,
    rng: Rng,
    count: i64,
}

/// A statement, and what it does.
struct Write {
    sql: String,
    copy: Option<String>,
    change: Change,
    /// It writes the column that is dropped, with something else than the default.
    uses_legacy: bool,
}

impl Writer {
    pub(crate) fn new(world: &Arc<ChangeWorld>, number: usize, seed: u64) -> Self {
        Self { world: Arc::clone(world), number, rng: Rng::with_seed(seed), count: 100 }
    }

    fn name(&self) -> String {
        format!("job {}", self.number)
    }

    /// A session that knows nothing of the library.
    pub(crate) async fn external(mut self) -> Outcome {
        let name = self.name();
        let options = outside(&self.world, &mut self.rng, &name)?;
        let mut session = PgConnection::connect_with(&options).await?;
        while !self.world.is_over.load(Ordering::Relaxed) {
            if self.rng.u8(..).is_multiple_of(10) {
                session.execute("reset all").await?;
                for setting in settings_of(&INTEGER_TO_BIGINT, &mut self.rng) {
                    session.execute(setting).await.ok();
                }
            }
            let world = Arc::clone(&self.world);
            let quiet = world.quiet.read().await;
            let (first, _) = world.phase().await?;
            let before = lock(&world.rows[self.number]).clone();
            if let Some(write) = self.choose(&before, first, true) {
                self.note(&before, &write);
                let isolation = ISOLATIONS[self.rng.usize(..ISOLATIONS.len())];
                let copy = write.copy.as_deref();
                let outcome = run(&world, &mut self.rng, &mut session, isolation, &write.sql, copy).await;
                let (last, _) = world.phase().await?;
                self.settle(before, write, [first, last], outcome.map_err(Into::into)).await?;
            }
            drop(quiet);
            sleep(Duration::from_millis(self.rng.u64(1..12))).await;
        }
        Ok(())
    }

    /// An instance's own transactions.
    pub(crate) async fn pinned(mut self, migration: Migration) -> Outcome {
        while !self.world.is_over.load(Ordering::Relaxed) {
            let world = Arc::clone(&self.world);
            let quiet = world.quiet.read().await;
            let before = lock(&world.rows[self.number]).clone();
            let level = LEVELS[self.rng.usize(..LEVELS.len())];
            match world.instance(&migration, &mut self.rng).begin_isolated(&world.pool, level).await {
                Ok(tx) => {
                    let phase = tx.phase();
                    if let Some(write) = self.choose(&before, phase, false) {
                        let outcome = run_pinned(&world, &mut self.rng, tx, &write.sql).await;
                        self.settle(before, write, [phase; 2], outcome.map_err(Into::into)).await?;
                    }
                }
                Err(error) if error.is_retryable() => {}
                Err(error) => world.fail_write(&error, format!("begin failed: {error}")),
            }
            drop(quiet);
            sleep(Duration::from_millis(self.rng.u64(1..12))).await;
        }
        Ok(())
    }

    /// Whether the triggers see that the change forbids the write.
    fn is_seen(&self, before: &Rows, write: &Write) -> bool {
        let shape = &self.world.shape;
        let writes_row = matches!(write.change, Change::Put { .. } | Change::Delete { .. });
        let is_broken = match &write.change {
            Change::Put { row, .. } => before.is_seen_broken(shape, row),
            _ => false,
        };
        is_broken || write.uses_legacy || shape.removal == Removal::Table && writes_row
    }

    /// Notes a writer that the change may see.
    fn note(&self, before: &Rows, write: &Write) {
        let shape = &self.world.shape;
        let proposes = match &write.change {
            Change::Put { proposed: Some(row), .. } => before.is_seen_broken(shape, row),
            _ => false,
        };
        if self.is_seen(before, write) || proposes {
            lock(&self.world.perhaps_seen).insert(self.name());
        }
    }

    /// What became of a write, and whether it may be so.
    async fn settle(
        &mut self,
        before: Rows,
        write: Write,
        [first, last]: [Phase; 2],
        outcome: Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Outcome {
        let world = Arc::clone(&self.world);
        let what = format!("`{}` from {first} to {last}", write.sql);
        let is_free = first < Phase::Switch && last < Phase::Switch;
        let is_bound = first > Phase::Switch && last > Phase::Switch;
        let bound = before.after(&world.shape, &write.change, true);
        let is_dropped = write.uses_legacy
            || world.shape.removal == Removal::Table
                && matches!(write.change, Change::Put { .. } | Change::Delete { .. });
        if let Err(error) = outcome {
            world.refusals.fetch_add(1, Ordering::Relaxed);
            let code = code_of(&*error);
            let is_due = !is_free && (bound.is_err() || is_dropped) && REFUSALS.contains(&&*code);
            if !is_due && !TRANSIENT.contains(&&*code) {
                world.fail_write(&*error, format!("{what} failed: {error}"));
            }
            return Ok(());
        }
        if is_bound && (bound.is_err() || is_dropped) {
            world.fail(Kind::Refused, format!("{what} passed, and has to be refused"));
        }
        let free = before.after(&world.shape, &write.change, false);
        let may = match (is_free, is_bound) {
            (true, _) => vec![free],
            (_, true) => vec![bound],
            _ => vec![free, bound],
        };
        let Some(found) = world.look(Some(self.number)).await? else {
            if last != Phase::Contract {
                world.fail(Kind::Lost, format!("{what}: the table is gone"));
            }
            return Ok(());
        };
        let Some(after) = may.iter().flatten().find(|rows| world.is_same(rows, &found)) else {
            world.fail(Kind::Wrong, format!("{what}: {found:?} instead of {may:?}"));
            return Ok(());
        };
        if is_free && first > Phase::Off && self.number.is_multiple_of(2) && self.is_seen(&before, &write) {
            lock(&world.seen).insert(self.name());
        }
        *lock(&world.rows[self.number]) = after.clone();
        Ok(())
    }

    fn one_of(&mut self, ids: impl Iterator<Item = i64>) -> Option<i64> {
        let ids: Vec<i64> = ids.collect();
        (!ids.is_empty()).then(|| ids[self.rng.usize(..ids.len())])
    }

    /// A row that obeys all constraints.
    fn obedient(&mut self, before: &Rows, id: i64) -> Row {
        self.count += 1;
        let world = Arc::clone(&self.world);
        let referred = if world.shape.is_self {
            self.one_of(before.rows.keys().copied())
        } else {
            self.one_of(before.owners.iter().copied())
        };
        let referred = referred.filter(|one| *one != id || !world.shape.is_self);
        Row {
            note: Some(format!("w{}", self.count)),
            a: Some(self.count),
            b: self.rng.bool().then_some(first_id(self.number) * 100 + self.count),
            c: self.rng.bool().then(|| [1, 5, 12, 40][self.rng.usize(..4)]),
            d: referred.filter(|_| self.rng.bool()),
            legacy: world.usual(),
        }
    }

    /// Makes the row break one of the rules.
    fn break_one(&mut self, before: &Rows, row: &mut Row) {
        match self.rng.u8(..4) {
            0 => row.a = None,
            1 => row.c = Some([-5, 0, 7, 99, -1][self.rng.usize(..5)]),
            2 => row.b = self.one_of(before.rows.values().filter_map(|row| row.b)).or(row.b),
            _ => row.d = Some(first_id(self.number) + 900 + self.rng.i64(..50)),
        }
    }

    fn choose(&mut self, before: &Rows, phase: Phase, is_external: bool) -> Option<Write> {
        let world = Arc::clone(&self.world);
        let (shape, table) = (&world.shape, world.shape.table());
        let is_bound = phase >= Phase::Retire;
        let breaks = match is_bound {
            true => self.rng.u8(..).is_multiple_of(6),
            false => world.breaks.load(Ordering::Relaxed) && self.rng.u8(..).is_multiple_of(4),
        };
        // Every write of a table that is dropped is one too many.
        if shape.removal == Removal::Table && !breaks {
            return None;
        }
        let free = (0..900).map(|n| first_id(self.number) + n).find(|id| !before.rows.contains_key(id))?;
        let own = self.one_of(before.rows.keys().copied());
        let choice = self.rng.u8(..14);
        let id = if choice < 4 { free } else { own.unwrap_or(free) };
        let was = before.rows.get(&id).cloned();
        let mut row = self.obedient(before, id);
        if breaks {
            self.break_one(before, &mut row);
        }
        let mut numbers = vec![0, 1, 2, 3];
        let writes_legacy = shape.removal == Removal::Column && breaks && self.rng.bool();
        if writes_legacy {
            row.legacy = Some(format!("old {}", self.count));
            numbers.push(4);
        }
        let (columns, values) = (world.columns(&numbers), world.values(&row, &numbers));
        let of =
            |sql: String, change: Change| Some(Write { sql, copy: None, change, uses_legacy: writes_legacy });
        let insert = format!("insert into public.{table} (id, {columns}) values ({id}, {values})");
        match (choice, was) {
            (0..=2, None) => of(insert, Change::Put { id, row, proposed: None }),
            (3, None) if is_external => {
                let line =
                    format!("{id},{}\n", values.replace(", ", ",").replace("null", "").replace('\'', ""));
                let sql = format!("copy public.{table} (id, {columns}) from stdin (format csv)");
                let change = Change::Put { id, row, proposed: None };
                Some(Write { sql, copy: Some(line), change, uses_legacy: writes_legacy })
            }
            (4..=6, Some(was)) => {
                let row = Row { legacy: if writes_legacy { row.legacy } else { was.legacy }, ..row };
                let sql = format!("update public.{table} set ({columns}) = row({values}) where id = {id}");
                of(sql, Change::Put { id, row, proposed: None })
            }
            (7, Some(was)) => {
                let note = row.note.clone();
                let sql = format!("update public.{table} set note = '{}' where id = {id}", note.clone()?);
                let change = Change::Put { id, row: Row { note, ..was }, proposed: None };
                Some(Write { sql, copy: None, change, uses_legacy: false })
            }
            (8, Some(was)) => {
                let sql = format!("{insert} on conflict (id) do update set note = excluded.note");
                let change = Change::Put {
                    id,
                    row: Row { note: row.note.clone(), ..was },
                    proposed: Some(Box::new(row)),
                };
                of(sql, change)
            }
            (9, Some(was)) if world.version >= 150_000 => {
                let row = Row { legacy: if writes_legacy { row.legacy } else { was.legacy }, ..row };
                let set: Vec<String> = columns
                    .split(", ")
                    .zip(values.split(", "))
                    .map(|(column, value)| format!("{column} = {value}"))
                    .collect();
                let sql = format!(
                    "merge into public.{table} t using (select {id}::bigint as v) as source on t.id = v when matched then update set {}",
                    set.join(", ")
                );
                of(sql, Change::Put { id, row, proposed: None })
            }
            (10, Some(_)) => {
                let referred = before.rows.values().any(|row| row.d == Some(id));
                let is_fine = breaks || is_bound || !shape.is_self || !referred;
                let sql = format!("delete from public.{table} where id = {id}");
                is_fine.then_some(Write {
                    sql,
                    copy: None,
                    change: Change::Delete { id },
                    uses_legacy: false,
                })
            }
            (11..=13, _) => self.write_owner(choice, before, breaks || is_bound),
            _ => None,
        }
    }

    fn write_owner(&mut self, choice: u8, before: &Rows, breaks: bool) -> Option<Write> {
        let write = |sql: String, change: Change| Some(Write { sql, copy: None, change, uses_legacy: false });
        let free = (0..900).map(|n| first_id(self.number) + n).find(|id| !before.owners.contains(id))?;
        let own = self.one_of(before.owners.iter().copied());
        let is_referred = before.rows.values().any(|row| row.d.is_some() && row.d == own);
        let is_fine = breaks || self.world.shape.is_self || !is_referred;
        match (choice, own.filter(|_| is_fine)) {
            (11, _) => write(format!("insert into owners values ({free})"), Change::AddOwner { id: free }),
            (12, Some(id)) => write(format!("delete from owners where id = {id}"), Change::DropOwner { id }),
            (13, Some(from)) => write(
                format!("update owners set id = {free} where id = {from}"),
                Change::MoveOwner { from, to: free },
            ),
            _ => None,
        }
    }
}
