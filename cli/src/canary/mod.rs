//! `cutover canary`: decides whether a canary may go on, from the metrics of it and of the stable version.
//!
//! The numbers come from Prometheus, which scrapes what the library exports. Only evidence fails a canary: if Prometheus
//! does not answer or has no data, the exit status says so and no action is taken.
//!
//! - `arguments`: the options and their check
//! - `watch`: measurements and their limits
//! - `prometheus`: the queries
//! - `judge`, `statistics`: the decision
//! - `actions`: what happens when the canary fails

mod actions;
mod arguments;
mod judge;
pub(crate) mod prometheus;
mod statistics;
mod watch;

use std::process::ExitCode;

pub(crate) use arguments::Canary;
use judge::{Outcome, Verdict};

use super::{complain, print};

/// Exit statuses, beside 0 for a canary that may go on and 2 for wrong usage.
const FAILED: u8 = 1;
const NO_ANSWER: u8 = 3;
const UNDECIDED: u8 = 4;

/// Judges the canary, reports the verdict and acts on it.
pub(crate) async fn run(canary: Canary, json: bool) -> ExitCode {
    let judge = match canary.judge() {
        Ok(judge) => judge,
        Err(problems) => {
            problems.iter().for_each(|problem| complain(&format!("cutover: {problem}")));
            return ExitCode::from(2);
        }
    };
    let verdict = match judge.verdict(json).await {
        Ok(verdict) => verdict,
        Err(error) => {
            complain(&format!("cutover: no verdict: {error}"));
            return ExitCode::from(NO_ANSWER);
        }
    };
    match verdict.outcome {
        Outcome::Pass => ExitCode::SUCCESS,
        Outcome::Undecided => ExitCode::from(UNDECIDED),
        Outcome::Fail => {
            for line in judge.on_fail.act(&verdict).await {
                complain(&format!("cutover: {line}"));
            }
            ExitCode::from(FAILED)
        }
    }
}

/// Prints one line of JSON for each measurement, or one line of text for each finding.
fn report(verdict: &Verdict, json: bool) {
    if json {
        print(&format!("{}\n", serde_json::to_string(verdict).unwrap_or_default()));
        return;
    }
    let word = |outcome| match outcome {
        Outcome::Pass => "pass",
        Outcome::Undecided => "undecided",
        Outcome::Fail => "FAIL",
    };
    let mut text = String::new();
    for finding in &verdict.findings {
        text += &format!("{:<9}  {}: {}\n", word(finding.outcome), finding.question, finding.why);
    }
    print(&format!("{text}{}\n", word(verdict.outcome)));
}
