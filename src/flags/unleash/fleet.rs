//! One instance polls the flag server for its fleet; the others receive the state through the ledger.
//!
//! The elected instance polls at [`interval`](UnleashOptions::interval), publishes every change in the ledger, and renews its
//! lease with every answer of the server. The others learn of a change by the ledger's notification, and look at the ledger
//! regularly in case it was lost. They also poll the server themselves, at
//! [`direct_interval`](UnleashOptions::direct_interval). An instance that cannot use the ledger polls as if it were alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{SetOnce, watch};
use tokio::time::{Instant, sleep, timeout};

use super::backup;
use super::options::{Endpoint, UnleashOptions};
use super::poller::Task;
use crate::ledger::{Ledger, flag_polls};

/// The shortest lease. A pause of the process or of the ledger must not end it.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);

/// Where the instances of a fleet share the state of their flags, so that only one of them polls the server often.
///
/// Clones share the ledger.
#[derive(Clone, Debug, Default)]
pub struct FleetPolling(Arc<SetOnce<(Ledger, String)>>);

impl FleetPolling {
    /// Shares the state through the ledger with all instances of a service that use the same server and token.
    pub fn new(ledger: Ledger, service: impl Into<String>) -> Self {
        let polling = Self::default();
        polling.open(&ledger, &service.into());
        polling
    }

    /// Sets the ledger, which is opened after the flags were made. Until then, the instance polls as if it were alone.
    pub(crate) fn open(&self, ledger: &Ledger, service: &str) {
        // There is one ledger per instance.
        let _ = self.0.set((ledger.clone(), service.to_owned()));
    }
}

/// What an instance does for its fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// There is no ledger, or it does not answer.
    Alone,
    /// It polls for the fleet.
    Leader,
    Follower,
}

/// The polling of one instance for its fleet.
pub(super) struct Fleet {
    polling: FleetPolling,
    /// Differs between fleets, servers and tokens, because the state depends on all of them.
    scope: String,
    instance: i64,
    lease: Duration,
    pub(super) role: watch::Sender<Role>,
    /// The state that the ledger has, and its version.
    shared: std::sync::Mutex<(Option<Bytes>, i64)>,
}

struct Place<'a> {
    ledger: &'a Ledger,
    key: i64,
    channel: String,
}

impl Fleet {
    pub(super) fn new(options: &UnleashOptions, endpoint: &Endpoint) -> Option<Self> {
        Some(Self {
            polling: options.fleet.clone()?,
            scope: format!("{}\n{}", endpoint.api, options.token),
            instance: fastrand::i64(..),
            lease: options.interval.saturating_mul(3).max(SHORTEST_LEASE),
            role: watch::Sender::new(Role::Alone),
            shared: std::sync::Mutex::default(),
        })
    }

