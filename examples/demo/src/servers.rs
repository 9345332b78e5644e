//! The servers under the service: the user's own if they were named, else temporary ones.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cutover_testkit::{KitError, Postgres, PostgresOptions, Redis, Unleash, UnleashAdmin};
use deadpool_redis::redis;

use crate::{
    args::{Args, OwnServers},
    board::Board,
    database::Database,
    failure::{During, Failure, Result},
    flags::{self, Switchboard},
    ledger::Ledger,
    proxy::LoadBalancer,
};

/// Disk space per order, in bytes: table, index, dead rows and write-ahead log.
const BYTES_PER_ROW: u64 = 2_000;

/// Everything besides the service.
pub(crate) struct Servers {
    pub(crate) database: Database,
    pub(crate) redis_url: String,
    /// Ids of the sessions that the demo created.
    pub(crate) session_ids: Arc<Mutex<Vec<String>>>,
    pub(crate) own_sessions: Option<Sessions>,
    /// URL and token for the service.
    pub(crate) unleash: Option<(String, String)>,
    pub(crate) switchboard: Switchboard,
    pub(crate) proxy: LoadBalancer,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) fallbacks: Vec<String>,
    pub(crate) throwaway: Throwaway,
}

/// Temporary servers, stopped in this order when dropped: Unleash uses a Postgres.
#[derive(Default)]
pub(crate) struct Throwaway {
    pub(crate) unleash: Option<Unleash>,
    pub(crate) redis: Option<Redis>,
    pub(crate) postgres: Option<Postgres>,
}

impl Servers {
    /// Starts the servers that were not named. If the future is dropped, they stop.
    pub(crate) async fn start(args: &Args, board: &Board) -> Result<Self> {
        board.doing("starting servers");
        let own = &args.own;
        let mut throwaway = Throwaway::default();
        let mut fallbacks = Vec::new();
        // The user's own servers come first, so that a mistake shows immediately.
        let own_database = match &own.database_url {
            Some(url) => Some(Database::prepare(url, true).await?),
            None => None,
        };
        let own_sessions = own.redis_url.clone().map(|url| Sessions { url });
        if let Some(sessions) = &own_sessions {
            sessions.connect().await?;
        }
        let own_unleash = UnleashAccess::of(own);
        if let Some(access) = &own_unleash {
            flags::refuse_existing(&access.url, &access.admin_token).await?;
        }

        let database = match own_database {
            Some(database) => database,
            None => {
                check_disk_space(args.rows)?;
                let postgres = throwaway.postgres.insert(start_postgres().await?);
                Database::prepare(&postgres.create_database("demo").await?, false).await?
            }
        };
        let redis_url = match &own.redis_url {
            Some(url) => url.clone(),
            None => throwaway.redis.insert(Redis::start().await?).url(),
        };
        let unleash = match own_unleash {
            Some(access) => Some(access),
            None => throwaway.start_unleash().await?,
        };
        if unleash.is_none() {
            fallbacks.push(
                "Unleash is not installed: phases are set by SQL, and flags keep their defaults".to_owned(),
            );
        }
        let proxy = LoadBalancer::start().await?;
        let proxy_name = match &proxy {
            LoadBalancer::Envoy(_) => "Envoy",
            LoadBalancer::Own(_) => {
                fallbacks.push("Envoy is not installed: the demo uses its own load balancer".to_owned());
                "the demo's own load balancer"
            }
        };
        fallbacks.iter().for_each(|fallback| board.note(fallback.as_str()));
        let switchboard = match &unleash {
            Some(access) => {
                Switchboard::Unleash(UnleashAdmin::new(&access.url, access.admin_token.as_str())?)
            }
            None => Switchboard::Sql(Ledger::new(database.pool.clone())),
        };
        let versions = [("postgres", database.server_version.as_str()), ("proxy", proxy_name)];
        Ok(Self {
            versions: versions.map(|(name, version)| (name.to_owned(), version.to_owned())).into(),
            redis_url,
            session_ids: Arc::default(),
            own_sessions,
            unleash: unleash.map(|access| (access.url, access.token)),
            switchboard,
            proxy,
            database,
            fallbacks,
            throwaway,
        })
    }

    /// Restores the user's own servers. Temporary ones stop when this is dropped.
    pub(crate) async fn clear(&self) -> Result<()> {
        let flags = self.switchboard.clear().await;
        let sessions = match &self.own_sessions {
            Some(sessions) => {
                let ids = self.session_ids.lock().unwrap_or_else(PoisonError::into_inner).clone();
                sessions.delete(&ids).await
            }
            None => Ok(()),
        };
        self.database.clear().await?;
        flags.and(sessions)
    }
}

