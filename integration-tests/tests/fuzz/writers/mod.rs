//! Sessions that write the table while it migrates. Each writer has keys of its own, so it knows what its rows must hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cutover::migration::{Error, Isolation, Migration, Phase, PinnedTx, Side};
use fastrand::Rng;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use tokio::time::sleep;

use crate::Outcome;
use crate::oracle::{Pair, Row, Value, literal};
use crate::world::{KEYS, WRITERS, World, lock};

/// Failures after which a writer repeats its transaction.
const TRANSIENT: [&str; 6] = ["40001", "40P01", "55P03", "57014", "ZC001", "ZC002"];

/// Settings that must not change what is stored.
const SETTINGS: [&str; 14] = [
    "set timezone = 'Pacific/Auckland'",
    "set timezone = 'America/St_Johns'",
    "set datestyle = 'German, DMY'",
    "set datestyle = 'SQL, DMY'",
    "set intervalstyle = 'iso_8601'",
    "set intervalstyle = 'sql_standard'",
    "set bytea_output = 'escape'",
    "set extra_float_digits = -15",
    "set array_nulls = off",
    "set xmloption = 'document'",
    "set xmlbinary = 'hex'",
    "set quote_all_identifiers = on",
    "set default_text_search_config = 'pg_catalog.german'",
    "set transform_null_equals = on",
];

