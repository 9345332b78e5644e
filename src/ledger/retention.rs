//! How long rows are kept. The statements run in every fleet that has a driver, about once an hour.
//!
//! `migrations`, `epochs`, `sides` and `read_counts` are kept until `cutover forget` archives them: the fence and the drop refer to them.
//! `instances` and `acknowledgements` end with the lease, `connection_shares` too. `repairs` and `bad_rows` are kept until
//! the row is repaired or the migration ends. `flag_states` has one row for each name. `flag_polls` deletes its own
//! rows, because a fleet without migrations has no driver.

use super::{Ledger, unprepared};

/// What is deleted, and after how long.
const RULES: [(&str, &str); 10] = [
    ("cutover.history", "delete from cutover.history where at < clock_timestamp() - interval '3 years'"),
    (
        "cutover.archive",
        "delete from cutover.archive where archived_at < clock_timestamp() - interval '10 years'",
    ),
    ("cutover.approvals", "delete from cutover.approvals where expires_at < clock_timestamp()"),
    (
        "cutover.plans",
        "delete from cutover.plans p where published_at < clock_timestamp() - interval '90 days' \
             and exists (select from cutover.plans later where later.migration_id = p.migration_id \
                 and later.published_at > p.published_at) \
             and not exists (select from cutover.migrations m join cutover.instances i on i.fleet = m.fleet \
                 where m.id = p.migration_id and i.version = p.version)",
    ),
    (
        "cutover.job_ranges",
        "delete from cutover.job_ranges r using cutover.jobs j \
             where j.id = r.job_id and j.finished_at < clock_timestamp() - interval '7 days'",
    ),
    // The latest job of each kind is evidence for the moves ahead. Its differences go with the job.
    (
        "cutover.jobs",
        "delete from cutover.jobs j where finished_at < clock_timestamp() - interval '90 days' \
             and exists (select from cutover.jobs later where later.migration_id = j.migration_id \
                 and later.kind = j.kind and later.id > j.id and later.finished_at is not null)",
    ),
    (
        "cutover.bad_rows",
        "delete from cutover.bad_rows b using cutover.migrations m where m.id = b.migration_id and m.ended_at is not null",
    ),
    (
        "cutover.plan_problems",
        "delete from cutover.plan_problems p using cutover.migrations m where m.id = p.migration_id and m.ended_at is not null",
    ),
    (
        "cutover.external_write_events",
        "delete from cutover.external_write_events e using cutover.migrations m \
             where m.id = e.migration_id and m.ended_at is not null",
    ),
    (
        "cutover.external_writes",
        "delete from cutover.external_writes e using cutover.migrations m \
             where m.id = e.migration_id and m.ended_at < clock_timestamp() - interval '90 days'",
    ),
];

/// Deletes what is older than its period. Returns how many rows.
pub(crate) async fn apply(ledger: &Ledger) -> Result<u64, sqlx::Error> {
    let mut deleted = 0;
    for (_, statement) in RULES {
        let mut tx = ledger.begin().await?;
        deleted += unprepared::query(statement).execute(&mut *tx).await?.rows_affected();
        tx.commit().await?;
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::RULES;

    #[test]
    fn every_table_has_a_period_or_a_reason() {
        let reasons = [
            "ledger",
            "fleets",
            "migrations",
            "epochs",
            "sides",
            "read_counts",
            "guard_phases",
            "guard_looks",
            "instances",
            "acknowledgements",
            "connection_shares",
            "connection_limits",
            "repairs",
            "differences",
            "flag_states",
            "flag_polls",
        ];
        let schema = include_str!("schema/1.sql");
        let tables = schema.lines().filter_map(|line| line.strip_prefix("create table cutover."));
        let tables: Vec<&str> = tables.filter_map(|rest| rest.split(' ').next()).collect();
        assert!(tables.len() > 15, "{tables:?}");
        for table in tables {
            let has_rule = RULES.iter().any(|(name, _)| name.strip_prefix("cutover.") == Some(table));
            assert!(has_rule != reasons.contains(&table), "{table} needs either a rule or a reason");
        }
    }
}
