//! A throwaway Redis.

use std::{process::Command, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Folder, KitError, Process, Signal, find, wait::on_free_port};

/// A Redis server without persistence on a free loopback port.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    port: u16,
}

impl Redis {
    /// Starts one and waits until it answers a PING.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] when there is no `redis-server`, [`KitError::Exited`] or
    /// [`KitError::TimedOut`] when it does not come up.
    pub async fn start() -> Result<Self, KitError> {
        let folder = Folder::new("redis")?;
        on_free_port(|port| Self::start_on(folder.clone(), port)).await
    }

    async fn start_on(folder: Folder, port: u16) -> Result<Self, KitError> {
        let program = find::program("redis", "redis-server", "redis/bin/redis-server")?;
        let mut command = Command::new(program);
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(folder.path())
            // Otherwise the first replica waits five seconds for others to share its sync.
            .args(["--repl-diskless-sync-delay", "0"]);
        let process = Process::spawn(&folder, "redis", Signal::KILL, &command)?;
        process
            .wait_ready(Duration::from_secs(20), || ping(port))
            .await?;
        Ok(Self { process, port })
    }

    /// `redis://127.0.0.1:port/`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Its process, for pauses and kills.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

async fn ping(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await?;
    Ok(&answer == b"+PONG\r\n")
}
