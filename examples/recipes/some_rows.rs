use cutover::ConfigError;
use cutover::migration::{MigrationSpec, PhaseRange, TableMigration};

fn audit(pool: sqlx::PgPool) -> Result<MigrationSpec, ConfigError> {
    let plan = TableMigration::new(pool, "events", "audit_events")
        .create("create table audit_events (id bigint primary key, at timestamptz not null, body jsonb)")
        .rows_where("kind = 'audit'")
        .same("at")
        .same("body")
        .column_back("kind", "'audit'")
        .build()?;
    Ok(MigrationSpec::new("audit", PhaseRange::FULL).plan(plan))
}
