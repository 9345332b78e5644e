use cutover::ConfigError;
use cutover::migration::{MigrationSpec, PhaseRange, WiderKey};

fn declare(pool: sqlx::PgPool) -> Result<MigrationSpec, ConfigError> {
    let key = WiderKey::new(pool, "orders", "id").build()?;
    Ok(MigrationSpec::new("orders_id", PhaseRange::FULL).plan(key))
}

/// This query works before and after: its result and its parameter are `bigint` either way.
async fn note(pool: &sqlx::PgPool, id: i64) -> Result<(i64, Option<String>), sqlx::Error> {
    let query = "select id::bigint, note from orders where id = $1::bigint";
    sqlx::query_as(query).bind(id).fetch_one(pool).await
}
