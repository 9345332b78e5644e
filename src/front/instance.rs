use std::net::SocketAddr;
use std::sync::Arc;
use std::{fmt, io};

use axum::Router;
use axum::http::request::Parts;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::NotConfigured;
use super::spans::SpanLayer;
use crate::drain::{Drain, DrainReport};
use crate::flags::{Flags, FlagsLayer, Subject};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::migration::{Agent, Migration};
use crate::pool::{Admission, PoolGuard};
use crate::release::Release;

/// Whom a request's decisions are about.
pub(super) type SubjectOf = Arc<dyn Fn(&Parts) -> Subject + Send + Sync>;

/// A started instance of the service: its parts, and what serves.
pub struct Instance {
    pub(super) release: Release,
    pub(super) listen: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) health: Health,
    pub(super) metrics: Metrics,
    pub(super) drain: Drain,
    pub(super) flags: Flags,
    pub(super) subject: SubjectOf,
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) admission: Option<Admission>,
    pub(super) postgres: Option<PgPool>,
    #[cfg(feature = "redis")]
    pub(super) redis: Option<deadpool_redis::Pool>,
    #[cfg(feature = "redis")]
    pub(super) sessions: Option<crate::session::RedisStore>,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("release", &self.release)
            .field("listen", &self.listen)
            .field("admin", &self.admin)
            .field("drain", &self.drain)
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

impl Instance {
    pub(super) fn leave_when_drained(&self, pool: Option<PoolGuard>) {
        let (agent, flags) = (self.agent.clone(), self.flags.clone());
        // Others may have what is not needed once nothing new is accepted; the last connections go at the end.
        let (end, ended) = oneshot::channel::<()>();
        let drain = self.drain.clone();
        let given_back = tokio::spawn(async move {
            let Some(pool) = pool else { return };
            drain.propagated().await;
            pool.drain();
            // Also when nobody asks: the instance is gone then.
            let _ = ended.await;
            pool.leave().await;
        });
        self.drain.on_drain("fleet", move |_| async move {
            if let Some(agent) = agent
                && let Err(error) = agent.leave().await
            {
                tracing::warn!(%error, "could not leave the fleet; the lease runs out by itself");
            }
            let _ = end.send(());
            let _ = given_back.await;
        });
        self.drain.on_drain("flags", move |_| async move { flags.close().await });
    }

    /// What runs here.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// Health, to add signals and checks.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Metrics, to add families of the service's own.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The drain, to add work to wait for and hooks.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// The flags.
    pub fn flags(&self) -> &Flags {
        &self.flags
    }

    /// The migration of this name, if it was declared.
    pub fn migration(&self, name: &str) -> Option<Migration> {
        self.agent.as_ref()?.migration(name)
    }

    /// The service's Postgres.
    ///
    /// # Errors
    ///
    /// [`NotConfigured`] when it was started without one.
    pub fn postgres(&self) -> Result<PgPool, NotConfigured> {
        self.postgres.clone().ok_or(NotConfigured { part: "Postgres", method: "postgres_from_env" })
    }

    /// Admission before the Postgres pool, as a layer for the routes that use it: 503 with `Retry-After` instead of a
    /// wait of more than five seconds. `None` with a pool of one's own, or without one.
    ///
    /// A request holds its place until its handler is done, so it does not belong around streams or routes that ask no
    /// database.
    pub fn admission(&self) -> Option<Admission> {
        self.admission.clone()
    }

    /// The service's Redis.
    ///
    /// # Errors
    ///
    /// [`NotConfigured`] when it was started without one.
    #[cfg(feature = "redis")]
    pub fn redis(&self) -> Result<deadpool_redis::Pool, NotConfigured> {
        self.redis.clone().ok_or(NotConfigured { part: "Redis", method: "redis_from_env" })
    }

    /// Sessions in the service's Redis, for a `SessionManagerLayer` of tower-sessions, with the default options.
    ///
    /// # Errors
    ///
    /// [`NotConfigured`] when it was started without Redis.
    #[cfg(feature = "redis")]
    pub fn sessions(&self) -> Result<crate::session::RedisStore, NotConfigured> {
        self.sessions.clone().ok_or(NotConfigured { part: "Redis", method: "redis_from_env" })
    }

    /// Serves `app` on the public listener, and probes, metrics and `/drain` on the admin one, until the
    /// instance has been drained because of SIGTERM, SIGINT or `/drain`. The process is left to the caller.
    ///
    /// `app` is wrapped in the metrics layer, in a `tracing` span per request (`request`, with method, route, service,
    /// version and the phase of each migration), and in a layer that pins flag decisions to the request. tonic's
    /// services go into the same router by `Routes::into_axum_router`.
    ///
    /// # Errors
    ///
    /// An address that can't be bound, or signal handlers that can't be installed.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped, it stops accepting at once.
    pub async fn serve(&self, app: Router) -> io::Result<DrainReport> {
        let public = bind("LISTEN_ADDR", self.listen).await?;
        let admin = bind("ADMIN_ADDR", self.admin).await?;
        tracing::info!(release = %self.release, listen = %self.listen, admin = %self.admin, "serving");
        let subject = self.subject.clone();
        let flags = FlagsLayer::new(self.flags.clone()).subject(move |request: &Parts| subject(request));
        let spans = SpanLayer::new(&self.release, self.agent.as_deref());
        let app = app.layer(flags).layer(spans).layer(self.metrics.layer());
        let (report, ()) =
            tokio::try_join!(self.drain.serve(public, app), self.drain.serve_admin(admin, self.pages()))?;
        Ok(report)
    }

    /// The same for a worker that answers no requests: only probes, metrics and `/drain` are served. Its work should
    /// hold a [`Drain::work`] and end soon after [`Drain::begun`].
    ///
    /// # Errors
    ///
    /// As [`serve`](Self::serve).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped, nobody sees the probes any more.
    pub async fn serve_admin(&self) -> io::Result<DrainReport> {
        let admin = bind("ADMIN_ADDR", self.admin).await?;
        tracing::info!(release = %self.release, admin = %self.admin, "working");
        self.drain.serve_admin(admin, self.pages()).await?;
        Ok(self.drain.finished().await)
    }

    fn pages(&self) -> Router {
        self.health.router().merge(self.metrics.router()).merge(self.drain.router())
    }
}

async fn bind(name: &str, address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{name}: can't listen on {address}: {error}")))
}
