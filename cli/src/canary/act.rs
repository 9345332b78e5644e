//! What happens when a canary fails.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use ::http::{Method, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use url::Url;

use super::judge::Verdict;
use crate::http::Http;

/// How long switching the flag off may take altogether.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// What to do when the canary has failed.
#[derive(Debug, Default)]
pub(super) struct OnFail {
    pub(super) command: Option<String>,
    pub(super) flag: Option<Flag>,
}

/// A flag on an Unleash server, and a token that may switch it.
pub(super) struct Flag {
    pub(super) name: String,
    pub(super) project: String,
    pub(super) environment: String,
    pub(super) server: Url,
    pub(super) token: String,
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActError {
    #[error("the command could not be run: {0}")]
    Command(#[from] std::io::Error),
    #[error("the command failed: {0}")]
    Failed(ExitStatus),
    #[error("flag {name:?} could not be switched off: {problem}")]
    Flag { name: String, problem: String },
}

impl OnFail {
    /// Does all of it, the flag first because it is the faster way back; one failure does not keep the other from being done.
    pub(super) async fn act(&self, verdict: &Verdict) -> Vec<ActError> {
        let mut errors = Vec::new();
        if let Some(flag) = &self.flag {
            errors.extend(flag.switch_off().await.err());
        }
        if let Some(command) = &self.command {
            errors.extend(run(command, verdict).await.err());
        }
        errors
    }
}

/// Runs the command in a shell, with the verdict as JSON on its standard input.
async fn run(command: &str, verdict: &Verdict) -> Result<(), ActError> {
    let mut child = Command::new("sh").arg("-c").arg(command).stdin(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A command that reads nothing is no failure.
        let _ = input.write_all(&serde_json::to_vec(verdict).unwrap_or_default()).await;
    }
    let status = child.wait().await?;
    if status.success() { Ok(()) } else { Err(ActError::Failed(status)) }
}

impl Flag {
    async fn switch_off(&self) -> Result<(), ActError> {
        let failed = |problem: String| ActError::Flag { name: self.name.clone(), problem };
        let mut url = self.server.clone();
        url.path_segments_mut()
            .map_err(|()| failed("the server's address takes no path".into()))?
            .pop_if_empty()
            .extend([
                "api",
                "admin",
                "projects",
                &self.project,
                "features",
                &self.name,
                "environments",
                &self.environment,
                "off",
            ]);
        let http = Http::new(&url, Duration::from_secs(5)).map_err(|error| failed(error.to_string()))?;
        let once = async || {
            let (status, _) =
                http.send(Method::POST, &url, Some(&self.token)).await.map_err(|problem| (true, problem))?;
            match status {
                status if status.is_success() => Ok(()),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err((
                    false,
                    "the token may not do that: an admin token, or one with the right, is needed".into(),
                )),
                StatusCode::NOT_FOUND => {
                    Err((false, format!("there is no such flag in project {:?}", self.project)))
                }
                status => Err((status.is_server_error(), format!("the server answered {status}"))),
            }
        };
        let began = tokio::time::Instant::now();
        loop {
            match once().await {
                Ok(()) => return Ok(()),
                Err((true, _)) if began.elapsed() < TIME_LIMIT => {
                    tokio::time::sleep(Duration::from_millis(250)).await
                }
                Err((_, problem)) => return Err(failed(problem)),
            }
        }
    }
}

impl std::fmt::Debug for Flag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flag").field("name", &self.name).field("server", &self.server).finish_non_exhaustive()
    }
}
