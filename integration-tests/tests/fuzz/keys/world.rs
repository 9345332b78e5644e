//! The database of a key that becomes `bigint`, and its judge.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cutover::migration::{BatchOptions, Migration, MigrationSpec, Phase, PhaseRange, WiderKey};
use cutover_testkit::{picture, widened};
use fastrand::Rng;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::model::{Line, Node, ROOT, Rows};
use super::shape::{KeyShape, Source};
use super::writer::Writer;
use crate::Outcome;
use crate::base::{Base, differing, lock};
use crate::damage::Kind;
use crate::life::{BETWEEN, STEP, Subject};
use crate::world::{QUIET, WRITERS};

/// Rows of each table at the beginning, for each writer.
const ROWS: i64 = 25;

pub(crate) struct KeyWorld {
    base: Base,
    pub(crate) shape: KeyShape,
    /// The rows of each writer.
    pub(crate) rows: Vec<Mutex<Rows>>,
    /// A copy has brought all second columns up to date.
    is_complete: AtomicBool,
    /// The old type has to hold all keys soon.
    pub(crate) is_turning: AtomicBool,
    /// What the catalog says before the migration.
    before: Vec<String>,
}

impl Deref for KeyWorld {
    type Target = Base;

    fn deref(&self) -> &Base {
        &self.base
    }
}

impl KeyWorld {
    pub(crate) async fn new(shape: KeyShape) -> Outcome<Option<Self>> {
        let mut base = Base::new(shape.own_role, &shape.settings, shape.has_faults, "").await?;
        // A change of several tables waits for a moment without a transaction on any of them.
        (base.longest_pause, base.has_guests) = (100, shape.has_guests);
        base.owner().await?.execute(AssertSqlSafe(shape.create())).await?;
        let rows = (0..WRITERS).map(|_| Mutex::default()).collect();
        let (is_complete, is_turning) = (AtomicBool::new(false), AtomicBool::new(false));
        let mut world = Self { base, shape, rows, is_complete, is_turning, before: Vec::new() };
        world.fill().await?;
        world.before = picture(&world.control, &["public"]).await?;
        Ok(Some(world))
    }

    /// The number of a key that no statement draws from a sequence.
    pub(crate) fn explicit(writer: usize, number: i64) -> i64 {
        10_000 + i64::try_from(writer).unwrap_or(0) * 1_000 + number
    }

    /// The largest value of the key's old type.
    pub(crate) fn max(&self) -> i64 {
        max(self.shape.ty)
    }

