use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use axum::Router;
use tokio_util::task::AbortOnDropHandle;

use super::StartError;
use super::bind::bind;
use crate::drain::Drain;

/// The admin listener, served by a task from the beginning of the start to the end of the drain.
#[derive(Debug)]
pub(super) struct AdminServer {
    pub(super) address: SocketAddr,
    /// `None` once its end is awaited.
    task: Mutex<Option<AbortOnDropHandle<io::Result<()>>>>,
}

impl AdminServer {
    pub(super) async fn start(drain: &Drain, address: SocketAddr, pages: Router) -> Result<Self, StartError> {
        let variable = "ADMIN_ADDR";
        let failed = |error| StartError::Listen { variable, address, error };
        let listener = bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let drain = drain.clone();
        let task = tokio::spawn(async move { drain.serve_admin(listener, pages).await });
        Ok(Self { address, task: Mutex::new(Some(AbortOnDropHandle::new(task))) })
    }

    /// Waits until the drain has ended and the last responses were sent.
    pub(super) async fn ended(&self) -> io::Result<()> {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        match task {
            Some(task) => task.await.map_err(io::Error::other)?,
            None => Ok(()),
        }
    }
}
