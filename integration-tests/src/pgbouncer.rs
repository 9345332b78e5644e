//! A throwaway PgBouncer.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::{Connection, PgConnection};

use crate::{
    Folder, KitError, Postgres, Process, Signal, error::write, find, postgres::unprivileged,
    wait::on_free_port,
};

/// How a [`PgBouncer`] runs.
#[derive(Debug, Clone, Default)]
pub struct PgBouncerOptions {
    /// Sessions per database; 0: PgBouncer's default of 20.
    pub pool_size: u32,
    /// `pool_mode = session` instead of `transaction`.
    pub session_mode: bool,
    /// Further lines of the section `[pgbouncer]`.
    pub settings: Vec<String>,
    /// The program, if it is not the one that is installed.
    pub program: Option<PathBuf>,
}

/// A PgBouncer in front of a [`Postgres`]. With `pool_mode = transaction`, consecutive transactions
/// of one client may run in different sessions, and one session serves many clients.
#[derive(Debug)]
pub struct PgBouncer {
    process: Process,
    port: u16,
}

impl PgBouncer {
    /// Starts a pooler in transaction mode with at most `pool_size` sessions per database, and waits until it
    /// answers.
    ///
    /// # Errors
    ///
    /// As [`PgBouncer::start_with`].
    pub async fn start(postgres: &Postgres, pool_size: u32) -> Result<Self, KitError> {
        Self::start_with(postgres, &PgBouncerOptions { pool_size, ..PgBouncerOptions::default() }).await
    }

    /// Starts a pooler, and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] when it is not installed, [`KitError::Exited`] or
    /// [`KitError::TimedOut`] when it does not come up.
    pub async fn start_with(postgres: &Postgres, options: &PgBouncerOptions) -> Result<Self, KitError> {
        let program = match &options.program {
            Some(program) => program.clone(),
            None => find::program("pgbouncer", "pgbouncer")?,
        };
        let mode = if options.session_mode { "session" } else { "transaction" };
        let pool_size = if options.pool_size == 0 { 20 } else { options.pool_size };
        let settings = options.settings.join("\n");
        let folder = Folder::new("pgbouncer")?;
        let file = folder.path().join("pgbouncer.ini");
        let server = postgres.port();
        on_free_port(async |port| {
            write(
                &file,
                format!(
                    "[databases]\n\
                     * = host=127.0.0.1 port={server} user=postgres\n\
                     [pgbouncer]\n\
                     listen_addr = 127.0.0.1\n\
                     listen_port = {port}\n\
                     unix_socket_dir =\n\
                     auth_type = any\n\
                     pool_mode = {mode}\n\
                     default_pool_size = {pool_size}\n\
                     max_client_conn = 500\n\
                     ignore_startup_parameters = extra_float_digits,options\n\
                     {settings}\n"
                ),
            )?;
            let mut command = unprivileged(&program);
            command.arg(&file);
            let process = Process::spawn(&folder, "pgbouncer", Signal::KILL, &command)?;
            process
                .wait_ready(Duration::from_secs(20), async || {
                    let mut session = PgConnection::connect(&url(port, "postgres")).await?;
                    session.ping().await?;
                    Ok::<_, sqlx::Error>(true)
                })
                .await?;
            Ok(Self { process, port })
        })
        .await
    }

    /// The URL of a database through the pooler.
    pub fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}")
}
