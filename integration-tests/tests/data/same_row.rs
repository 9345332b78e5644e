//! Inserts in a migration of a column, where both sides are one row, and repositories whose errors are boxed.

use cutover::migration::{DualWrite, Error, PinnedTx};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Executor};

use crate::world::{Outcome, World};

#[cutover::dual_write(at_once = BothColumns)]
pub(crate) trait Orders {
    /// Inserts an order and returns its number.
    #[insert(key = id)]
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, status: &str) -> anyhow::Result<i64>;
}

/// A column, and what a conflict does.
struct Column {
    name: &'static str,
    on_conflict: &'static str,
}

const OLD: Column = Column { name: "old_status", on_conflict: "" };
const UPSERT: Column = Column {
    name: "new_status",
    on_conflict: "on conflict (id) do update set new_status = excluded.new_status",
};
const PLAIN: Column = Column { name: "new_status", on_conflict: "" };

impl Orders for Column {
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, status: &str) -> anyhow::Result<i64> {
        let insert = format!(
            "insert into orders (id, {}) overriding system value \
             values (coalesce($1, nextval('orders_id_seq')), $2) {} returning id",
            self.name, self.on_conflict
        );
        let query = sqlx::query_scalar(AssertSqlSafe(insert)).bind(id).bind(status);
        Ok(query.fetch_one(&mut **tx).await?)
    }
}

/// Both columns in one statement.
struct Both;

impl BothColumns for Both {
    async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, status: &str) -> anyhow::Result<i64> {
        let insert = "insert into orders (id, old_status, new_status) overriding system value \
             values (coalesce($1, nextval('orders_id_seq')), $2, $2) returning id";
        Ok(sqlx::query_scalar(insert).bind(id).bind(status).fetch_one(&mut **tx).await?)
    }
}

#[tokio::test]
async fn an_insert_writes_both_columns_of_one_row() -> Outcome {
    let world = World::new(1).await?;
    let fleet = world.instance("a", Some(world.describe().build()?)).await?;
    let upsert = DualWrite::new(fleet.migration.clone(), OLD, UPSERT);
    let at_once = DualWrite::new(fleet.migration.clone(), OLD, PLAIN).at_once(Both);
    for phase in ["off", "expand", "backfill", "verify", "ramp", "switch", "retire"] {
        world.go(phase).await?;
        let mut tx = fleet.migration.begin(&world.pool).await?;
        let ids = [
            upsert.add(&mut tx, None, "paid").await?,
            at_once.add(&mut tx, None, "paid").await?,
            upsert.add(&mut tx, Some(fastrand::i64(1_000_000..)), "paid").await?,
        ];
        tx.commit().await?;
        for id in ids {
            let paid = |is_written: bool| is_written.then(|| "paid".to_owned());
            assert_eq!(world.row(id).await?, (paid(phase != "retire"), paid(phase != "off")), "{phase}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_inserted_twice_is_explained() -> Outcome {
    let world = World::new(1).await?;
    let fleet = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("expand").await?;
    let plain = DualWrite::new(fleet.migration.clone(), OLD, PLAIN);
    let mut tx = fleet.migration.begin(&world.pool).await?;
    let error = plain.add(&mut tx, None, "paid").await.expect_err("the row is there");
    let text = error.to_string();
    let explained = matches!(error.downcast_ref(), Some(Error::InsertedTwice { constraint, .. }) if constraint == "orders_pkey");
    assert!(explained && text.contains("on conflict") && text.contains("at_once"), "{text}");
    drop(tx);
    // Another unique constraint is the caller's business.
    world.pool.execute("create unique index one_status on orders (new_status)").await?;
    let upsert = DualWrite::new(fleet.migration.clone(), OLD, UPSERT);
    let mut tx = fleet.migration.begin(&world.pool).await?;
    upsert.add(&mut tx, None, "paid").await?;
    let error = upsert.add(&mut tx, None, "paid").await.expect_err("the status is taken");
    assert!(error.downcast_ref::<sqlx::Error>().is_some(), "{error}");
    Ok(())
}

/// A failure in the repository's own words.
#[derive(Debug, Serialize)]
struct Refusal;

#[cutover::dual_write]
pub(crate) trait Notes {
    /// Sets an order's note.
    #[write(key = id)]
    async fn note(
        &self,
        tx: &mut PinnedTx,
        id: i64,
        note: &str,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// A side that writes the note, or that fails.
struct Side(&'static str);

impl Notes for Side {
    async fn note(
        &self,
        tx: &mut PinnedTx,
        id: i64,
        note: &str,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self.0 {
            "writes" => {
                let update = "update orders set note = $2 where id = $1";
                sqlx::query(update).bind(id).bind(note).execute(&mut **tx).await?;
                Ok(())
            }
            "deadlocks" => {
                let raise = "do $$ begin raise exception using errcode = '40P01'; end $$";
                tx.execute(raise).await?;
                Ok(())
            }
            _ => Err(format!("{Refusal:?}").into()),
        }
    }
}

#[tokio::test]
async fn boxed_errors_are_repaired_or_retried() -> Outcome {
    let world = World::new(2).await?;
    let fleet = world.instance("a", None).await?;
    world.go("expand").await?;
    let repaired = DualWrite::new(fleet.migration.clone(), Side("writes"), Side("fails")).repair_later();
    let mut tx = fleet.migration.begin(&world.pool).await?;
    repaired.note(&mut tx, 1, "kept").await?;
    tx.commit().await?;
    let error: String =
        sqlx::query_scalar("select error from cutover.repairs").fetch_one(&world.pool).await?;
    assert_eq!(error, "Refusal");
    // A deadlock fails the whole transaction, which has to be retried.
    let retried = DualWrite::new(fleet.migration.clone(), Side("writes"), Side("deadlocks")).repair_later();
    let mut tx = fleet.migration.begin(&world.pool).await?;
    let error = retried.note(&mut tx, 2, "lost").await.expect_err("a deadlock");
    assert!(cutover::migration::is_retryable(&*error), "{error}");
    assert!(matches!(tx.commit().await, Err(Error::Unfinished)));
    Ok(())
}
