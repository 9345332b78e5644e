//! Sessions that write the key's table and those that refer to it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cutover::migration::{Migration, Phase};
use fastrand::Rng;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::sleep;

use super::model::{Line, Node, ROOT, Refused, Rows};
use super::shape::{Referring, Source};
use super::world::KeyWorld;
use crate::Outcome;
use crate::base::lock;
use crate::damage::{Kind, code_of};
use crate::pairs::INTEGER_TO_BIGINT;
use crate::shape::settings_of;
use crate::writers::{ISOLATIONS, LEVELS, TRANSIENT, outside, run, run_pinned};

/// The value that makes the trigger of a table change what refers to the key.
const DETACH: &str = "detach";

pub(crate) struct Writer {
    world: Arc<KeyWorld>,
    number: usize,
    rng: Rng,
    count: i64,
}

/// A statement, and what it makes of the writer's rows.
struct Write {
    sql: String,
    copy: Option<String>,
    after: Result<Rows, Refused>,
    /// A row of the key's table whose key the server draws.
    drawn: Option<Node>,
}

impl Writer {
    pub(crate) fn new(world: &Arc<KeyWorld>, number: usize, seed: u64) -> Self {
        Self { world: Arc::clone(world), number, rng: Rng::with_seed(seed), count: 100 }
    }

