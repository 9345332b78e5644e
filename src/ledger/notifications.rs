//! Notifications of the ledger's database: for speed only, polling is the truth.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use sqlx::postgres::{PgListener, PgRow};
use sqlx::{PgConnection, Row};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::connections::Connections;
use super::unprepared;

/// How long listening may take to begin, and an own notification to come back.
const SOON: Duration = Duration::from_secs(2);
/// How often it is tried whether notifications still arrive.
const TRIAL: Duration = Duration::from_secs(30);
/// How long to leave it after they did not.
const LATER: Duration = Duration::from_secs(60);
/// Notifications that a follower may be behind by; one that is further behind learns that it missed some.
const KEPT: usize = 16;

/// What is wrong when [`Notifications::are_heard`] is false.
pub(crate) const NO_NOTIFICATIONS: &str =
    "notifications don't arrive, as behind a pooler in transaction mode: changes are seen by polling";

/// Tells the fleet's instances, when the transaction commits, to look at the ledger now instead of at their next poll.
pub(crate) async fn send(tx: &mut PgConnection, fleet: &str) -> Result<(), sqlx::Error> {
    unprepared::query("select pg_notify('cutover', $1)").bind(fleet).execute(tx).await?;
    Ok(())
}

/// The fleet that something happened in; `None`: it may be any.
type Heard = Option<Arc<str>>;

/// Listens on one connection for all who follow a ledger in this process. It begins with the first of them.
#[derive(Default)]
pub(crate) struct Subscription {
    begun: OnceLock<(broadcast::Sender<Heard>, Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Subscription {
    pub(crate) fn follow(&self, ledger: &Arc<Connections>, fleet: &str) -> Notifications {
        let (tx, are_heard, _) = self.begun.get_or_init(|| {
            let tx = broadcast::Sender::new(KEPT);
            let are_heard = Arc::new(AtomicBool::new(true));
            let listener = Listener {
                // The ledger's last handle ends the listening.
                ledger: Arc::downgrade(ledger),
                own: format!("cutover_{:016x}", fastrand::u64(..)),
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

/// One follower's view of what is heard.
#[derive(Debug)]
pub(crate) struct Notifications {
    fleet: Arc<str>,
    tx: broadcast::Receiver<Heard>,
    are_heard: Arc<AtomicBool>,
}

impl Notifications {
    /// Waits until something may have happened in the fleet. Cancel safe.
    pub(crate) async fn next(&mut self) {
        loop {
            match self.tx.recv().await {
                Ok(Some(fleet)) if fleet != self.fleet => {}
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// Whether notifications arrive, as far as is known.
    pub(crate) fn are_heard(&self) -> bool {
        self.are_heard.load(Ordering::Relaxed)
    }
}

/// Hears of changes sooner than by polling, where the way to the database carries notifications.
///
/// A pooler in transaction mode accepts LISTEN and then delivers to whoever has the session at the moment: drivers that
/// don't expect it take it for an error. So it looks first whether its session is its own. A connection that died without a
/// word is silent, so it sends notifications to itself, and says so when they don't arrive.
struct Listener {
    ledger: Weak<Connections>,
    /// A channel that nobody else listens to.
    own: String,
    state: State,
    are_heard: Arc<AtomicBool>,
}

enum State {
    /// Nothing is heard; listening begins then.
    Disconnected(Instant),
    /// A notification of our own has to arrive before then.
    Trying(PgListener, Instant),
    /// They arrive; the next trial is then.
    Listening(PgListener, Instant),
}

impl Listener {
    async fn run(mut self, tx: broadcast::Sender<Heard>) {
        loop {
            let heard = self.next().await;
            // Fails when nobody follows at the moment, which is no harm.
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
                            // The connection is gone; whatever was missed meanwhile is found by looking.
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

    /// `None` where it would be no use.
    async fn listen(&self) -> Result<Option<PgListener>, sqlx::Error> {
        if cfg!(cutover_break = "agree") {
            // An instance that hears of everything late is what the rule is there for.
            std::future::pending::<()>().await;
        }
        let pool = self.ledger()?.pool();
        let mut listener = PgListener::connect_with(&pool).await?;
        if self.is_shared(&mut listener).await? {
            return Ok(None);
        }
        listener.listen_all(["cutover", &self.own]).await?;
        self.call().await?;
        Ok(Some(listener))
    }

    /// Whether the session changes from one transaction to the next, or is somebody else's in between.
    async fn is_shared(&self, listener: &mut PgListener) -> Result<bool, sqlx::Error> {
        const WHO: &str = "select pg_backend_pid()";
        let pid = |row: PgRow| row.try_get::<i32, _>(0);
        let first = pid(sqlx::raw_sql(WHO).fetch_one(&mut *listener).await?)?;
        for _ in 0..3 {
            let others = self.ledger()?.ask(WHO.into()).await?.into_iter().map(pid).next().transpose()?;
            let mine = pid(sqlx::raw_sql(WHO).fetch_one(&mut *listener).await?)?;
            if mine != first || others == Some(first) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Says that nothing is heard, once.
    fn deaf(&self) -> State {
        if self.are_heard.swap(false, Ordering::Relaxed) {
            tracing::warn!("{NO_NOTIFICATIONS}");
        }
        State::Disconnected(Instant::now() + LATER)
    }

    /// Sends itself a notification.
    async fn call(&self) -> Result<(), sqlx::Error> {
        // The channel is one of our own names.
        self.ledger()?.ask(format!("notify {}", self.own)).await?;
        Ok(())
    }

    fn heard_itself(&mut self) {
        self.are_heard.store(true, Ordering::Relaxed);
        let state = std::mem::replace(&mut self.state, State::Disconnected(Instant::now()));
        if let State::Trying(listener, _) | State::Listening(listener, _) = state {
            self.state = State::Listening(listener, Instant::now() + TRIAL);
        }
    }

    /// The time of a trial has come, or of its end.
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
