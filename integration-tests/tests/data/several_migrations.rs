//! One transaction that writes under two migrations of one table.

use std::time::Duration;

use cutover::fleet::FleetOptions;
use cutover::migration::{
    ColumnMigration, DualWrite, Error, FencedPool, Isolation, Migration, MigrationSpec, Migrations, Phase,
    PhaseRange, PinnedTx, Rows,
};
use cutover_testkit::wait_until;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::deadpool::pool_of_one;
use crate::world::{Fleet, Outcome, World};

const SOON: Duration = Duration::from_secs(120);

/// Column `old_status` moves to `new_status`, and `old_note` to `new_note`. Both have their guard trigger.
struct Two {
    world: World,
    _fleet: Fleet,
    status: Migration,
    note: Migration,
}

impl Two {
    async fn new() -> Outcome<Self> {
        let world = World::new(3).await?;
        world.pool.execute("alter table orders add old_note text; update orders set old_note = 'n'").await?;
        let note = ColumnMigration::new(world.pool.clone(), "orders")
            .key("id")
            .column("old_note", "new_note", "text")
            .forward("lower(old_note)")
            .backward("upper(new_note)")
            .build()?;
        let specs = vec![
            MigrationSpec::new("status", PhaseRange::FULL).plan(world.describe().build()?),
            MigrationSpec::new("note", PhaseRange::FULL).plan(note),
        ];
        let fleet = world.join(specs, "a", FleetOptions::default()).await?;
        let note = fleet.agent.migration("note").ok_or("declared")?;
        Ok(Self { status: fleet.migration.clone(), note, world, _fleet: fleet })
    }

    fn both(&self) -> Migrations {
        self.status.and(&self.note)
    }

    async fn go_to(&self, migration: &str, phase: &str) -> Outcome {
        let pool = &self.world.pool;
        sqlx::query("update cutover.migrations set desired = $2 where name = $1")
            .bind(migration)
            .bind(phase)
            .execute(pool)
            .await?;
        let settled = "select phase = $2 and not exists (select from cutover.epochs e where e.migration_id = m.id \
            and e.epoch < m.epoch and e.drained_at is null) from cutover.migrations m where name = $1";
        wait_until(&format!("{migration} at {phase}"), SOON, async || {
            sqlx::query_scalar::<_, bool>(settled).bind(migration).bind(phase).fetch_one(pool).await
        })
        .await?;
        Ok(())
    }

    async fn external_writes(&self) -> Outcome<i64> {
        let count = "select (select count(*) from cutover.external_write_events) \
            + (select count(*) from cutover.external_writes)";
        Ok(sqlx::query_scalar(count).fetch_one(&self.world.pool).await?)
    }

    async fn row(&self, id: i64) -> Outcome<serde_json::Value> {
        let text: String = sqlx::query_scalar("select to_jsonb(o)::text from orders o where id = $1")
            .bind(id)
            .fetch_one(&self.world.pool)
            .await?;
        Ok(serde_json::from_str(&text)?)
    }
}

async fn set(tx: &mut PinnedTx, column: &str, id: i64, value: &str) -> Result<(), Error> {
    let update = format!("update orders set {column} = $2 where id = $1");
    sqlx::query(AssertSqlSafe(update)).bind(id).bind(value).execute(&mut **tx).await?;
    Ok(())
}

