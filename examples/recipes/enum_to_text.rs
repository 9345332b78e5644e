use cutover::ConfigError;
use cutover::migration::ColumnMigration;

fn kind(pool: sqlx::PgPool) -> Result<ColumnMigration, ConfigError> {
    ColumnMigration::new(pool, "items")
        .column("kind", "kind_name", "text")
        .forward("kind::text")
        .backward("kind_name::kind")
        .mirror_writes()
        .build()
}
