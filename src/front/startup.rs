//! Joins the fleet and takes up the migrations, for as long as it takes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::ConfigError;
use crate::config::redact;
use crate::drain::Drain;
use crate::fleet::Fleet;
use crate::health::Signal;
use crate::ledger::LedgerError;
use crate::migration::Agent;
use crate::pool::{PoolGuard, ShareError};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long one attempt may take: longer than an upgrade of the ledger waits for locks.
const ATTEMPT: Duration = Duration::from_secs(60);
/// How long a failed start may take to leave the fleet and to give back its connections.
const LEAVE: Duration = Duration::from_secs(3);

/// Retries the steps of a start, and says in readiness what it waits for.
///
/// Only a wrong configuration ends a start. Other problems can be solved while the process waits, and a platform
/// restarts a process that exits after pauses that grow each time.
pub(super) struct Retry<'a> {
    pub(super) signal: &'a Signal,
}

impl Retry<'_> {
    /// `step` is no `AsyncFn`, because the compiler cannot know that the future of one can be sent.
    pub(super) async fn until_done<T, F>(&self, what: &str, step: impl Fn() -> F) -> Result<T, ConfigError>
    where
        F: Future<Output = Result<T, ShareError>> + Send,
    {
        let mut pause = FIRST_PAUSE;
        self.signal.fail(format!("waiting for {what}"));
        loop {
            let reason = match timeout(ATTEMPT, step()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(ShareError::Config(error) | ShareError::Ledger(LedgerError::Config(error)))) => {
                    return Err(error);
                }
                Ok(Err(error)) => redact(&error.to_string()),
                Err(_) => format!("no answer within {ATTEMPT:?}"),
            };
            tracing::warn!(reason, ?pause, "start is waiting for {what}; retrying");
            self.signal.fail(format!("waiting for {what}: {reason}"));
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// What an instance has begun that other instances see, and that it has to give back.
#[derive(Debug, Default)]
pub(super) struct Joined {
    pub(super) fleet: Option<Fleet>,
    /// The name of the share that was requested.
    pub(super) share: Option<String>,
    pub(super) pool: Option<PoolGuard>,
    pub(super) agent: Option<Arc<Agent>>,
}

impl Joined {
    /// Leaves the fleet and gives back the share, as far as the database answers in time. What is left ends with its
    /// lease.
    pub(super) async fn leave_in_time(self) {
        if timeout(LEAVE, self.leave()).await.is_err() {
            tracing::warn!("could not leave the fleet in time; the lease expires by itself");
        }
    }

    async fn leave(self) {
        let left = match (&self.agent, &self.fleet) {
            (Some(agent), _) => agent.leave().await,
            (None, Some(fleet)) => fleet.leave().await,
            (None, None) => Ok(()),
        };
        if let Err(error) = left {
            tracing::warn!(%error, "could not leave the fleet; the lease expires by itself");
        }
        match (self.pool, self.fleet, self.share) {
            (Some(pool), ..) => pool.leave().await,
            (None, Some(fleet), Some(share)) => {
                if let Err(error) = fleet.ledger().give_back(&share).await {
                    tracing::warn!(%error, "could not give back the share of connections; its lease expires by itself");
                }
            }
            _ => {}
        }
    }

    /// Leaves as a hook of the drain. Connections that are not needed are given back earlier, when no new connection is
    /// accepted any more.
    pub(super) fn leave_when_drained(self, drain: &Drain) {
        let (begin, begun) = oneshot::channel::<()>();
        let propagated = drain.clone();
        let leaving = tokio::spawn(async move {
            propagated.propagated().await;
            if let Some(pool) = &self.pool {
                pool.drain();
            }
            // A hook that was dropped has no more time for this than one that runs.
            let _ = begun.await;
            self.leave().await;
        });
        drain.on_drain("fleet", move |_| async move {
            let _ = begin.send(());
            let _ = leaving.await;
        });
    }
}
