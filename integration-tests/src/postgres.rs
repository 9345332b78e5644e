//! A throwaway Postgres, its standbys, and faults to inject.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::{geteuid, kill_process};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::OnceCell;

use crate::{
    Folder, KitError, Process, Signal, base_backup, find,
    process::{Current, children_of, runs},
    wait::on_free_port,
    wait_until,
};

/// Postgres refuses to run as root. Then it runs as `nobody` and `nogroup`.
const NOBODY: u32 = 65534;
const START: Duration = Duration::from_secs(180);

/// How a [`Postgres`] is started.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Whether commits wait for the disk. If off, a crash of the server loses nothing; a crash of the machine does.
    /// Turn it on to measure.
    pub fsync: bool,
    /// Settings as in `postgresql.conf`.
    pub settings: Vec<(String, String)>,
}

/// A Postgres server on a free loopback port. Its superuser `postgres` needs no password.
///
/// Every method takes `&self`, so that one task can inject a fault while others use the server.
#[derive(Debug)]
pub struct Postgres {
    process: Current,
    folder: Folder,
    programs: PathBuf,
    options: PostgresOptions,
    port: u16,
}

impl Postgres {
    /// Makes a cluster, starts it and waits until it answers.
    ///
    /// The server programs are those of the folder in `TESTKIT_POSTGRES_BIN`, else the system's.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] if no Postgres is installed, [`KitError::Exited`] or [`KitError::TimedOut`] if it does not
    /// start.
    pub async fn start(options: PostgresOptions) -> Result<Self, KitError> {
        let programs = find::postgres_programs()?;
        let folder = Folder::new("postgres")?;
        let data = data_folder(&folder)?;
        let mut initdb = unprivileged(&programs.join("initdb"));
        initdb.args(["-A", "trust", "-E", "UTF8", "--locale=C", "-N", "-U", "postgres", "-D"]).arg(&data);
        Process::run(&folder, "initdb", START, &initdb).await?;
        Self::start_in(folder, programs, options).await
    }

    /// The server that all tests of this process share. It starts on first use and ends with the process.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn shared() -> Result<&'static Self, KitError> {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        let options = PostgresOptions {
            // With hundreds of databases, a worker of autovacuum would start several times a second.
            settings: [
                ("max_connections", "300"),
                ("max_prepared_transactions", "20"),
                ("autovacuum", "off"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
            ..PostgresOptions::default()
        };
        SHARED.get_or_try_init(|| Self::start(options)).await
    }

    /// Makes an empty database on the [`shared`](Self::shared) server and returns its URL. Most tests use this.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start) and [`create_database`](Self::create_database).
    pub async fn fresh_database() -> Result<String, KitError> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Self::shared().await?.create_database(&name).await
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The URL of the maintenance database `postgres`.
    pub fn admin_url(&self) -> String {
        self.url("postgres")
    }

    /// Its TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Gives a folder to the user of the server, as for a tablespace.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`].
    pub fn own(&self, folder: &Path) -> Result<(), KitError> {
        let doing = || format!("hand {} to Postgres's user", folder.display());
        chown(folder, owner(), owner()).map_err(KitError::io(doing()))
    }

    /// Its `cluster_name`, which names this standby in `synchronous_standby_names` of its primary.
    pub fn name(&self) -> String {
        format!("postgres_{}", self.port)
    }

