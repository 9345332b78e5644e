//! A whole migration of a column under writers that go through the generated repository.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::world::{Fleet, Outcome, PACE, World};
use cutover::migration::Phase;
use cutover::migration::{DualWrite, Key, Reads};
use cutover::migration::{Error, PinnedTx};
use sqlx::PgPool;
use tokio::time::sleep;

#[cutover::dual_write]
trait Statuses: Send + Sync {
    /// Returns the value stored by this side.
    #[write(key = id)]
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: String) -> Result<String, Error>;

    #[read(key = id)]
    async fn get(&self, id: i64) -> Result<Option<String>, Error>;

    #[read(key = id)]
    async fn get_within(&self, id: i64, tx: &mut PinnedTx) -> Result<Option<String>, Error>;

    #[read]
    async fn side(&self) -> Result<&'static str, Error>;

    async fn get_or(&self, id: i64, otherwise: &str) -> Result<String, Error> {
        Ok(self.get(id).await?.unwrap_or_else(|| otherwise.to_owned()))
    }
}

#[derive(Clone)]
struct Old(PgPool);

impl Statuses for Old {
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: String) -> Result<String, Error> {
        let statement = "update orders set old_status = upper($2) where id = $1 returning old_status";
        Ok(sqlx::query_scalar(statement).bind(id).bind(status).fetch_one(&mut **tx).await?)
    }

    async fn get(&self, id: i64) -> Result<Option<String>, Error> {
        let query = sqlx::query_scalar("select lower(old_status) from orders where id = $1").bind(id);
        Ok(query.fetch_optional(&self.0).await?)
    }

    async fn get_within(&self, id: i64, tx: &mut PinnedTx) -> Result<Option<String>, Error> {
        let query = sqlx::query_scalar("select lower(old_status) from orders where id = $1").bind(id);
        Ok(query.fetch_optional(&mut **tx).await?)
    }

    async fn side(&self) -> Result<&'static str, Error> {
        Ok("old")
    }
}

#[derive(Clone)]
struct New(PgPool);

impl Statuses for New {
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: String) -> Result<String, Error> {
        let statement = "update orders set new_status = $2 where id = $1 returning new_status";
        Ok(sqlx::query_scalar(statement).bind(id).bind(status).fetch_one(&mut **tx).await?)
    }

    async fn get(&self, id: i64) -> Result<Option<String>, Error> {
        let query = sqlx::query_scalar("select new_status from orders where id = $1").bind(id);
        Ok(query.fetch_optional(&self.0).await?)
    }

    async fn get_within(&self, id: i64, tx: &mut PinnedTx) -> Result<Option<String>, Error> {
        let query = sqlx::query_scalar("select new_status from orders where id = $1").bind(id);
        Ok(query.fetch_optional(&mut **tx).await?)
    }

    async fn side(&self) -> Result<&'static str, Error> {
        Ok("new")
    }
}

const WRITERS: i64 = 4;
const KEYS: i64 = 400;

/// Writes its own keys and reads each back through another instance. The read has to see every write that was committed
/// before it began, on whichever side.
async fn write_and_read(
    number: i64,
    pool: PgPool,
    mine: DualWrite<Old, New>,
    other: DualWrite<Old, New>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> Result<HashMap<i64, String>, Error> {
    let mut written: HashMap<i64, String> = HashMap::new();
    let mut round = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let id = 1 + number + WRITERS * fastrand::i64(0..KEYS / WRITERS);
        // Writes of earlier phases have to be visible in this one.
        if let Some(expected) = written.get(&id) {
            let seen = other.get(id).await?;
            assert_eq!(
                seen.as_ref(),
                Some(expected),
                "lost write of {id} at {:?}",
                other.migration().current()
            );
        }
        let status = format!("w{number}r{round}");
        set(&pool, &mine, id, &status).await?;
        let seen = other.get(id).await?;
        assert_eq!(
            seen.as_deref(),
            Some(&*status),
            "stale read of {id} at {:?}",
            other.migration().current()
        );
        written.insert(id, status);
        count.fetch_add(1, Ordering::Relaxed);
        sleep(PACE).await;
    }
    Ok(written)
}

