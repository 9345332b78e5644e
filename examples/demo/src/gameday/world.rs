//! The servers of a scenario, behind gates.

use std::sync::Arc;

use cutover_testkit::{Postgres, PostgresOptions, Proxy, Redis, Unleash, UnleashAdmin};

use crate::{
    database::Database,
    failure::{During, Failure, Result},
    flags::Switchboard,
    proxy::LoadBalancer,
    servers::{Servers, Throwaway},
};

/// Servers that all scenarios share, because Unleash takes long to start.
pub(crate) struct Shared {
    pub(crate) unleash: Unleash,
    _postgres: Postgres,
}

impl Shared {
    pub(crate) async fn start() -> Result<Self> {
        let postgres = Postgres::start(PostgresOptions::default()).await?;
        let unleash = Unleash::start(&postgres)
            .await
            .during("starting Unleash, which the game day requires (run scripts/servers unleash)")?;
        Ok(Self { unleash, _postgres: postgres })
    }
}

/// The gates between the instances and the servers.
pub(crate) struct Gates {
    pub(crate) postgres: Proxy,
    pub(crate) redis: Proxy,
    pub(crate) unleash: Proxy,
}

/// The port of a server's address.
pub(super) fn port(url: &str) -> Result<u16> {
    let url = reqwest::Url::parse(url)?;
    url.port().ok_or_else(|| Failure::new(format!("{url} has no port")))
}

/// Starts the servers and the gates before them. The last value is the port of Unleash itself.
pub(super) async fn start(shared: &Shared) -> Result<(Servers, Gates, u16)> {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let settings = vec![setting("max_connections", "100"), setting("wal_keep_size", "256MB")];
    let postgres = Postgres::start(PostgresOptions { fsync: true, settings }).await?;
    postgres.create_database("gameday").await?;
    let redis = Redis::start().await?;
    let unleash_port = port(&shared.unleash.url())?;
    let gates = Gates {
        postgres: Proxy::start(postgres.port())?,
        redis: Proxy::start(port(&redis.url())?)?,
        unleash: Proxy::start(unleash_port)?,
    };
    let url = format!("postgres://postgres@127.0.0.1:{}/gameday", gates.postgres.port());
    let database = Database::prepare(&url, false).await?;
    let unleash_url = format!("http://127.0.0.1:{}", gates.unleash.port());
    let admin = UnleashAdmin::new(shared.unleash.url(), shared.unleash.admin_token())?;
    let proxy = LoadBalancer::start().await?;
    if matches!(proxy, LoadBalancer::Own(_)) {
        return Err(Failure::new(
            "Envoy is not installed, and the game day requires it; run scripts/servers envoy",
        ));
    }
    let servers = Servers {
        versions: Default::default(),
        redis_url: format!("redis://127.0.0.1:{}/", gates.redis.port()),
        session_ids: Arc::default(),
        own_sessions: None,
        unleash: Some((unleash_url, shared.unleash.backend_token().to_owned())),
        switchboard: Switchboard::Unleash(admin),
        proxy,
        database,
        fallbacks: Vec::new(),
        throwaway: Throwaway { redis: Some(redis), postgres: Some(postgres), ..Throwaway::default() },
    };
    Ok((servers, gates, unleash_port))
}
