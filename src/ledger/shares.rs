//! Connection shares: who holds how many, and what the server allows.

use sqlx::{FromRow, Row};

use super::connection::Ledger;
use super::error::LedgerError;
use super::{literal, locks, unprepared};

/// What an instance holds beside its pool: the ledger's four connections and a health probe.
const BESIDE: i64 = 5;

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

/// What an instance has got.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settled {
    /// How many connections it may have now.
    pub(crate) granted: u32,
    /// How many it should reach.
    pub(crate) target: u32,
}

/// How the server's connections are used, as of the last decision.
#[derive(Debug, Default, Clone)]
pub(crate) struct ShareBudget {
    /// The number of shares.
    pub(crate) instances: usize,
    /// The sum of the minimums of all shares.
    pub(crate) needed: u32,
    /// What all pools together may hold.
    pub(crate) connections: u32,
    /// How `connections` comes about, for people.
    pub(crate) reckoning: String,
}

/// What `settle_share` returns. Only the first two are set if there was nothing to decide.
#[derive(FromRow)]
struct Answer {
    granted: i64,
    target: i64,
    instances: Option<i64>,
    needed: Option<i64>,
    connections: Option<i64>,
    reckoning: Option<String>,
}

impl Ledger {
    /// Renews the share of an instance whose pool holds so many connections.
    ///
    /// It is one message, so no lock is held across a round trip, and a process that is stopped in the middle leaves none
    /// behind. The second value is `None` if there was nothing to decide.
    pub(crate) async fn settle(
        &self,
        request: &ShareRequest,
        holding: u32,
    ) -> Result<(Settled, Option<ShareBudget>), LedgerError> {
        let ShareRequest { name, fleet, min_connections, max_connections, spare, lease_seconds } = request;
        let (name, fleet) = (literal::text(name), literal::text(fleet));
        // A statement of the function sees what others have committed while it waited for the lock.
        let statement = format!(
            "set transaction isolation level read committed; set local lock_timeout = '2s'; \
             select * from cutover.settle_share({name}, {fleet}, {min_connections}, {max_connections}, {spare}, {BESIDE}, \
             {lease_seconds}, {holding})"
        );
        let answer: Answer = unprepared::ask_one(&*self.pool(), statement).await?;
        let settled = Settled { granted: count(answer.granted), target: count(answer.target) };
        let Some(instances) = answer.instances else { return Ok((settled, None)) };
        let budget = ShareBudget {
            instances: usize::try_from(instances).unwrap_or(0),
            needed: count(answer.needed.unwrap_or(0)),
            connections: count(answer.connections.unwrap_or(0)),
            reckoning: answer.reckoning.unwrap_or_default(),
        };
        Ok((settled, Some(budget)))
    }

    /// How many connections the server leaves for the pools of this many instances, with the text that explains the
    /// number. Without `instances`: for those that are alive and one more. Changes nothing.
    pub(crate) async fn capacity(
        &self,
        instances: Option<usize>,
        spare: u32,
    ) -> Result<ShareBudget, LedgerError> {
        let mut tx = self.begin().await?;
        unprepared::query("select pg_advisory_xact_lock($1)").bind(locks::SHARES).execute(&mut *tx).await?;
        unprepared::query("select cutover.observe_connections()").execute(&mut *tx).await?;
        let row = unprepared::query(
            "select what, connections, others, \
             (select count(*) from cutover.connection_shares where lease_until > clock_timestamp()) as alive \
             from cutover.connection_limits where role in ('', current_user) order by connections - others limit 1",
        )
        .fetch_one(&mut *tx)
        .await?;
        tx.rollback().await?;
        let number = |name| row.try_get::<i64, _>(name);
        let (limit, others) = (number("connections")?, number("others")?);
        let instances = match instances {
            Some(instances) => i64::try_from(instances).unwrap_or(i64::MAX),
            None => number("alive")? + 1,
        };
        let left = limit - others - BESIDE.saturating_mul(instances) - i64::from(spare);
        let reckoning = format!(
            "{} is {limit}; others use {others}, {instances} instances need {BESIDE} each beside their pools, \
             {spare} stay free: {} are left for pools",
            row.try_get::<String, _>("what")?,
            left.max(0)
        );
        let instances = usize::try_from(instances).unwrap_or(usize::MAX);
        Ok(ShareBudget { instances, needed: 0, connections: count(left), reckoning })
    }

    /// Gives a share back whole. It counts until the server has none of its connections any more.
    pub(crate) async fn give_back(&self, name: &str) -> Result<(), LedgerError> {
        let mut tx = self.begin().await?;
        unprepared::query(
            "update cutover.connection_shares set min_connections = 0, max_connections = 0, target = 0, \
             lease_until = clock_timestamp() where name = $1",
        )
        .bind(name)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }
}

fn count(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}
