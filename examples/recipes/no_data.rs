use std::time::Duration;

use cutover::ConfigError;
use cutover::migration::{MigrationSpec, PhaseRange, SchemaChange};

fn changes(pool: sqlx::PgPool) -> Result<[MigrationSpec; 2], ConfigError> {
    let rules = SchemaChange::new(pool.clone(), "orders")
        .not_null("status")
        .check("orders_total_positive", "total >= 0")
        .foreign_key("orders_customer_fkey", &["customer_id"], "customers (id) on delete restrict")
        .unique("orders_number_key", &["number"])
        .build()?;
    let legacy_code = SchemaChange::new(pool, "orders")
        .drop_column("legacy_code")
        // The nightly job must have run once without the column.
        .quiet_period(Duration::from_secs(26 * 60 * 60))
        .build()?;
    Ok([
        MigrationSpec::new("orders_rules", PhaseRange::FULL).plan(rules),
        MigrationSpec::new("orders_legacy_code", PhaseRange::FULL).plan(legacy_code),
    ])
}
