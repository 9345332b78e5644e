use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::clock;
use super::lease::Lease;
use super::options::FleetOptions;
use crate::config::ConfigError;
use crate::health::{Criticality, Health, Signal};
use crate::ledger::instances::{self, NewInstance};
use crate::ledger::{Ledger, LedgerError, fleets};
use crate::release::Release;
use crate::scrape::Scraped;

/// Whether this process is a member of its fleet.
///
/// There is no third state, so the enum is exhaustive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// It is in the ledger, under this id.
    Joined(i64),
    /// Its lease expired, or it left.
    Out,
}

/// This process's membership of its fleet: a row in the ledger under a lease that a background task renews.
///
/// A cheap handle. When the lease expires, [`Lease::holds`] is false at once, and [`Fleet::membership`] reports it. The
/// instance becomes unready only while a declared migration is past `off`. When the database is reachable again, the
/// task rejoins under another id.
///
/// A lease that was lost does not hold again before the [`Agent`](crate::migration::Agent) has taken up the new membership.
/// Until then operations of the earlier one may still run, and a new lease would wrongly cover them.
#[derive(Debug, Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    member: Member,
    membership: watch::Sender<Membership>,
    signal: Signal,
    task: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the background task needs.
#[derive(Debug, Clone)]
struct Member {
    ledger: Ledger,
    release: Release,
    fleet: Arc<str>,
    options: FleetOptions,
    lease: Lease,
    taken_up: Arc<TakenUp>,
}

/// Why a lease expired, if no attempt to renew it failed in another way.
const NO_ANSWER: &str = "the ledger's database did not answer in time";

fn expired(failure: &str) -> String {
    format!("lease expired, so this instance refuses operations: {failure}")
}

/// The id of the membership whose lease may be extended.
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
    /// Joins the fleet and renews the lease until [`Fleet::leave`], or until the last handle is dropped.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Config`] with every option that cannot be used, [`LedgerError::Database`] if the first join fails.
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
        ConfigError::check(options.problems(&fleet))?;
        let (lease, taken_up) = (Lease::none(), Arc::default());
        let member = Member { ledger, release: release.clone(), fleet, options, lease, taken_up };
        let requested = clock::now();
        let id = member.join().await?;
        // There was no earlier membership whose operations could still run.
        member.taken_up.set(id);
        member.extend(requested);
        let membership = watch::Sender::new(Membership::Joined(id));
        // The agent makes it critical while a declared migration is past `off`.
        let signal = health.signal("lease", Criticality::Degrades);
        signal.ok();
        let task = tokio::spawn(member.clone().keep_renewing(id, membership.clone(), signal.clone()));
        Ok(Self { inner: Arc::new(Inner { member, membership, signal, task }) })
    }

    /// The name of the fleet.
    pub fn name(&self) -> &str {
        &self.inner.member.fleet
    }

    /// The ledger that the fleet is registered in.
    pub fn ledger(&self) -> &Ledger {
        &self.inner.member.ledger
    }

    /// This instance's lease.
    pub fn lease(&self) -> &Lease {
        &self.inner.member.lease
    }

    /// The release that this instance runs.
    pub fn release(&self) -> &Release {
        &self.inner.member.release
    }

    pub(crate) fn options(&self) -> &FleetOptions {
        &self.inner.member.options
    }

    /// Subscribes to changes of the membership.
    pub fn membership(&self) -> watch::Receiver<Membership> {
        self.inner.membership.subscribe()
    }

    /// Registers `cutover_lease_remaining_seconds`.
    ///
    /// # Errors
    ///
    /// The registry's error, if a fleet is already registered.
    pub fn register(&self, registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
        let mut scraped = Scraped::default();
        let lease = self.lease().clone();
        let help = "Time until this instance's lease expires; 0 if it has.";
        scraped.gauge("cutover_lease_remaining_seconds", help, &[], move |samples| {
            samples.value(&[], lease.remaining().as_secs_f64());
        })?;
        scraped.register(registry)
    }

    /// What an expired lease does to readiness.
    pub(crate) fn set_lease_criticality(&self, criticality: Criticality) {
        self.inner.signal.set_criticality(criticality);
    }

    /// Lets the lease of this membership begin, because no operation of an earlier one is running any more.
    pub(crate) fn take_up(&self, id: i64) {
        self.inner.member.taken_up.set(id);
    }

    /// Stops renewing the lease. It ends at once for this process, and for the others when it expires.
    pub(crate) fn stop(&self) -> Membership {
        self.inner.task.abort();
        self.inner.member.taken_up.set(0);
        self.inner.member.lease.end();
        self.inner.membership.send_replace(Membership::Out)
    }

    /// Leaves the fleet, so that no move waits until this instance's lease expires.
    ///
    /// Call it when no operation is running any more.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Database`]. The lease then expires.
    ///
    /// # Cancel safety
    ///
    /// The lease ends at once for this process, also if the future is dropped.
    pub async fn leave(&self) -> Result<(), LedgerError> {
        let Membership::Joined(id) = self.stop() else {
            return Ok(());
        };
        let mut tx = self.ledger().begin().await?;
        instances::leave(&mut tx, id).await?;
        tx.commit().await?;
        Ok(())
    }
}

