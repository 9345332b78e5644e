use cutover::ConfigError;
use cutover::migration::ColumnMigration;

fn starts(pool: sqlx::PgPool) -> Result<ColumnMigration, ConfigError> {
    ColumnMigration::new(pool, "meetings")
        .column("starts", "starts_at", "timestamptz")
        .forward("starts at time zone 'Europe/Berlin'")
        .backward("starts_at at time zone 'Europe/Berlin'")
        .mirror_writes()
        .build()
}
