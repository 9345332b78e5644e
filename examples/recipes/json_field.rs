use cutover::ConfigError;
use cutover::migration::ColumnMigration;

fn status(pool: sqlx::PgPool) -> Result<ColumnMigration, ConfigError> {
    ColumnMigration::new(pool, "items")
        .new_column("status", "text", "data ->> 'status'")
        .new_column("details", "jsonb", "data - 'status'")
        .old_column("data", "details || jsonb_build_object('status', status)")
        .mirror_writes()
        .build()
}