async fn set(pool: &PgPool, repository: &DualWrite<Old, New>, id: i64, status: &str) -> Result<(), Error> {
    let mut tx = repository.migration().begin(pool).await?;
    repository.set(&mut tx, id, status.to_owned()).await?;
    let seen = repository.get_within(id, &mut tx).await?;
    assert_eq!(seen.as_deref(), Some(status), "own write not seen at {}", tx.phase());
    tx.commit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_migration_under_load_loses_no_write() -> Outcome {
    let world = World::new(20_000).await?;
    let (a, b) =
        (world.instance("a", Some(world.plan()?)).await?, world.instance("b", Some(world.plan()?)).await?);
    let repository = |fleet: &Fleet| {
        DualWrite::new(fleet.migration.clone(), Old(world.pool.clone()), New(world.pool.clone()))
    };
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (mine, other) = if number % 2 == 0 { (&a, &b) } else { (&b, &a) };
            tokio::spawn(write_and_read(
                number,
                world.pool.clone(),
                repository(mine),
                repository(other),
                stop.clone(),
                count.clone(),
            ))
        })
        .collect();
    assert_eq!(repository(&a).side().await?, "old");
    for step in [
        "backfill", "ramp:40", "ramp:100", "switch", "retire", "switch", "ramp", "switch", "verify", "switch",
    ] {
        world.go(step).await?;
        let before = count.load(Ordering::Relaxed);
        world.until("writers go on", async || count.load(Ordering::Relaxed) > before + 50).await?;
    }
    world.go("retire").await?;
    assert_eq!(repository(&b).side().await?, "new");
    world.approve().await?;
    world.go("contract").await?;
    world.until("the old column is gone", async || !world.has_column("old_status").await).await?;
    let before = count.load(Ordering::Relaxed);
    world.until("writers go on", async || count.load(Ordering::Relaxed) > before + 50).await?;
    stop.store(true, Ordering::Relaxed);
    let mut written = HashMap::new();
    for writer in writers {
        written.extend(writer.await??);
    }
    let rows: Vec<(i64, Option<String>)> =
        sqlx::query_as("select id, new_status from orders order by id").fetch_all(&world.pool).await?;
    assert_eq!(rows.len(), 20_000);
    for (id, status) in rows {
        // Rows that were not written have the value that the backfill computed.
        let expected = written.get(&id).cloned().unwrap_or_else(|| format!("legacy{id}"));
        assert_eq!(status, Some(expected), "{id}");
    }
    Ok(())
}

#[tokio::test]
async fn a_transaction_of_another_migration_is_refused() -> Outcome {
    let world = World::new(1).await?;
    let a = world.instance("a", Some(world.plan()?)).await?;
    let repository = DualWrite::new(a.migration.clone(), Old(world.pool.clone()), New(world.pool.clone()));
    let other = a.agent.migration("other").ok_or("declared")?;
    let mut tx = other.begin(&world.pool).await?;
    let error = repository.set(&mut tx, 1, "paid".into()).await.expect_err("refused");
    assert!(matches!(error, Error::OtherMigration { .. }), "{error}");
    tx.rollback().await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    assert_eq!(repository.set(&mut tx, 1, "paid".into()).await?, "PAID");
    tx.commit().await?;
    assert_eq!(repository.get_or(1, "none").await?, "paid");
    assert_eq!(repository.get_or(99, "none").await?, "none");
    Ok(())
}

