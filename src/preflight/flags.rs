use std::time::Duration;

use tokio::time::timeout;

use super::report::{Finding, Severity};
use crate::flags::{FetchErrorKind, FlagProblemKind, Flags};

/// How long to wait for the flags. A server that is starting needs some seconds.
const FLAGS_WAIT: Duration = Duration::from_secs(5);
/// How often to look for an error while waiting.
const ERROR_POLL: Duration = Duration::from_millis(100);

const AREA: &str = "flags";

/// Whether the source has the declared flags.
pub(super) async fn examine(flags: Option<&Flags>, declared: &[String]) -> Vec<Finding> {
    let Some(flags) = flags else { return without_source(declared) };
    if let Err(refused) = timeout(FLAGS_WAIT, fresh(flags)).await.unwrap_or(Ok(())) {
        return vec![Finding::new(AREA, Severity::Problem, refused)];
    }
    if !flags.is_fresh() {
        let error = flags.last_fetch_error().map(|error| format!(" ({error})")).unwrap_or_default();
        let text = format!(
            "the flag server gave no usable answer within {FLAGS_WAIT:?}{error}; an instance would start with the last \
             known state or the declared defaults"
        );
        return vec![Finding::new(AREA, Severity::Warning, text)];
    }
    let problems = flags.coverage(declared.iter().map(String::as_str));
    if problems.is_empty() {
        return vec![Finding::pass(AREA)];
    }
    let findings = problems.iter().map(|problem| match problem.kind {
        FlagProblemKind::Missing => Finding::new(
            AREA,
            Severity::Problem,
            format!(
                "the build declares flag {:?}, but the flag source does not have it; create it or restore it from the \
                 archive",
                problem.flag
            ),
        ),
        FlagProblemKind::Stale => Finding::new(
            AREA,
            Severity::Warning,
            format!("flag {:?} is stale in the flag source; remove it from the code", problem.flag),
        ),
    });
    findings.collect()
}

fn without_source(declared: &[String]) -> Vec<Finding> {
    if declared.is_empty() {
        return Vec::new();
    }
    let text = format!(
        "the build declares the flags {}, but no flag server is configured, so every flag keeps its default; \
         set UNLEASH_URL and UNLEASH_TOKEN",
        declared.join(", ")
    );
    vec![Finding::new(AREA, Severity::Problem, text)]
}

/// Waits for a fresh state; an error that waiting does not resolve ends the wait.
async fn fresh(flags: &Flags) -> Result<(), String> {
    let mut changed = flags.changed();
    while !flags.is_fresh() {
        if let Some(error) = flags.last_fetch_error() {
            let remedy = match error.kind {
                FetchErrorKind::TokenRefused => {
                    "set UNLEASH_TOKEN to a backend token of this server and environment"
                }
                FetchErrorKind::WrongUrl => {
                    "set UNLEASH_URL to the server's URL, with /api at the end of its path"
                }
                // The error says what to set.
                FetchErrorKind::NotTrusted => return Err(error.to_string()),
                FetchErrorKind::Unavailable => "",
            };
            if !remedy.is_empty() {
                return Err(format!("{error}; {remedy}"));
            }
        }
        let _ = timeout(ERROR_POLL, changed.changed()).await;
    }
    Ok(())
}
