//! Transactions that lose a deadlock or fail to serialize: the driver's error is passed through, no row is recorded for
//! repair, and a retry of the whole transaction succeeds on both sides.

use cutover::migration::{DeadpoolTx, Error, Isolation, PinnedTx, is_retryable};
use cutover::migration::{DualWrite, Key, Rows};
use deadpool_postgres::Pool;
use sqlx::{Executor, Row};
use tokio::sync::Barrier;

use crate::deadpool::pool_of_one;
use crate::world::{Fleet, Outcome, World};

const OLD: &str = "update orders set old_status = upper($2) where id = $1";
const NEW: &str = "update orders set new_status = $2 where id = $1";
const TOTAL: &str = "update totals set writes = writes + 1 where id = $1";

/// An order, and a total that only the new side has. Two writes of one order conflict on the old side, and two writes of
/// one total only on the new side.
type Write = (i64, i64);

type Sides = DualWrite<(), ()>;

async fn world() -> Outcome<(World, Fleet)> {
    let world = World::new(4).await?;
    let fleet = world.instance("a", Some(world.plan()?)).await?;
    world.go("expand").await?;
    world
        .pool
        .execute("create table totals (id bigint primary key, writes int not null default 0); insert into totals values (1), (2)")
        .await?;
    Ok((world, fleet))
}

/// Sides that are strict, and sides that repair the new side later.
fn both_kinds(fleet: &Fleet) -> [Sides; 2] {
    let strict = DualWrite::new(fleet.migration.clone(), (), ());
    [strict.clone(), strict.repair_later()]
}

async fn write(sides: &Sides, tx: &mut PinnedTx, (order, total): Write, status: &str) -> Result<(), Error> {
    sides
        .write_with(
            tx,
            Rows::one(&order),
            async |_, tx| {
                sqlx::query(OLD).bind(order).bind(status).execute(&mut **tx).await?;
                Ok(())
            },
            async |_, tx| {
                sqlx::query(TOTAL).bind(total).execute(&mut **tx).await?;
                sqlx::query(NEW).bind(order).bind(status).execute(&mut **tx).await?;
                Ok(())
            },
        )
        .await
}

/// The sides are the same, each committed write was counted once, and no row waits for repair.
async fn all_is_well(world: &World, writes: i64) -> Outcome {
    let state: (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from orders where old_status not like ' LEGACY%' \
                    and new_status is distinct from lower(old_status)), \
                (select sum(writes) from totals), (select count(*) from cutover.repairs)",
    )
    .fetch_one(&world.pool)
    .await?;
    assert_eq!(state, (0, writes, 0), "(orders that differ, writes, repairs)");
    world.pool.execute("update totals set writes = 0").await?;
    Ok(())
}

/// The error of Postgres itself.
fn sql_state(error: &Error) -> Option<String> {
    let Error::Database(sqlx::Error::Database(error)) = error else { return None };
    Some(error.code()?.into_owned())
}

fn is_lost(error: &Error, state: &str) {
    assert_eq!(sql_state(error).as_deref(), Some(state), "{error}");
    assert!(error.is_retryable() && is_retryable(error), "{error}");
}

/// Two writes in one transaction, with a barrier shared with another transaction between them.
async fn two_writes(
    world: &World,
    sides: &Sides,
    [first, second]: [Write; 2],
    status: &str,
    other: Option<&Barrier>,
) -> Result<(), Error> {
    let mut tx = sides.migration().begin(&world.pool).await?;
    write(sides, &mut tx, first, status).await?;
    if let Some(other) = other {
        other.wait().await;
    }
    if let Err(error) = write(sides, &mut tx, second, status).await {
        // The commit fails even if the error is ignored.
        assert!(matches!(tx.commit().await, Err(Error::Unfinished)));
        return Err(error);
    }
    tx.commit().await
}

