//! `pgbench`, Postgres's load generator: a writer without the library.

use std::{process::Command, time::Duration};

use crate::{Folder, KitError, Process, Signal, error::write, find};

/// Time limit for filling its tables.
const FILL: Duration = Duration::from_secs(3_600);

/// A running `pgbench`. Dropping it ends it.
#[derive(Debug)]
pub struct PgBench {
    process: Process,
}

impl PgBench {
    /// Makes the four tables of pgbench in the database, with `scale` times 100,000 accounts and with foreign keys.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] if it is not installed, [`KitError::Exited`].
    pub async fn initialise(url: &str, scale: u32) -> Result<(), KitError> {
        let folder = Folder::new("pgbench")?;
        let mut command = Command::new(program()?);
        command.args(["--initialize", "--quiet", "--foreign-keys", "--scale", &scale.to_string(), url]);
        Process::run(&folder, "pgbench", FILL, &command).await
    }

    /// Runs the pgbench script `script` with `clients` clients, as often as possible or `rate` times a second in
    /// total, until this is dropped. A statement that fails ends its client, see [`aborted`](Self::aborted).
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

    /// Its output after a statement has failed. `None` if none has failed.
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
