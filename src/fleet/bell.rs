use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// After a failed attempt to listen.
const PAUSE: Duration = Duration::from_millis(500);
/// Notifications that a follower may be behind by; one that is further behind is told that it missed some.
const KEPT: usize = 16;

/// Hears the ledger's notifications on one connection, for all who follow them in this process.
#[derive(Debug)]
pub(super) struct Bell {
    pool: PgPool,
    /// The fleet that is concerned; `None`: any may be.
    rung: broadcast::Sender<Option<Arc<str>>>,
    /// Begins with the first follower: who only asks needs no connection for it.
    listening: OnceLock<JoinHandle<()>>,
}

impl Bell {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, rung: broadcast::Sender::new(KEPT), listening: OnceLock::new() }
    }

    pub(super) fn rings(&self, fleet: &str) -> Rings {
        let heard = self.rung.subscribe();
        self.listening.get_or_init(|| tokio::spawn(listen(self.pool.clone(), self.rung.clone())));
        Rings { fleet: fleet.into(), heard }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        if let Some(task) = self.listening.get() {
            task.abort();
        }
    }
}

async fn listen(pool: PgPool, rung: broadcast::Sender<Option<Arc<str>>>) {
    loop {
        if let Err(error) = listen_once(&pool, &rung).await {
            tracing::debug!(%error, "can't listen to the ledger; it is polled");
            sleep(PAUSE).await;
        }
    }
}

/// Listens until the connection is lost.
async fn listen_once(pool: &PgPool, rung: &broadcast::Sender<Option<Arc<str>>>) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen("cutover").await?;
    // Something may have happened before. Sending fails when nobody follows, which is no harm.
    let _ = rung.send(None);
    while let Some(notification) = listener.try_recv().await? {
        let _ = rung.send(Some(notification.payload().into()));
    }
    Ok(())
}

/// One follower's view of the bell.
#[derive(Debug)]
pub(crate) struct Rings {
    fleet: Arc<str>,
    heard: broadcast::Receiver<Option<Arc<str>>>,
}

impl Rings {
    /// Waits until something may have happened in the fleet. Cancel safe.
    pub(crate) async fn next(&mut self) {
        loop {
            match self.heard.recv().await {
                Ok(Some(fleet)) if fleet != self.fleet => {}
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