    /// Makes an empty database and returns its URL.
    ///
    /// # Errors
    ///
    /// [`KitError::Misuse`] for a name other than letters, digits and `_`; [`KitError::Sql`].
    pub async fn create_database(&self, name: &str) -> Result<String, KitError> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(KitError::Misuse(format!("database name {name:?}: use letters, digits and _ only")));
        }
        self.execute(&format!("create database \"{name}\"")).await?;
        Ok(self.url(name))
    }

    /// Runs one statement as superuser in the database `postgres`.
    ///
    /// # Errors
    ///
    /// [`KitError::Sql`].
    pub async fn execute(&self, statement: &str) -> Result<(), KitError> {
        let failed = |source| KitError::sql(format!("run `{statement}`"))(source);
        let mut connection = PgConnection::connect(&self.admin_url()).await.map_err(failed)?;
        connection.execute(AssertSqlSafe(statement)).await.map_err(failed)?;
        connection.close().await.map_err(failed)
    }

    /// Copies the server and starts the copy as a hot standby that streams from it.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), and [`KitError::Sql`].
    pub async fn standby(&self) -> Result<Self, KitError> {
        let folder = Folder::new("standby")?;
        let data = data_folder(&folder)?;
        base_backup::copy(&self.admin_url(), self.port, self.folder.path().join("data"), &data, owner())
            .await?;
        Self::start_in(folder, self.programs.clone(), self.options.clone()).await
    }

    /// Makes a standby a primary and waits until it accepts writes.
    ///
    /// # Errors
    ///
    /// [`KitError::Sql`], [`KitError::TimedOut`].
    pub async fn promote(&self) -> Result<(), KitError> {
        self.execute("select pg_promote(true, 30)").await?;
        // A statement that a standby refuses.
        wait_until("standby promoted", START, async || {
            self.execute("select pg_current_wal_lsn()").await?;
            Ok::<_, KitError>(true)
        })
        .await
    }

    /// Stops the server and all of its sessions (SIGSTOP). Connections stay established, but nothing answers.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`].
    pub fn pause(&self) -> Result<(), KitError> {
        let process = self.process();
        // The postmaster first, so that it starts no new session.
        process.signal(Signal::STOP)?;
        signal_all(&children_of(process.pid()), Signal::STOP);
        Ok(())
    }

    /// Ends a [`pause`](Self::pause).
    ///
    /// # Errors
    ///
    /// [`KitError::Io`].
    pub fn resume(&self) -> Result<(), KitError> {
        let process = self.process();
        signal_all(&children_of(process.pid()), Signal::CONT);
        process.signal(Signal::CONT)
    }

    /// Kills the server and all of its sessions at once, as a power cut would.
    ///
    /// # Errors
    ///
    /// [`KitError::TimedOut`] if a process of it still runs after 60 s.
    pub async fn kill9(&self) -> Result<(), KitError> {
        let process = self.process();
        process.signal(Signal::STOP)?;
        let sessions = children_of(process.pid());
        process.kill().await?;
        signal_all(&sessions, Signal::KILL);
        // A session that still runs holds the shared memory, and then the next start fails.
        wait_until("sessions gone", Duration::from_secs(60), || {
            let gone = !sessions.iter().any(|pid| runs(*pid));
            async move { Ok::<_, KitError>(gone) }
        })
        .await
    }

    /// Shuts it down and closes its sessions (`pg_ctl stop -m fast`).
    ///
    /// # Errors
    ///
    /// [`KitError::TimedOut`] if it takes longer than 180 s.
    pub async fn stop(&self) -> Result<(), KitError> {
        let process = self.process();
        process.signal(Signal::INT)?;
        process.wait(START).await.map(|_| ())
    }

    /// Starts it again with its port and data. If it runs, it is stopped first.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart(&self) -> Result<(), KitError> {
        self.stop().await?;
        let process = launch(&self.folder, &self.programs, &self.options, self.port).await?;
        self.process.set(process);
        Ok(())
    }

    /// The server's process (the postmaster).
    pub fn process(&self) -> Arc<Process> {
        self.process.get()
    }

    async fn start_in(folder: Folder, programs: PathBuf, options: PostgresOptions) -> Result<Self, KitError> {
        let (port, process) = on_free_port(async |port| {
            let process = launch(&folder, &programs, &options, port).await?;
            Ok((port, process))
        })
        .await?;
        Ok(Self { process: Current::new(process), folder, programs, options, port })
    }
}

impl Drop for Postgres {
    /// A server that was killed and not started again leaves a shared memory segment, and a system has only a few
    /// thousand. Its id is at the end of the seventh line of the pid file.
    fn drop(&mut self) {
        if self.process().exited().is_none() {
            // A stopped session would keep the server from ending.
            let _ = self.resume();
            return;
        }
        let file = self.folder.path().join("data/postmaster.pid");
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().nth(6).unwrap_or_default();
        if let Some(id) = line.split_whitespace().nth(1) {
            let _ = Command::new("ipcrm").args(["-m", id]).output();
        }
    }
}

/// Starts the server program in the foreground, as a child process, and waits until it answers.
async fn launch(
    folder: &Folder,
    programs: &Path,
    options: &PostgresOptions,
    port: u16,
) -> Result<Process, KitError> {
    let data = folder.path().join("data");
    let mut command = unprivileged(&programs.join("postgres"));
    command.arg("-D").arg(&data).arg("-k").arg(&data);
    let mut set = |name: &str, value: &str| {
        command.arg("-c").arg(format!("{name}={value}"));
    };
    set("listen_addresses", "127.0.0.1");
    set("port", &port.to_string());
    set("cluster_name", &format!("postgres_{port}"));
    // In a file of the folder: a killed server would leave it in /dev/shm.
    set("dynamic_shared_memory_type", "mmap");
    if !options.fsync {
        // synchronous_commit stays on: without it, a killed server loses commits.
        set("fsync", "off");
        set("full_page_writes", "off");
    }
    for (name, value) in &options.settings {
        set(name, value);
    }
    // SIGQUIT ends it at once and still frees the shared memory.
    let process = Process::spawn(folder, "postgres", Signal::QUIT, &command)?;
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    process
        .wait_ready(START, async || {
            let connection = PgConnection::connect(&url).await?;
            connection.close().await?;
            Ok::<_, sqlx::Error>(true)
        })
        .await?;
    Ok(process)
}

/// `program` as a user that Postgres and PgBouncer accept.
pub(crate) fn unprivileged(program: &Path) -> Command {
    if !geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={NOBODY}"))
        .arg(format!("--regid={NOBODY}"))
        .arg("--clear-groups")
        .arg(program);
    command
}

/// User and group of a server's files, if they differ from this process's.
fn owner() -> Option<u32> {
    geteuid().is_root().then_some(NOBODY)
}

/// An empty folder `data` with the owner and the mode that Postgres requires.
fn data_folder(folder: &Folder) -> Result<PathBuf, KitError> {
    let data = folder.subfolder("data")?;
    let doing = || format!("hand {} to Postgres's user", data.display());
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).map_err(KitError::io(doing()))?;
    chown(&data, owner(), owner()).map_err(KitError::io(doing()))?;
    Ok(data)
}

fn signal_all(pids: &[rustix::process::Pid], signal: Signal) {
    for pid in pids {
        // A process that has ended needs no signal.
        let _ = kill_process(*pid, signal);
    }
}
