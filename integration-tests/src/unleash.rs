//! A throwaway Unleash server.

use std::{
    fmt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{
    Folder, KitError, Postgres, Process, Signal, UnleashAdmin, find, http, process::Current,
    wait::on_free_port,
};

/// An Unleash server (open source edition) on a free loopback port, with a database of its own on a [`Postgres`].
///
/// A change is visible on the client API within about a second, because the server polls for changes once a second.
pub struct Unleash {
    process: Current,
    folder: Folder,
    port: u16,
    environment: Vec<(&'static str, String)>,
    admin_token: String,
    backend_token: String,
}

impl Unleash {
    /// Starts a server and waits until its client API answers. This takes some seconds.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] when it is not installed, [`KitError::Sql`] when it can't have a
    /// database, [`KitError::Exited`] or [`KitError::TimedOut`] when it does not come up.
    pub async fn start(postgres: &Postgres) -> Result<Self, KitError> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let database = format!("unleash_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        postgres.create_database(&database).await?;
        let folder = Folder::new("unleash")?;
        let token = |scope: &str| format!("{scope}.{:016x}{:016x}", random(), random());
        let admin_token = token("*:*");
        let backend_token = token("*:development");
        let environment = vec![
            ("DATABASE_HOST", "127.0.0.1".to_owned()),
            ("DATABASE_PORT", postgres.port().to_string()),
            ("DATABASE_NAME", database),
            ("DATABASE_USERNAME", "postgres".to_owned()),
            ("DATABASE_PASSWORD", "x".to_owned()),
            ("DATABASE_SSL", "false".to_owned()),
            ("HTTP_HOST", "127.0.0.1".to_owned()),
            ("INIT_ADMIN_API_TOKENS", admin_token.clone()),
            ("INIT_BACKEND_API_TOKENS", backend_token.clone()),
            ("ENABLED_ENVIRONMENTS", "development,production".to_owned()),
            ("CLIENT_FEATURE_CACHING_ENABLED", "false".to_owned()),
            ("CHECK_VERSION", "false".to_owned()),
            ("SEND_TELEMETRY", "false".to_owned()),
            ("LOG_LEVEL", "warn".to_owned()),
            ("NODE_ENV", "production".to_owned()),
            ("TZ", "UTC".to_owned()),
        ];
        let (port, process) = on_free_port(async |port| {
            let process = launch(&folder, port, &environment, &backend_token).await?;
            Ok((port, process))
        })
        .await?;
        Ok(Self { process: Current::new(process), folder, port, environment, admin_token, backend_token })
    }

    /// `http://127.0.0.1:port`; the client API is at `/api` below.
    pub fn url(&self) -> String {
        url(self.port)
    }

    /// The header `Authorization` for the admin API.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// The header `Authorization` for the client API, environment `development`.
    pub fn backend_token(&self) -> &str {
        &self.backend_token
    }

    /// A client of its admin API.
    ///
    /// # Errors
    ///
    /// As [`UnleashAdmin::new`].
    pub fn admin(&self) -> Result<UnleashAdmin, KitError> {
        UnleashAdmin::new(self.url(), &self.admin_token)
    }

    /// Its process, to stop or kill it.
    pub fn process(&self) -> Arc<Process> {
        self.process.get()
    }

    /// Starts it again with its port and database. If it runs, it is killed first.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart(&self) -> Result<(), KitError> {
        self.process().kill().await?;
        let process = launch(&self.folder, self.port, &self.environment, &self.backend_token).await?;
        self.process.set(process);
        Ok(())
    }
}

impl fmt::Debug for Unleash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unleash").field("url", &self.url()).finish_non_exhaustive()
    }
}

async fn launch(
    folder: &Folder,
    port: u16,
    environment: &[(&'static str, String)],
    token: &str,
) -> Result<Process, KitError> {
    let mut command = Command::new(find::cached("unleash", "node", "bin/node")?);
    command
        .arg(find::cached("unleash", "unleash-server", "node_modules/unleash-server/dist/server.js")?)
        // Unleash prefers this variable, which usually belongs to the service under test.
        .env_remove("DATABASE_URL")
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .env("HTTP_PORT", port.to_string())
        .env("UNLEASH_URL", url(port));
    let process = Process::spawn(folder, "unleash", Signal::KILL, &command)?;
    let client = http::client()?;
    let features = format!("{}/api/client/features", url(port));
    process
        .wait_ready(Duration::from_secs(180), async || {
            let request = client.get(&features).header("Authorization", token);
            http::send("ask for features", request, &[]).await?;
            Ok::<_, KitError>(true)
        })
        .await?;
    Ok(process)
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn random() -> u64 {
    fastrand::u64(..)
}
