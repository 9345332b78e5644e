//! Postgres's own load generator: a writer that knows nothing of anybody.

use std::{process::Command, time::Duration};

use crate::{Folder, KitError, Process, Signal, error::write, find};

/// How long it may take to fill its tables.
const FILL: Duration = Duration::from_secs(3_600);

/// `pgbench`, for as long as this lives.
#[derive(Debug)]
pub struct PgBench {
    process: Process,
}

impl PgBench {
    /// Makes pgbench's own four tables in the database: 100,000 accounts for each of `scale`, with foreign keys.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] when it is not installed, [`KitError::Exited`].
    pub async fn initialise(url: &str, scale: u32) -> Result<(), KitError> {
        let folder = Folder::new("pgbench")?;
        let mut command = Command::new(program()?);
        command.args(["--initialize", "--quiet", "--foreign-keys", "--scale", &scale.to_string(), url]);
        Process::run(&folder, "pgbench", FILL, &command).await
    }

    /// Has `clients` run `script`, written as pgbench's are, as often as they can or `rate` times a second in all,
    /// until this is dropped. A statement that fails ends its client, see [`aborted`](Self::aborted).
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] when it is not installed, [`KitError::Io`].
    pub fn start(url: &str, script: &str, clients: u32, rate: Option<u32>) -> Result<Self, KitError> {
        let folder = Folder::new("pgbench")?;
        let file = folder.path().join("script.sql");
        write(&file, script)?;
        let mut command = Command::new(program()?);
        command.args(["--no-vacuum", "--time=86400", "--protocol=prepared"]);
        command.arg(format!("--client={clients}")).arg("--file").arg(&file);
        command.args(rate.map(|rate| format!("--rate={rate}"))).arg(url);
        command.env("PGAPPNAME", "pgbench");
        Ok(Self { process: Process::spawn(&folder, "pgbench", Signal::KILL, &command)? })
    }

    /// What it said when it ended or gave a client up; `None` while no statement has failed.
    pub fn aborted(&self) -> Option<String> {
        let log = self.process.log_tail();
        (self.process.exited().is_some() || log.contains("aborted")).then_some(log)
    }
}

fn program() -> Result<std::path::PathBuf, KitError> {
    let folder = find::postgres_programs()?;
    let program = folder.join("pgbench");
    if program.is_file() { Ok(program) } else { find::program("postgres", "pgbench") }
}
