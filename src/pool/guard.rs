use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::bound::Bound;
use super::share::{ShareError, ShareOptions};
use super::{Admission, PoolWaitMetrics};
use crate::ConfigError;
use crate::fleet::Fleet;
use crate::ledger::{Ledger, LedgerError, ShareBudget, ShareRequest, is_lock_timeout, pooler_at};
use crate::scrape::Scraped;

/// A changed DNS record is followed within this time.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// A leased share of the server's connections. Make the pool at once: the lease is renewed only from then on.
#[derive(Debug)]
pub struct ConnectionShare {
    ledger: Ledger,
    request: ShareRequest,
    renew_every: Duration,
    start_within: Duration,
    granted: u32,
}

impl ConnectionShare {
    /// Leases a share. Waits at most [`ShareOptions::start_within`] until other instances have given back enough
    /// connections for `min_connections`.
    ///
    /// # Errors
    ///
    /// [`ShareError::Config`], [`ShareError::Budget`] with the numbers, [`ShareError::Pooler`] if the ledger's connections
    /// go through a pooler, [`ShareError::Ledger`].
    ///
    /// # Cancel safety
    ///
    /// A request that a dropped future has left in the ledger ends with its lease.
    pub async fn lease(fleet: &Fleet, options: &ShareOptions) -> Result<Self, ShareError> {
        Self::lease_as(fleet, Self::new_name(fleet.release().service()), options).await
    }

    /// A unique name for a share.
    pub fn new_name(service: &str) -> String {
        let service: String = service.chars().filter(char::is_ascii).take(40).collect();
        format!("{service}-{:016x}", fastrand::u64(..))
    }

    /// [`lease`](Self::lease) under a name of [`ConnectionShare::new_name`], for a pool that was made with it before.
    ///
    /// # Errors
    ///
    /// As [`ConnectionShare::lease`].
    ///
    /// # Cancel safety
    ///
    /// As [`ConnectionShare::lease`].
    pub async fn lease_as(fleet: &Fleet, name: String, options: &ShareOptions) -> Result<Self, ShareError> {
        ConfigError::check(options.problems())?;
        if let Some(pooler) = fleet.ledger().pooler() {
            return Err(ShareError::Pooler { reason: pooler.to_string() });
        }
        let request = ShareRequest {
            name,
            fleet: fleet.name().to_owned(),
            min_connections: options.min_connections,
            max_connections: options.max_connections,
            spare: options.spare,
            lease_seconds: fleet.options().lease.as_secs_f64(),
        };
        let (ledger, renew_every) = (fleet.ledger().clone(), fleet.options().renew_every);
        let until = Instant::now() + options.start_within;
        // The last one that the ledger gave: it gives none while there is nothing to decide.
        let mut known: Option<ShareBudget> = None;
        let mut pause = renew_every / 8;
        loop {
            let error = match ledger.settle(&request, 0).await {
                Ok((settled, _)) if settled.granted >= request.min_connections => {
                    let (start_within, granted) = (options.start_within, settled.granted);
                    return Ok(Self { ledger, request, renew_every, start_within, granted });
                }
                Ok((_, budget)) => {
                    if known.is_none() {
                        let error = shortage(budget.as_ref(), &request);
                        tracing::warn!(%error, "waiting for a share of the server's connections");
                    }
                    known = budget.or(known);
                    shortage(known.as_ref(), &request)
                }
                // Many instances start together, and each of them waits for the others' decisions.
                Err(LedgerError::Database(error)) if is_lock_timeout(&error) => {
                    ShareError::Ledger(LedgerError::Database(error))
                }
                Err(error) => return Err(error.into()),
            };
            if Instant::now() >= until {
                ledger.give_back(&request.name).await?;
                return Err(error);
            }
            sleep(pause).await;
            // Others give their connections back when they renew their shares.
            pause = (pause * 2).min(renew_every / 2);
        }
    }

    /// The share's name. Its connections have it as `application_name`.
    pub fn name(&self) -> &str {
        &self.request.name
    }