#[tokio::test]
async fn the_fleet_waits_for_a_running_read() -> Outcome {
    let world = World::new(1).await?;
    let a = world.instance("a", Some(world.plan()?)).await?;
    let repository = DualWrite::new(a.migration.clone(), Old(world.pool.clone()), New(world.pool.clone()));
    let reading = repository.read(Key::of(&1_i64))?;
    world.ask("backfill").await?;
    // This instance works at the next epoch, and the read still runs at the one before.
    world
        .until("the next epoch", async || a.migration.current().is_some_and(|at| at.1 == Phase::Expand))
        .await?;
    let held = "select older_open = 1 from cutover.acknowledgements a join cutover.migrations m \
        on m.id = a.migration_id where m.name = 'status'";
    world
        .until("the read is waited for", async || {
            sqlx::query_scalar(held).fetch_one(&world.pool).await.unwrap_or(false)
        })
        .await?;
    assert!(matches!(reading.side(), Reads::Old(_)));
    assert_eq!(reading.finish::<_, Error>(7)?, 7);
    world.go("backfill").await?;
    // A process that left the fleet during the read must not return the value.
    let reading = repository.read(Key::NONE)?;
    a.agent.leave().await?;
    assert!(matches!(reading.finish::<_, Error>(7), Err(Error::NotInFleet)));
    assert!(matches!(repository.get(1).await, Err(Error::NotInFleet)));
    Ok(())
}

#[tokio::test]
async fn each_phase_writes_and_returns_the_right_sides() -> Outcome {
    let world = World::new(1).await?;
    let a = world.instance("a", Some(world.plan()?)).await?;
    let repository = DualWrite::new(a.migration.clone(), Old(world.pool.clone()), New(world.pool.clone()));
    for phase in Phase::ALL.into_iter().filter(|phase| *phase < Phase::Contract) {
        world.go(phase.name()).await?;
        let status = format!("s{}", phase as u8);
        let mut tx = a.migration.begin(&world.pool).await?;
        assert_eq!(tx.phase(), phase);
        let returned = repository.set(&mut tx, 1, status.clone()).await?;
        tx.commit().await?;
        let authoritative = if phase <= Phase::Ramp { status.to_uppercase() } else { status.clone() };
        assert_eq!(returned, authoritative, "{phase}");
        let row = world.row(1).await?;
        let old = if phase < Phase::Retire { status.to_uppercase() } else { "S5".to_owned() };
        let new = if phase > Phase::Off { Some(status) } else { None };
        assert_eq!(row, (Some(old), new), "{phase}");
    }
    Ok(())
}

/// Both columns in one statement while both are written.
mod at_once {
    use super::*;

    #[cutover::dual_write(at_once = SetsBoth)]
    trait Sets: Send + Sync {
        #[write(key = id)]
        async fn put(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<&'static str, Error>;

        #[read(key = id)]
        async fn got(&self, id: i64) -> Result<&'static str, Error>;
    }

    /// Runs the statement with the id and the status, and returns its name.
    #[derive(Clone, Copy)]
    struct Statement(&'static str, &'static str);

    impl Statement {
        async fn run(self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<&'static str, Error> {
            sqlx::query(self.1).bind(id).bind(status).execute(&mut **tx).await?;
            Ok(self.0)
        }
    }

    impl Sets for Statement {
        async fn put(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<&'static str, Error> {
            self.run(tx, id, status).await
        }

        async fn got(&self, _: i64) -> Result<&'static str, Error> {
            Ok(self.0)
        }
    }

    struct Both(Statement);

    impl SetsBoth for Both {
        async fn put(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<&'static str, Error> {
            self.0.run(tx, id, status).await
        }
    }

    const OLD: Statement = Statement("old", "update orders set old_status = upper($2) where id = $1");
    const NEW: Statement = Statement("new", "update orders set new_status = $2 where id = $1");
    const BOTH: Statement =
        Statement("both", "update orders set old_status = upper($2), new_status = $2 where id = $1");