impl Throwaway {
    /// `None` if it is not installed.
    async fn start_unleash(&mut self) -> Result<Option<UnleashAccess>> {
        // It needs its own database, not one of the user's.
        let postgres = match &mut self.postgres {
            Some(postgres) => postgres,
            none => none.insert(start_postgres().await?),
        };
        match Unleash::start(postgres).await {
            Ok(unleash) => {
                let unleash = self.unleash.insert(unleash);
                Ok(Some(UnleashAccess {
                    url: unleash.url(),
                    admin_token: unleash.admin_token().to_owned(),
                    token: unleash.backend_token().to_owned(),
                }))
            }
            Err(KitError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// URL and tokens of an Unleash, for the demo and for the service.
struct UnleashAccess {
    url: String,
    admin_token: String,
    token: String,
}

impl UnleashAccess {
    fn of(own: &OwnServers) -> Option<Self> {
        let url = own.unleash_url.as_ref()?.trim_end_matches('/').trim_end_matches("/api").to_owned();
        let (admin_token, token) = (own.unleash_admin_token.clone()?, own.unleash_token.clone()?);
        Some(Self { url, admin_token, token })
    }
}

pub(crate) async fn start_postgres() -> Result<Postgres> {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let settings = vec![
        setting("max_connections", "200"),
        setting("shared_buffers", "512MB"),
        setting("max_wal_size", "2GB"),
    ];
    // A commit waits for the disk, as in production.
    Ok(Postgres::start(PostgresOptions { fsync: true, settings }).await?)
}

/// The service's sessions in the user's own Redis.
pub(crate) struct Sessions {
    url: String,
}

impl Sessions {
    /// The key prefix of the service's session store.
    const PREFIX: &str = "session:";
    const LIMIT: Duration = Duration::from_secs(5);

    async fn connect(&self) -> Result<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.url.as_str()).during("REDIS_URL")?;
        let connection = tokio::time::timeout(Self::LIMIT, client.get_multiplexed_async_connection()).await;
        connection.during("no answer from REDIS_URL within 5 s")?.during("connecting to REDIS_URL")
    }

    /// Deletes these sessions and no others. They would stay for weeks.
    async fn delete(&self, ids: &[String]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut delete = redis::cmd("DEL");
        ids.iter().for_each(|id| {
            delete.arg(format!("{}{id}", Self::PREFIX));
        });
        let () =
            delete.query_async(&mut self.connect().await?).await.during("deleting the demo's sessions")?;
        Ok(())
    }
}

fn check_disk_space(rows: u64) -> Result<()> {
    let folder = std::env::temp_dir();
    let room = rustix::fs::statvfs(&folder).during("checking free disk space")?;
    has_space(room.f_bavail * room.f_frsize, rows, &folder.display().to_string())
}

fn has_space(free: u64, rows: u64, folder: &str) -> Result<()> {
    // An empty Postgres and its retained write-ahead log.
    let needed = 500_000_000 + rows * BYTES_PER_ROW;
    if free >= needed {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    Err(Failure::new(format!(
        "{folder} has {:.1} GB free, but {rows} rows need about {:.1} GB; set TMPDIR to a larger disk or use \
         fewer --rows",
        gb(free),
        gb(needed)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_small_a_disk_is_refused() {
        assert!(has_space(3_000_000_000, 1_000_000, "/tmp").is_ok());
        let error = has_space(1_000_000_000, 1_000_000, "/tmp").unwrap_err().to_string();
        assert!(error.contains("1.0 GB free") && error.contains("2.5 GB"), "{error}");
    }

    #[tokio::test]
    async fn redis_errors_contain_no_password() {
        let port = cutover_testkit::free_port().unwrap();
        let sessions = Sessions { url: format!("redis://:secret@127.0.0.1:{port}/0") };
        let error = sessions.connect().await.unwrap_err().to_string();
        assert!(error.contains("REDIS_URL") && !error.contains("secret"), "{error}");
        let sessions = Sessions { url: "localhost".to_owned() };
        assert!(sessions.connect().await.unwrap_err().to_string().contains("REDIS_URL"));
    }

    #[tokio::test]
    async fn only_own_sessions_are_deleted() {
        let server = Redis::start().await.unwrap();
        let sessions = Sessions { url: server.url() };
        let mut connection = sessions.connect().await.unwrap();
        let keys = ["session:a", "session:b", "session:theirs", "else"];
        for key in keys {
            let () = redis::cmd("SET").arg(key).arg(1).query_async(&mut connection).await.unwrap();
        }
        sessions.delete(&["a".to_owned(), "b".to_owned(), "expired".to_owned()]).await.unwrap();
        sessions.delete(&[]).await.unwrap();
        let left: usize = redis::cmd("EXISTS").arg(&keys).query_async(&mut connection).await.unwrap();
        let theirs: usize = redis::cmd("EXISTS").arg(&keys[2..]).query_async(&mut connection).await.unwrap();
        assert_eq!((left, theirs), (2, 2));
    }
}