impl Member {
    /// Inserts this instance into the ledger and returns its id.
    async fn join(&self) -> Result<i64, LedgerError> {
        let mut tx = self.ledger.begin().await?;
        fleets::ensure(&mut tx, &self.fleet).await?;
        let instance = NewInstance {
            fleet: &self.fleet,
            name: self.release.instance(),
            service: self.release.service(),
            version: self.release.version(),
            revision: self.release.revision(),
            lease: self.options.lease,
        };
        let id = instances::join(&mut tx, &instance).await?;
        tx.commit().await?;
        Ok(id)
    }

    fn extend(&self, requested: Duration) {
        self.lease.extend(requested, self.options.lease - self.options.margin());
    }

    /// Renews the lease. `false`: the ledger no longer counts this instance as alive.
    async fn renew(&self, id: i64) -> Result<bool, LedgerError> {
        let requested = clock::now();
        let is_alive = instances::renew(&self.ledger, id, self.options.lease).await?;
        if is_alive && self.taken_up.is(id) {
            self.extend(requested);
        }
        Ok(is_alive)
    }

    async fn keep_renewing(self, mut id: i64, membership: watch::Sender<Membership>, signal: Signal) {
        let mut next = Instant::now() + self.options.renew_every;
        let mut held = true;
        let mut failure = NO_ANSWER.to_owned();
        loop {
            // It also wakes up when the lease ends, so that new operations are refused promptly.
            let expiry = Instant::now() + self.lease.remaining();
            tokio::select! {
                () = sleep_until(if held { next.min(expiry) } else { next }) => {}
                () = self.taken_up.changed.notified() => next = Instant::now(),
            }
            if held && !self.lease.holds() {
                held = false;
                tracing::warn!(instance = self.release.instance(), "lease expired; refusing operations");
                signal.fail(expired(&failure));
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
                    signal.fail("membership expired; rejoining the fleet");
                    self.rejoin(&mut id, &membership).await
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {:?}", self.options.renew_every)),
            };
            held |= self.lease.holds();
            match outcome {
                Ok(()) if self.lease.holds() || !self.taken_up.is(id) => {
                    NO_ANSWER.clone_into(&mut failure);
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
                    let error = self.ledger.explained(error);
                    if !held && failure != error {
                        signal.fail(expired(&error));
                    }
                    error.clone_into(&mut failure);
                    tracing::warn!(error, left = ?self.lease.remaining(), "could not renew the lease; retrying on new connections");
                    // The connections may be dead, and the lease is about to expire.
                    self.ledger.reconnect();
                    next = Instant::now() + self.options.renew_every / 4;
                }
            }
        }
    }

    /// Joins under a new id, after the end of the old membership has been announced.
    async fn rejoin(&self, id: &mut i64, membership: &watch::Sender<Membership>) -> Result<(), String> {
        self.lease.end();
        // A follower that misses this finds an id that it has not taken up.
        membership.send_replace(Membership::Out);
        *id = timeout(self.options.renew_every, self.join())
            .await
            .map_err(|_| format!("no answer within {:?} to the attempt to rejoin", self.options.renew_every))?
            .map_err(|error| error.to_string())?;
        tracing::info!(instance = self.release.instance(), id = *id, "rejoined the fleet");
        Ok(())
    }
}
