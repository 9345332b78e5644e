//! The servers under the service: somebody's own where they were named, else throwaway ones.

use std::collections::BTreeMap;

use cutover_testkit::{KitError, Postgres, PostgresOptions, Redis, Unleash, UnleashAdmin};
use tokio::net::TcpStream;

use crate::{
    args::{Args, OwnServers},
    board::Board,
    database::Database,
    failure::{During, Failure, Result},
    flags::{self, Switchboard},
    ledger::Ledger,
    proxy::Proxy,
};

/// Bytes that the table, its index, its dead rows and the log of its changes take up, per order.
const BYTES_PER_ROW: u64 = 2_000;

/// Everything but the service.
pub(crate) struct Servers {
    pub(crate) database: Database,
    pub(crate) redis_url: String,
    /// URL and token for the service.
    pub(crate) unleash: Option<(String, String)>,
    pub(crate) switchboard: Switchboard,
    pub(crate) proxy: Proxy,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) fallbacks: Vec<String>,
    // Fields are dropped in this order: Unleash keeps its flags in this Postgres.
    _own_unleash: Option<Unleash>,
    _own_redis: Option<Redis>,
    _own_postgres: Option<Postgres>,
}

impl Servers {
    /// Starts what is not there. If this is dropped half way, so is what it started.
    pub(crate) async fn start(args: &Args, board: &Board) -> Result<Self> {
        let own = &args.own;
        let mut fallbacks = Vec::new();
        board.doing("starting servers");
        if own.database_url.is_none() {
            check_room(args.rows)?;
        }
        // Unleash needs a database of its own; somebody's is not for that.
        let needs_postgres = own.database_url.is_none() || own.unleash_url.is_none();
        let postgres = match needs_postgres {
            true => Some(start_postgres().await?),
            false => None,
        };
        let redis = match own.redis_url {
            Some(_) => None,
            None => Some(Redis::start().await?),
        };
        let (unleash, unleash_access) = start_unleash(own, postgres.as_ref(), &mut fallbacks).await?;
        let redis_url = match (&own.redis_url, &redis) {
            (Some(url), _) => {
                check_redis(url).await?;
                url.clone()
            }
            (None, redis) => redis.as_ref().map(Redis::url).unwrap_or_default(),
        };
        let proxy = Proxy::start().await?;
        if matches!(proxy, Proxy::Own(_)) {
            fallbacks.push("no Envoy: the demo's own balancer stands before the instances".to_owned());
        }
        let database = match (&own.database_url, &postgres) {
            (Some(url), _) => Database::prepare(url, true).await?,
            (None, Some(postgres)) => {
                Database::prepare(&postgres.create_database("demo").await?, false).await?
            }
            (None, None) => return Err(Failure::new("there is no database")),
        };
        let switchboard = match &unleash_access {
            Some(access) => {
                if own.unleash_url.is_some() {
                    flags::refuse_existing(&access.url, &access.admin_token).await?;
                }
                Switchboard::Unleash(UnleashAdmin::new(&access.url, access.admin_token.as_str())?)
            }
            None => Switchboard::Sql(Ledger(database.pool.clone())),
        };
        let mut versions = BTreeMap::from([("postgres".to_owned(), database.server_version.clone())]);
        versions.insert("proxy".to_owned(), proxy_name(&proxy).to_owned());
        for fallback in &fallbacks {
            board.note(fallback.as_str());
        }
        let unleash_for_service = unleash_access.map(|access| (access.url, access.token));
        Ok(Self {
            database,
            redis_url,
            unleash: unleash_for_service,
            switchboard,
            proxy,
            versions,
            fallbacks,
            _own_unleash: unleash,
            _own_redis: redis,
            _own_postgres: postgres,
        })
    }

    /// Leaves somebody's own servers as they were; throwaway ones go when this is dropped.
    pub(crate) async fn clear(&self) -> Result<()> {
        let flags = self.switchboard.clear().await;
        self.database.clear().await?;
        flags
    }
}

