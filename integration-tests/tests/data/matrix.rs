//! Every phase × operation × outcome of each side × isolation level, checked against a table of expected results.

use std::collections::BTreeMap;

use crate::deadpool::pool_of_one;
use crate::world::{Fleet, Outcome, World};
use cutover::migration::Phase;
use cutover::migration::{DeadpoolTx, Error, FencedPool, FencedTransaction, Isolation, PinnedTx, SqlxTx};
use cutover::migration::{DualWrite, Key, Rows};
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::sync::Notify;

/// What a phase does, stated independently of the library: the sides that it writes, and the side whose result counts.
const PHASES: [(Phase, bool, bool, &str); 8] = [
    (Phase::Off, true, false, "old"),
    (Phase::Expand, true, true, "old"),
    (Phase::Backfill, true, true, "old"),
    (Phase::Verify, true, true, "old"),
    // All keys are read from the new side, and the old side's result still counts.
    (Phase::Ramp, true, true, "old"),
    (Phase::Switch, true, true, "new"),
    (Phase::Retire, false, true, "new"),
    (Phase::Contract, false, true, "new"),
];

const ISOLATION: [Isolation; 3] =
    [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Insert,
    Update,
    Upsert,
    Delete,
    Read,
    /// An update, a delete and an upsert of three rows, of which the delete has the outcome.
    Several,
}

const OPERATIONS: [Operation; 6] = [
    Operation::Insert,
    Operation::Update,
    Operation::Upsert,
    Operation::Delete,
    Operation::Read,
    Operation::Several,
];

/// The outcome of a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    Well,
    /// An error after the side has written.
    ToAnError,
    Slowly,
    /// The caller drops the future after the side has written and before it returns.
    ToNothing,
}

const COMES: [Comes; 4] = [Comes::Well, Comes::ToAnError, Comes::Slowly, Comes::ToNothing];

#[derive(Debug, Clone, Copy)]
struct Case {
    operation: Operation,
    old: Comes,
    new: Comes,
    isolation: Isolation,
    repairs: bool,
}

/// The operation that both drivers offer: a statement, and the number in its first row.
trait Run: FencedTransaction {
    async fn run(tx: &mut PinnedTx<Self>, statement: String) -> Result<i64, Error>;
}

impl Run for SqlxTx {
    async fn run(tx: &mut PinnedTx, statement: String) -> Result<i64, Error> {
        let row = sqlx::query(AssertSqlSafe(statement)).fetch_one(&mut **tx).await?;
        Ok(row.try_get(0)?)
    }
}

impl Run for DeadpoolTx {
    async fn run(tx: &mut PinnedTx<Self>, statement: String) -> Result<i64, Error> {
        let rows = tx.query_typed(&statement, &[]).await?;
        Ok(rows.first().map_or(0, |row| row.get(0)))
    }
}

/// A table's name.
type Sides = DualWrite<&'static str, &'static str>;

/// The first key that the database generates.
const MADE: i64 = 1 << 40;

/// A running case. Its rows are `id` and `id + 1`; `id + 2` does not exist yet.
struct Under<'a> {
    case: Case,
    sides: &'a Sides,
    id: i64,
    gone: Notify,
}