/// A column, and how it spells a value.
type Column = (&'static str, fn(&str) -> String);

/// Sets a value on both sides of a migration, and returns the phase that each side's closure saw.
async fn write(
    sides: &DualWrite<Column, Column>,
    tx: &mut PinnedTx,
    id: i64,
    value: &str,
) -> Result<Phase, Error> {
    sides
        .write_with(
            tx,
            Rows::one(&id),
            async |(column, spelt), tx| {
                set(tx, column, id, &spelt(value)).await?;
                Ok(tx.phase())
            },
            async |(column, spelt), tx| {
                set(tx, column, id, &spelt(value)).await?;
                Ok(tx.phase())
            },
        )
        .await
}

#[tokio::test]
async fn one_transaction_writes_under_two_migrations() -> Outcome {
    let two = Two::new().await?;
    let sides = |old, new| -> (Column, Column) { ((old, str::to_uppercase), (new, str::to_lowercase)) };
    let (old, new) = sides("old_status", "new_status");
    let statuses = DualWrite::new(two.status.clone(), old, new);
    let (old, new) = sides("old_note", "new_note");
    let notes = DualWrite::new(two.note.clone(), old, new);
    let pool = &two.world.pool;
    two.go_to("note", "expand").await?;
    two.go_to("status", "retire").await?;
    let mut tx = two.both().begin(pool).await?;
    assert_eq!((tx.phase(), tx.phase_of(&two.note)?), (Phase::Retire, Phase::Expand));
    assert_eq!(write(&statuses, &mut tx, 1, "Paid").await?, Phase::Retire);
    assert_eq!(write(&notes, &mut tx, 1, "Hello").await?, Phase::Expand, "the phase of the one that writes");
    // Raw SQL on both tables' sides is pinned too: the guard trigger of neither migration sees an external write.
    let insert = "insert into orders (id, new_status, old_note, new_note) overriding system value \
        values (77, 'open', 'A', 'a')";
    tx.execute(insert).await?;
    tx.execute("update orders set old_status = 'raw' where id = 2").await?;
    assert_eq!(tx.phase(), Phase::Retire);
    tx.commit().await?;
    assert_eq!(two.external_writes().await?, 0);
    let row = two.row(1).await?;
    assert_eq!(
        (&row["old_status"], &row["new_status"], &row["old_note"], &row["new_note"]),
        (&" LEGACY1 ".into(), &"paid".into(), &"HELLO".into(), &"hello".into()),
    );
    // A nested write leaves the phase of the outer one in place.
    let mut tx = two.both().begin(pool).await?;
    let seen = notes
        .write_with(
            &mut tx,
            Rows::one(&2),
            async |_, tx| {
                write(&statuses, tx, 2, "open").await?;
                Ok::<_, Error>(tx.phase())
            },
            async |_, tx| Ok(tx.phase()),
        )
        .await?;
    assert_eq!(seen, Phase::Expand);
    tx.commit().await?;
    Ok(())
}

#[tokio::test]
async fn a_write_under_one_pin_is_external_to_the_other() -> Outcome {
    let two = Two::new().await?;
    two.go_to("note", "expand").await?;
    two.go_to("status", "expand").await?;
    let mut tx = two.status.begin(&two.world.pool).await?;
    set(&mut tx, "old_note", 1, "RAW").await?;
    tx.commit().await?;
    assert_eq!(two.external_writes().await?, 1);
    assert_eq!(two.row(1).await?["new_note"], "raw", "the guard trigger copies it");
    Ok(())
}

async fn closed_epochs_are_refused<P: FencedPool>(two: &Two, pool: &P, ledger: &PgPool) -> Outcome {
    let id = "(select id from cutover.migrations where name = $1)";
    for name in ["status", "note"] {
        for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead] {
            two.both().begin_isolated(pool, isolation).await?.commit().await?;
            let close =
                format!("update cutover.epochs set closed_at = clock_timestamp() where migration_id = {id}");
            sqlx::query(AssertSqlSafe(close)).bind(name).execute(ledger).await?;
            let refused = two.both().begin_isolated(pool, isolation).await.err();
            assert!(matches!(refused, Some(Error::EpochClosed)), "{name}: {refused:?}");
            let reopen = format!("update cutover.epochs set closed_at = null where migration_id = {id}");
            sqlx::query(AssertSqlSafe(reopen)).bind(name).execute(ledger).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_closed_epoch_of_either_migration_is_refused() -> Outcome {
    let two = Two::new().await?;
    closed_epochs_are_refused(&two, &two.world.pool, &two.world.pool).await?;
    closed_epochs_are_refused(&two, &pool_of_one(&two.world)?, &two.world.pool).await
}

#[tokio::test]
async fn a_missing_migration_is_named() -> Outcome {
    let two = Two::new().await?;
    let third = two._fleet.agent.migration("other").ok_or("declared")?;
    let sides = DualWrite::new(third.clone(), (), ());
    let mut tx = two.both().begin(&two.world.pool).await?;
    let nothing = async |_: &(), _: &mut PinnedTx| Ok::<_, Error>(());
    let error = sides.write_with(&mut tx, Rows::one(&1), nothing, nothing).await.expect_err("refused");
    let text = error.to_string();
    assert!(
        text.contains("`other`") && text.contains("`status` and `note`") && text.contains("and("),
        "{text}"
    );
    assert!(!tx.is_of(&third) && tx.is_of(&two.note) && tx.phase_of(&third).is_err());
    assert_eq!(two.both().and(&two.note).and(&two.status).iter().count(), 2, "each migration is pinned once");
    Ok(())
}

#[tokio::test]
async fn locks_of_the_fence_are_taken_in_one_order() -> Outcome {
    // Otherwise two transactions, and the drivers of both migrations, could wait for each other.
    let two = Two::new().await?;
    let lock = "select pg_advisory_xact_lock(1129644032 + id, epoch) from cutover.migrations where name = $1";
    let mut blocker = two.world.pool.begin().await?;
    sqlx::query(lock).bind("status").execute(&mut *blocker).await?;
    let (reversed, pool) = (two.note.and(&two.status), two.world.pool.clone());
    let begins = tokio::spawn(async move { reversed.begin(&pool).await });
    let waiters = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
        and database = (select oid from pg_database where datname = current_database())";
    two.world
        .until("the transaction waits for the first lock", async || {
            sqlx::query_scalar::<_, i64>(waiters).fetch_one(&two.world.pool).await.is_ok_and(|n| n == 1)
        })
        .await?;
    let held = "select count(*) from pg_locks where locktype = 'advisory' and granted and mode = 'ShareLock' \
        and pid in (select pid from pg_locks where not granted and database = \
            (select oid from pg_database where datname = current_database()))";
    let held: i64 = sqlx::query_scalar(held).fetch_one(&two.world.pool).await?;
    assert_eq!(held, 0, "it waits for the migration with the lower id before it locks the other one");
    blocker.rollback().await?;
    begins.await??.commit().await?;
    Ok(())
}

/// Helpers as services have them.
async fn note_on(connection: &mut sqlx::PgConnection, id: i64) -> Result<(), sqlx::Error> {
    sqlx::query("update orders set note = 'c' where id = $1").bind(id).execute(connection).await.map(drop)
}

async fn note_by(executor: impl sqlx::PgExecutor<'_>, id: i64) -> Result<(), sqlx::Error> {
    sqlx::query("update orders set note = note || 'e' where id = $1")
        .bind(id)
        .execute(executor)
        .await
        .map(drop)
}

async fn note_in(tx: &mut sqlx::Transaction<'_, sqlx::Postgres>, id: i64) -> Result<(), sqlx::Error> {
    sqlx::query("update orders set note = note || 't' where id = $1")
        .bind(id)
        .execute(&mut **tx)
        .await
        .map(drop)
}

#[tokio::test]
async fn helpers_for_sqlx_accept_a_pinned_transaction() -> Outcome {
    let two = Two::new().await?;
    let mut tx = two.both().begin(&two.world.pool).await?;
    note_on(&mut tx, 1).await?;
    note_by(&mut *tx, 1).await?;
    note_in(tx.as_transaction(), 1).await?;
    tx.commit().await?;
    assert_eq!(two.row(1).await?["note"], "cet");
    Ok(())
}
