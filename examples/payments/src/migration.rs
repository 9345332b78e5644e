//! The declarations of the two migrations.

use std::time::Duration;

use cutover::ConfigError;
use cutover::migration::ColumnMigration;
use cutover::migration::MigrationSpec;
use cutover::migration::{Phase, PhaseRange};
use sqlx::PgPool;

use crate::status::{BACKWARD, CODE_BACKWARD, CODE_FORWARD, FORWARD};

/// Its name in the ledger.
pub const NAME: &str = "payment-status";

/// The flag whose payload names the desired phase.
pub const FLAG: &str = "payment-status";

/// Declares the migration for a build that can run these phases.
///
/// # Errors
///
/// [`ConfigError`], with all problems of the description.
pub fn declare(pool: PgPool, range: PhaseRange, soak: Duration) -> Result<MigrationSpec, ConfigError> {
    let plan = ColumnMigration::new(pool, "orders")
        .key("id")
        .column("old_payment_status", "new_payment_status", "text")
        .forward(FORWARD)
        .backward(BACKWARD)
        .build()?;
    Ok(MigrationSpec::new(NAME, range).plan(plan).soak(soak))
}

/// The second migration's name in the ledger. People move it with `cutover set-phase`.
pub const SECOND: &str = "payment-code";

/// Declares the second migration, on the column that the first one has made.
///
/// # Errors
///
/// As [`declare`].
pub fn declare_second(pool: PgPool, soak: Duration) -> Result<MigrationSpec, ConfigError> {
    let plan = ColumnMigration::new(pool, "orders")
        .key("id")
        .column("new_payment_status", "payment_code", "smallint")
        .forward(CODE_FORWARD)
        .backward(CODE_BACKWARD)
        .build()?;
    Ok(MigrationSpec::new(SECOND, PhaseRange::FULL).plan(plan).soak(soak))
}

/// The phases that a build without code for the old column can run.
pub fn new_only() -> PhaseRange {
    PhaseRange::from_phase(Phase::Retire)
}