impl Under<'_> {
    /// Runs the operation of the case on a side. Returns the side and the row's key.
    async fn side<T: Run>(
        &self,
        table: &'static str,
        tx: &mut PinnedTx<T>,
        statement: String,
        comes: Comes,
    ) -> Result<(&'static str, i64), Error> {
        if comes == Comes::Slowly {
            T::run(tx, "select 1::bigint from pg_sleep(0.002)".into()).await?;
        }
        let key = T::run(tx, statement).await?;
        match comes {
            Comes::Well | Comes::Slowly => Ok((table, key)),
            Comes::ToAnError => T::run(tx, "select 1::bigint / 0".into()).await.map(|key| (table, key)),
            Comes::ToNothing => {
                self.gone.notify_one();
                std::future::pending().await
            }
        }
    }

    async fn write<T: Run>(
        &self,
        tx: &mut PinnedTx<T>,
        id: i64,
        statement: impl Fn(&str) -> String,
        (old, new): (Comes, Comes),
    ) -> Result<(&'static str, i64), Error> {
        self.sides
            .write_with(
                tx,
                Rows::one(&id),
                async |table, tx| self.side(table, tx, statement(table), old).await,
                async |table, tx| self.side(table, tx, statement(table), new).await,
            )
            .await
    }

    async fn operate<T: Run>(&self, tx: &mut PinnedTx<T>) -> Result<(&'static str, i64), Error> {
        let Case { operation, old, new, .. } = self.case;
        let (id, comes) = (self.id, (old, new));
        let update = |table: &str| format!("update {table} set value = 'after' where id = {id} returning id");
        let delete = |id: i64| move |table: &str| format!("delete from {table} where id = {id} returning id");
        let upsert = |id: i64| {
            move |table: &str| {
                format!(
                    "insert into {table} values ({id}, 'after') on conflict (id) do update set value = 'after' returning id"
                )
            }
        };
        match operation {
            Operation::Update => self.write(tx, id, update, comes).await,
            Operation::Upsert => self.write(tx, id, upsert(id), comes).await,
            Operation::Delete => self.write(tx, id, delete(id), comes).await,
            Operation::Several => {
                let well = (Comes::Well, Comes::Well);
                self.write(tx, id, update, well).await?;
                let outcome = self.write(tx, id + 1, delete(id + 1), comes).await?;
                self.write(tx, id + 2, upsert(id + 2), well).await?;
                Ok(outcome)
            }
            Operation::Read => {
                let select = |table: &str| format!("select id from {table} where id = {id}");
                let (old, new) = comes;
                self.sides
                    .read_in_with(
                        tx,
                        Key::of(&id),
                        async |table, tx| self.side(table, tx, select(table), old).await,
                        async |table, tx| self.side(table, tx, select(table), new).await,
                    )
                    .await
            }
            Operation::Insert => {
                let insert = |table: &str, key: Option<i64>| {
                    let key = key.map_or("nextval('made')".into(), |key| key.to_string());
                    format!("insert into {table} values ({key}, 'after') returning id")
                };
                let (old, new) = comes;
                let inserted = self.sides.insert_with(
                    tx,
                    None,
                    async |table, tx, key| {
                        Ok::<_, Error>(Inserted(self.side(table, tx, insert(table, key), old).await?))
                    },
                    async |table, tx, key| Ok(Inserted(self.side(table, tx, insert(table, key), new).await?)),
                );
                Ok::<_, Error>(inserted.await?.0)
            }
        }
    }
}

