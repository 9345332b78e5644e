//! A throwaway Redis.

use std::{process::Command, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Folder, KitError, Process, Signal, find, process::Current, wait::on_free_port};

/// A Redis server without persistence on a free loopback port.
#[derive(Debug)]
pub struct Redis {
    process: Current,
    folder: Folder,
    port: u16,
}

impl Redis {
    /// Starts a server and waits until it answers a PING.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] if `redis-server` is not installed, [`KitError::Exited`] or [`KitError::TimedOut`] if it
    /// does not start.
    pub async fn start() -> Result<Self, KitError> {
        let folder = Folder::new("redis")?;
        let (port, process) = on_free_port(async |port| Ok((port, launch(&folder, port).await?))).await?;
        Ok(Self { process: Current::new(process), folder, port })
    }

    /// `redis://127.0.0.1:port/`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Its process, to stop or kill it.
    pub fn process(&self) -> Arc<Process> {
        self.process.get()
    }

    /// Starts it again, empty, with its port. If it runs, it is killed first.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart(&self) -> Result<(), KitError> {
        self.process().kill().await?;
        self.process.set(launch(&self.folder, self.port).await?);
        Ok(())
    }
}

async fn launch(folder: &Folder, port: u16) -> Result<Process, KitError> {
    let program = find::program("redis", "redis-server")?;
    let mut command = Command::new(program);
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(folder.path())
        // Without this, the first replica waits five seconds for others that could share its sync.
        .args(["--repl-diskless-sync-delay", "0"]);
    let process = Process::spawn(folder, "redis", Signal::KILL, &command)?;
    process.wait_ready(Duration::from_secs(20), || ping(port)).await?;
    Ok(process)
}

async fn ping(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await?;
    Ok(&answer == b"+PONG\r\n")
}