    /// A `sqlx` pool that never has more connections than the share, however it is used.
    ///
    /// The share sets `max_connections`, `min_connections` and the `application_name`; the rest of `options` is kept.
    /// Places beyond the share are checked out, and [`PgPool::size`] counts them. For each of them a connection is opened
    /// and ended once, one after the other, before this returns.
    ///
    /// # Errors
    ///
    /// [`ShareError::Timeout`] if the server did not answer within `start_within`, [`ShareError::Pooler`] if the
    /// connections go through a pooler, [`ShareError::Ledger`].
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
        let most = self.request.max_connections;
        let pool = options
            .max_connections(most)
            .min_connections(0)
            .max_lifetime(lifetime)
            .connect_lazy_with(connect.application_name(&self.request.name));
        let guard = self.attach(pool.clone()).await?;
        Ok((pool, guard))
    }

    /// Limits an existing `sqlx` pool to the share. The pool must be lazy and unused, and have the share's
    /// `max_connections` and its name as the `application_name`.
    ///
    /// # Errors
    ///
    /// As [`ConnectionShare::sqlx`].
    ///
    /// # Cancel safety
    ///
    /// The share ends with its lease.
    pub async fn attach(self, pool: PgPool) -> Result<PoolGuard, ShareError> {
        // The guard ends connections. Behind a pooler those would not be this pool's.
        if let Some(pooler) = pooler_at(&pool.connect_options()).await? {
            self.ledger.give_back(&self.request.name).await?;
            return Err(ShareError::Pooler { reason: pooler.to_string() });
        }
        let limit = self.start_within;
        let bound = timeout(limit, Bound::sqlx(pool, self.request.max_connections, self.granted));
        let bound = bound.await.map_err(|_| ShareError::Timeout { limit })?;
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
        config.application_name(&self.request.name);
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

fn shortage(budget: Option<&ShareBudget>, request: &ShareRequest) -> ShareError {
    let ShareBudget { instances, needed, connections, reckoning } = budget.cloned().unwrap_or_default();
    ShareError::Budget {
        instances,
        needed,
        min_connections: request.min_connections,
        missing: needed.saturating_sub(connections),
        reckoning,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    Draining,
    Leaving,
}

/// Keeps a pool within its share by a background task. The task ends with [`PoolGuard::leave`] or when the pool is closed.
/// Dropping this handle does not end it, because the pool would then exceed its share.
#[derive(Debug)]
pub struct PoolGuard {
    name: String,
    places: Arc<Semaphore>,
    granted: watch::Receiver<u32>,
    max: u32,
    stage: watch::Sender<Stage>,
    task: JoinHandle<()>,
}

impl PoolGuard {
    fn start(share: ConnectionShare, bound: Bound) -> Self {
        let (stage, stages) = watch::channel(Stage::Serving);
        let (limit, granted) = watch::channel(share.granted);
        let places = Arc::new(Semaphore::new(usize::try_from(share.granted).unwrap_or(usize::MAX)));
        let name = share.request.name.clone();
        let max = share.request.max_connections;
        let keeper = Keeper { share, max, bound, places: Arc::clone(&places), limit, debt: 0 };
        Self { name, places, granted, max, stage, task: tokio::spawn(keeper.keep(stages)) }
    }

    /// The share's name. Its connections have it as `application_name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Follows how many connections the pool may have.
    pub fn granted(&self) -> watch::Receiver<u32> {
        self.granted.clone()
    }

    /// Registers `cutover_pool_share_connections{pool}` and `cutover_pool_share_max_connections{pool}` for the pool of this
    /// name.
    ///
    /// # Errors
    ///
    /// The registry's error, if a pool of this name is already registered.
    pub fn register(&self, registry: &prometheus::Registry, pool: &str) -> Result<(), prometheus::Error> {
        let mut scraped = Scraped::with([("pool", pool.to_owned())]);
        let granted = self.granted();
        let help = "Connections that the pool may have at the moment.";
        scraped.gauge("cutover_pool_share_connections", help, &[], move |samples| {
            samples.value(&[], f64::from(*granted.borrow()));
        })?;
        let max = self.max;
        let help = "Connections that the pool asks for.";
        scraped.gauge("cutover_pool_share_max_connections", help, &[], move |samples| {
            samples.value(&[], f64::from(max));
        })?;
        scraped.register(registry)
    }

    /// Admission to this pool, with a wait of at most `limit`. All admissions of a pool share its places.
    pub fn admission(&self, limit: Duration, waits: PoolWaitMetrics) -> Admission {
        Admission::new(Arc::clone(&self.places), limit, waits)
    }

    /// Gives back connections as requests end. Call it when a drain no longer accepts connections. Twice as many as are in
    /// use are kept, and at least two, because a request may need a second connection beside the one that it holds.
    pub fn drain(&self) {
        self.stage.send_replace(Stage::Draining);
    }

    /// Closes the pool, waits for its connections and gives the share back.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it continues in the background.
    pub async fn leave(self) {
        self.stage.send_replace(Stage::Leaving);
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the task that keeps the pool within its share ended early");
        }
    }
}

struct Keeper {
    share: ConnectionShare,
    /// `max_connections` while the instance serves.
    max: u32,
    bound: Bound,
    places: Arc<Semaphore>,
    /// How many connections the pool may have.
    limit: watch::Sender<u32>,
    /// Places that are in use and will be removed when they come free.
    debt: usize,
}

impl Keeper {
    async fn keep(mut self, mut stages: watch::Receiver<Stage>) {
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.bound.gave_back() => {}
                // Without a handle no stage can come.
                Ok(()) = stages.changed() => {}
            }
            let stage = *stages.borrow();
            if stage == Stage::Leaving || self.bound.is_closed() {
                break;
            }
            if stage == Stage::Draining {
                let needed = self.bound.in_use().saturating_mul(2).clamp(self.max.min(2), self.max);
                (self.share.request.min_connections, self.share.request.max_connections) = (1, needed);
            }
            let settled = timeout(self.share.renew_every * 2, self.settle()).await;
            pause = match settled {
                Ok(Ok(true)) if stage == Stage::Serving => self.share.renew_every,
                Ok(Ok(_)) => self.share.renew_every / 8,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "could not renew the share of connections; the pool keeps its size");
                    self.share.renew_every / 4
                }
                Err(_) => Duration::ZERO,
            };
        }
        let Self { share, bound, places, limit, .. } = self;
        places.close();
        bound.close().await;
        limit.send_replace(0);
        if let Err(error) = share.ledger.give_back(&share.request.name).await {
            tracing::warn!(%error, "could not give back the share of connections; its lease expires by itself");
        }
    }

    /// Renews the share and resizes the pool; `false` if the pool does not have its target size yet.
    async fn settle(&mut self) -> Result<bool, LedgerError> {
        let (settled, _) = self.share.ledger.settle(&self.share.request, self.bound.holding()).await?;
        // Growth is limited to the committed grant. A reduction reaches the ledger with the next renewal.
        let to = settled.target.min(settled.granted);
        self.bound.resize(to).await;
        self.set_places(to);
        Ok(self.bound.holding() == settled.target)
    }

    /// Sets the number of places for admission to the pool's size.
    fn set_places(&mut self, to: u32) {
        let before = self.limit.send_replace(to);
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