struct Inserted((&'static str, i64));

impl cutover::migration::Keyed<i64> for Inserted {
    fn key(&self) -> i64 {
        self.0.1
    }
}

/// Rows by key.
type Table = BTreeMap<i64, String>;

async fn table(world: &World, name: &str, id: i64) -> Outcome<Table> {
    let query = format!("select id, value from {name} where id between {id} and {id} + 2 or id >= {MADE}");
    let rows: Vec<(i64, String)> = sqlx::query_as(AssertSqlSafe(query)).fetch_all(&world.pool).await?;
    Ok(rows.into_iter().collect())
}

/// The rows of a side after the operation took place on it, and if it did not.
fn expected(operation: Operation, id: i64, made: Option<i64>, is_done: bool) -> Table {
    let before = || BTreeMap::from([(id, "before".to_owned()), (id + 1, "before".to_owned())]);
    let mut rows = before();
    let after = || "after".to_owned();
    match operation {
        _ if !is_done => {}
        Operation::Read => {}
        Operation::Update | Operation::Upsert => _ = rows.insert(id, after()),
        Operation::Delete => _ = rows.remove(&id),
        Operation::Insert => _ = rows.insert(made.unwrap_or_default(), after()),
        Operation::Several => {
            rows.insert(id, after());
            rows.remove(&(id + 1));
            rows.insert(id + 2, after());
        }
    }
    rows
}

/// Runs a case and compares its result with the table.
async fn check<P: FencedPool>(world: &World, sides: &Sides, pool: &P, id: i64, case: Case) -> Outcome
where
    P::Transaction: Run,
{
    let seed = format!(
        "with new as (insert into new_rows select {id} + g, 'before' from generate_series(0, 1) g) \
         insert into old_rows select {id} + g, 'before' from generate_series(0, 1) g"
    );
    world.pool.execute(AssertSqlSafe(seed)).await?;
    let mut tx = sides.migration().begin_isolated(pool, case.isolation).await?;
    let phase = tx.phase();
    let name = format!("{phase}: {case:?}");
    let (_, old, new, answers) = PHASES[phase as usize];
    let (touches_old, touches_new) = match case.operation {
        Operation::Read => (phase < Phase::Ramp, phase >= Phase::Ramp),
        _ => (old, new),
    };
    let under = Under { case, sides, id, gone: Notify::new() };
    let outcome = tokio::select! {
        biased;
        outcome = under.operate(&mut tx) => Some(outcome),
        () = under.gone.notified() => None,
    };
    // The first side that fails decides, unless it is a new side that may be repaired.
    let mut decides = Comes::Well;
    let mut is_left_behind = false;
    for (touched, comes, side) in [(touches_old, case.old, "old"), (touches_new, case.new, "new")] {
        if touched && decides == Comes::Well && matches!(comes, Comes::ToAnError | Comes::ToNothing) {
            let is_forgiven = side == "new"
                && comes == Comes::ToAnError
                && case.repairs
                && case.operation != Operation::Read;
            if is_forgiven && (Phase::Expand..=Phase::Verify).contains(&phase) {
                is_left_behind = true;
            } else {
                decides = comes;
            }
        }
    }
    let mut made = None;
    match (decides, outcome) {
        (Comes::ToNothing, None) => {}
        (Comes::ToAnError, Some(Err(error))) => {
            assert!(format!("{error:?}").contains("22012"), "{name}: not the driver's own: {error:?}");
            assert!(!error.is_retryable(), "{name}");
        }
        (Comes::Well, Some(Ok((side, key)))) => {
            let read = if touches_new { "new_rows" } else { "old_rows" };
            let expected = if case.operation == Operation::Read {
                read
            } else if answers == "old" {
                "old_rows"
            } else {
                "new_rows"
            };
            assert_eq!(side, expected, "{name}");
            made = Some(key);
        }
        (_, outcome) => return Err(format!("{name}: {outcome:?}").into()),
    }
    let is_committed = match tx.commit().await {
        Ok(()) => true,
        Err(Error::Unfinished) => false,
        Err(error) if format!("{error:?}").contains("25P02") => false,
        Err(error) => return Err(format!("{name}: {error:?}").into()),
    };
    let is_write = case.operation != Operation::Read;
    // A read that fails inside the database fails the transaction too, so the commit fails.
    assert_eq!(is_committed, decides == Comes::Well || (!is_write && decides == Comes::ToNothing), "{name}");
    let is_done = is_committed && decides == Comes::Well;
    assert_eq!(
        table(world, "old_rows", id).await?,
        expected(case.operation, id, made, is_done && touches_old),
        "{name}: the old side"
    );
    let mut on_new = expected(case.operation, id, made, is_done && touches_new);
    if is_left_behind {
        on_new = match case.operation {
            // Only the delete was rolled back.
            Operation::Several => {
                on_new.insert(id + 1, "before".into());
                on_new
            }
            _ => expected(case.operation, id, made, false),
        };
    }
    assert_eq!(table(world, "new_rows", id).await?, on_new, "{name}: the new side");
    if phase < Phase::Verify {
        let notes = sqlx::query_scalar::<_, i64>("select count(*) from cutover.repairs");
        assert_eq!(
            notes.fetch_one(&world.pool).await?,
            i64::from(is_left_behind),
            "{name}: recorded repairs"
        );
    }
    // As the library's own statements delete them.
    let clean = format!(
        "select set_config('cutover.own_delete', 'on', true); delete from old_rows where id >= {MADE}; delete from new_rows where id >= {MADE}; delete from cutover.repairs"
    );
    world.pool.execute(AssertSqlSafe(clean)).await?;
    Ok(())
}

/// Runs all cases of the current phase. Returns their number.
async fn all<P: FencedPool>(
    world: &World,
    fleet: &Fleet,
    pool: &P,
    levels: &[Isolation],
    id: &mut i64,
) -> Outcome<usize>
where
    P::Transaction: Run,
{
    let sides = DualWrite::new(fleet.migration.clone(), "old_rows", "new_rows");
    let repairing = sides.clone().repair_later();
    let mut count = 0;
    for &isolation in levels {
        for operation in OPERATIONS {
            for (old, new) in COMES.into_iter().flat_map(|old| COMES.map(|new| (old, new))) {
                for repairs in [false, true] {
                    // Repairs only matter if the new side fails.
                    if repairs && new != Comes::ToAnError {
                        continue;
                    }
                    *id += 10;
                    let sides = if repairs { &repairing } else { &sides };
                    check(world, sides, pool, *id, Case { operation, old, new, isolation, repairs }).await?;
                    count += 1;
                }
            }
        }
    }
    Ok(count)
}

#[tokio::test]
async fn every_combination_has_the_expected_result() -> Outcome {
    let world = World::new(0).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    world
        .pool
        .execute(AssertSqlSafe(format!(
            "create sequence made start {MADE}; create table old_rows (id bigint primary key, value text); \
             create table new_rows (id bigint primary key, value text)"
        )))
        .await?;
    let deadpool = pool_of_one(&world)?;
    let (mut id, mut count) = (0, 0);
    for (phase, ..) in PHASES {
        if phase == Phase::Contract {
            world.approve().await?;
        }
        world.go(phase.name()).await?;
        count += all(&world, &fleet, &world.pool, &ISOLATION, &mut id).await?;
        count += all(&world, &fleet, &deadpool, &ISOLATION[..1], &mut id).await?;
    }
    assert_eq!(count, 8 * 6 * 4 * (4 + 1) * (3 + 1));
    Ok(())
}