    /// `None` if the ledger is not open yet.
    fn place(&self) -> Option<Place<'_>> {
        let (ledger, service) = self.polling.0.get()?;
        let digest = Sha256::digest(format!("{service}\n{}", self.scope));
        let key = i64::from_be_bytes(digest.first_chunk().copied().unwrap_or_default());
        Some(Place { ledger, key, channel: format!("flags {key}") })
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, (Option<Bytes>, i64)> {
        self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn become_role(&self, role: Role) {
        self.role.send_if_modified(|current| std::mem::replace(current, role) != role);
    }
}

impl Task {
    /// Follows the fleet's state in the ledger, and takes over the polling if no other instance does it.
    pub(super) async fn follow_fleet(&self) {
        let Some(fleet) = &self.fleet else { return };
        tokio::select! {
            () = self.stop.cancelled() => return,
            _ = fleet.polling.0.wait() => {}
        }
        let Some(place) = fleet.place() else { return };
        let mut notices = place.ledger.notices(&place.channel);
        loop {
            let role = tokio::select! {
                () = self.stop.cancelled() => break,
                role = timeout(self.time_limit, self.look(fleet, &place)) => role,
            };
            match role.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
                Ok(role) => fleet.become_role(role),
                Err(error) => {
                    if *fleet.role.borrow() != Role::Alone {
                        tracing::warn!(%error, "ledger unreachable; this instance polls the flag server itself");
                    }
                    fleet.become_role(Role::Alone);
                }
            }
            // Jitter, so that instances that started together do not ask together.
            let pause = self.interval.saturating_mul(2).mul_f64(0.9 + 0.2 * fastrand::f64());
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = notices.next() => {}
                () = sleep(pause) => {}
            }
        }
        if *fleet.role.borrow() == Role::Leader {
            let resigned = flag_polls::resign(place.ledger, place.key, fleet.instance, &place.channel);
            // Otherwise the lease ends by itself.
            let _ = timeout(self.time_limit, resigned).await;
        }
    }

    /// Looks at the ledger once: applies a new state, and returns the role from now on.
    async fn look(&self, fleet: &Fleet, place: &Place<'_>) -> Result<Role, sqlx::Error> {
        let known = fleet.shared().1;
        let asked = Instant::now();
        let row = flag_polls::read(place.ledger, place.key, fleet.instance, known).await?;
        if let Some(row) = &row {
            if row.is_led && row.is_leader {
                return Ok(Role::Leader);
            }
            if let Some(state) = &row.state {
                match self.apply_shared(&Bytes::copy_from_slice(state)).await {
                    Ok(body) => *fleet.shared() = (Some(body), row.version),
                    Err(error) => tracing::warn!(error, "could not read the fleet's flags in the ledger"),
                }
            }
            if fleet.shared().1 == row.version && row.version > 0 {
                self.confirmed(asked.checked_sub(row.age));
            }
        }
        // An instance that cannot reach the server must not poll for the others.
        let may_lead = self.unleash.freshness.last_error().is_none();
        let is_free = !row.is_some_and(|row| row.is_led);
        let leads = is_free
            && may_lead
            && flag_polls::lead(place.ledger, place.key, fleet.instance, fleet.lease).await?;
        Ok(if leads { Role::Leader } else { Role::Follower })
    }

    async fn apply_shared(&self, sealed: &Bytes) -> Result<Bytes, String> {
        let body = backup::open(sealed).map_err(|error| error.to_string())?;
        if self.unleash.body().as_ref() != Some(&body) {
            self.unleash.load(self.read(body.clone()).await?);
            self.fetches().shared.add_one();
            self.revision.send_modify(|revision| *revision += 1);
        }
        Ok(body)
    }

    /// The state is that of the server at `asked`.
    fn confirmed(&self, asked: Option<Instant>) {
        let was_fresh = self.unleash.freshness.is_fresh();
        if let Some(asked) = asked {
            self.unleash.freshness.confirmed(asked);
        }
        if !was_fresh && self.unleash.freshness.is_fresh() {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }

    /// After an answer of the server: tells the fleet, if this instance polls for it.
    pub(super) async fn tell_fleet(&self) {
        let Some(fleet) = self.fleet.as_ref().filter(|fleet| *fleet.role.borrow() == Role::Leader) else {
            return;
        };
        let (Some(place), Some(body)) = (fleet.place(), self.unleash.body()) else { return };
        let is_known = fleet.shared().0.as_ref() == Some(&body);
        let (key, instance, lease) = (place.key, fleet.instance, fleet.lease);
        let told = async {
            if is_known {
                return flag_polls::renew(place.ledger, key, instance, lease).await;
            }
            let sealed = backup::seal(&body);
            let version =
                flag_polls::publish(place.ledger, key, instance, lease, &sealed, &place.channel).await?;
            if let Some(version) = version {
                *fleet.shared() = (Some(body), version);
            }
            Ok(version.is_some())
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            told = timeout(self.time_limit, told) => match told {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => fleet.become_role(Role::Follower),
                // The next look at the ledger finds out.
                Ok(Err(error)) => tracing::debug!(%error, "could not share the flags"),
                Err(_) => tracing::debug!("the ledger did not answer in time; could not share the flags"),
            },
        }
    }

    /// The pause before the next poll, without failures.
    pub(super) fn poll_interval(&self) -> Duration {
        match &self.fleet {
            Some(fleet) if *fleet.role.borrow() == Role::Follower => self.direct_interval,
            _ => self.interval,
        }
    }

    /// Waits until this instance has to poll often again. Cancel safe.
    pub(super) async fn polls_often(&self) {
        let Some(fleet) = &self.fleet else { return std::future::pending().await };
        let mut role = fleet.role.subscribe();
        if *role.borrow_and_update() != Role::Follower {
            return std::future::pending().await;
        }
        // The sender is part of this task.
        let _ = role.wait_for(|role| *role != Role::Follower).await;
    }
}
