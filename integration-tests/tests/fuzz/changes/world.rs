//! The database of a table whose schema changes, and its judge.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cutover::migration::{Migration, MigrationSpec, Phase, PhaseRange};
use cutover_testkit::picture;
use fastrand::Rng;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::model::{Row, Rows};
use super::shape::{ChangeShape, Flaw, Removal};
use super::writer::Writer;
use crate::Outcome;
use crate::base::{Base, differing, lock};
use crate::damage::Kind;
use crate::life::{BETWEEN, STEP, Subject};
use crate::world::{QUIET, WRITERS};

/// Rows and owners of each writer at the beginning.
const ROWS: i64 = 15;
const OWNERS: i64 = 6;

/// A column of type `text` with this collation compares without case.
const PREPARE: &str =
    "create collation public.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";

pub(crate) struct ChangeWorld {
    base: Base,
    pub(crate) shape: ChangeShape,
    /// The rows of each writer.
    pub(crate) rows: Vec<Mutex<Rows>>,
    /// Writers break the rules that the change brings, as long as they may.
    pub(crate) breaks: AtomicBool,
    /// Writers, by the name of their application, whose writes the change has to have seen, and those that it may have seen.
    pub(crate) seen: Mutex<BTreeSet<String>>,
    pub(crate) perhaps_seen: Mutex<BTreeSet<String>>,
    rng: Mutex<Rng>,
    /// What the catalog says before the change, and what it has to say after it.
    pictures: [Vec<String>; 2],
}

impl Deref for ChangeWorld {
    type Target = Base;

    fn deref(&self) -> &Base {
        &self.base
    }
}

/// The ids of a writer's rows and owners.
pub(crate) fn first_id(writer: usize) -> i64 {
    i64::try_from(writer).unwrap_or(0) * 1_000
}

impl ChangeWorld {
    pub(crate) async fn new(shape: ChangeShape, rng: &mut Rng) -> Outcome<Option<Self>> {
        let mut base = Base::new(shape.own_role, &shape.settings, shape.has_faults, PREPARE).await?;
        (base.longest_pause, base.has_guests) = (100, shape.has_guests);
        let mut owner = base.owner().await?;
        owner.execute(AssertSqlSafe(shape.create())).await?;
        let mut world = Self {
            base,
            rows: (0..WRITERS).map(|_| Mutex::default()).collect(),
            breaks: AtomicBool::new(false),
            seen: Mutex::default(),
            perhaps_seen: Mutex::default(),
            rng: Mutex::new(Rng::with_seed(rng.u64(..))),
            pictures: Default::default(),
            shape,
        };
        let before = world.picture().await?;
        if world.shape.change_flaw.is_none() {
            owner.execute(AssertSqlSafe(world.shape.directly())).await?;
            let after = world.picture().await?;
            let again = format!(
                "drop table if exists {} cascade; drop table owners, parents; drop function is_good(integer); \
                 drop function if exists touch() cascade; {}",
                world.shape.table(),
                world.shape.create()
            );
            owner.execute(AssertSqlSafe(again)).await?;
            world.pictures = [before, after];
        }
        world.fill().await?;
        Ok(Some(world))
    }

    /// What the catalog says. A partition's index has a name that the server chooses.
    async fn picture(&self) -> Outcome<Vec<String>> {
        let mut lines = picture(&self.control, &["public"]).await?;
        lines.retain(|line| !(line.starts_with("index ") && line.contains(" ON public.part_")));
        Ok(lines)
    }

    async fn fill(&self) -> Outcome {
        let mut statement = String::new();
        let is_needed = self.shape.change_flaw == Some(Flaw::NeededColumn);
        let legacy = self.usual().or_else(|| is_needed.then(|| "first".to_owned()));
        for (writer, rows) in self.rows.iter().enumerate() {
            let (mut rows, first) = (lock(rows), first_id(writer));
            for id in first..first + OWNERS {
                statement += &format!("insert into owners values ({id}); ");
                rows.owners.insert(id);
            }
            for n in 0..ROWS {
                let id = first + n;
                let is_broken = self.shape.change_flaw == Some(Flaw::Violated) && n == 5;
                let row = Row {
                    note: Some(format!("first {n}")),
                    a: (!is_broken).then_some(n),
                    b: (n % 5 != 0).then_some(id),
                    c: (n % 4 != 0).then_some([1, 5, 12, 40][(n % 4) as usize]),
                    d: (n % 3 != 0).then_some(first + n % OWNERS),
                    legacy: legacy.clone(),
                };
                statement += &format!(
                    "insert into {} (id, {}) values ({id}, {}); ",
                    self.shape.table(),
                    self.columns(&[0, 1, 2, 3, 4]),
                    self.values(&row, &[0, 1, 2, 3, 4])
                );
                rows.rows.insert(id, row);
            }
        }
        self.control.execute(AssertSqlSafe(statement)).await?;
        Ok(())
    }

