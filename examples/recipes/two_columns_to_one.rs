use cutover::ConfigError;
use cutover::migration::ColumnMigration;

fn prices(pool: sqlx::PgPool) -> Result<ColumnMigration, ConfigError> {
    ColumnMigration::new(pool, "items")
        .old_column("amount", "split_part(price, ' ', 1)::numeric")
        .old_column("currency", "split_part(price, ' ', 2)")
        .new_column("price", "text", "amount::text || ' ' || currency")
        .mirror_writes()
        .build()
}
