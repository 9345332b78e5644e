use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::request::Parts;
use tokio::net::TcpListener;

use crate::drain::{Drain, DrainReport};
use crate::flags::{Flags, FlagsLayer, Subject};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::migration::control::{Agent, Migration};
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
    pub(super) fn leave_when_drained(&self) {
        let (agent, flags) = (self.agent.clone(), self.flags.clone());
        self.drain.on_drain("fleet", move |_| async move {
            if let Some(agent) = agent
                && let Err(error) = agent.leave().await
            {
                tracing::warn!(%error, "could not leave the fleet; the lease runs out by itself");
            }
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

    /// Serves `app` on the public listener, and probes, metrics and `/drain` on the admin one, until the
    /// instance has been drained because of SIGTERM, SIGINT or `/drain`. The process is left to the caller.
    ///
    /// `app` is wrapped in the metrics layer and in one that pins flag decisions to the request.
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
        let app = app.layer(flags).layer(self.metrics.layer());
        let pages = self.health.router().merge(self.metrics.router()).merge(self.drain.router());
        let (report, ()) =
            tokio::try_join!(self.drain.serve(public, app), self.drain.serve_admin(admin, pages))?;
        Ok(report)
    }
}

async fn bind(name: &str, address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{name}: can't listen on {address}: {error}")))
}
