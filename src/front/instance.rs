use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;

use crate::drain::{Drain, DrainReport};
use crate::flags::{Flags, FlagsLayer};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::migration::control::{Agent, Migration};
use crate::release::Release;

/// A started instance of the service: its parts, and what serves.
#[derive(Debug)]
pub struct Instance {
    release: Release,
    listen: SocketAddr,
    admin: SocketAddr,
    health: Health,
    metrics: Metrics,
    drain: Drain,
    flags: Flags,
    agent: Option<Arc<Agent>>,
}

impl Instance {
    #[expect(clippy::too_many_arguments, reason = "the builder hands over every part, once")]
    pub(super) fn new(
        release: Release,
        listen: SocketAddr,
        admin: SocketAddr,
        health: Health,
        metrics: Metrics,
        drain: Drain,
        flags: Flags,
        agent: Option<Agent>,
    ) -> Self {
        let agent = agent.map(Arc::new);
        let (leaving, closing) = (agent.clone(), flags.clone());
        drain.on_drain("fleet", move |_| async move {
            if let Some(agent) = leaving
                && let Err(error) = agent.leave().await
            {
                tracing::warn!(%error, "could not leave the fleet; the lease runs out by itself");
            }
        });
        drain.on_drain("flags", move |_| async move { closing.close().await });
        Self { release, listen, admin, health, metrics, drain, flags, agent }
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
        let app = app.layer(FlagsLayer::new(self.flags.clone())).layer(self.metrics.layer());
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
