//! The book of connection shares: who holds how many, and what the server allows.

use sqlx::Row;

use super::connection::Ledger;
use super::error::LedgerError;
use super::locks;
use super::unprepared;

/// What an instance holds beside its pool: the ledger's four connections and a health probe.
const BESIDE: i64 = 5;

/// One share as it stands in the book.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) min_connections: u32,
    pub(crate) max_connections: u32,
    /// What it may hold, or what the server still has of it, whichever is more.
    pub(crate) held: u32,
    /// Its lease still runs.
    pub(crate) alive: bool,
    pub(crate) mine: bool,
}

/// What the server allows and who holds what, read under the lock.
#[derive(Debug, Clone)]
pub(crate) struct ShareTable {
    /// In the order in which they came.
    pub(crate) shares: Vec<Share>,
    /// What all pools together may hold.
    pub(crate) capacity: u32,
    /// How `capacity` comes about, for people.
    pub(crate) reckoning: String,
}

/// What an instance asks for.
#[derive(Debug, Clone)]
pub(crate) struct ShareRequest {
    /// The share's name, and the `application_name` of its connections.
    pub(crate) name: String,
    pub(crate) fleet: String,
    pub(crate) min_connections: u32,
    pub(crate) max_connections: u32,
    /// Left free on the server.
    pub(crate) spare: u32,
    pub(crate) lease_seconds: f64,
}

impl Ledger {
    /// Renews a share and lets `decide` say, under the lock, how many connections it has from now on.
    pub(crate) async fn settle(
        &self,
        wish: &ShareRequest,
        decide: impl FnOnce(&ShareTable) -> u32 + Send,
    ) -> Result<(ShareTable, u32), LedgerError> {
        let mut tx = self.begin().await?;
        unprepared::query("select pg_advisory_xact_lock($1)").bind(locks::SHARES).execute(&mut *tx).await?;
        // A dead instance's share counts until its lease has ended and its last backend is gone.
        unprepared::query(
            "delete from cutover.connection_shares s where lease_until < clock_timestamp() and name <> $1 \
             and not exists (select from pg_stat_activity a where a.application_name = s.name)",
        )
        .bind(&wish.name)
        .execute(&mut *tx)
        .await?;
        unprepared::query(
            "insert into cutover.connection_shares as s (name, fleet, min_connections, max_connections, lease_until) \
             values ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5)) \
             on conflict (name) do update set min_connections = excluded.min_connections, max_connections = excluded.max_connections, \
             lease_until = excluded.lease_until",
        )
        .bind(&wish.name)
        .bind(&wish.fleet)
        .bind(i64::from(wish.min_connections))
        .bind(i64::from(wish.max_connections))
        .bind(wish.lease_seconds)
        .execute(&mut *tx)
        .await?;
        let rows = unprepared::query(
            "select min_connections, max_connections, lease_until > clock_timestamp() as alive, name = $1 as mine, \
             greatest(granted, (select count(*) from pg_stat_activity a where a.application_name = s.name)) as held \
             from cutover.connection_shares s order by requested_at, name",
        )
        .bind(&wish.name)
        .fetch_all(&mut *tx)
        .await?;
        let mut shares = Vec::with_capacity(rows.len());
        for row in &rows {
            shares.push(Share {
                min_connections: count(row.try_get("min_connections")?),
                max_connections: count(row.try_get("max_connections")?),
                held: count(row.try_get("held")?),
                alive: row.try_get("alive")?,
                mine: row.try_get("mine")?,
            });
        }
        let (capacity, reckoning) = capacity(&mut tx, shares.len(), wish.spare).await?;
        let book = ShareTable { shares, capacity, reckoning };
        let granted = decide(&book);
        unprepared::query("update cutover.connection_shares set granted = $2 where name = $1")
            .bind(&wish.name)
            .bind(i64::from(granted))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok((book, granted))
    }

    /// How many connections the server leaves for the pools of so many instances, of the ones that are alive and one more
    /// without a number, and why so many. Changes nothing.
    pub(crate) async fn room(&self, instances: Option<usize>, spare: u32) -> Result<Capacity, LedgerError> {
        let mut tx = self.begin().await?;
        let alive: i64 = unprepared::query_scalar(
            "select count(*) from cutover.connection_shares where lease_until > clock_timestamp()",
        )
        .fetch_one(&mut *tx)
        .await?;
        let instances = instances.unwrap_or_else(|| usize::try_from(alive).unwrap_or(0) + 1);
        let (connections, reckoning) = capacity(&mut tx, instances, spare).await?;
        tx.rollback().await?;
        Ok(Capacity { instances, connections, reckoning })
    }

    /// Gives a share back whole.
    pub(crate) async fn give_back(&self, name: &str) -> Result<(), LedgerError> {
        let mut tx = self.begin().await?;
        // It goes once the server has nothing of it any more; until then it has ended, and counts.
        unprepared::query(
            "update cutover.connection_shares set min_connections = 0, max_connections = 0, granted = 0, \
             lease_until = clock_timestamp() where name = $1",
        )
        .bind(name)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }
}

/// What there is for pools.
#[derive(Debug)]
pub(crate) struct Capacity {
    pub(crate) instances: usize,
    pub(crate) connections: u32,
    pub(crate) reckoning: String,
}

/// What the tightest of the server's, the database's and the role's limits leaves for the pools.
async fn capacity(
    tx: &mut sqlx::PgConnection,
    instances: usize,
    spare: u32,
) -> Result<(u32, String), LedgerError> {
    // A role without rights sees name, role and database of others' sessions, not their kind.
    let row = unprepared::query(
        "with others as (select usename, datname from pg_stat_activity a \
           where usesysid is not null and datid is not null \
           and coalesce(backend_type, 'client backend') = 'client backend' \
           and coalesce(application_name, '') not in ('cutover-ledger', 'cutover-health') \
           and not exists (select from cutover.instances i where left('cutover ' || i.name, 63) = a.application_name) \
           and not exists (select from cutover.connection_shares s where s.name = a.application_name)) \
         select current_setting('max_connections')::bigint as most, \
           current_setting('superuser_reserved_connections')::bigint \
             + coalesce(current_setting('reserved_connections', true)::bigint, 0) as reserved, \
           (select datconnlimit::bigint from pg_database where datname = current_database()) as database, \
           (select rolconnlimit::bigint from pg_roles where rolname = current_user) as role, \
           (select count(*) from others) as others, \
           (select count(*) from others where datname = current_database()) as others_database, \
           (select count(*) from others where usename = current_user) as others_role",
    )
    .fetch_one(tx)
    .await?;
    let number = |name| row.try_get::<i64, _>(name);
    let (most, reserved) = (number("most")?, number("reserved")?);
    let mut limits = vec![("max_connections less reserved", most - reserved, number("others")?)];
    for (what, limit, others) in [
        ("the database's connection limit", "database", "others_database"),
        ("the role's connection limit", "role", "others_role"),
    ] {
        let limit = number(limit)?;
        if limit >= 0 {
            limits.push((what, limit, number(others)?));
        }
    }
    let instances = i64::try_from(instances).unwrap_or(i64::MAX);
    let beside = BESIDE.saturating_mul(instances) + i64::from(spare);
    let (what, limit, others) =
        limits.into_iter().min_by_key(|(_, limit, others)| limit - others).unwrap_or_default();
    let left = limit - others - beside;
    let reckoning = format!(
        "{what} is {limit}; others use {others}, {instances} instances need {BESIDE} each beside their pools, \
         {spare} stay free: {} are left for pools",
        left.max(0)
    );
    Ok((count(left), reckoning))
}

fn count(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}
