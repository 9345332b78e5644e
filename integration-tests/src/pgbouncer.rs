//! A throwaway PgBouncer with transaction pooling.

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use crate::{
    Folder, KitError, Postgres, Process, Signal, error::write, find, postgres::unprivileged,
    wait::on_free_port,
};

/// A PgBouncer with `pool_mode = transaction` in front of a [`Postgres`]: consecutive transactions
/// of one client may run in different sessions, and one session serves many clients.
#[derive(Debug)]
pub struct PgBouncer {
    process: Process,
    port: u16,
}

impl PgBouncer {
    /// Starts a pooler with at most `pool_size` sessions per database, and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] when it is not installed, [`KitError::Exited`] or
    /// [`KitError::TimedOut`] when it does not come up.
    pub async fn start(postgres: &Postgres, pool_size: u32) -> Result<Self, KitError> {
        let program = find::program("pgbouncer", "pgbouncer")?;
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
                     pool_mode = transaction\n\
                     default_pool_size = {pool_size}\n\
                     max_client_conn = 500\n\
                     ignore_startup_parameters = extra_float_digits,options\n"
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
