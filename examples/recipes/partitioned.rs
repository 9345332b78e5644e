use cutover::ConfigError;
use cutover::migration::{MigrationSpec, PhaseRange, TableMigration};

fn visits(pool: sqlx::PgPool) -> Result<MigrationSpec, ConfigError> {
    let plan = TableMigration::new(pool, "visits", "visits_by_month")
        .create(
            "create table visits_by_month (id bigint, day date, page text, primary key (id, day)) \
             partition by range (day)",
        )
        .expand_sql("create table visits_2026_01 partition of visits_by_month for values from ('2026-01-01') to ('2026-02-01')")
        .expand_sql("create table visits_other partition of visits_by_month default")
        .key("id")
        .key("day")
        .same("page")
        .build()?;
    Ok(MigrationSpec::new("visits_by_month", PhaseRange::FULL).plan(plan))
}
