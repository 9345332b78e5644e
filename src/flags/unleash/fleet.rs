//! One instance polls the flag server for its fleet; the others receive the state through the ledger.
//!
//! The elected instance polls at [`interval`](UnleashOptions::interval), publishes every change in the ledger, and renews its
//! lease with every answer of the server. The others learn of a change by the ledger's notification, and look at the ledger
//! regularly in case it was lost. They also poll the server themselves, at
//! [`direct_interval`](UnleashOptions::direct_interval). An instance that cannot use the ledger polls as if it were alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::backup;
use super::custom::Registered;
use super::fleet_polling::FleetPolling;
use super::options::UnleashOptions;
use super::state::{Offered, Unleash};
use crate::ledger::flag_polls::{Answer, SharedState};
use crate::ledger::{Ledger, flag_polls};

/// The shortest lease. A pause of the process or of the ledger must not end it.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);

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
    interval: Duration,
    direct_interval: Duration,
    time_limit: Duration,
    role: watch::Sender<Role>,
    unleash: Arc<Unleash>,
    strategies: Arc<Registered>,
    revision: watch::Sender<u64>,
    stop: CancellationToken,
    /// The state that the ledger has, and its version.
    shared: Mutex<(Option<Bytes>, i64)>,
}

struct Place<'a> {
    ledger: &'a Ledger,
    key: i64,
    channel: String,
}

impl Fleet {
    /// `None` if the instance polls for itself only.
    pub(super) fn new(
        options: &UnleashOptions,
        api: &str,
        unleash: Arc<Unleash>,
        strategies: Arc<Registered>,
        revision: watch::Sender<u64>,
        stop: CancellationToken,
    ) -> Option<Self> {
        Some(Self {
            polling: options.fleet.clone()?,
            scope: format!("{api}\n{}", options.token),
            instance: fastrand::i64(..),
            lease: options.interval.saturating_mul(3).max(SHORTEST_LEASE),
            interval: options.interval,
            direct_interval: options.direct_interval.max(options.interval),
            time_limit: options.time_limit,
            role: watch::Sender::new(Role::Alone),
            unleash,
            strategies,
            revision,
            stop,
            shared: Mutex::default(),
        })
    }

