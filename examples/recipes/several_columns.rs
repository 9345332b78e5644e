use cutover::ConfigError;
use cutover::migration::{ColumnMigration, Error, Migration, MigrationSpec, PhaseRange};
use sqlx::{AssertSqlSafe, PgPool};

fn names(pool: PgPool) -> Result<MigrationSpec, ConfigError> {
    let plan = ColumnMigration::new(pool, "people")
        .new_column("first_name", "text", "split_part(full_name, ' ', 1)")
        .new_column("last_name", "text", "substr(full_name, length(split_part(full_name, ' ', 1)) + 2)")
        .old_column("full_name", "first_name || ' ' || last_name")
        .mirror_writes()
        .build()?;
    Ok(MigrationSpec::new("names", PhaseRange::FULL).plan(plan))
}

async fn rename(names: &Migration, pool: &PgPool, id: i64, first: &str, last: &str) -> Result<(), Error> {
    let mut tx = names.begin(pool).await?;
    let set = match names.columns(&tx)?.is_new() {
        true => "first_name = $2, last_name = $3",
        false => "full_name = $2 || ' ' || $3",
    };
    let update = format!("update people set {set} where id = $1");
    sqlx::query(AssertSqlSafe(update)).bind(id).bind(first).bind(last).execute(&mut *tx).await?;
    tx.commit().await
}
