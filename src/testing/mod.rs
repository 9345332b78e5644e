//! Takes a repository, or a whole router, through every phase of a migration, in both directions.
//!
//! # The hazard
//!
//! Code for both sides runs in eight phases, and a developer sees one of them. An insert that is not an upsert works until
//! the row has been copied. A query that names the new column fails before `expand`, and one that names the old column
//! fails after `contract`. In production each of these fails at the step that needs it, in the middle of a migration.
//!
//! # What it does
//!
//! [`EveryPhase`] runs the real library on a real database: it installs the ledger, joins as the only instance, and moves
//! the migration with its plan, through `expand`, the copy, the comparison and the drop. In each phase it calls your code.
//! It reports every phase in which your code fails, rows that differ between the sides, rows that cannot be mapped, and a
//! step that does not complete, with what it waits for.
//!
//! ```no_run
//! use cutover::migration::{ColumnMigration, DualWrite, Error, MigrationSpec, PhaseRange, PinnedTx};
//! use cutover::testing::EveryPhase;
//! use sqlx::PgPool;
//! # #[cutover::dual_write]
//! # trait Orders {
//! #     #[insert(key = id)]
//! #     async fn add(&self, tx: &mut PinnedTx, id: Option<i64>, status: &str) -> Result<i64, Error>;
//! #     #[write(key = id)]
//! #     async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error>;
//! #     #[read(key = id)]
//! #     async fn status(&self, id: i64) -> Result<String, Error>;
//! # }
//! # struct OldColumn(PgPool);
//! # impl Orders for OldColumn {
//! #     async fn add(&self, _: &mut PinnedTx, _: Option<i64>, _: &str) -> Result<i64, Error> { Ok(1) }
//! #     async fn set(&self, _: &mut PinnedTx, _: i64, _: &str) -> Result<(), Error> { Ok(()) }
//! #     async fn status(&self, _: i64) -> Result<String, Error> { Ok("paid".into()) }
//! # }
//! # struct NewColumn(PgPool);
//! # impl Orders for NewColumn {
//! #     async fn add(&self, _: &mut PinnedTx, _: Option<i64>, _: &str) -> Result<i64, Error> { Ok(1) }
//! #     async fn set(&self, _: &mut PinnedTx, _: i64, _: &str) -> Result<(), Error> { Ok(()) }
//! #     async fn status(&self, _: i64) -> Result<String, Error> { Ok("paid".into()) }
//! # }
//!
//! // #[sqlx::test] makes the database, with the tables as they are before the migration.
//! async fn orders_work_in_every_phase(pool: PgPool) -> Result<(), Box<dyn std::error::Error>> {
//!     let plan = ColumnMigration::new(pool.clone(), "orders")
//!         .key("id")
//!         .column("old_status", "new_status", "text")
//!         .forward("lower(trim(old_status))")
//!         .backward("upper(new_status)")
//!         .build()?;
//!     let spec = MigrationSpec::new("order-status", PhaseRange::FULL).plan(plan);
//!     EveryPhase::new(&pool, spec)
//!         .run(async |visit| {
//!             let migration = visit.migration();
//!             let orders = DualWrite::new(migration.clone(), OldColumn(pool.clone()), NewColumn(pool.clone()));
//!             let mut tx = migration.begin(&pool).await?;
//!             let id = orders.add(&mut tx, None, "open").await?;
//!             // Rows that were inserted in earlier phases have to be writable, too.
//!             for earlier in visit.earlier() {
//!                 orders.set(&mut tx, *earlier, "paid").await?;
//!             }
//!             tx.commit().await?;
//!             assert_eq!(orders.status(id).await?, "open");
//!             for earlier in visit.earlier() {
//!                 assert_eq!(orders.status(*earlier).await?, "paid");
//!             }
//!             Ok::<_, Error>(id)
//!         })
//!         .await?;
//!     Ok(())
//! }
//! ```
//!
//! A router is tested in the same way: make it from `visit.migration()`, and send requests with `tower::ServiceExt::oneshot`.

mod direction;
mod every_phase;
mod failures;
mod fleet;

pub use direction::Direction;
pub use every_phase::{EveryPhase, Visit};
pub use failures::{Failure, TestFailures};