    /// `None` if the ledger is not open yet.
    fn place(&self) -> Option<Place<'_>> {
        let (ledger, service) = self.polling.get()?;
        let digest = Sha256::digest(format!("{service}\n{}", self.scope));
        let key = i64::from_be_bytes(digest.first_chunk().copied().unwrap_or_default());
        Some(Place { ledger, key, channel: format!("flags {key}") })
    }

    fn shared(&self) -> MutexGuard<'_, (Option<Bytes>, i64)> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn become_role(&self, role: Role) {
        self.role.send_if_modified(|current| std::mem::replace(current, role) != role);
    }

    /// Follows the fleet's state in the ledger, and takes over the polling if no other instance does it.
    pub(super) async fn follow(&self) {
        tokio::select! {
            () = self.stop.cancelled() => return,
            () = self.polling.opened() => {}
        }
        let Some(place) = self.place() else { return };
        let mut notices = place.ledger.notices(&place.channel);
        loop {
            let role = tokio::select! {
                () = self.stop.cancelled() => break,
                role = timeout(self.time_limit, self.look(&place)) => role,
            };
            let failure = match role {
                Ok(Ok(role)) => {
                    self.become_role(role);
                    None
                }
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {:?}", self.time_limit)),
            };
            if let Some(error) = failure {
                if *self.role.borrow() != Role::Alone {
                    tracing::warn!(error, "ledger unreachable; this instance polls the flag server itself");
                }
                self.become_role(Role::Alone);
            }
            // Jitter, so that instances that started together do not query together.
            let pause = self.interval.saturating_mul(2).mul_f64(0.9 + 0.2 * fastrand::f64());
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = notices.next() => {}
                () = sleep(pause) => {}
            }
        }
        if *self.role.borrow() == Role::Leader {
            let resigned = flag_polls::resign(place.ledger, place.key, self.instance, &place.channel);
            // Otherwise the lease ends by itself.
            let _ = timeout(self.time_limit, resigned).await;
        }
    }

    /// Reads the ledger once: applies a new state, and returns the role from now on.
    async fn look(&self, place: &Place<'_>) -> Result<Role, sqlx::Error> {
        let known = self.shared().1;
        let asked = Instant::now();
        let row = flag_polls::read(place.ledger, place.key, self.instance, known).await?;
        if let Some(row) = &row {
            if row.is_led && row.is_leader {
                return Ok(Role::Leader);
            }
            let as_of = asked.checked_sub(row.age());
            if let Err(error) = self.offer_shared(row, as_of).await {
                tracing::warn!(error, "could not read the fleet's flags in the ledger");
            }
        }
        // An instance that cannot reach the server must not poll for the others.
        let may_lead = self.unleash.freshness.last_error().is_none();
        let is_free = !row.is_some_and(|row| row.is_led);
        let leads = is_free
            && may_lead
            && flag_polls::lead(place.ledger, place.key, self.instance, self.lease).await?;
        Ok(if leads { Role::Leader } else { Role::Follower })
    }

    /// Uses the state that the ledger has, which is that of the server at `as_of`, unless this instance has a later one.
    async fn offer_shared(&self, row: &SharedState, as_of: Option<Instant>) -> Result<(), String> {
        let body = match &row.state {
            Some(sealed) => {
                backup::open(&Bytes::copy_from_slice(sealed)).map_err(|error| error.to_string())?
            }
            // The version that this instance knows.
            None => match self.shared().0.clone() {
                Some(body) => body,
                None => return Ok(()),
            },
        };
        let was_fresh = self.unleash.freshness.is_fresh();
        let offered = self.unleash.offer(body.clone(), as_of, &self.strategies).await?;
        if offered == Offered::Earlier {
            return Ok(());
        }
        *self.shared() = (Some(body), row.version);
        if offered == Offered::Loaded {
            self.unleash.freshness.fetches.shared.add_one();
        }
        if offered == Offered::Loaded || (!was_fresh && self.unleash.freshness.is_fresh()) {
            self.revision.send_modify(|revision| *revision += 1);
        }
        Ok(())
    }

    /// After an answer of the server to a request of `asked`: publishes it to the fleet, if this instance polls for it.
    pub(super) async fn tell(&self, asked: Instant) {
        if *self.role.borrow() != Role::Leader {
            return;
        }
        let (Some(place), Some(body)) = (self.place(), self.unleash.body()) else { return };
        let is_known = self.shared().0.as_ref() == Some(&body);
        let (key, instance, lease) = (place.key, self.instance, self.lease);
        let told = async {
            if is_known {
                return flag_polls::renew(place.ledger, key, instance, lease, asked.elapsed()).await;
            }
            let answer = Answer { state: &backup::seal(&body), age: asked.elapsed() };
            let version =
                flag_polls::publish(place.ledger, key, instance, lease, answer, &place.channel).await?;
            if let Some(version) = version {
                *self.shared() = (Some(body), version);
            }
            Ok(version.is_some())
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            told = timeout(self.time_limit, told) => match told {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => self.become_role(Role::Follower),
                // The next read of the ledger shows it.
                Ok(Err(error)) => tracing::debug!(%error, "could not share the flags"),
                Err(_) => tracing::debug!("the ledger did not answer in time; could not share the flags"),
            },
        }
    }

    /// The pause before the next poll, without failures.
    pub(super) fn poll_interval(&self) -> Duration {
        if *self.role.borrow() == Role::Follower { self.direct_interval } else { self.interval }
    }

    /// Waits until this instance has to poll often again. Cancel safe.
    pub(super) async fn polls_often(&self) {
        let mut role = self.role.subscribe();
        if *role.borrow_and_update() != Role::Follower {
            return std::future::pending().await;
        }
        // The sender is a field of this struct.
        let _ = role.wait_for(|role| *role != Role::Follower).await;
    }
}