    /// The default of the column that may be dropped.
    pub(crate) fn usual(&self) -> Option<String> {
        self.shape.has_default.then(|| "usual".to_owned())
    }

    /// The quoted names of `note` and of these columns.
    pub(crate) fn columns(&self, numbers: &[usize]) -> String {
        let all: Vec<String> = numbers.iter().map(|number| self.shape.column(*number)).collect();
        ["note".to_owned()].into_iter().chain(all).collect::<Vec<_>>().join(", ")
    }

    /// Their values.
    pub(crate) fn values(&self, row: &Row, numbers: &[usize]) -> String {
        let number = |value: Option<i64>| value.map_or("null".to_owned(), |value| value.to_string());
        let text =
            |value: &Option<String>| value.as_ref().map_or("null".to_owned(), |value| format!("'{value}'"));
        let one = |column: &usize| match column {
            0 => text(&row.a.map(|a| a.to_string())),
            1 => self.unique_literal(row),
            2 => number(row.c),
            3 => number(row.d),
            _ => text(&row.legacy),
        };
        let all: Vec<String> = numbers.iter().map(one).collect();
        [text(&row.note)].into_iter().chain(all).collect::<Vec<_>>().join(", ")
    }

    /// Values that are equal may be written in several ways.
    fn unique_literal(&self, row: &Row) -> String {
        let Some(b) = row.b else { return "null".to_owned() };
        let is_odd = lock(&self.rng).bool();
        match (self.shape.unique_type, is_odd) {
            ("numeric", true) => format!("{b}.00"),
            ("integer" | "numeric", _) => b.to_string(),
            (_, true) => format!("'V{b}'"),
            (_, false) => format!("'v{b}'"),
        }
    }

