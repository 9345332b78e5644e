//! Notifications of the ledger's database. They only save time: every follower also polls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgListener;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::connections::Connections;
use super::unprepared;

/// How long LISTEN may take, and how long the listener waits for its own notification.
const SOON: Duration = Duration::from_secs(2);
/// How often the listener checks that notifications still arrive.
const TRIAL: Duration = Duration::from_secs(30);
/// The pause before it tries again, if they did not arrive.
const LATER: Duration = Duration::from_secs(60);
/// How many notifications a follower may be behind. One that is further behind is told that it missed some.
const KEPT: usize = 16;

/// What is wrong if [`Notifications::are_heard`] is false.
pub(crate) const NO_NOTIFICATIONS: &str =
    "notifications don't arrive, as behind a pooler in transaction mode; changes are found by polling";

/// Makes the fleet's instances read the ledger when the transaction commits, instead of at their next poll.
pub(crate) async fn send(tx: &mut PgConnection, fleet: &str) -> Result<(), sqlx::Error> {
    unprepared::query("select pg_notify('cutover', $1)").bind(fleet).execute(tx).await?;
    Ok(())
}

/// The fleet that has changed; `None`: any may have.
type Heard = Option<Arc<str>>;

/// Listens on one connection for all followers of a ledger in this process. It begins with the first follower.
pub(crate) struct Subscription {
    begun: OnceLock<(broadcast::Sender<Heard>, Arc<AtomicBool>, JoinHandle<()>)>,
    keeps_sessions: bool,
}

impl Subscription {
    /// `keeps_sessions`: a connection keeps its session. Otherwise nothing listens.
    pub(crate) fn new(keeps_sessions: bool) -> Self {
        Self { begun: OnceLock::new(), keeps_sessions }
    }

    pub(crate) fn follow(&self, ledger: &Arc<Connections>, fleet: &str) -> Notifications {
        let (tx, are_heard, _) = self.begun.get_or_init(|| {
            let tx = broadcast::Sender::new(KEPT);
            let are_heard = Arc::new(AtomicBool::new(self.keeps_sessions));
            let listener = Listener {
                // Listening ends with the last handle of the ledger.
                ledger: Arc::downgrade(ledger),
                own: format!("cutover_{:016x}", fastrand::u64(..)),
                keeps_sessions: self.keeps_sessions,
                state: State::Disconnected(Instant::now()),
                are_heard: are_heard.clone(),
            };
            let task = tokio::spawn(listener.run(tx.clone()));
            (tx, are_heard, task)
        });
        Notifications { fleet: fleet.into(), tx: tx.subscribe(), are_heard: are_heard.clone() }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some((_, _, task)) = self.begun.get() {
            task.abort();
        }
    }
}

/// The notifications for one fleet.
#[derive(Debug)]
pub(crate) struct Notifications {
    fleet: Arc<str>,
    tx: broadcast::Receiver<Heard>,
    are_heard: Arc<AtomicBool>,
}

impl Notifications {
    /// Waits until something may have changed in the fleet. Cancel safe.
    pub(crate) async fn next(&mut self) {
        loop {
            match self.tx.recv().await {
                Ok(Some(fleet)) if fleet != self.fleet => {}
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// Whether notifications arrive, as far as it is known.
    pub(crate) fn are_heard(&self) -> bool {
        self.are_heard.load(Ordering::Relaxed)
    }
}

/// The task that listens.
///
/// A pooler in transaction mode accepts LISTEN and later delivers notifications to whichever client has the session, and some
/// drivers treat those as an error. So it does not listen there. A dead connection is silent, so the listener also sends
/// notifications to itself, and reports when they do not arrive.
struct Listener {
    ledger: Weak<Connections>,
    /// A channel for its own notifications.
    own: String,
    /// A pooler that does not keep sessions would deliver notifications to other clients.
    keeps_sessions: bool,
    state: State,
    are_heard: Arc<AtomicBool>,
}

enum State {
    /// It does not listen, and begins at this time.
    Disconnected(Instant),
    /// Its own notification must arrive before this time.
    Trying(PgListener, Instant),
    /// Notifications arrive. The next check is at this time.
    Listening(PgListener, Instant),
}

impl Listener {
    async fn run(mut self, tx: broadcast::Sender<Heard>) {
        loop {
            let heard = self.next().await;
            // This fails if there is no follower at the moment.
            let _ = tx.send(heard);
        }
    }

    async fn next(&mut self) -> Heard {
        loop {
            match &mut self.state {
                State::Disconnected(until) => {
                    sleep_until(*until).await;
                    self.state = match timeout(SOON, self.listen()).await {
                        Ok(Ok(Some(listener))) => State::Trying(listener, Instant::now() + SOON),
                        Ok(Ok(None)) => self.deaf(),
                        _ => State::Disconnected(Instant::now() + SOON),
                    };
                }
                State::Trying(listener, until) | State::Listening(listener, until) => {
                    tokio::select! {
                        heard = listener.try_recv() => match heard {
                            Ok(Some(notice)) if notice.channel() != self.own => {
                                return Some(notice.payload().into());
                            }
                            Ok(Some(_)) => self.heard_itself(),
                            // The connection is gone. Followers read the ledger to find what they missed.
                            _ => {
                                self.state = State::Disconnected(Instant::now() + SOON / 4);
                                return None;
                            }
                        },
                        () = sleep_until(*until) => self.is_due().await,
                    }
                }
            }
        }
    }

    fn ledger(&self) -> Result<Arc<Connections>, sqlx::Error> {
        self.ledger.upgrade().ok_or(sqlx::Error::PoolClosed)
    }

    /// `None`: notifications would not arrive, or would reach other clients.
    async fn listen(&self) -> Result<Option<PgListener>, sqlx::Error> {
        if cfg!(cutover_break = "agree") {
            // Only the instance whose notifications do not arrive is slow, so it says why.
            std::future::pending::<()>().await;
        }
        if !self.keeps_sessions {
            return Ok(None);
        }
        let pool = self.ledger()?.pool();
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen_all(["cutover", &self.own]).await?;
        self.call().await?;
        Ok(Some(listener))
    }

    /// Reports once that no notifications arrive.
    fn deaf(&self) -> State {
        if self.are_heard.swap(false, Ordering::Relaxed) {
            tracing::warn!("{NO_NOTIFICATIONS}");
        }
        State::Disconnected(Instant::now() + LATER)
    }

    /// Sends a notification to itself.
    async fn call(&self) -> Result<(), sqlx::Error> {
        // The channel's name needs no quoting.
        self.ledger()?.ask::<()>(format!("notify {}", self.own)).await?;
        Ok(())
    }

    fn heard_itself(&mut self) {
        self.are_heard.store(true, Ordering::Relaxed);
        let state = std::mem::replace(&mut self.state, State::Disconnected(Instant::now()));
        if let State::Trying(listener, _) | State::Listening(listener, _) = state {
            self.state = State::Listening(listener, Instant::now() + TRIAL);
        }
    }

    /// Begins a check, or ends one without an answer.
    async fn is_due(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Disconnected(Instant::now() + SOON));
        if let State::Listening(listener, _) = state {
            if matches!(timeout(SOON, self.call()).await, Ok(Ok(()))) {
                self.state = State::Trying(listener, Instant::now() + SOON);
            }
            return;
        }
        self.state = self.deaf();
    }
}
