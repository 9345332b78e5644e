use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::clock;
use super::{Lease, Ledger, LedgerError};
use crate::health::{Criticality, Health, Signal};
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
    /// It is, under this number, and its lease holds.
    Joined(i64),
    /// Its lease ran out or it left.
    Out,
}

/// This process's place in its fleet: a row in the ledger under a lease that a background task extends.
///
/// A cheap handle. When the lease runs out, [`Lease::holds`] is false at once, readiness goes down and
/// [`Fleet::membership`] says so; when the database is back, the task joins again by itself.
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
        let me = Me { ledger, release: release.clone(), fleet, options, lease: Lease::none() };
        let id = me.enter().await?;
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

    /// Follows joins and lapses.
    pub fn membership(&self) -> watch::Receiver<Membership> {
        self.inner.membership.subscribe()
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
        self.inner.task.abort();
        self.inner.me.lease.end();
        let Membership::Joined(id) = self.inner.membership.send_replace(Membership::Out) else {
            return Ok(());
        };
        let mut tx = self.ledger().begin().await?;
        sqlx::query("delete from cutover.instances where id = $1").bind(id).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(())
    }
}

impl Me {
    async fn enter(&self) -> Result<i64, LedgerError> {
        let asked = clock::now();
        let mut tx = self.ledger.begin().await?;
        sqlx::query("insert into cutover.fleets (name) values ($1) on conflict do nothing")
            .bind(&*self.fleet)
            .execute(&mut *tx)
            .await?;
        let id = sqlx::query(
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
        self.lease.extend(id, asked, self.options.lease - self.options.margin());
        Ok(id)
    }

    /// Extends the lease; `false` when the ledger no longer counts this instance as alive.
    async fn renew(&self, id: i64) -> Result<bool, LedgerError> {
        let asked = clock::now();
        let mut tx = self.ledger.begin().await?;
        let renewed = sqlx::query(
            "update cutover.instances set lease_until = clock_timestamp() + make_interval(secs => $2) \
             where id = $1 and lease_until > clock_timestamp()",
        )
        .bind(id)
        .bind(self.options.lease.as_secs_f64())
        .execute(&mut *tx)
        .await?
        .rows_affected();
        tx.commit().await?;
        if renewed == 1 {
            self.lease.extend(id, asked, self.options.lease - self.options.margin());
        }
        Ok(renewed == 1)
    }

    async fn keep(self, mut id: i64, membership: watch::Sender<Membership>, signal: Signal) {
        let mut next = Instant::now() + self.options.renew_every;
        loop {
            // Wakes at the lease's end too, so that new operations are turned away promptly.
            let lapse = Instant::now() + self.lease.remaining();
            sleep_until(if self.lease.holds() { next.min(lapse) } else { next }).await;
            if !self.lease.holds() && *membership.borrow() != Membership::Out {
                tracing::warn!(instance = self.release.instance(), "lease ran out; serving no reads");
                signal.fail("the lease ran out: the ledger's database could not be reached in time");
                membership.send_replace(Membership::Out);
            }
            if Instant::now() < next {
                continue;
            }
            // A quarter of the usual pause after a failure: the lease has to be saved.
            next = Instant::now() + self.options.renew_every;
            let outcome = match timeout(self.options.renew_every, self.renew(id)).await {
                Ok(Ok(true)) => Ok(()),
                Ok(Ok(false)) => self.rejoin(&mut id, &membership).await,
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {:?}", self.options.renew_every)),
            };
            match outcome {
                Ok(()) if self.lease.holds() => {
                    signal.ok();
                    membership.send_if_modified(|now| {
                        let changed = *now != Membership::Joined(id);
                        *now = Membership::Joined(id);
                        changed
                    });
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, left = ?self.lease.remaining(), "could not extend the lease");
                    next = Instant::now() + self.options.renew_every / 4;
                }
            }
        }
    }

    /// Joins under a new number, after everybody has been told that the old one is out.
    async fn rejoin(&self, id: &mut i64, membership: &watch::Sender<Membership>) -> Result<(), String> {
        self.lease.end();
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
