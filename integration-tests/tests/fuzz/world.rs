//! The database of one table, an instance of the service, and what the writers have in common.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cutover::migration::{Phase, Side};
use sqlx::{AssertSqlSafe, Executor, Row as _};
use tokio::time::sleep;

use crate::Outcome;
use crate::base::{Base, lock};
use crate::key::Key;
use crate::life::STEP;
use crate::oracle::{Row, Value, Values, image_of, literal};
use crate::pairs::PREPARE;
use crate::shape::{Flaw, Shape};

/// Keys that exist from the beginning, and all keys.
pub(crate) const ROWS: usize = 120;
pub(crate) const KEYS: usize = 180;
pub(crate) const WRITERS: usize = 4;

/// For how long a copy is disturbed.
const COPY: Duration = Duration::from_millis(500);

/// For how long external writers have to rest before a scan counts whose mapping is in Rust.
pub(crate) const QUIET: Duration = Duration::from_millis(200);

pub(crate) struct World {
    base: Base,
    pub(crate) shape: Shape,
    pub(crate) values: Values,
    /// What is known of each live row, by the number of its key.
    pub(crate) rows: Mutex<BTreeMap<usize, Row>>,
    /// The parent of each row.
    pub(crate) parents: Mutex<BTreeMap<usize, usize>>,
    /// Rows whose new side is behind until the next scan, because the guard trigger cannot run a mapping in Rust or did not see
    /// the copy of the row.
    pub(crate) stale: Mutex<BTreeSet<usize>>,
    /// External writers rest, because a scan counts only if they do.
    pub(crate) rests: AtomicBool,
    /// A copy forward has begun.
    pub(crate) is_copying: AtomicBool,
    /// The migration is about to leave `retire` for `switch`, where the old side is copied from the new one.
    pub(crate) is_turning: AtomicBool,
    /// What the catalog has to say of the new side.
    pub(crate) expected: Vec<String>,
}

impl Deref for World {
    type Target = Base;

    fn deref(&self) -> &Base {
        &self.base
    }
}

impl World {
    /// `None` if the server refuses the table or the shape makes no sense.
    pub(crate) async fn new(shape: Shape) -> Outcome<Option<Self>> {
        let mut base = Base::new(shape.own_role, &shape.settings, shape.has_faults, PREPARE).await?;
        base.has_guests = shape.has_guests;
        if shape.has_beside || shape.has_guests {
            // Both migrations wait for the locks and the work of the other one, and each for other builds.
            base.step = STEP * 2;
        }
        if base.owner().await?.execute(AssertSqlSafe(shape.create())).await.is_err() {
            return Ok(None);
        }
        let mut probe = base.control.acquire().await?;
        let Some(values) = Values::load(&mut probe, &shape).await? else { return Ok(None) };
        drop(probe);
        let mut world = Self {
            shape,
            values,
            base,
            rows: Mutex::default(),
            parents: Mutex::default(),
            stale: Mutex::default(),
            rests: AtomicBool::new(false),
            is_copying: AtomicBool::new(false),
            is_turning: AtomicBool::new(false),
            expected: Vec::new(),
        };
        world.expected = world.expected_lines().await?;
        world.fill().await?;
        world.fill_lines().await?;
        Ok(Some(world))
    }

    async fn fill(&self) -> Outcome {
        if self.shape.flaw == Some(Flaw::Generated) {
            return Ok(());
        }
        let mut statement = String::new();
        if self.shape.flaw == Some(Flaw::Action) {
            for value in &self.values.all {
                let text = literal(value.old_texts[0].as_deref(), self.shape.old_type());
                if value.old_texts[0].is_some() {
                    statement += &format!("insert into choices values ({text}) on conflict do nothing; ");
                }
            }
        }
        let needs_value = matches!(self.shape.flaw, Some(Flaw::NotNull | Flaw::Check));
        for number in (0..ROWS).chain(self.shape.referred()) {
            let value = &self.values.all[number % self.values.all.len()];
            if needs_value && value.old_texts[0].is_none() {
                continue;
            }
            let parent = number % 100;
            statement += &format!(
                "insert into subject ({}, parent, {}) {} values ({}, {parent}, {}); ",
                self.shape.key.names(),
                self.shape.columns()[0].join(", "),
                self.overriding(),
                self.key(number),
                self.literals(Side::Old, value).join(", ")
            );
            let row = Row {
                old: value.old.clone(),
                new: value.new.clone(),
                old_behind: false,
                new_written: false,
                is_unmappable: false,
                phase: Phase::Off,
            };
            lock(&self.rows).insert(number, row);
            lock(&self.parents).insert(number, parent);
        }
        self.control.execute(AssertSqlSafe(statement)).await?;
        Ok(())
    }

    /// The literals of a value on one side.
    pub(crate) fn literals(&self, side: Side, value: &Value) -> Vec<String> {
        let [old, new] = self.shape.types();
        let (texts, types) = match side {
            Side::Old => (&value.old_texts, old),
            Side::New => (&value.new_texts, new),
        };
        texts.iter().zip(types).map(|(text, ty)| literal(text.as_deref(), ty)).collect()
    }

