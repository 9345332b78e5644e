use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::arithmetic::{Decision, decide};
use super::bound::Bound;
use super::{Admission, PoolWaitMetrics};
use crate::fleet::Fleet;
use crate::ledger::{Ledger, LedgerError, ShareRequest, ShareTable};

/// A changed DNS record is followed within this time.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// How many connections an instance asks for.
#[derive(Debug, Clone)]
pub struct ShareOptions {
    /// Without so many it does not start. Default 1.
    pub min_connections: u32,
    /// It never has more. Default 10.
    pub max_connections: u32,
    /// Connections of the server left free: for people, and for the moment in which a closed one is still ending. Default 3.
    pub spare: u32,
    /// How long a start waits until others have made room. Default 30 s.
    pub start_within: Duration,
}

impl Default for ShareOptions {
    fn default() -> Self {
        Self { min_connections: 1, max_connections: 10, spare: 3, start_within: Duration::from_secs(30) }
    }
}

/// Why there is no share.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The options make no sense.
    #[error("{0}")]
    Options(String),
    /// The server has not enough connections for the fleet.
    #[error(
        "the fleet's {instances} pools need at least {needed} connections, this one {min_connections} of them, and nobody made \
         room in time. {reckoning}. Lower `min_connections`, or raise the limit by {missing}"
    )]
    Budget {
        /// Pools that are open or still ending, this one among them.
        instances: usize,
        /// The sum of what they need at least.
        needed: u32,
        /// What this one needs at least.
        min_connections: u32,
        /// How much the limit is too low for that.
        missing: u32,
        /// What the server allows, in words.
        reckoning: String,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The `deadpool` pool could not be built.
    #[cfg(feature = "deadpool")]
    #[error("the pool: {0}")]
    Pool(#[from] deadpool_postgres::BuildError),
}

impl ShareOptions {
    fn check(&self) -> Result<(), ShareError> {
        let mut problems = Vec::new();
        if self.min_connections == 0 {
            problems.push("pool.min_connections: 0 connections serve nobody: use 1 or more".to_owned());
        }
        if self.max_connections < self.min_connections {
            problems.push(format!(
                "pool.max_connections: {} is less than pool.min_connections ({})",
                self.max_connections, self.min_connections
            ));
        }
        if problems.is_empty() { Ok(()) } else { Err(ShareError::Options(problems.join("; "))) }
    }
}

/// A share of the server's connections, of which a pool is to be made at once: its lease is renewed from then on.
#[derive(Debug)]
pub struct ConnectionShare {
    ledger: Ledger,
    wish: ShareRequest,
    renew_every: Duration,
    start_within: Duration,
    granted: u32,
}

impl ConnectionShare {
    /// Leases a share, waiting until others have made room for at least `min_connections`.
    ///
    /// # Errors
    ///
    /// [`ShareError::Options`], [`ShareError::Budget`] with the numbers, [`ShareError::Ledger`].
    ///
    /// # Cancel safety
    ///
    /// What a dropped future leaves behind ends with the lease.
    pub async fn lease(fleet: &Fleet, options: &ShareOptions) -> Result<Self, ShareError> {
        Self::lease_as(fleet, Self::new_name(fleet.release().service()), options).await
    }

    /// A name for a share, which no other one has.
    pub fn new_name(service: &str) -> String {
        let service: String = service.chars().filter(char::is_ascii).take(40).collect();
        format!("{service}-{:016x}", fastrand::u64(..))
    }

    /// The same under a name of [`ConnectionShare::new_name`], for a pool that was made with it before.
    ///
    /// # Errors
    ///
    /// As [`ConnectionShare::lease`].
    ///
    /// # Cancel safety
    ///
    /// As [`ConnectionShare::lease`].
    pub async fn lease_as(fleet: &Fleet, name: String, options: &ShareOptions) -> Result<Self, ShareError> {
        options.check()?;
        let wish = ShareRequest {
            name,
            fleet: fleet.name().to_owned(),
            min_connections: options.min_connections,
            max_connections: options.max_connections,
            spare: options.spare,
            lease_seconds: fleet.options().lease.as_secs_f64(),
        };
        let (ledger, renew_every) = (fleet.ledger().clone(), fleet.options().renew_every);
        let until = Instant::now() + options.start_within;
        let mut is_first = true;
        loop {
            let (book, granted) = ledger.settle(&wish, |book| decide(book, 0).granted).await?;
            if granted >= wish.min_connections {
                let start_within = options.start_within;
                return Ok(Self { ledger, wish, renew_every, start_within, granted });
            }
            let error = short(&book, &wish);
            if Instant::now() >= until {
                ledger.give_back(&wish.name).await?;
                return Err(error);
            }
            if is_first {
                tracing::warn!(%error, "waiting for a share of the connections");
                is_first = false;
            }
            sleep(renew_every / 8).await;
        }
    }

    /// The share's name, which its connections have as `application_name`.
    pub fn name(&self) -> &str {
        &self.wish.name
    }

    /// A `sqlx` pool that never has more connections than the share, however it is used.
    ///
    /// `max_connections`, `min_connections` and the `application_name` are the share's business; the rest of `options`
    /// is kept. Places beyond the share are checked out, and [`PgPool::size`] counts them. For each of them a connection
    /// is opened and ended once, one after the other, before this returns.
    ///
    /// # Errors
    ///
    /// [`ShareError::Ledger`] when the server did not answer within `start_within`.
    ///
    /// # Cancel safety
    ///
    /// The share ends with its lease.
    pub async fn sqlx(
        self,
        options: PgPoolOptions,
        connect: PgConnectOptions,
    ) -> Result<(PgPool, PoolGuard), ShareError> {
        let lifetime = options.get_max_lifetime().unwrap_or(MAX_LIFETIME);
        let most = self.wish.max_connections;
        let pool = options
            .max_connections(most)
            .min_connections(0)
            .max_lifetime(lifetime)
            .connect_lazy_with(connect.application_name(&self.wish.name));
        let guard = self.hold(pool.clone()).await?;
        Ok((pool, guard))
    }

    /// Holds a `sqlx` pool to the share that was made lazily, with `max_connections` as its `max_connections` and the share's name
    /// as its `application_name`, and that has not been used.
    ///
    /// # Errors
    ///
    /// As [`ConnectionShare::sqlx`].
    ///
    /// # Cancel safety
    ///
    /// The share ends with its lease.
    pub async fn hold(self, pool: PgPool) -> Result<PoolGuard, ShareError> {
        let bound = timeout(self.start_within, Bound::sqlx(pool, self.wish.max_connections, self.granted));
        let bound = bound.await.map_err(|_| LedgerError::from(sqlx::Error::PoolTimedOut))?;
        Ok(PoolGuard::start(self, bound))
    }

    /// A `deadpool-postgres` pool that follows the share. The `application_name` is the share's.
    ///
    /// # Errors
    ///
    /// [`ShareError::Pool`].
    #[cfg(feature = "deadpool")]
    pub fn deadpool<T>(
        self,
        mut config: tokio_postgres::Config,
        tls: T,
    ) -> Result<(deadpool_postgres::Pool, PoolGuard), ShareError>
    where
        T: tokio_postgres::tls::MakeTlsConnect<tokio_postgres::Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send + Sync,
        T::TlsConnect: Send + Sync,
        <T::TlsConnect as tokio_postgres::tls::TlsConnect<tokio_postgres::Socket>>::Future: Send,
    {
        config.application_name(&self.wish.name);
        let manager = deadpool_postgres::Manager::new(config, tls);
        let size = usize::try_from(self.granted).unwrap_or(usize::MAX);
        let pool = deadpool_postgres::Pool::builder(manager)
            .runtime(deadpool_postgres::Runtime::Tokio1)
            .max_size(size)
            .build()?;
        let bound = Bound::Deadpool { pool: pool.clone(), max_lifetime: MAX_LIFETIME };
        Ok((pool, PoolGuard::start(self, bound)))
    }
}

fn short(book: &ShareTable, wish: &ShareRequest) -> ShareError {
    let needed: u32 =
        book.shares.iter().map(|share| if share.alive { share.min_connections } else { share.held }).sum();
    ShareError::Budget {
        instances: book.shares.len(),
        needed,
        min_connections: wish.min_connections,
        missing: needed.saturating_sub(book.capacity),
        reckoning: book.reckoning.clone(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    Draining,
    Leaving,
}

/// Keeps a pool within its share, in a task that goes on until [`PoolGuard::leave`] or until the pool is closed, also when
/// this handle is dropped: an unguarded pool would be the hazard.
#[derive(Debug)]
pub struct PoolGuard {
    name: String,
    places: Arc<Semaphore>,
    granted: watch::Receiver<u32>,
    stage: watch::Sender<Stage>,
    task: JoinHandle<()>,
}

impl PoolGuard {
    fn start(share: ConnectionShare, bound: Bound) -> Self {
        let (stage, stages) = watch::channel(Stage::Serving);
        let (told, granted) = watch::channel(share.granted);
        let places = Arc::new(Semaphore::new(usize::try_from(share.granted).unwrap_or(usize::MAX)));
        let name = share.wish.name.clone();
        let most = share.wish.max_connections;
        let keeper = Keeper { share, most, bound, places: Arc::clone(&places), told, debt: 0 };
        Self { name, places, granted, stage, task: tokio::spawn(keeper.keep(stages)) }
    }

    /// The share's name, which its connections have as `application_name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Follows how many connections the pool may have.
    pub fn granted(&self) -> watch::Receiver<u32> {
        self.granted.clone()
    }

    /// Admission before this pool's queue, waiting at most for `limit`. All of them share the places.
    pub fn admission(&self, limit: Duration, waits: PoolWaitMetrics) -> Admission {
        Admission::new(Arc::clone(&self.places), limit, waits)
    }

    /// Gives connections back as requests end: call it once a drain accepts nothing new. Twice as many as are in use stay,
    /// and two at least, because a request may need another one beside the one that it holds.
    pub fn drain(&self) {
        self.stage.send_replace(Stage::Draining);
    }

    /// Closes the pool, waits for its connections and gives the share back.
    ///
    /// # Cancel safety
    ///
    /// Safe: it goes on in the background.
    pub async fn leave(self) {
        self.stage.send_replace(Stage::Leaving);
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the pool's keeper ended early");
        }
    }
}

struct Keeper {
    share: ConnectionShare,
    /// What it asks for while it serves.
    most: u32,
    bound: Bound,
    places: Arc<Semaphore>,
    told: watch::Sender<u32>,
    /// Places that are still to be taken from who holds them.
    debt: usize,
}

impl Keeper {
    async fn keep(mut self, mut stages: watch::Receiver<Stage>) {
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.bound.gave_back() => {}
                // Without a handle there is nobody left to say anything.
                Ok(()) = stages.changed() => {}
            }
            let stage = *stages.borrow();
            if stage == Stage::Leaving || self.bound.is_closed() {
                break;
            }
            if stage == Stage::Draining {
                let needed = self.bound.in_use().saturating_mul(2).clamp(self.most.min(2), self.most);
                (self.share.wish.min_connections, self.share.wish.max_connections) = (1, needed);
            }
            let settled = timeout(self.share.renew_every * 2, self.settle()).await;
            pause = match settled {
                Ok(Ok(true)) if stage == Stage::Serving => self.share.renew_every,
                Ok(Ok(_)) => self.share.renew_every / 8,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "could not renew the share of connections; keeping it as it is");
                    self.share.renew_every / 4
                }
                Err(_) => Duration::ZERO,
            };
        }
        let Self { share, bound, places, .. } = self;
        places.close();
        bound.close().await;
        if let Err(error) = share.ledger.give_back(&share.wish.name).await {
            tracing::warn!(%error, "could not give the share back; it ends with its lease");
        }
    }

    /// Renews the share and lets the pool follow; `false` when it is not yet what it should be.
    async fn settle(&mut self) -> Result<bool, LedgerError> {
        let holding = self.bound.holding();
        let mut decision = Decision { target: holding, granted: holding };
        let decided = &mut decision;
        self.share
            .ledger
            .settle(&self.share.wish, move |book| {
                *decided = decide(book, holding);
                decided.granted
            })
            .await?;
        // Up to what was granted, which is committed; or down to the target, which the next renewal tells.
        let to = decision.target.min(decision.granted);
        self.bound.resize(to).await;
        self.admit(to);
        Ok(self.bound.holding() == decision.target)
    }

    /// Has as many places before the pool as it has connections.
    fn admit(&mut self, to: u32) {
        let before = self.told.send_replace(to);
        let (to, before) = (usize::try_from(to).unwrap_or(0), usize::try_from(before).unwrap_or(0));
        if to >= before {
            let paid = self.debt.min(to - before);
            self.debt -= paid;
            self.places.add_permits(to - before - paid);
        } else {
            self.debt += before - to;
        }
        self.debt -= self.places.forget_permits(self.debt);
    }
}
