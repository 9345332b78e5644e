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

/// The environment variable that names a PgBouncer beside the installed one.
const CURRENT: &str = "TESTKIT_PGBOUNCER_CURRENT";

impl PgBouncer {
    /// The program of a current PgBouncer, which keeps named statements in transaction mode: the one in
    /// `TESTKIT_PGBOUNCER_CURRENT`, else the installed one if it is 1.21 or newer.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] when there is none, [`KitError::Misuse`] when the variable names no file.
    pub fn current() -> Result<PathBuf, KitError> {
        if let Some(program) = std::env::var_os(CURRENT) {
            let program = PathBuf::from(program);
            let problem = || KitError::Misuse(format!("{CURRENT}={} is no file", program.display()));
            return if program.is_file() { Ok(program) } else { Err(problem()) };
        }
        let installed = find::program("pgbouncer", "pgbouncer")?;
        let version = std::process::Command::new(&installed).arg("--version").output();
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let minor = version.ok().and_then(|text| {
            let number = text.split_whitespace().find_map(|word| word.strip_prefix("1."))?.to_owned();
            number.split('.').next()?.parse::<u32>().ok()
        });
        if minor.is_some_and(|minor| minor >= 21) {
            Ok(installed)
        } else {
            Err(find::missing("pgbouncer (set TESTKIT_PGBOUNCER_CURRENT)", "pgbouncer 1.21 or newer"))
        }
    }

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
                .wait_ready(Duration::from_secs(60), async || {
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
