use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Row};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::clock;
use super::lease::Lease;
use crate::health::{Criticality, Health, Signal};
use crate::ledger::{Ledger, LedgerError, unprepared};
use crate::release::Release;

/// How an instance takes part in its fleet.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// The set of instances that have to agree; the service's name when `None`.
    ///
    /// Services that write the same tables give the same name here. Without it each would be unknown to the
    /// other, and a migration would not wait for both.
    pub name: Option<String>,
    /// How long an instance that says nothing still counts as alive. Default 10 s.
    ///
    /// A killed instance holds a migration up for this long; one that is cut off from the database stops
    /// serving reads after it. A longer outage of the database than this makes every instance unready.
    pub lease: Duration,
    /// How often the lease is extended. Default 2 s; at most a third of the lease, so that one lost answer
    /// costs nothing.
    pub renew_every: Duration,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self { name: None, lease: Duration::from_secs(10), renew_every: Duration::from_secs(2) }
    }
}

impl FleetOptions {
    /// What an instance's own reckoning of its lease is shorter by: a tenth of it. It covers clocks that run
    /// at different speeds (0.1 % would already be a broken one) and the granularity of timers.
    pub fn margin(&self) -> Duration {
        self.lease / 10
    }

    fn check(&self, fleet: &str) -> Result<(), LedgerError> {
        let problem = |field, problem: String| Err(LedgerError::Option { field, problem });
        if fleet.is_empty() || fleet.len() > 63 {
            return problem("fleet.name", format!("{fleet:?} has to be 1 to 63 bytes long"));
        }
        if self.renew_every.is_zero() {
            return problem("fleet.renew_every", "has to be longer than nothing".into());
        }
        if self.lease < self.renew_every * 3 {
            return problem(
                "fleet.lease",
                format!(
                    "{:?} is less than three times renew_every ({:?}): use {:?} or more",
                    self.lease,
                    self.renew_every,
                    self.renew_every * 3
                ),
            );
        }
        Ok(())
    }
}

/// Whether this process is in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// It is, under this number.
    Joined(i64),
    /// Its lease ran out or it left.
    Out,
}

/// This process's place in its fleet: a row in the ledger under a lease that a background task extends.
///
/// A cheap handle. When the lease runs out, [`Lease::holds`] is false at once, readiness goes down and
/// [`Fleet::membership`] says so; when the database is back, the task joins again by itself, under another number.
///
/// A lease that was lost doesn't hold again before the [`Agent`](crate::migration::Agent) has seen the
/// loss and taken the new number up. Until then something of the earlier life may still be at work, and a new
/// lease would vouch for it.
#[derive(Debug, Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    me: Me,
    membership: watch::Sender<Membership>,
    task: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the renewing task works with.
#[derive(Debug, Clone)]
struct Me {
    ledger: Ledger,
    release: Release,
    fleet: Arc<str>,
    options: FleetOptions,
    lease: Lease,
    taken_up: Arc<TakenUp>,
}

/// The number that the lease may be extended under.
#[derive(Debug, Default)]
struct TakenUp {
    id: AtomicI64,
    changed: Notify,
}

impl TakenUp {
    fn set(&self, id: i64) {
        if self.id.swap(id, Ordering::SeqCst) != id {
            self.changed.notify_one();
        }
    }

    fn is(&self, id: i64) -> bool {
        self.id.load(Ordering::SeqCst) == id
    }
}

impl Fleet {
    /// Joins the fleet and goes on extending the lease until [`Fleet::leave`] or until the last handle is
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Option`] for options that make no sense, [`LedgerError::Database`] when the first join
    /// fails.
    ///
    /// # Cancel safety
    ///
    /// A row that a dropped future may have left behind ends with its lease.
    pub async fn join(
        ledger: Ledger,
        release: &Release,
        options: FleetOptions,
        health: &Health,
    ) -> Result<Self, LedgerError> {
        let fleet: Arc<str> = options.name.as_deref().unwrap_or(release.service()).into();
        options.check(&fleet)?;
        let (lease, taken_up) = (Lease::none(), Arc::default());
        let me = Me { ledger, release: release.clone(), fleet, options, lease, taken_up };
        let asked = clock::now();
        let id = me.enter().await?;
        // Nothing of an earlier life can be at work.
        me.taken_up.set(id);
        me.extend(asked);
        let membership = watch::Sender::new(Membership::Joined(id));
        let signal = health.signal("lease", Criticality::Critical);
        signal.ok();
        let task = tokio::spawn(me.clone().keep(id, membership.clone(), signal));
        Ok(Self { inner: Arc::new(Inner { me, membership, task }) })
    }

    /// The fleet's name.
    pub fn name(&self) -> &str {
        &self.inner.me.fleet
    }

    /// The ledger it is in.
    pub fn ledger(&self) -> &Ledger {
        &self.inner.me.ledger
    }

    /// This instance's lease.
    pub fn lease(&self) -> &Lease {
        &self.inner.me.lease
    }

    /// The release that this instance runs.
    pub fn release(&self) -> &Release {
        &self.inner.me.release
    }

    /// How it takes part.
    pub(crate) fn options(&self) -> &FleetOptions {
        &self.inner.me.options
    }

    /// Follows joins and lapses.
    pub fn membership(&self) -> watch::Receiver<Membership> {
        self.inner.membership.subscribe()
    }

    /// Lets the lease begin under this number, now that nothing of an earlier life is at work any more.
    pub(crate) fn take_up(&self, id: i64) {
        self.inner.me.taken_up.set(id);
    }

    /// Stops extending the lease; it ends for this process at once, and for the others when it runs out.
    pub(crate) fn stop(&self) -> Membership {
        self.inner.task.abort();
        self.inner.me.taken_up.set(0);
        self.inner.me.lease.end();
        self.inner.membership.send_replace(Membership::Out)
    }

    /// Leaves the fleet, so that nobody waits for this instance's lease to run out.
    ///
    /// Call it when no operation is running any more.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Database`]; the lease then simply runs out.
    ///
    /// # Cancel safety
    ///
    /// The lease ends for this process at once, whatever becomes of the future.
    pub async fn leave(&self) -> Result<(), LedgerError> {
        let Membership::Joined(id) = self.stop() else {
            return Ok(());
        };
        let mut tx = self.ledger().begin().await?;
        unprepared::query("delete from cutover.instances where id = $1").bind(id).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(())
    }
}