const ISOLATIONS: [&str; 4] = ["read committed", "read committed", "repeatable read", "serializable"];

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
                };
                rows.insert(number, row);
            }
        }
        Ok(())
    }

    /// An ordinary session that knows nothing of the library.
    pub(crate) async fn external(mut self) -> Outcome {
        let options: PgConnectOptions = if self.rng.bool() {
            self.world.url.parse()?
        } else {
            (*self.world.pool.connect_options()).clone()
        };
        let is_super = options.get_username() == "postgres";
        let options = options.disable_statement_logging().application_name("nightly job");
        let mut session = PgConnection::connect_with(&options).await?;
        while !self.world.is_over.load(Ordering::Relaxed) {
            if self.rng.u8(..).is_multiple_of(10) {
                let mut settings = vec!["reset all", "reset session_replication_role"];
                for _ in 0..3 {
                    settings.push(SETTINGS[self.rng.usize(..SETTINGS.len())]);
                }
                // These change what the writer itself says.
                let old = self.world.shape.pair.old;
                settings.retain(|setting| {
                    !(setting.contains("array_nulls") && old.contains("[]")
                        || setting.contains("xmloption") && old == "xml")
                });
                if is_super && self.rng.bool() {
                    settings.push("set session_replication_role = replica");
                }
                for setting in settings {
                    session.execute(setting).await.ok();
                }
            }
            let world = Arc::clone(&self.world);
            let quiet = world.quiet.read().await;
            self.external_write(&mut session).await?;
            drop(quiet);
            self.pause().await;
        }
        Ok(())
    }

    async fn external_write(&mut self, session: &mut PgConnection) -> Outcome {
        let world = Arc::clone(&self.world);
        let number = self.own();
        let (first, _) = world.phase().await?;
        let before = lock(&world.rows).get(&number).cloned();
        let is_table = world.shape.is_table;
        let (key, is_row, names) = (world.key(number), world.is_row(number), world.shape.key.names());
        let overriding = world.overriding();
        let value = self.value();
        let other = self.value();
        let (old, new) = (self.old(&value), self.new_literal(&value));
        // A session's `array_nulls` also changes what the writer itself says.
        let says_arrays = world.shape.pair.new.contains("[]");
        let knows_new = !is_table && !says_arrays && first >= Phase::Expand && first <= Phase::Retire;
        let mut copy = None;
        let (what, sql, change): (&str, String, Change) = match &before {
            Some(row) if row.is_unmappable => {
                if !world.corrects.load(Ordering::Relaxed) || first >= Phase::Switch {
                    return Ok(());
                }
                let images = (value.old.clone(), value.new.clone());
                let allowed = [After {
                    phase: first,
                    images: Some(images),
                    is_unmappable: false,
                    knows_new: first != Phase::Off,
                }];
                let update = format!("update public.subject set old_c = {old} where {is_row}");
                if session.execute(AssertSqlSafe(update)).await.is_ok() {
                    self.judge(number, before.as_ref(), &allowed, "correct").await?;
                }
                return Ok(());
            }
            // What such a row's old side holds depends on the copy back.
            Some(row) if row.old_behind && first < Phase::Retire => return Ok(()),
            Some(row) => match self.rng.u8(..9) {
                0 if knows_new && row.new_written && world.shape.pair.unmappable.is_none() => (
                    "update new",
                    format!("update public.subject set new_c = {new} where {is_row}"),
                    Change::Update { old: None, new: Some(value.new.clone()) },
                ),
                1 if knows_new && row.new_written && world.shape.pair.unmappable.is_none() => (
                    "update both",
                    format!(
                        "update public.subject set old_c = {old}, new_c = {} where {is_row}",
                        self.new_literal(&other)
                    ),
                    Change::Update { old: Some(value.old.clone()), new: Some(other.new.clone()) },
                ),
                2 => (
                    "upsert",
                    format!(
                        "insert into public.subject ({names}, old_c) {overriding} values ({key}, {old}) \
                         on conflict ({names}) do update set old_c = excluded.old_c"
                    ),
                    Change::Upsert { old: value.old.clone() },
                ),
                3 if world.version >= 150_000 => (
                    "merge",
                    format!(
                        "merge into public.subject using (select {old} as v) as source on {is_row} \
                         when matched then update set old_c = source.v \
                         when not matched then insert ({names}, old_c) {overriding} values ({key}, source.v)"
                    ),
                    Change::Update { old: Some(value.old.clone()), new: None },
                ),
                4 => ("delete", format!("delete from public.subject where {is_row}"), Change::Delete),
                5 => (
                    "note",
                    format!("update public.subject set note = 'n' where {is_row}"),
                    if is_table { Change::Update { old: None, new: None } } else { Change::Nothing },
                ),
                6 => return self.move_key(session, number, row.clone(), first).await,
                7 if world.values.unmappable.is_some() && first >= Phase::Expand && first < Phase::Verify => {
                    return self.write_unmappable(session, number).await;
                }
                7 if world.shape.on_delete == "cascade" && !is_table => {
                    return self.delete_parent(session, number).await;
                }
                _ => (
                    "update old",
                    format!("update public.subject set old_c = {old} where {is_row}"),
                    Change::Update { old: Some(value.old.clone()), new: None },
                ),
            },
            None => match self.rng.u8(..6) {
                0 if knows_new => (
                    "insert new",
                    format!("insert into public.subject ({names}, new_c) {overriding} values ({key}, {new})"),
                    Change::Insert { old: None, new: Some(value.new.clone()) },
                ),
                1 if knows_new => (
                    "insert both",
                    format!(
                        "insert into public.subject ({names}, old_c, new_c) {overriding} values ({key}, {old}, {new})"
                    ),
                    Change::Insert { old: Some(value.old.clone()), new: Some(value.new.clone()) },
                ),
                2 => (
                    "insert neither",
                    format!("insert into public.subject ({names}) {overriding} values ({key})"),
                    Change::Insert { old: None, new: None },
                ),
                3 => {
                    let keys: Vec<String> = world.shape.key.literals(number);
                    copy = Some(self.copy_line(&keys, &value).await?);
                    (
                        "copy",
                        format!("copy public.subject ({names}, old_c) from stdin (format csv)"),
                        Change::Insert { old: Some(value.old.clone()), new: None },
                    )
                }
                4 => (
                    "upsert",
                    format!(
                        "insert into public.subject ({names}, old_c) {overriding} values ({key}, {old}) \
                         on conflict ({names}) do update set old_c = excluded.old_c"
                    ),
                    Change::Upsert { old: value.old.clone() },
                ),
                _ => (
                    "insert old",
                    format!("insert into public.subject ({names}, old_c) {overriding} values ({key}, {old})"),
                    Change::Insert { old: Some(value.old.clone()), new: None },
                ),
            },
        };
        let isolation = ISOLATIONS[self.rng.usize(..ISOLATIONS.len())];
        let lingers = self.rng.u8(..).is_multiple_of(8);
        let outcome = self.run(session, isolation, &sql, copy.as_deref(), lingers).await;
        let (last, _) = world.phase().await?;
        self.settle(number, before.as_ref(), &[first, last], &change, what, &sql, outcome).await
    }

    /// Runs one statement in a transaction, and measures how long it takes.
    async fn run(
        &mut self,
        session: &mut PgConnection,
        isolation: &str,
        sql: &str,
        copy: Option<&str>,
        lingers: bool,
    ) -> Result<(), sqlx::Error> {
        let mut statement = format!("begin isolation level {isolation}");
        if isolation != "read committed" && self.rng.bool() {
            statement += "; select 1 from public.parents limit 1";
        }
        session.execute(AssertSqlSafe(statement)).await?;
        let began = Instant::now();
        let outcome = match copy {
            None => session.execute(AssertSqlSafe(sql)).await.map(|_| ()),
            Some(line) => copy_in(session, sql, line).await,
        };
        let held = began.elapsed();
        {
            let mut longest = lock(&self.world.longest_hold);
            if held > longest.0 {
                *longest = (held, sql.to_owned());
            }
        }
        if outcome.is_ok() && lingers {
            sleep(Duration::from_millis(60)).await;
        }
        let end = if outcome.is_ok() { "commit" } else { "rollback" };
        let ended = session.execute(end).await;
        outcome?;
        ended?;
        self.world.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "all of it describes one write")]
    async fn settle(
        &self,
        number: usize,
        before: Option<&Row>,
        phases: &[Phase],
        change: &Change,
        what: &str,
        sql: &str,
        outcome: Result<(), sqlx::Error>,
    ) -> Outcome {
        let mut allowed = Vec::new();
        let mut is_refusable = false;
        for phase in phases {
            match self.after(*phase, before, change) {
                Some(after) => allowed.push(after),
                None => is_refusable = true,
            }
            // The old column and its guard trigger may be gone already.
            if let (Phase::Contract, Change::Insert { old: None, new }) = (phase, change) {
                let values = &self.world.values;
                let new = new.as_ref().unwrap_or(&values.default_new);
                let images = Some((values.default_old.clone(), new.clone()));
                allowed.push(After { phase: *phase, images, is_unmappable: false, knows_new: true });
            }
        }
        let what = format!("{what} in {phases:?} (`{}`)", sql.chars().take(300).collect::<String>());
        match outcome {
            Ok(()) => self.judge(number, before, &allowed, &what).await,
            Err(error) => {
                let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
                let is_gone = matches!(&*code, "42703" | "42P01")
                    && phases.iter().any(|phase| matches!(phase, Phase::Off | Phase::Contract));
                if !(TRANSIENT.contains(&&*code) || code == "ZC003" && is_refusable || is_gone) {
                    self.world.fail(format!("{what} failed: {error}"));
                }
                self.world.refusals.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// A line of CSV, under settings that every session reads the same way.
    async fn copy_line(&self, keys: &[String], value: &Value) -> Outcome<String> {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let mut fields = Vec::new();
        for key in keys {
            let text: String = sqlx::query_scalar(AssertSqlSafe(format!("select {key}::text")))
                .fetch_one(&self.world.control)
                .await?;
            fields.push(quoted(&text));
        }
        fields.push(value.old_text.as_deref().map(quoted).unwrap_or_default());
        Ok(format!("{}\n", fields.join(",")))
    }

    /// The row gets another key, which may belong to another partition.
    async fn move_key(
        &mut self,
        session: &mut PgConnection,
        from: usize,
        before: Row,
        first: Phase,
    ) -> Outcome {
        let to = self.own();
        let world = Arc::clone(&self.world);
        if lock(&world.rows).contains_key(&to) || world.shape.key == crate::shape::Key::IdentityAlways {
            return Ok(());
        }
        let sql = format!(
            "update public.subject set ({names}) = row({key}) where {is_row}",
            names = world.shape.key.names(),
            key = world.key(to),
            is_row = world.is_row(from)
        );
        let outcome = self.run(session, "read committed", &sql, None, false).await;
        let (last, _) = world.phase().await?;
        let phases = [first, last];
        if outcome.is_err() {
            return self.settle(from, Some(&before), &phases, &Change::Nothing, "move", &sql, outcome).await;
        }
        let parent = lock(&world.parents).remove(&from);
        lock(&world.rows).remove(&from);
        self.settle(from, None, &phases, &Change::Delete, "move away", &sql, Ok(())).await?;
        self.settle(to, Some(&before), &phases, &Change::Nothing, "move", &sql, Ok(())).await?;
        if let Some(parent) = parent {
            lock(&world.parents).insert(to, parent);
        }
        Ok(())
    }

    async fn write_unmappable(&mut self, session: &mut PgConnection, number: usize) -> Outcome {
        let world = Arc::clone(&self.world);
        let Some((text, image)) = &world.values.unmappable else { return Ok(()) };
        let is_row = world.is_row(number);
        let old = literal(Some(text), world.shape.old_type());
        let sql = format!("update public.subject set old_c = {old} where {is_row}");
        let outcome = self.run(session, "read committed", &sql, None, false).await;
        let (last, _) = world.phase().await?;
        let before = lock(&world.rows).get(&number).cloned();
        match outcome {
            Ok(()) => {
                let after = After {
                    phase: last,
                    images: Some((image.clone(), String::new())),
                    is_unmappable: true,
                    knows_new: false,
                };
                self.judge(number, before.as_ref(), &[after], "write what cannot be mapped").await
            }
            Err(_) => {
                self.settle(
                    number,
                    before.as_ref(),
                    &[last],
                    &Change::Nothing,
                    "write what cannot be mapped",
                    &sql,
                    outcome,
                )
                .await
            }
        }
    }

    /// Deletes the row's parent, and with it the row.
    async fn delete_parent(&mut self, session: &mut PgConnection, number: usize) -> Outcome {
        let world = Arc::clone(&self.world);
        let Some(parent) = lock(&world.parents).get(&number).copied() else { return Ok(()) };
        let replica = "select current_setting('session_replication_role')";
        let role: String = sqlx::query_scalar(replica).fetch_one(&mut *session).await?;
        if parent < WRITERS || role != "origin" {
            return Ok(());
        }
        let sql = format!("delete from public.parents where id = {parent}");
        if let Err(error) = self.run(session, "read committed", &sql, None, false).await {
            return self
                .settle(
                    number,
                    None,
                    &[world.phase().await?.0],
                    &Change::Nothing,
                    "delete a parent",
                    &sql,
                    Err(error),
                )
                .await;
        }
        let gone: Vec<usize> =
            lock(&world.parents).iter().filter(|(_, one)| **one == parent).map(|(row, _)| *row).collect();
        for row in gone {
            let before = lock(&world.rows).get(&row).cloned();
            let phase = world.phase().await?.0;
            self.settle(row, before.as_ref(), &[phase], &Change::Delete, "cascade", &sql, Ok(())).await?;
        }
        Ok(())
    }

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
        let mut tx = match migration.begin_isolated(&world.pool, isolation).await {
            Ok(tx) => tx,
            Err(error) if error.is_retryable() => return Ok(()),
            Err(error) => {
                world.fail(format!("begin failed: {error}"));
                return Ok(());
            }
        };
        let phase = tx.phase();
        let deletes = before.is_some() && choice == 0;
        let statements = self.pinned_statements(number, before.is_some(), deletes, phase, &value);
        let wrote = execute_all(&mut tx, &statements).await;
        if self.rng.u8(..).is_multiple_of(8) {
            sleep(Duration::from_millis(30)).await;
        }
        let outcome = match wrote {
            Ok(()) => tx.commit().await,
            Err(error) => Err(Error::Database(error)),
        };
        let what = format!("pinned write in {phase} ({})", statements.join("; "));
        match outcome {
            Ok(()) => {
                world.writes.fetch_add(1, Ordering::Relaxed);
                let images = (!deletes).then(|| match phase {
                    Phase::Retire | Phase::Contract => {
                        let old =
                            before.as_ref().map_or(world.values.default_old.clone(), |row| row.old.clone());
                        (old, value.new.clone())
                    }
                    _ => (value.old.clone(), value.new.clone()),
                });
                let after = After { phase, images, is_unmappable: false, knows_new: phase != Phase::Off };
                self.judge(number, before.as_ref(), &[after], &what).await
            }
            Err(error) if error.is_retryable() => {
                world.refusals.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                world.fail(format!("{what} failed: {error}"));
                Ok(())
            }
        }
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
        let (writes_old, writes_new) = (phase.writes(Side::Old), phase.writes(Side::New));
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

async fn copy_in(session: &mut PgConnection, sql: &str, line: &str) -> Result<(), sqlx::Error> {
    let mut stream = session.copy_in_raw(sql).await?;
    stream.send(line.as_bytes()).await?;
    stream.finish().await.map(|_| ())
}

async fn execute_all(tx: &mut PinnedTx, statements: &[String]) -> Result<(), sqlx::Error> {
    for statement in statements {
        tx.execute(AssertSqlSafe(&**statement)).await?;
    }
    Ok(())
}
