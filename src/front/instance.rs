use std::net::SocketAddr;
use std::sync::Arc;
use std::{fmt, io};

use axum::Router;
use axum::http::request::Parts;
use sqlx::PgPool;
use tokio::net::TcpListener;

use super::NotConfigured;
use super::admin::AdminServer;
use super::bind::bind;
use super::spans::SpanLayer;
use crate::drain::{Drain, DrainReport};
use crate::flags::{Flags, FlagsLayer, Subject};
use crate::health::{Health, Signal};
use crate::metrics::Metrics;
use crate::migration::{Agent, Migration};
use crate::pool::Admission;
use crate::release::Release;

/// Finds the subject of a request's flag decisions.
pub(super) type SubjectOf = Arc<dyn Fn(&Parts) -> Subject + Send + Sync>;

/// A started instance of the service: its parts, and the methods that serve it.
///
/// Probes, metrics and `/drain` are already served on the admin listener. The instance becomes ready when
/// [`serve`](Self::serve) or [`serve_admin`](Self::serve_admin) is called.
pub struct Instance {
    pub(super) release: Release,
    pub(super) listen: SocketAddr,
    /// Fails until the instance is served.
    pub(super) starting: Signal,
    pub(super) admin_server: AdminServer,
    pub(super) health: Health,
    pub(super) metrics: Metrics,
    pub(super) drain: Drain,
    pub(super) flags: Flags,
    pub(super) subject: SubjectOf,
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) admission: Option<Admission>,
    pub(super) postgres: Option<PgPool>,
    #[cfg(feature = "redis")]
    pub(super) redis: Option<crate::redis::RedisPool>,
    #[cfg(feature = "redis")]
    pub(super) sessions: Option<crate::session::RedisStore>,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("release", &self.release)
            .field("listen", &self.listen)
            .field("admin", &self.admin_server.address)
            .field("drain", &self.drain)
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

impl Instance {
    /// The build that runs.
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

    /// Waits until the fleet has admitted this instance, so that a job can write its first row. At once without a migration.
    ///
    /// A build that cannot run the current phase is never admitted. So a job waits for the drain, too:
    ///
    /// ```no_run
    /// # async fn f(instance: &cutover::Instance) {
    /// tokio::select! {
    ///     () = instance.admitted() => {}
    ///     _ = instance.drain().begun() => return,
    /// }
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only waits.
    pub async fn admitted(&self) {
        if let Some(agent) = &self.agent {
            agent.admitted().await;
        }
    }

    /// The service's Postgres.
    ///
    /// # Errors
    ///
    /// [`NotConfigured`] if it was started without one.
    pub fn postgres(&self) -> Result<PgPool, NotConfigured> {
        self.postgres.clone().ok_or(NotConfigured { part: "Postgres", method: "postgres_from_env" })
    }

    /// Admission before the Postgres pool, as a layer for the routes that use it: 503 with `Retry-After` instead of a
    /// wait of more than five seconds. `None` with a pool of the service's own, or without a pool.
    ///
    /// A request holds its place until its handler is done, so it does not belong around streams or routes that do not
    /// use the database.
    pub fn admission(&self) -> Option<Admission> {
        self.admission.clone()
    }

    /// The service's Redis.
    ///
    /// # Errors
    ///
    /// [`NotConfigured`] if it was started without one, or with a pool of another kind: then use that pool.
    #[cfg(feature = "redis")]
    pub fn redis(&self) -> Result<deadpool_redis::Pool, NotConfigured> {
        let pool = self.redis.as_ref().and_then(crate::redis::RedisPool::single_server);
        pool.ok_or(NotConfigured { part: "a pool of one Redis server", method: "redis_from_env" })
    }

    /// Sessions in the service's Redis, for a `SessionManagerLayer` of tower-sessions. Their keys begin with `session:`, the
    /// service's name and a colon. The other options have their defaults.
    ///
    /// # Errors
    ///
    /// [`NotConfigured`] if it was started without Redis.
    #[cfg(feature = "redis")]
    pub fn sessions(&self) -> Result<crate::session::RedisStore, NotConfigured> {
        self.sessions.clone().ok_or(NotConfigured { part: "Redis", method: "redis_from_env" })
    }

    /// Serves `app` on the public listener until the instance has been drained because of SIGTERM, SIGINT or `/drain`. The
    /// process is left to the caller.
    ///
    /// `app` is wrapped in the metrics layer, in a `tracing` span per request (`request`, with method, route, service,
    /// version and the phase of each migration), and in a layer that pins flag decisions to the request. tonic's services
    /// go into the same router by `Routes::into_axum_router`.
    ///
    /// # Errors
    ///
    /// The public address can't be opened, or signal handlers can't be installed. The instance is drained first: it has
    /// left the fleet and given back its connections.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped, it stops accepting at once.
    pub async fn serve(&self, app: Router) -> io::Result<DrainReport> {
        let public = match listener("LISTEN_ADDR", self.listen).await {
            Ok(public) => public,
            Err(error) => {
                self.abandon().await;
                return Err(error);
            }
        };
        let admin = self.admin_server.address;
        tracing::info!(release = %self.release, listen = %self.listen, %admin, "serving");
        let subject = self.subject.clone();
        let flags = FlagsLayer::new(self.flags.clone()).subject(move |request: &Parts| subject(request));
        let spans = SpanLayer::new(&self.release, self.agent.as_deref());
        // One call: a router boxes the service, the future and the body of each layer that it is given.
        let app = app.layer((self.metrics.layer(), spans, flags));
        self.starting.ok();
        let report = self.drain.serve(public, app).await?;
        self.admin_server.ended().await?;
        Ok(report)
    }

    /// The same for a worker that answers no requests: it has no public listener. Its work should hold a [`Drain::work`]
    /// and end soon after [`Drain::begun`].
    ///
    /// # Errors
    ///
    /// The admin listener could not be served.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the probes are served as long as the instance lives.
    pub async fn serve_admin(&self) -> io::Result<DrainReport> {
        tracing::info!(release = %self.release, admin = %self.admin_server.address, "working");
        self.starting.ok();
        let report = self.drain.finished().await;
        self.admin_server.ended().await?;
        Ok(report)
    }

    /// Drains an instance that will not be served: it leaves the fleet and gives back its connections.
    pub(super) async fn abandon(&self) {
        self.drain.cut_short();
        self.drain.finished().await;
    }
}

async fn listener(name: &str, address: SocketAddr) -> io::Result<TcpListener> {
    bind(address).await.map_err(|error| {
        io::Error::new(error.kind(), format!("{name}: could not listen on {address}: {error}"))
    })
}