    #[tokio::test]
    async fn one_statement_writes_both_columns_while_both_are_written() -> Outcome {
        let world = World::new(1).await?;
        let a = world.instance("a", Some(world.plan()?)).await?;
        let sides = DualWrite::new(a.migration.clone(), OLD, NEW).at_once(Both(BOTH));
        let apart = DualWrite::new(a.migration.clone(), OLD, NEW);
        let phases = [
            ("off", "old", "old"),
            ("expand", "both", "old"),
            ("ramp", "both", "old"),
            ("switch", "both", "new"),
        ];
        for (phase, wrote, apart_wrote) in phases.into_iter().chain([("retire", "new", "new")]) {
            world.go(phase).await?;
            let mut tx = a.migration.begin(&world.pool).await?;
            assert_eq!(apart.put(&mut tx, 1, "apart").await?, apart_wrote, "{phase}");
            assert_eq!(sides.put(&mut tx, 1, phase).await?, wrote, "{phase}");
            let by_closures = sides.write_at_once(
                &mut tx,
                async |old, tx| old.run(tx, 1, phase).await,
                async |new, tx| new.run(tx, 1, phase).await,
                async |_, _, tx| BOTH.run(tx, 1, phase).await,
            );
            assert_eq!(by_closures.await?, wrote, "{phase}");
            tx.commit().await?;
            let (old, new) = world.row(1).await?;
            assert_eq!(old.as_deref() == Some(&*phase.to_uppercase()), phase != "retire", "{phase}");
            assert_eq!(new.as_deref() == Some(phase), phase != "off", "{phase}");
        }
        assert_eq!(sides.got(1).await?, "new");
        Ok(())
    }
}

/// The same with boxed futures, and a generic trait.
mod other_shapes {
    use super::*;

    #[cutover::dual_write(at_once = BoxedAtOnce)]
    #[async_trait::async_trait]
    trait Boxed {
        #[write(keys = names)]
        async fn add(&self, tx: &mut PinnedTx, names: &[String]) -> Result<usize, Error>;
        #[read(key = name)]
        async fn find(&self, name: &str) -> Result<String, Error>;
    }

    struct Left;

    #[async_trait::async_trait]
    impl Boxed for Left {
        async fn add(&self, _: &mut PinnedTx, names: &[String]) -> Result<usize, Error> {
            Ok(names.len())
        }
        async fn find(&self, name: &str) -> Result<String, Error> {
            Ok(format!("left {name}"))
        }
    }

    #[cutover::dual_write(at_once = GenericAtOnce)]
    trait Generic<T: Clone> {
        #[write(unknown_rows)]
        async fn put<'a>(&self, value: T, tx: &mut PinnedTx, _: &'a str) -> Result<T, Error>
        where
            T: 'a;
        #[read]
        async fn all(&self, like: impl Into<String> + Clone) -> Result<Vec<String>, Error>;
    }

    impl<T: Clone> Generic<T> for Left {
        async fn put<'a>(&self, value: T, _: &mut PinnedTx, _: &'a str) -> Result<T, Error>
        where
            T: 'a,
        {
            Ok(value)
        }
        async fn all(&self, like: impl Into<String> + Clone) -> Result<Vec<String>, Error> {
            Ok(vec![like.into()])
        }
    }

    #[tokio::test]
    async fn boxed_and_generic_traits_work() -> Outcome {
        let world = World::new(1).await?;
        let a = world.instance("a", Some(world.plan()?)).await?;
        let boxed: Arc<dyn Boxed + Send + Sync> = Arc::new(DualWrite::new(a.migration.clone(), Left, Left));
        let found = tokio::spawn(async move { boxed.find("x").await }).await??;
        assert_eq!(found, "left x");
        let pair = DualWrite::new(a.migration.clone(), Left, Left);
        assert_eq!(Generic::<u8>::all(&pair, "x").await?, ["x"]);
        let mut tx = a.migration.begin(&world.pool).await?;
        assert_eq!(pair.put(7, &mut tx, "x").await?, 7);
        assert_eq!(pair.add(&mut tx, &[String::new()]).await?, 1);
        Ok(())
    }
}
