//! A throwaway Redis.

use std::{process::Command, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{Folder, KitError, Process, Signal, find, process::Current, wait::on_free_port};

/// A Redis server without persistence on a free loopback port.
#[derive(Debug)]
pub struct Redis {
    process: Current,
    folder: Folder,
    port: u16,
    arguments: &'static [&'static str],
}

impl Redis {
    /// Starts a server and waits until it answers a PING.
    ///
    /// # Errors
    ///
    /// [`KitError::Missing`] if `redis-server` is not installed, [`KitError::Exited`] or [`KitError::TimedOut`] if it
    /// does not start.
    pub async fn start() -> Result<Self, KitError> {
        Self::start_with(&[]).await
    }

    /// As [`start`](Self::start), with further arguments of `redis-server`.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(arguments: &'static [&'static str]) -> Result<Self, KitError> {
        let folder = Folder::new("redis")?;
        let start = async |port| Ok((port, launch(&folder, port, arguments).await?));
        let (port, process) = on_free_port(start).await?;
        Ok(Self { process: Current::new(process), folder, port, arguments })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends a command whose words contain no blanks, and returns its answer if that is a status, a number or a text.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`], also if the server answers with an error.
    pub async fn command(&self, command: &str) -> Result<String, KitError> {
        ask(self.port, command).await.map_err(KitError::io(format!("send {command} to Redis")))
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
        self.process.set(launch(&self.folder, self.port, self.arguments).await?);
        Ok(())
    }
}

async fn launch(folder: &Folder, port: u16, arguments: &[&str]) -> Result<Process, KitError> {
    let program = find::program("redis", "redis-server")?;
    let mut command = Command::new(program);
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(folder.path())
        // Without this, the first replica waits five seconds for others that could share its sync.
        .args(["--repl-diskless-sync-delay", "0"])
        .args(arguments);
    let process = Process::spawn(folder, "redis", Signal::KILL, &command)?;
    process
        .wait_ready(Duration::from_secs(60), async || {
            Ok::<_, std::io::Error>(ask(port, "PING").await? == "PONG")
        })
        .await?;
    Ok(process)
}

/// The answer of the server at `port` to a command in one line.
pub(crate) async fn ask(port: u16, command: &str) -> std::io::Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("{command}\r\n").as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let line = line.trim_end();
    match line.split_at_checked(1) {
        Some(("+" | ":", answer)) => Ok(answer.to_owned()),
        Some(("$", length)) => {
            let mut text = vec![0; length.parse().map_err(std::io::Error::other)?];
            stream.read_exact(&mut text).await?;
            String::from_utf8(text).map_err(std::io::Error::other)
        }
        _ => Err(std::io::Error::other(line.to_owned())),
    }
}