    pub(crate) fn overriding(&self) -> &'static str {
        if self.shape.source == Source::Always { "overriding system value" } else { "" }
    }

    async fn fill(&self) -> Outcome {
        let mut statement = match self.shape.source {
            Source::Plain => format!("insert into subject (id, note) values ({ROOT}, 'root'); "),
            _ => "insert into subject (note) values ('root'); ".to_owned(),
        };
        for (number, rows) in self.rows.iter().enumerate() {
            let mut rows = lock(rows);
            for n in 0..ROWS {
                let (id, note) = (Self::explicit(number, n), format!("first {n}"));
                statement += &format!(
                    "insert into subject (id, note) {} values ({id}, '{note}'); ",
                    self.overriding()
                );
                rows.nodes.insert(id, Node { note: note.clone(), parent: self.parent_by_default() });
                for table in 0..self.shape.lines.len() {
                    let line = i64::try_from(number).unwrap_or(0) * 100_000 + n;
                    statement += &format!("insert into lines_{table} values ({line}, '{note}', {id}); ");
                    rows.lines.insert((table, line), Line { note: note.clone(), node: Some(id) });
                }
            }
        }
        self.control.execute(AssertSqlSafe(statement)).await?;
        Ok(())
    }

    /// What `parent` is where no statement names it.
    pub(crate) fn parent_by_default(&self) -> Option<i64> {
        self.shape.parent.as_ref().filter(|parent| parent.has_default).map(|_| ROOT)
    }

    /// The rows of a table, by their own key.
    async fn table(&self, table: &str, ids: Option<&[i64]>) -> Outcome<BTreeMap<i64, Value>> {
        let of = if ids.is_some() { "where t.id = any ($1)" } else { "where $1::bigint[] is null" };
        let query = format!("select t.id::bigint, to_jsonb(t)::text from public.{table} t {of}");
        let rows: Vec<(i64, String)> =
            sqlx::query_as(AssertSqlSafe(query)).bind(ids).fetch_all(&self.control).await?;
        rows.into_iter().map(|(id, row)| Ok((id, serde_json::from_str(&row)?))).collect()
    }

    /// Compares what `rows` has, and these rows besides, with the tables. Without ids of nodes, all rows have to be these.
    pub(crate) async fn check(&self, rows: &Rows, others: Option<&Rows>, what: &str) -> Outcome {
        let (phase, _) = self.phase().await?;
        let ids = |of: fn(&Rows) -> Vec<i64>| others.map(|others| [of(rows), of(others)].concat());
        let found =
            self.table("subject", ids(|rows| rows.nodes.keys().copied().collect()).as_deref()).await?;
        let expected =
            rows.nodes.iter().map(|(id, node)| (*id, (&node.note, Some(*id), node.parent))).collect();
        self.compare("subject", expected, &found, (rows, phase), what);
        for table in 0..self.shape.lines.len() {
            let ids = others.map(|others| {
                let all = rows.lines.keys().chain(others.lines.keys());
                all.filter(|key| key.0 == table).map(|key| key.1).collect::<Vec<_>>()
            });
            let name = format!("lines_{table}");
            let found = self.table(&name, ids.as_deref()).await?;
            let of_table = rows.lines.iter().filter(|(key, _)| key.0 == table);
            let expected = of_table.map(|(key, line)| (key.1, (&line.note, line.node, None))).collect();
            self.compare(&name, expected, &found, (rows, phase), what);
        }
        Ok(())
    }

    /// Rows: the note, the key or what refers to it, and the parent.
    fn compare(
        &self,
        table: &str,
        expected: BTreeMap<i64, (&String, Option<i64>, Option<i64>)>,
        found: &BTreeMap<i64, Value>,
        (rows, phase): (&Rows, Phase),
        what: &str,
    ) {
        for id in found.keys().filter(|id| !expected.contains_key(*id)) {
            self.fail(Kind::Orphan, format!("{what}: row {id} of {table} exists and should not"));
        }
        for (id, (note, key, parent)) in expected {
            let Some(row) = found.get(&id) else {
                self.fail(Kind::Lost, format!("{what}: row {id} of {table} is missing"));
                continue;
            };
            let number = |name: &str| row.get(name).and_then(Value::as_i64);
            let is_line = table != "subject";
            let mut columns = vec![(if is_line { "node" } else { "id" }, key)];
            columns.extend((!is_line && self.shape.parent.is_some()).then_some(("parent", parent)));
            let is_right = columns.iter().all(|(name, value)| number(name) == *value)
                && row.get("note").and_then(Value::as_str) == Some(note);
            if !is_right {
                let text = format!("{what}: row {id} of {table} is {row}, and not {note:?} with {columns:?}");
                self.fail(Kind::Wrong, text);
            }
            let is_required = phase >= Phase::Expand
                && (self.is_complete.load(Ordering::Relaxed) || rows.fresh.contains(&(table.to_owned(), id)));
            for (name, value) in columns {
                let (wide, old) = (format!("{name}_bigint"), format!("{name}_old"));
                let max = max(self.type_of(table, name));
                let is_stale = row.get(&wide).is_some() && is_required && number(&wide) != value
                    || row.get(&old).is_some() && number(&old) != value.filter(|value| *value <= max);
                if is_stale {
                    let text =
                        format!("{what} in {phase}: the second column of row {id} of {table} differs: {row}");
                    self.fail(Kind::Stale, text);
                }
            }
        }
    }

    fn type_of(&self, table: &str, column: &str) -> &'static str {
        let all = self.shape.referring();
        let one = all.iter().find(|(name, its, _)| name == table && *its == column);
        one.map_or(self.shape.ty, |(_, _, one)| one.ty)
    }

    /// Removes the keys that the old type cannot hold.
    async fn remove_large_keys(&self) -> Outcome {
        let max = self.max();
        let mut statement = String::new();
        for (table, column, _) in self.shape.referring() {
            statement += &match column {
                "parent" => format!("update subject set parent = null where parent > {max}; "),
                _ => format!("delete from {table} where {column} > {max}; "),
            };
        }
        statement += &format!("delete from subject where id > {max}");
        self.control.execute(AssertSqlSafe(statement)).await?;
        for rows in &self.rows {
            let mut rows = lock(rows);
            let is_small = |key: &Option<i64>| key.is_none_or(|key| key <= max);
            rows.lines.retain(|_, line| is_small(&line.node));
            rows.nodes.retain(|id, _| *id <= max);
            let large = rows.nodes.values_mut().filter(|node| !is_small(&node.parent));
            large.for_each(|node| node.parent = None);
        }
        Ok(())
    }

    /// Compares the catalog with what it has to be.
    async fn check_schema(&self, wish: &str, is_wide: bool) -> Outcome {
        let expected = if is_wide { widened(&self.before) } else { self.before.clone() };
        let began = Instant::now();
        loop {
            let found = picture(&self.control, &["public"]).await?;
            let left = if wish == "contract" { self.leftovers().await? } else { Vec::new() };
            if found == expected && left.is_empty() {
                return Ok(());
            }
            // The old columns are dropped in `contract`, after some time.
            if wish != "contract" || began.elapsed() > STEP {
                let [missing, more] = differing(&expected, &found);
                let (_, waits_for) = self.phase().await?;
                self.fail(
                    Kind::Schema,
                    format!("at {wish}: missing {missing:?}, instead {more:?}, left {left:?}, waits for {waits_for:?}"),
                );
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the migration has made and has to remove.
    async fn leftovers(&self) -> Outcome<Vec<String>> {
        let query = "select format('%s.%s', attrelid::regclass, attname) from pg_attribute \
                where attrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r') \
                    and not attisdropped and attname ~ '_(bigint|old)$' \
            union all select tgname::text from pg_trigger where tgname like '%cutover%' \
            union all select proname::text from pg_proc where proname ~ '^guard_[0-9]+$'";
        Ok(sqlx::query_scalar(query).fetch_all(&self.control).await?)
    }
}

fn max(ty: &str) -> i64 {
    match ty {
        "smallint" => i16::MAX.into(),
        "integer" => i32::MAX.into(),
        _ => i64::MAX,
    }
}

impl Subject for KeyWorld {
    fn flaw(&self) -> Option<String> {
        self.shape.key_flaw.map(|flaw| format!("{flaw:?}"))
    }

    fn spec(&self, range: PhaseRange, _: bool) -> Outcome<MigrationSpec> {
        let batches = BatchOptions { min_rows: 15, max_rows: 30, ..BatchOptions::default() };
        let plan = WiderKey::new(self.work.clone(), "subject", "id").batches(batches).build()?;
        Ok(MigrationSpec::new("subject", range)
            .soak(Duration::ZERO)
            .external_write_quiet_period(QUIET)
            .plan(plan))
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
            let _quiet = self.quiet.write().await;
            self.is_turning.store(true, Ordering::Relaxed);
            self.remove_large_keys().await?;
        }
        Ok(())
    }

    async fn during(&self, _: &str, _: bool) -> Outcome {
        Ok(())
    }

    async fn judge(&self, wish: &str) -> Outcome {
        self.is_turning.store(false, Ordering::Relaxed);
        sleep(BETWEEN).await;
        let _quiet = self.quiet.write().await;
        let mut all = Rows::default();
        for rows in &self.rows {
            let mut rows = lock(rows);
            if wish == "off" {
                rows.fresh = BTreeSet::new();
            }
            all.nodes.extend(rows.nodes.clone());
            all.lines.extend(rows.lines.clone());
            all.fresh.extend(rows.fresh.clone());
        }
        match wish {
            "off" => self.is_complete.store(false, Ordering::Relaxed),
            "expand" | "backfill" => {}
            _ => self.is_complete.store(true, Ordering::Relaxed),
        }
        all.nodes.insert(ROOT, Node { note: "root".to_owned(), parent: self.parent_by_default() });
        self.check(&all, None, &format!("at {wish}")).await?;
        match wish {
            // The columns may be about to exchange their names again.
            "switch" => Ok(()),
            "retire" | "contract" => self.check_schema(wish, true).await,
            _ => self.check_schema(wish, false).await,
        }
    }
}