    pub(crate) fn overriding(&self) -> &'static str {
        if self.shape.key == Key::IdentityAlways { "overriding system value" } else { "" }
    }

    pub(crate) fn key(&self, number: usize) -> String {
        self.shape.key.literals(number).join(", ")
    }

    /// Whether a row with this key moves to the other table. The others stay where they are.
    pub(crate) fn moves(&self, number: usize) -> bool {
        !self.shape.has_part || !number.is_multiple_of(3)
    }

    /// The rows of a parent.
    pub(crate) fn rows_of(&self, parent: usize) -> Vec<usize> {
        lock(&self.parents).iter().filter(|(_, one)| **one == parent).map(|(row, _)| *row).collect()
    }

    /// The condition for one row.
    pub(crate) fn is_row(&self, number: usize) -> String {
        format!("({}) = ({})", self.shape.key.names(), self.key(number))
    }

    /// The images that the row holds now; `None` where the side does not have the row, or not even the column.
    pub(crate) async fn look(&self, number: usize) -> Outcome<(Option<String>, Option<String>)> {
        let is_row = self.is_row(number);
        let [old_columns, new_columns] = self.shape.columns();
        let old = self.look_at("subject", old_columns, &is_row).await?;
        let new = self.look_at(&self.shape.new_rows(), new_columns, &is_row).await?;
        Ok((old, new))
    }

    async fn look_at(&self, table: &str, columns: &[&str], is_row: &str) -> Outcome<Option<String>> {
        let query = format!("select {} from {table} where {is_row}", image_of(columns));
        match sqlx::query_scalar(AssertSqlSafe(query)).fetch_optional(&self.control).await {
            Ok(image) => Ok(image),
            Err(sqlx::Error::Database(error))
                if matches!(error.code().as_deref(), Some("42703" | "42P01")) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// While a copy runs, writers keep their transactions open, and rows move behind the copy, which waits for a row in the
    /// middle of the table.
    pub(crate) async fn disturb_a_copy(&self) -> Outcome {
        for moment in [&self.is_copying, &self.is_moment] {
            moment.store(true, Ordering::Relaxed);
        }
        let mut tx = self.control.begin().await?;
        if !self.shape.is_table {
            let query = format!(
                "set local lock_timeout = '1s'; select from subject order by {} offset {} limit 1 for update",
                self.shape.key.names(),
                ROWS / 2
            );
            // A writer may have the row.
            tx.execute(AssertSqlSafe(query)).await.ok();
        }
        sleep(COPY).await;
        for moment in [&self.is_copying, &self.is_moment] {
            moment.store(false, Ordering::Relaxed);
        }
        tx.rollback().await?;
        Ok(())
    }

    /// The keys of the rows of a table of columns that have no row of the old table, as [`World::all`] shows them.
    pub(crate) async fn rows_apart_alone(&self) -> Outcome<Vec<String>> {
        let names = self.shape.key.names();
        let alone = format!(
            "(select * from subject_2 where ({names}) not in (select {names} from subject)) as alone"
        );
        Ok(self.all(&alone, &["new_c"]).await?.into_keys().collect())
    }

    /// Whether the row's new side is recorded for repair.
    pub(crate) async fn waits_for_repair(&self, number: usize) -> Outcome<bool> {
        let key = match &*self.shape.key.literals(number) {
            [only] => format!("to_jsonb({only})"),
            several => format!("jsonb_build_array({})", several.join(", ")),
        };
        let query = format!(
            "select exists (select from cutover.repairs where side = 'new' and not dead and key = {key})"
        );
        Ok(sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.control).await?)
    }

    /// Waits until no row of the new side is recorded for repair, but not for ever: what is left is then judged.
    pub(crate) async fn wait_for_repairs(&self) -> Outcome {
        let query = "select exists (select from cutover.repairs where side = 'new' and not dead)";
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(20)
            && sqlx::query_scalar(query).fetch_one(&self.control).await?
        {
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// All rows of one side: the image by the number of the key.
    pub(crate) async fn all(&self, table: &str, columns: &[&str]) -> Outcome<BTreeMap<String, String>> {
        let key: Vec<String> =
            self.shape.key.columns().iter().map(|(name, _)| format!("{name}::text")).collect();
        let query = format!("select concat_ws('|', {}), {} from {table}", key.join(", "), image_of(columns));
        let rows = self.control.fetch_all(AssertSqlSafe(query)).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// The key of each row as [`World::all`] shows it.
    pub(crate) async fn key_texts(&self, numbers: &[usize]) -> Outcome<BTreeMap<String, usize>> {
        let one = |number: &usize| {
            let parts: Vec<String> =
                self.shape.key.literals(*number).iter().map(|text| format!("{text}::text")).collect();
            format!("(concat_ws('|', {}), {number})", parts.join(", "))
        };
        if numbers.is_empty() {
            return Ok(BTreeMap::new());
        }
        let list = numbers.iter().map(one).collect::<Vec<_>>().join(", ");
        let query = format!("select * from (values {list}) as keys");
        let rows = self.control.fetch_all(AssertSqlSafe(query)).await?;
        Ok(rows
            .iter()
            .map(|row| (row.get::<String, _>(0), usize::try_from(row.get::<i32, _>(1)).unwrap_or(0)))
            .collect())
    }
}