impl Me {
    async fn enter(&self) -> Result<i64, LedgerError> {
        let mut tx = self.ledger.begin().await?;
        unprepared::query("insert into cutover.fleets (name) values ($1) on conflict do nothing")
            .bind(&*self.fleet)
            .execute(&mut *tx)
            .await?;
        // Where there are migrations a driver has removed them long ago.
        unprepared::query(
            "delete from cutover.instances where fleet = $1 and lease_until < clock_timestamp() - interval '1 hour'",
        )
        .bind(&*self.fleet)
        .execute(&mut *tx)
        .await?;
        let id = unprepared::query(
            "insert into cutover.instances (fleet, name, service, version, revision, lease_until) \
             values ($1, $2, $3, $4, $5, clock_timestamp() + make_interval(secs => $6)) returning id",
        )
        .bind(&*self.fleet)
        .bind(self.release.instance())
        .bind(self.release.service())
        .bind(self.release.version())
        .bind(self.release.revision())
        .bind(self.options.lease.as_secs_f64())
        .fetch_one(&mut *tx)
        .await?
        .try_get("id")?;
        tx.commit().await?;
        Ok(id)
    }

    fn extend(&self, asked: Duration) {
        self.lease.extend(asked, self.options.lease - self.options.margin());
    }

    /// Extends the lease; `false` when the ledger no longer counts this instance as alive.
    async fn renew(&self, id: i64) -> Result<bool, LedgerError> {
        let asked = clock::now();
        // One message, so that a process which is stopped in the middle leaves no lock on its row: the driver
        // would wait for that. Two numbers of our own are all that goes into the text.
        let statement = format!(
            "update cutover.instances set seen_at = clock_timestamp(), \
             lease_until = clock_timestamp() + make_interval(secs => {}) where id = {id} and lease_until > clock_timestamp()",
            self.options.lease.as_secs_f64()
        );
        let renewed = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&*self.ledger.pool()).await?;
        let is_alive = renewed.rows_affected() == 1;
        if is_alive && self.taken_up.is(id) {
            self.extend(asked);
        }
        Ok(is_alive)
    }

    async fn keep(self, mut id: i64, membership: watch::Sender<Membership>, signal: Signal) {
        let mut next = Instant::now() + self.options.renew_every;
        let mut held = true;
        loop {
            // Wakes at the lease's end too, so that new operations are turned away promptly.
            let lapse = Instant::now() + self.lease.remaining();
            tokio::select! {
                () = sleep_until(if held { next.min(lapse) } else { next }) => {}
                () = self.taken_up.changed.notified() => next = Instant::now(),
            }
            if held && !self.lease.holds() {
                held = false;
                tracing::warn!(instance = self.release.instance(), "lease ran out; serving no reads");
                signal.fail("the lease ran out: the ledger's database could not be reached in time");
                membership.send_replace(Membership::Out);
            }
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + self.options.renew_every;
            let outcome = match timeout(self.options.renew_every, self.renew(id)).await {
                Ok(Ok(true)) => Ok(()),
                Ok(Ok(false)) => {
                    held = false;
                    signal.fail("the fleet has given this instance up: joining anew");
                    self.rejoin(&mut id, &membership).await
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {:?}", self.options.renew_every)),
            };
            held |= self.lease.holds();
            match outcome {
                Ok(()) if self.lease.holds() || !self.taken_up.is(id) => {
                    if self.lease.holds() {
                        signal.ok();
                    }
                    membership.send_if_modified(|now| {
                        let changed = *now != Membership::Joined(id);
                        *now = Membership::Joined(id);
                        changed
                    });
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, left = ?self.lease.remaining(), "could not extend the lease");
                    // The lease has to be saved: sooner than usual, and not over connections that may be dead.
                    self.ledger.reconnect();
                    next = Instant::now() + self.options.renew_every / 4;
                }
            }
        }
    }

    /// Joins under a new number, after everybody has been told that the old one is out.
    async fn rejoin(&self, id: &mut i64, membership: &watch::Sender<Membership>) -> Result<(), String> {
        self.lease.end();
        // Also for those who miss this one: they find a number that they have not taken up.
        membership.send_replace(Membership::Out);
        *id = timeout(self.options.renew_every, self.enter())
            .await
            .map_err(|_| "no answer to the attempt to rejoin".to_owned())?
            .map_err(|error| error.to_string())?;
        tracing::info!(instance = self.release.instance(), id = *id, "rejoined the fleet");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_shorter_than_three_renewals_is_refused_with_what_would_be_right() {
        let options = FleetOptions { lease: Duration::from_secs(5), ..FleetOptions::default() };
        let error = options.check("payments").expect_err("refused").to_string();
        assert!(error.contains("fleet.lease") && error.contains("6s"), "{error}");
        assert!(FleetOptions::default().check("payments").is_ok());
        assert!(FleetOptions::default().check("").is_err());
    }
}
