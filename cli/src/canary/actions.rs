//! What happens when a canary fails.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header::AUTHORIZATION};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use url::Url;

use super::judge::Verdict;
use crate::http::Http;

/// How long switching the flag off may take, with all retries.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// The actions for a canary that has failed.
#[derive(Debug, Default)]
pub(super) struct OnFail {
    pub(super) command: Option<String>,
    pub(super) flag: Option<Flag>,
    /// Print the actions instead of taking them.
    pub(super) dry_run: bool,
}

/// A flag on an Unleash server, and a token that may switch it.
pub(super) struct Flag {
    pub(super) name: String,
    pub(super) project: String,
    pub(super) environment: String,
    pub(super) server: Url,
    pub(super) token: String,
}

/// An action that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActionError {
    #[error("cannot run the command of --on-fail: {0}")]
    Command(#[from] std::io::Error),
    #[error("the command of --on-fail failed: {0}")]
    Failed(ExitStatus),
    #[error("cannot switch flag {name:?} off: {problem}")]
    Flag { name: String, problem: String },
}

impl OnFail {
    /// Takes all actions, the flag first because it is the faster way back. A failure of one does not prevent the other.
    /// Returns what to report.
    pub(super) async fn act(&self, verdict: &Verdict) -> Vec<String> {
        if self.dry_run {
            return self.planned();
        }
        let mut errors: Vec<ActionError> = Vec::new();
        if let Some(flag) = &self.flag {
            errors.extend(flag.switch_off().await.err());
        }
        if let Some(command) = &self.command {
            errors.extend(run(command, verdict).await.err());
        }
        errors.iter().map(ToString::to_string).collect()
    }

    fn planned(&self) -> Vec<String> {
        let flag = self.flag.as_ref().map(|Flag { name, project, environment, server, .. }| {
            format!(
                "dry run: would switch flag {name:?} off (project {project}, environment {environment}, at {server})"
            )
        });
        let command =
            self.command.as_ref().map(|command| format!("dry run: would run the command {command}"));
        flag.into_iter().chain(command).collect()
    }
}

/// Runs the command in a shell, with the verdict as JSON on its standard input.
async fn run(command: &str, verdict: &Verdict) -> Result<(), ActionError> {
    let mut child = Command::new("sh").arg("-c").arg(command).stdin(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A command may ignore its input.
        let _ = input.write_all(&serde_json::to_vec(verdict).unwrap_or_default()).await;
    }
    let status = child.wait().await?;
    if status.success() { Ok(()) } else { Err(ActionError::Failed(status)) }
}

impl Flag {
    async fn switch_off(&self) -> Result<(), ActionError> {
        let failed = |problem: String| ActionError::Flag { name: self.name.clone(), problem };
        let mut url = self.server.clone();
        url.path_segments_mut()
            .map_err(|()| failed(format!("the address {} takes no path", self.server)))?
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
        let http =
            Http::new(&url, None, Duration::from_secs(5)).map_err(|error| failed(error.to_string()))?;
        let mut token = HeaderValue::from_str(&self.token)
            .map_err(|_| failed("the token contains characters that a header cannot have".into()))?;
        token.set_sensitive(true);
        let headers = HeaderMap::from_iter([(AUTHORIZATION, token)]);
        let began = tokio::time::Instant::now();
        loop {
            match self.switch_off_once(&http, &url, &headers).await {
                Ok(()) => return Ok(()),
                Err((_, is_temporary)) if is_temporary && began.elapsed() < TIME_LIMIT => {
                    tokio::time::sleep(Duration::from_millis(250)).await
                }
                Err((problem, _)) => return Err(failed(problem)),
            }
        }
    }

    /// The error says what went wrong, and whether another attempt can succeed.
    async fn switch_off_once(
        &self,
        http: &Http,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<(), (String, bool)> {
        let sent = http.send(Method::POST, url, headers.clone()).await;
        let (status, _) = sent.map_err(|problem| (format!("{}: {problem}", self.server), true))?;
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err((format!("{status}: use an admin token that may update flags"), false))
            }
            StatusCode::NOT_FOUND => Err((
                format!(
                    "project {:?} has no such flag, or no environment {:?}",
                    self.project, self.environment
                ),
                false,
            )),
            status => Err((format!("the server answered {status}"), status.is_server_error())),
        }
    }
}

impl std::fmt::Debug for Flag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flag").field("name", &self.name).field("server", &self.server).finish_non_exhaustive()
    }
}
