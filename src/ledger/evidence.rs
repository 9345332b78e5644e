//! What the ledger says about the data of a migration.

/// Columns about the migration `m` of a query: `approved`, `scanned`, `unmirrored_age`, `unrepaired`,
/// `unrepaired_old` and `given_up`.
///
/// The driver and `cutover plan` both select them, so both go by the same rule. `unrepaired` leaves out rows that were
/// written less than five seconds ago and are on their way to another store, and those of an old side that is incomplete,
/// because a copy of all rows comes before it is read again.
macro_rules! evidence {
    () => {
        "exists (select from cutover.approvals a where a.migration_id = m.id \
             and a.expires_at > clock_timestamp()) as approved, \
         coalesce((select s.differences = 0 and not exists ( \
                 select from cutover.jobs b where b.migration_id = m.id \
                     and b.kind <> 'scan' and (b.finished_at is null or b.finished_at > s.started_at)) \
                 and not exists ( \
                     select from cutover.external_writes x where x.migration_id = m.id and x.last_unmirrored > s.started_at) \
                 and not exists (select from cutover.external_write_events w \
                     where w.migration_id = m.id and not w.mirrored and w.at > s.started_at) \
             from cutover.jobs s where s.migration_id = m.id and s.kind = 'scan' \
                 and s.finished_at is not null order by s.id desc limit 1), false) as scanned, \
         (select extract(epoch from clock_timestamp() - max(seen))::float8 from ( \
             select last_unmirrored as seen from cutover.external_writes s where s.migration_id = m.id \
             union all select at from cutover.external_write_events w \
                 where w.migration_id = m.id and not w.mirrored) as unmirrored) as unmirrored_age, \
         (select count(*) from cutover.repairs r where r.migration_id = m.id \
             and (r.side = 'new' or m.old_complete) \
             and (r.error <> '' or r.since < clock_timestamp() - interval '5 s')) as unrepaired, \
         (select count(*) from cutover.repairs r where r.migration_id = m.id and r.side = 'old') as unrepaired_old, \
         (select count(*) from cutover.repairs r where r.migration_id = m.id and r.dead) as given_up"
    };
}
pub(crate) use evidence;