struct UnleashAccess {
    url: String,
    admin_token: String,
    token: String,
}

async fn start_postgres() -> Result<Postgres> {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let settings = vec![
        setting("max_connections", "200"),
        setting("shared_buffers", "512MB"),
        setting("max_wal_size", "2GB"),
    ];
    // As a service's database is run: a commit waits for the disk.
    Ok(Postgres::start(PostgresOptions { fsync: true, settings }).await?)
}

async fn start_unleash(
    own: &OwnServers,
    postgres: Option<&Postgres>,
    fallbacks: &mut Vec<String>,
) -> Result<(Option<Unleash>, Option<UnleashAccess>)> {
    if let (Some(url), Some(admin_token), Some(token)) =
        (&own.unleash_url, &own.unleash_admin_token, &own.unleash_token)
    {
        let url = url.trim_end_matches('/').trim_end_matches("/api").to_owned();
        let access = UnleashAccess { url, admin_token: admin_token.clone(), token: token.clone() };
        return Ok((None, Some(access)));
    }
    let Some(postgres) = postgres else { return Ok((None, None)) };
    match Unleash::start(postgres).await {
        Ok(unleash) => {
            let access = UnleashAccess {
                url: unleash.url(),
                admin_token: unleash.admin_token().to_owned(),
                token: unleash.backend_token().to_owned(),
            };
            Ok((Some(unleash), Some(access)))
        }
        Err(KitError::Missing { .. }) => {
            fallbacks.push("no Unleash: phases are asked for by SQL, flags are fixed".to_owned());
            Ok((None, None))
        }
        Err(error) => Err(error.into()),
    }
}

fn proxy_name(proxy: &Proxy) -> &'static str {
    match proxy {
        Proxy::Envoy(_) => "Envoy",
        Proxy::Own(_) => "the demo's own balancer",
    }
}

/// Only whether somebody is there: what the service needs of it shows in the service's readiness.
async fn check_redis(url: &str) -> Result<()> {
    let wanted = "REDIS_URL must look like redis://host:port";
    let uri: http::Uri = url.parse().map_err(|_| Failure::new(wanted))?;
    let host = uri.host().ok_or(Failure::new(wanted))?;
    let port = uri.port_u16().unwrap_or(6379);
    let connection = TcpStream::connect((host, port)).await;
    connection.during(&format!("nobody answers at REDIS_URL ({host}:{port})"))?;
    Ok(())
}

fn check_room(rows: u64) -> Result<()> {
    let folder = std::env::temp_dir();
    let room = rustix::fs::statvfs(&folder).during("looking for room on the disk")?;
    enough_room(room.f_bavail * room.f_frsize, rows, &folder.display().to_string())
}

fn enough_room(free: u64, rows: u64, folder: &str) -> Result<()> {
    // An empty Postgres and the log that it keeps at hand.
    let needed = 500_000_000 + rows * BYTES_PER_ROW;
    if free >= needed {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    Err(Failure::new(format!(
        "{folder} has {:.1} GB free, and {rows} rows need about {:.1} GB; set TMPDIR to a larger disk, or ask for \
         fewer --rows",
        gb(free),
        gb(needed)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_small_a_disk_is_refused_with_numbers() {
        assert!(enough_room(3_000_000_000, 1_000_000, "/tmp").is_ok());
        let error = enough_room(1_000_000_000, 1_000_000, "/tmp").unwrap_err().to_string();
        assert!(error.contains("1.0 GB free") && error.contains("2.5 GB"), "{error}");
    }

    #[tokio::test]
    async fn a_redis_that_is_not_there_is_named() {
        let port = cutover_testkit::free_port().unwrap();
        let error =
            check_redis(&format!("redis://:secret@127.0.0.1:{port}/0")).await.unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port}")) && !error.contains("secret"), "{error}");
        assert!(check_redis("localhost").await.is_err());
    }
}