    /// The rows of a writer, or of all, as they are.
    pub(crate) async fn look(&self, writer: Option<usize>) -> Outcome<Option<Rows>> {
        let (first, last) = match writer {
            Some(writer) => (first_id(writer), first_id(writer + 1) - 1),
            None => (0, i64::MAX),
        };
        let query =
            format!("select id, to_jsonb(t)::text from {} t where id between $1 and $2", self.shape.table());
        let rows: Vec<(i64, String)> = match sqlx::query_as(AssertSqlSafe(query))
            .bind(first)
            .bind(last)
            .fetch_all(&self.control)
            .await
        {
            Ok(rows) => rows,
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let query = "select id from owners where id between $1 and $2";
        let owners: Vec<i64> =
            sqlx::query_scalar(query).bind(first).bind(last).fetch_all(&self.control).await?;
        let mut all = Rows { rows: Default::default(), owners: owners.into_iter().collect() };
        for (id, text) in rows {
            all.rows.insert(id, self.row(&serde_json::from_str(&text)?));
        }
        Ok(Some(all))
    }

    fn row(&self, value: &Value) -> Row {
        let of = |number: usize| value.get(self.shape.names[number]);
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(ToOwned::to_owned);
        let number = |value: Option<&Value>| match value? {
            Value::String(text) => text.trim_start_matches(['v', 'V']).parse().ok(),
            value => value.as_i64().or_else(|| value.to_string().split('.').next()?.parse().ok()),
        };
        Row {
            note: text(value.get("note")),
            a: number(of(0)),
            b: number(of(1)),
            c: number(of(2)),
            d: number(of(3)),
            legacy: text(of(4)),
        }
    }

    /// Whether rows are as they are known. The column that is dropped may be gone.
    pub(crate) fn is_same(&self, known: &Rows, found: &Rows) -> bool {
        let without = |rows: &Rows| {
            let mut rows = rows.clone();
            rows.rows.values_mut().for_each(|row| row.legacy = None);
            rows
        };
        let may_lack = self.shape.removal == Removal::Column;
        known == found || may_lack && without(known) == without(found)
    }

    /// Writers no longer break rules, and what they have broken is corrected.
    async fn correct(&self) -> Outcome {
        let _quiet = self.quiet.write().await;
        self.breaks.store(false, Ordering::Relaxed);
        let mut statement = String::new();
        for rows in &self.rows {
            let mut rows = lock(rows);
            for id in rows.broken(&self.shape) {
                let Some(row) = rows.rows.get_mut(&id) else { continue };
                (row.a, row.b, row.c, row.d) = (Some(1), None, None, None);
                let [a, b, c, d] = [0, 1, 2, 3].map(|number| self.shape.column(number));
                statement += &format!(
                    "update {} set {a} = '1', {b} = null, {c} = null, {d} = null where id = {id}; ",
                    self.shape.table()
                );
            }
        }
        self.control.execute(AssertSqlSafe(statement)).await?;
        Ok(())
    }

    fn has_broken(&self) -> bool {
        self.rows.iter().any(|rows| !lock(rows).broken(&self.shape).is_empty())
    }

    /// Waits until the catalog says what it has to say.
    async fn check_schema(&self, wish: &str) -> Outcome {
        let is_after = wish == "contract";
        let expected = &self.pictures[usize::from(is_after)];
        let began = Instant::now();
        loop {
            let found = self.picture().await?;
            let triggers: i64 = sqlx::query_scalar(
                "select count(*) from pg_proc where pronamespace = 'cutover'::regnamespace and proname ~ '^guard_[0-9]+$'",
            )
            .fetch_one(&self.control)
            .await?;
            if found == *expected && !(is_after && triggers > 0) {
                return Ok(());
            }
            if began.elapsed() > STEP {
                let [missing, more] = differing(expected, &found);
                let (_, waits_for) = self.phase().await?;
                self.fail(
                    Kind::Schema,
                    format!("at {wish}: missing {missing:?}, instead {more:?}, {triggers} triggers, waits for {waits_for:?}"),
                );
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Compares the external writers that the change has seen with those that wrote what it forbids.
    async fn check_seen(&self, wish: &str) -> Outcome {
        // The driver adds up the events some time after the writes.
        let query = "select application from cutover.external_writes where application like 'job %' \
            union select application from cutover.external_write_events where application like 'job %'";
        let found: Vec<String> = sqlx::query_scalar(query).fetch_all(&self.control).await?;
        for job in lock(&self.seen).iter().filter(|job| !found.contains(job)) {
            self.fail(Kind::Lost, format!("at {wish}: {job} wrote what the change forbids and is not named"));
        }
        let perhaps = lock(&self.perhaps_seen);
        for job in found.iter().filter(|job| !perhaps.contains(*job)) {
            self.fail(
                Kind::Misjudged,
                format!("at {wish}: {job} is named and wrote nothing that the change forbids"),
            );
        }
        Ok(())
    }
}

impl Subject for ChangeWorld {
    const HAS_FLAWS_ONLY: bool = true;

    fn flaw(&self) -> Option<String> {
        self.shape.change_flaw.map(|flaw| format!("{flaw:?}"))
    }

    fn spec(&self, range: PhaseRange, _: bool) -> Outcome<MigrationSpec> {
        let plan = self.shape.plan(self.work.clone())?;
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

    async fn before(&self, _: &str, wish: &str) -> Outcome {
        // What is broken in `off` refuses the change, which `Flaw::Violated` shows.
        let corrects = wish == "expand" || lock(&self.rng).bool();
        let corrects = corrects && self.shape.change_flaw.is_none();
        if corrects { self.correct().await } else { Ok(()) }
    }

    async fn during(&self, wish: &str, _: bool) -> Outcome {
        let (delay, stands) = {
            let mut rng = lock(&self.rng);
            (rng.u64(0..400), rng.u8(..).is_multiple_of(3))
        };
        sleep(Duration::from_millis(delay)).await;
        if wish == "retire" && stands {
            let quiet = self.quiet.write().await;
            self.breaks.store(false, Ordering::Relaxed);
            drop(quiet);
            if self.has_broken() {
                sleep(Duration::from_millis(1_200)).await;
                let (phase, _) = self.phase().await?;
                if phase >= Phase::Retire && self.has_broken() {
                    self.fail(Kind::Wrong, "`retire` was reached although rows violate the change");
                }
            }
        }
        let is_broken = self.breaks.load(Ordering::Relaxed) || self.has_broken();
        if is_broken && self.shape.change_flaw.is_none() { self.correct().await } else { Ok(()) }
    }

    async fn judge(&self, wish: &str) -> Outcome {
        sleep(BETWEEN).await;
        let _quiet = self.quiet.write().await;
        let mut known = Rows::default();
        for rows in &self.rows {
            let rows = lock(rows);
            known.rows.extend(rows.rows.clone());
            known.owners.extend(rows.owners.clone());
        }
        if let Some(found) = self.look(None).await? {
            if !self.is_same(&known, &found) {
                let differs = known.rows.iter().find(|(id, row)| found.rows.get(*id) != Some(*row));
                let text = format!("at {wish}: rows differ, for example {differs:?}");
                self.fail(Kind::Wrong, text);
            }
        } else if wish != "contract" || self.shape.removal != Removal::Table {
            self.fail(Kind::Lost, format!("at {wish}: the table is gone"));
        }
        match wish {
            "retire" => {}
            _ => self.check_schema(wish).await?,
        }
        if wish == "off" {
            lock(&self.seen).clear();
        }
        self.check_seen(wish).await?;
        let (phase, _) = self.phase().await?;
        self.breaks.store(phase < Phase::Retire, Ordering::Relaxed);
        Ok(())
    }
}
