//! Notifications of the ledger's database: for speed only, polling is the truth.

use std::time::Duration;

use sqlx::postgres::PgListener;
use tokio::time::{Instant, sleep_until, timeout};

use crate::fleet::{Ledger, unnamed};
use crate::health::{Criticality, Health, Signal};

/// How long listening may take to begin, and an own notification to come back.
const SOON: Duration = Duration::from_secs(2);
/// How often it is tried whether notifications still arrive.
const TRIAL: Duration = Duration::from_secs(30);
/// How long to leave it after they did not.
const LATER: Duration = Duration::from_secs(60);

/// Hears of changes sooner than by polling, where the way to the database carries notifications.
///
/// A pooler in transaction mode accepts LISTEN and then delivers nothing, and a connection that died without a
/// word is silent too. So each instance sends notifications to itself, and says so when they don't arrive.
pub(super) struct Notices {
    ledger: Ledger,
    /// A channel that nobody else listens to.
    own: String,
    state: State,
    signal: Signal,
    /// Once is enough in a log.
    has_warned: bool,
}

enum State {
    /// Nothing is heard; listening begins then.
    Deaf(Instant),
    /// A notification of our own has to arrive before then.
    Trying(PgListener, Instant),
    /// They arrive; the next trial is then.
    Hearing(PgListener, Instant),
}

impl Notices {
    pub(super) fn new(ledger: &Ledger, health: &Health) -> Self {
        let signal = health.signal("ledger_notifications", Criticality::Degrades);
        signal.ok();
        let own = format!("cutover_{:016x}", fastrand::u64(..));
        Self { ledger: ledger.clone(), own, state: State::Deaf(Instant::now()), signal, has_warned: false }
    }

    /// Returns when something was heard of the fleet.
    ///
    /// Cancel safe; called again and again, it also looks after the listening itself.
    pub(super) async fn next(&mut self) {
        loop {
            match &mut self.state {
                State::Deaf(until) => {
                    sleep_until(*until).await;
                    // Should this be dropped half way, the next call waits before it tries again.
                    self.state = State::Deaf(Instant::now() + SOON);
                    match timeout(SOON, self.listen()).await {
                        Ok(Ok(listener)) => self.state = State::Trying(listener, Instant::now() + SOON),
                        _ => self.state = State::Deaf(Instant::now() + SOON),
                    }
                }
                State::Trying(listener, until) | State::Hearing(listener, until) => {
                    tokio::select! {
                        heard = listener.try_recv() => match heard {
                            Ok(Some(notice)) if notice.channel() != self.own => return,
                            Ok(Some(_)) => self.heard_itself(),
                            // The connection is gone; whatever was missed meanwhile is found by looking.
                            _ => {
                                self.state = State::Deaf(Instant::now() + SOON / 4);
                                return;
                            }
                        },
                        () = sleep_until(*until) => self.is_due().await,
                    }
                }
            }
        }
    }

    async fn listen(&self) -> Result<PgListener, sqlx::Error> {
        if cfg!(cutover_break = "agree") {
            // An instance that hears of everything late is what the rule is there for.
            std::future::pending::<()>().await;
        }
        let mut listener = PgListener::connect_with(&self.ledger.pool()).await?;
        listener.listen_all(["cutover", &self.own]).await?;
        self.call().await?;
        Ok(listener)
    }

    /// Sends itself a notification.
    async fn call(&self) -> Result<(), sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        unnamed::query("select pg_notify($1, '')").bind(&self.own).execute(&mut *tx).await?;
        tx.commit().await
    }

    fn heard_itself(&mut self) {
        self.signal.ok();
        let state = std::mem::replace(&mut self.state, State::Deaf(Instant::now()));
        if let State::Trying(listener, _) | State::Hearing(listener, _) = state {
            self.state = State::Hearing(listener, Instant::now() + TRIAL);
        }
    }

    /// The time of a trial has come, or of its end.
    async fn is_due(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Deaf(Instant::now() + SOON));
        if let State::Hearing(listener, _) = state {
            let is_sent = matches!(timeout(SOON, self.call()).await, Ok(Ok(())));
            let until = Instant::now() + SOON;
            if is_sent {
                self.state = State::Trying(listener, until);
            }
            return;
        }
        self.state = State::Deaf(Instant::now() + LATER);
        let reason =
            "notifications don't arrive, as behind a pooler in transaction mode: changes are seen by polling";
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!("{reason}");
        }
        self.signal.warn(reason);
    }
}
