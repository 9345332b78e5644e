//! The steps ahead of a migration, as the ledger knows them.

use sqlx::{FromRow, PgConnection};

use super::{evidence, unprepared};

/// What the ledger knows about the steps ahead of a migration, with the statements that a build published.
#[derive(Debug, FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "each is a column of its own")]
pub(crate) struct OutlookRow {
    pub(crate) fleet: String,
    pub(crate) name: String,
    pub(crate) phase: String,
    pub(crate) epoch: i32,
    pub(crate) ramp_percent: i16,
    pub(crate) desired: Option<String>,
    pub(crate) desired_by: Option<String>,
    pub(crate) waits_for: Option<String>,
    pub(crate) old_complete: bool,
    pub(crate) new_complete: bool,
    /// `finished` or `abandoned`; `None`: it has not ended.
    pub(crate) ended_as: Option<String>,
    pub(crate) driver: Option<String>,
    /// The previous epoch is closed.
    pub(crate) closed: bool,
    /// The previous epoch is drained, or there is none.
    pub(crate) drained: bool,
    /// Seconds since the guard trigger last saw an external write that it could not mirror.
    pub(crate) unmirrored_age: Option<f64>,
    pub(crate) approved: bool,
    pub(crate) scanned: bool,
    pub(crate) unrepaired: i64,
    pub(crate) unrepaired_old: i64,
    pub(crate) given_up: i64,
    /// The version of the build that published the rest; `None`: no build has.
    pub(crate) version: Option<String>,
    /// `[[task, sql], …]` as JSON.
    pub(crate) tasks: Option<String>,
    pub(crate) old_table: Option<String>,
    pub(crate) old_columns: Option<Vec<String>>,
    pub(crate) desired_from: Option<String>,
    /// What the driver found to stand against its plan, as JSON, and how many seconds ago.
    pub(crate) problems: Option<String>,
    pub(crate) problems_age: Option<f64>,
}

/// Reads what a plan of the steps ahead shows. The statements are those of the build that drives, else of a build that
/// runs, else the latest.
pub(crate) async fn outlook(tx: &mut PgConnection, migration: i32) -> Result<OutlookRow, sqlx::Error> {
    unprepared::query_as(concat!(
        "select m.fleet, m.name, m.phase, m.epoch, m.ramp_percent, m.desired, m.desired_by, m.waits_for, m.old_complete, m.new_complete, \
                m.ended_as, i.name as driver, p.version, p.tasks::text as tasks, \
                p.old_table, p.old_columns, p.desired_from, q.problems::text as problems, \
                extract(epoch from clock_timestamp() - q.seen_at)::float8 as problems_age, \
                b.closed_at is not null as closed, b.epoch is null or b.drained_at is not null as drained, ",
        evidence!(),
        " from cutover.migrations m \
         left join cutover.epochs b on b.migration_id = m.id and b.epoch = m.epoch - 1 \
         left join cutover.instances i on i.id = m.driver and m.driver_until > clock_timestamp() \
         left join cutover.plan_problems q on q.migration_id = m.id \
         left join lateral (select * from cutover.plans p where p.migration_id = m.id \
             order by coalesce(p.version = i.version, false) desc, \
                 exists (select 1 from cutover.instances l where l.fleet = m.fleet and l.version = p.version \
                     and l.lease_until > clock_timestamp()) desc, p.published_at desc limit 1) p on true \
         where m.id = $1"
    ))
    .bind(migration)
    .fetch_one(tx)
    .await
}