#[tokio::test]
async fn one_of_two_deadlocked_transactions_is_retried() -> Outcome {
    let (world, fleet) = world().await?;
    let on_the_old_side = [[(1, 1), (2, 2)], [(2, 2), (1, 1)]];
    let on_the_new_side = [[(1, 1), (3, 2)], [(2, 2), (4, 1)]];
    for [mine, others] in [on_the_old_side, on_the_new_side] {
        for sides in both_kinds(&fleet) {
            let met = Barrier::new(2);
            let (a, b) = tokio::join!(
                two_writes(&world, &sides, mine, "a", Some(&met)),
                two_writes(&world, &sides, others, "b", Some(&met)),
            );
            let (lost, writes, status) = match (a, b) {
                (Err(lost), Ok(())) => (lost, mine, "a"),
                (Ok(()), Err(lost)) => (lost, others, "b"),
                neither => return Err(format!("one of them loses: {neither:?}").into()),
            };
            is_lost(&lost, "40P01");
            two_writes(&world, &sides, writes, status, None).await?;
            all_is_well(&world, 4).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_write_after_the_snapshot_makes_the_transaction_retry() -> Outcome {
    let (world, fleet) = world().await?;
    for isolation in [Isolation::RepeatableRead, Isolation::Serializable] {
        for (mine, others) in [((1, 1), (1, 2)), ((1, 1), (2, 1))] {
            for sides in both_kinds(&fleet) {
                let begin = || sides.migration().begin_isolated(&world.pool, isolation);
                let (mut first, mut second) = (begin().await?, begin().await?);
                write(&sides, &mut first, mine, "first").await?;
                first.commit().await?;
                let lost = write(&sides, &mut second, others, "second").await.expect_err("conflict");
                is_lost(&lost, "40001");
                assert!(matches!(second.commit().await, Err(Error::Unfinished)));
                let mut again = begin().await?;
                write(&sides, &mut again, others, "again").await?;
                again.commit().await?;
                all_is_well(&world, 2).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn one_of_two_write_skewed_transactions_is_retried() -> Outcome {
    let (world, fleet) = world().await?;
    for sides in both_kinds(&fleet) {
        let begin = || sides.migration().begin_isolated(&world.pool, Isolation::Serializable);
        let (mut first, mut second) = (begin().await?, begin().await?);
        look(&sides, &mut first, 2).await?;
        look(&sides, &mut second, 1).await?;
        write(&sides, &mut first, (1, 1), "first").await?;
        // Postgres may report the conflict here or at the commit.
        let wrote = write(&sides, &mut second, (2, 2), "second").await;
        first.commit().await?;
        let lost = match (wrote, second.commit().await) {
            (Err(lost), Err(Error::Unfinished)) | (Ok(()), Err(lost)) => lost,
            neither => return Err(format!("the second one loses: {neither:?}").into()),
        };
        is_lost(&lost, "40001");
        let mut again = begin().await?;
        look(&sides, &mut again, 1).await?;
        write(&sides, &mut again, (2, 2), "again").await?;
        again.commit().await?;
        all_is_well(&world, 2).await?;
    }
    Ok(())
}

async fn look(sides: &Sides, tx: &mut PinnedTx, order: i64) -> Result<(), Error> {
    let query = "select old_status from orders where id = $1";
    let read = async |tx: &mut PinnedTx| {
        sqlx::query(query).bind(order).fetch_one(&mut **tx).await?;
        Ok(())
    };
    sides.read_in_with(tx, Key::of(&order), async |_, tx| read(tx).await, async |_, tx| read(tx).await).await
}

/// A repository's own error, with the driver's error as its source.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the order could not be written")]
    Order(#[source] tokio_postgres::Error),
    #[error(transparent)]
    Other(#[from] Error),
}

async fn run(tx: &mut PinnedTx<DeadpoolTx>, statement: &str, id: i64, status: &str) -> Result<(), Failed> {
    tx.execute(statement, &[&id, &status]).await.map_err(Failed::Order)?;
    Ok(())
}

/// The same on deadpool, where the closures have their own error type.
async fn write_with_deadpool(
    sides: &Sides,
    tx: &mut PinnedTx<DeadpoolTx>,
    (order, total): Write,
    status: &str,
) -> Result<(), Failed> {
    sides
        .write_with(
            tx,
            Rows::one(&order),
            async |_, tx| run(tx, OLD, order, status).await,
            async |_, tx| {
                tx.execute(TOTAL, &[&total]).await.map_err(Failed::Order)?;
                run(tx, NEW, order, status).await
            },
        )
        .await
}

async fn two_writes_with_deadpool(
    pool: &Pool,
    sides: &Sides,
    [first, second]: [Write; 2],
    status: &str,
    other: Option<&Barrier>,
) -> Result<(), Failed> {
    let mut tx = sides.migration().begin(pool).await?;
    write_with_deadpool(sides, &mut tx, first, status).await?;
    if let Some(other) = other {
        other.wait().await;
    }
    if let Err(error) = write_with_deadpool(sides, &mut tx, second, status).await {
        assert!(matches!(tx.commit().await, Err(Error::Unfinished)));
        return Err(error);
    }
    Ok(tx.commit().await?)
}

#[expect(clippy::panic, reason = "another error fails the test")]
fn is_lost_by_the_driver(error: &Failed, state: &str) {
    let Failed::Order(error_of_driver) = error else { panic!("{error}") };
    assert_eq!(error_of_driver.code().map(|code| code.code()), Some(state), "{error_of_driver}");
    assert!(is_retryable(error), "{error_of_driver}");
}

#[tokio::test]
async fn conflicts_on_deadpool_with_custom_errors_are_retried() -> Outcome {
    let (world, fleet) = world().await?;
    let pools = [pool_of_one(&world)?, pool_of_one(&world)?];
    for sides in both_kinds(&fleet) {
        let (mine, others, met) = ([(1, 1), (3, 2)], [(2, 2), (4, 1)], Barrier::new(2));
        let (a, b) = tokio::join!(
            two_writes_with_deadpool(&pools[0], &sides, mine, "a", Some(&met)),
            two_writes_with_deadpool(&pools[1], &sides, others, "b", Some(&met)),
        );
        let (lost, writes) = match (a, b) {
            (Err(lost), Ok(())) => (lost, mine),
            (Ok(()), Err(lost)) => (lost, others),
            neither => return Err(format!("one of them loses: {neither:?}").into()),
        };
        is_lost_by_the_driver(&lost, "40P01");
        two_writes_with_deadpool(&pools[0], &sides, writes, "again", None).await?;
        all_is_well(&world, 4).await?;

        let begin = async |pool| sides.migration().begin_isolated(pool, Isolation::Serializable).await;
        let (mut first, mut second) = (begin(&pools[0]).await?, begin(&pools[1]).await?);
        write_with_deadpool(&sides, &mut first, (1, 1), "first").await?;
        first.commit().await?;
        let lost = write_with_deadpool(&sides, &mut second, (2, 1), "second").await.expect_err("conflict");
        is_lost_by_the_driver(&lost, "40001");
        assert!(matches!(second.commit().await, Err(Error::Unfinished)));
        let mut again = begin(&pools[1]).await?;
        write_with_deadpool(&sides, &mut again, (2, 1), "again").await?;
        again.commit().await?;
        all_is_well(&world, 2).await?;
    }
    Ok(())
}

/// The server answers such a commit with a rollback, and no driver checks that.
#[tokio::test]
async fn commit_fails_after_a_failed_statement() -> Outcome {
    let (world, fleet) = world().await?;
    let aborted = |error: &Error| error.to_string().contains("current transaction is aborted");
    // One connection, so that a leftover transaction is visible.
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&world.url).await?;
    let mut tx = fleet.migration.begin(&pool).await?;
    tx.execute("update orders set note = 'lost' where id = 1").await?;
    assert!(tx.execute("select 1 / 0").await.is_err());
    let error = tx.commit().await.expect_err("rolled back");
    assert!(aborted(&error), "{error}");
    for note in ["first", "second"] {
        let mut tx = fleet.migration.begin(&pool).await?;
        sqlx::query("update orders set note = $1 where id = 1").bind(note).execute(&mut *tx).await?;
        tx.commit().await?;
        let kept: String =
            sqlx::query_scalar("select note from orders where id = 1").fetch_one(&world.pool).await?;
        assert_eq!(kept, note);
        // One message, because two messages would have two times.
        let outside = "select transaction_timestamp() = statement_timestamp()";
        let row = sqlx::raw_sql(outside).fetch_one(&pool).await?;
        assert!(row.try_get::<bool, _>(0)?, "the connection came back inside a transaction");
    }
    let pool = pool_of_one(&world)?;
    let tx = fleet.migration.begin(&pool).await?;
    tx.execute("update orders set note = 'lost' where id = 1", &[]).await?;
    assert!(tx.batch_execute("select 1 / 0").await.is_err());
    let error = tx.commit().await.expect_err("rolled back");
    assert!(aborted(&error) || matches!(&error, Error::Deadpool(_)), "{error}");
    let kept: String =
        sqlx::query_scalar("select note from orders where id = 1").fetch_one(&world.pool).await?;
    assert_eq!(kept, "second");
    Ok(())
}