    /// A session that knows nothing of the library.
    pub(crate) async fn external(mut self) -> Outcome {
        let options = outside(&self.world, &mut self.rng, "nightly job")?;
        let is_super = options.get_username() == "postgres";
        let mut session = PgConnection::connect_with(&options).await?;
        let mut is_replica = false;
        while !self.world.is_over.load(Ordering::Relaxed) {
            if self.rng.u8(..).is_multiple_of(10) {
                is_replica = is_super && self.rng.bool();
                session.execute("reset all").await?;
                for setting in settings_of(&INTEGER_TO_BIGINT, &mut self.rng) {
                    session.execute(setting).await.ok();
                }
                if is_super {
                    let role = if is_replica { "replica" } else { "origin" };
                    session.execute(AssertSqlSafe(format!("set session_replication_role = {role}"))).await?;
                }
            }
            let world = Arc::clone(&self.world);
            let quiet = world.quiet.read().await;
            let (first, _) = world.phase().await?;
            let before = lock(&world.rows[self.number]).clone();
            let write = self.choose(&before, first, Some(is_replica));
            let isolation = ISOLATIONS[self.rng.usize(..ISOLATIONS.len())];
            let copy = write.copy.as_deref();
            let outcome = run(&world, &mut self.rng, &mut session, isolation, &write.sql, copy).await;
            self.settle(before, write, first, outcome.map_err(Into::into)).await?;
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
                    let write = self.choose(&before, phase, None);
                    let outcome = run_pinned(&world, &mut self.rng, tx, &write.sql).await;
                    self.settle(before, write, phase, outcome.map_err(Into::into)).await?;
                }
                Err(error) if error.is_retryable() => {}
                Err(error) => world.fail_write(&error, format!("begin failed: {error}")),
            }
            drop(quiet);
            sleep(Duration::from_millis(self.rng.u64(1..12))).await;
        }
        Ok(())
    }

    /// What became of a write, and whether it may be so.
    async fn settle(
        &mut self,
        before: Rows,
        write: Write,
        first: Phase,
        outcome: Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Outcome {
        let world = Arc::clone(&self.world);
        let what = format!("`{}` in {first}", write.sql);
        if let Err(error) = outcome {
            world.refusals.fetch_add(1, Ordering::Relaxed);
            let code = code_of(&*error);
            let is_due = write.after.is_err() && ["23503", "23502", "23001"].contains(&&*code);
            if !is_due && !TRANSIENT.contains(&&*code) {
                world.fail_write(&*error, format!("{what} failed: {error}"));
            }
            return Ok(());
        }
        let Ok(mut after) = write.after else {
            world.fail(Kind::Refused, format!("{what} passed, and a foreign key has to refuse it"));
            return Ok(());
        };
        if let Some(node) = write.drawn {
            let query = "select id::bigint from public.subject where note = $1";
            let drawn = sqlx::query_scalar(query).bind(&node.note).fetch_optional(&world.control).await?;
            let Some(id) = drawn else {
                world.fail(Kind::Lost, format!("{what}: there is no such row"));
                return Ok(());
            };
            after.nodes.insert(id, node);
        }
        self.refresh(&before, &mut after, first);
        world.check(&after, Some(&before), &what).await?;
        *lock(&world.rows[self.number]) = after;
        Ok(())
    }

    /// Notes the rows whose second columns a trigger has set, because a column that moves has changed.
    fn refresh(&self, before: &Rows, after: &mut Rows, first: Phase) {
        let nodes = after
            .nodes
            .iter()
            .filter(|(id, node)| before.nodes.get(id).is_none_or(|was| was.parent != node.parent));
        let lines = after
            .lines
            .iter()
            .filter(|(key, line)| before.lines.get(key).is_none_or(|was| was.node != line.node));
        let changed: BTreeSet<(String, i64)> = nodes
            .map(|(id, _)| ("subject".to_owned(), *id))
            .chain(lines.map(|(key, _)| (format!("lines_{}", key.0), key.1)))
            .collect();
        match first {
            Phase::Off => after.fresh.retain(|row| !changed.contains(row)),
            _ => after.fresh.extend(changed),
        }
    }

    fn note(&mut self) -> String {
        self.count += 1;
        format!("w{}-{}", self.number, self.count)
    }

    fn one_of(&mut self, keys: impl Iterator<Item = i64>) -> Option<i64> {
        let keys: Vec<i64> = keys.collect();
        (!keys.is_empty()).then(|| keys[self.rng.usize(..keys.len())])
    }

    /// A key that has no row; a large one where the key is `bigint` for good.
    fn free_key(&mut self, rows: &Rows, phase: Phase) -> i64 {
        let is_large = phase >= Phase::Retire && !self.world.is_turning.load(Ordering::Relaxed);
        let start = if is_large && self.rng.bool() { self.world.max() } else { 0 };
        loop {
            let key = start + KeyWorld::explicit(self.number, self.rng.i64(0..1_000));
            if !rows.nodes.contains_key(&key) {
                return key;
            }
        }
    }

    /// A statement. `external`: whether the session is one of replication, where no foreign key acts.
    fn choose(&mut self, before: &Rows, phase: Phase, external: Option<bool>) -> Write {
        let is_replica = external == Some(true);
        loop {
            let choice = self.rng.u8(..14);
            let chosen = match choice {
                0..=6 => self.choose_node(choice, before, phase, is_replica),
                7 if external.is_some() => Some(self.copy(before, phase)),
                13 if external.is_some() && phase >= Phase::Expand && phase < Phase::Switch => {
                    self.write_second(before)
                }
                8..=11 => self.choose_line(choice, before, is_replica),
                12 if !is_replica => self.set_parent(before),
                _ => None,
            };
            if let Some(write) = chosen {
                return write;
            }
        }
    }

    fn choose_node(&mut self, choice: u8, before: &Rows, phase: Phase, is_replica: bool) -> Option<Write> {
        let world = Arc::clone(&self.world);
        let shape = &world.shape;
        let overriding = world.overriding();
        let mut after = before.clone();
        let note = self.note();
        let id = self.one_of(before.nodes.keys().copied())?;
        let new = Node { note: note.clone(), parent: world.parent_by_default() };
        let key = self.free_key(before, phase);
        let is_movable = shape.source != Source::Always && !is_replica;
        let renamed = |after: &mut Rows| {
            if let Some(node) = after.nodes.get_mut(&id) {
                node.note.clone_from(&note);
            }
        };
        let sql = match choice {
            0 if shape.source != Source::Plain => {
                let sql = format!("insert into public.subject (note) values ('{note}')");
                return Some(Write { sql, copy: None, after: Ok(after), drawn: Some(new) });
            }
            0 | 1 => {
                after.nodes.insert(key, new);
                format!("insert into public.subject (id, note) {overriding} values ({key}, '{note}')")
            }
            2 => {
                renamed(&mut after);
                format!("update public.subject set note = '{note}' where id = {id}")
            }
            3 if is_movable => {
                let moved = after.move_key(shape, id, key);
                let sql = format!("update public.subject set id = {key} where id = {id}");
                let after = moved.map(|()| self.triggered(after));
                return Some(Write { sql, copy: None, after, drawn: None });
            }
            4 if !is_replica => {
                let deleted = after.delete(shape, id);
                let sql = format!("delete from public.subject where id = {id}");
                let after = deleted.map(|()| self.triggered(after));
                return Some(Write { sql, copy: None, after, drawn: None });
            }
            5 => {
                renamed(&mut after);
                format!(
                    "insert into public.subject (id, note) {overriding} values ({id}, '{note}') \
                     on conflict (id) do update set note = excluded.note"
                )
            }
            6 if world.version >= 150_000 => {
                renamed(&mut after);
                format!(
                    "merge into public.subject using (select {id} as v) as source on id = v \
                     when matched then update set note = '{note}'"
                )
            }
            _ => return None,
        };
        Some(self.of(sql, after))
    }

    fn of(&self, sql: String, after: Rows) -> Write {
        Write { sql, copy: None, after: Ok(self.triggered(after)), drawn: None }
    }

    fn copy(&mut self, before: &Rows, phase: Phase) -> Write {
        let (key, note) = (self.free_key(before, phase), self.note());
        let mut after = before.clone();
        let parent = self.world.parent_by_default();
        after.nodes.insert(key, Node { note: note.clone(), parent });
        let copy = Some(format!("{key},{note}\n"));
        let sql = "copy public.subject (id, note) from stdin (format csv)".to_owned();
        Write { sql, copy, after: Ok(self.triggered(after)), drawn: None }
    }

    /// Writes a second column, which has to stay equal.
    fn write_second(&mut self, before: &Rows) -> Option<Write> {
        let line = self.one_of(before.lines.keys().filter(|key| key.0 == 0).map(|key| key.1));
        let is_moved = self.world.shape.lines.first().is_some_and(|one| one.ty != "bigint");
        let sql = match line.filter(|_| is_moved && self.rng.bool()) {
            Some(line) => format!("update public.lines_0 set node_bigint = null where id = {line}"),
            None => {
                let id = self.one_of(before.nodes.keys().copied())?;
                format!("update public.subject set id_bigint = 5 where id = {id}")
            }
        };
        Some(Write { sql, copy: None, after: Ok(before.clone()), drawn: None })
    }

    fn choose_line(&mut self, choice: u8, before: &Rows, is_replica: bool) -> Option<Write> {
        let world = Arc::clone(&self.world);
        let table = self.rng.usize(..world.shape.lines.len().max(1));
        let one = world.shape.lines.get(table)?;
        let mut after = before.clone();
        let note =
            if one.has_trigger && !is_replica && self.rng.bool() { DETACH.to_owned() } else { self.note() };
        let own: Vec<i64> = before.lines.keys().filter(|key| key.0 == table).map(|key| key.1).collect();
        let node = match self.rng.u8(..4) {
            0 if !one.not_null => None,
            _ => self.one_of(before.nodes.keys().copied()),
        };
        let text = node.map_or("null".to_owned(), |node| node.to_string());
        let sql = if choice == 8 {
            self.count += 1;
            let id = i64::try_from(self.number).unwrap_or(0) * 100_000 + self.count;
            let node = if one.has_default && self.rng.bool() { None } else { Some(node) };
            after.lines.insert((table, id), Line { note: note.clone(), node: node.unwrap_or(Some(ROOT)) });
            match node {
                Some(_) => format!(
                    "insert into public.lines_{table} (id, note, node) values ({id}, '{note}', {text})"
                ),
                None => format!("insert into public.lines_{table} (id, note) values ({id}, '{note}')"),
            }
        } else {
            let id = self.one_of(own.into_iter())?;
            let line = after.lines.get_mut(&(table, id))?;
            if is_replica && line.note == DETACH {
                // No trigger of the table fires.
                return None;
            }
            match choice {
                9 => {
                    line.node = node;
                    format!("update public.lines_{table} set node = {text} where id = {id}")
                }
                10 => {
                    line.note.clone_from(&note);
                    format!("update public.lines_{table} set note = '{note}' where id = {id}")
                }
                _ => {
                    after.lines.remove(&(table, id));
                    format!("delete from public.lines_{table} where id = {id}")
                }
            }
        };
        Some(self.of(sql, after))
    }

    fn set_parent(&mut self, before: &Rows) -> Option<Write> {
        self.world.shape.parent.as_ref()?;
        let id = self.one_of(before.nodes.keys().copied())?;
        let parent = self.one_of(before.nodes.keys().copied().filter(|other| *other < id));
        let mut after = before.clone();
        after.nodes.get_mut(&id)?.parent = parent;
        let text = parent.map_or("null".to_owned(), |parent| parent.to_string());
        Some(self.of(format!("update public.subject set parent = {text} where id = {id}"), after))
    }

    /// What the triggers of the tables make of rows that were written.
    fn triggered(&self, mut rows: Rows) -> Rows {
        let to = |one: &Referring| one.not_null.then_some(ROOT);
        for (key, line) in &mut rows.lines {
            if let Some(one) = self.world.shape.lines.get(key.0).filter(|one| one.has_trigger)
                && line.note == DETACH
            {
                line.node = to(one);
            }
        }
        rows
    }
}
