//! `cutover canary`: whether a canary may go on, judged by what it and the stable version have done to requests.
//!
//! It asks Prometheus for the metrics that the library exports, and compares. `judge` is the decision,
//! `statistics` what it rests on, `ask` where the numbers come from, `act` what follows.

mod act;
mod ask;
mod judge;
mod statistics;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep_until};
use url::Url;

use super::{complain, print};
use act::{Flag, OnFail};
use ask::{AdminError, Source};
use judge::{Limits, Outcome, Verdict, judge};

/// Exit statuses of its own, beside 0 for a canary that may go on and 2 for wrong usage.
const FAILED: u8 = 1;
const NOT_ASKED: u8 = 3;
const UNDECIDED: u8 = 4;

/// Durations as in `90s`, `5m` or `1h30m`.
#[derive(Args)]
pub(crate) struct Canary {
    /// The Prometheus server
    #[arg(long, env = "PROMETHEUS_URL")]
    prometheus: Url,
    /// Value of the version label that the canary has
    #[arg(long, default_value = "canary")]
    canary: String,
    /// Value of the version label that it is compared with
    #[arg(long, default_value = "stable")]
    stable: String,
    /// The version label's name
    #[arg(long, default_value = "version")]
    label: String,
    /// One more matcher of every series, such as 'service="payments"'; may be repeated
    #[arg(long = "match", value_name = "MATCHER")]
    matchers: Vec<String>,
    /// Which values of the label `status` are failures, as a regular expression
    #[arg(long, default_value = "5..", value_name = "REGEX")]
    errors: String,
    /// How far to look back
    #[arg(long, default_value = "5m", value_parser = crate::text::duration)]
    window: Duration,
    /// The highest share of failed requests, in per cent
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT")]
    max_errors: f64,
    /// The highest 99th percentile of durations; best one of the histogram's bounds
    #[arg(long, default_value = "500ms", value_parser = crate::text::duration)]
    max_p99: Duration,
    /// A worsening by this factor has to be noticed; more requests are needed for a smaller one
    #[arg(long, default_value_t = 2.0, value_name = "FACTOR")]
    worse: f64,
    /// How often a canary that is like the stable version may fail, in per cent
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT")]
    false_alarms: f64,
    /// How often a canary that is worse by the factor may pass, in per cent
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT")]
    misses: f64,
    /// A newest sample older than this is no data
    #[arg(long, default_value = "1m", value_parser = crate::text::duration)]
    stale_after: Duration,
    /// Go on looking for this long, and end at once when the canary fails
    #[arg(long, value_parser = crate::text::duration, value_name = "DURATION")]
    watch: Option<Duration>,
    /// Time between two looks
    #[arg(long, default_value = "5s", value_parser = crate::text::duration, requires = "watch")]
    every: Duration,
    /// How long after the first look missing data is no failure yet
    #[arg(long, default_value = "30s", value_parser = crate::text::duration, requires = "watch")]
    patience: Duration,
    /// Run this in a shell when the canary fails; the verdict is JSON on its standard input
    #[arg(long, value_name = "COMMAND")]
    on_fail: Option<String>,
    /// Switch this flag off in Unleash when the canary fails
    #[arg(long, value_name = "FLAG", requires = "unleash_url", requires = "unleash_admin_token")]
    on_fail_flag: Option<String>,
    /// The Unleash server, without /api
    #[arg(long, env = "UNLEASH_URL")]
    unleash_url: Option<Url>,
    /// A token that may switch flags
    #[arg(long, env = "UNLEASH_ADMIN_TOKEN", hide_env_values = true)]
    unleash_admin_token: Option<String>,
    /// The flag's project
    #[arg(long, default_value = "default")]
    project: String,
    /// The flag's environment
    #[arg(long, default_value = "production")]
    environment: String,
}

/// Judges, says so, acts on it.
pub(crate) async fn run(canary: Canary, json: bool) -> ExitCode {
    let problems = canary.problems();
    if !problems.is_empty() {
        for problem in problems {
            complain(&format!("cutover: {problem}"));
        }
        return ExitCode::from(2);
    }
    let case = match canary.case() {
        Ok(case) => case,
        Err(error) => {
            complain(&format!("cutover: no HTTP client could be made: {error}"));
            return ExitCode::from(NOT_ASKED);
        }
    };
    let verdict = match case.verdict(json).await {
        Ok(verdict) => verdict,
        Err(error) => {
            complain(&format!("cutover: {error}"));
            return ExitCode::from(NOT_ASKED);
        }
    };
    match verdict.outcome {
        Outcome::Pass => ExitCode::SUCCESS,
        Outcome::Undecided => ExitCode::from(UNDECIDED),
        Outcome::Fail => {
            for error in case.on_fail.act(&verdict).await {
                complain(&format!("cutover: {error}"));
            }
            ExitCode::from(FAILED)
        }
    }
}

impl Canary {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut need = |holds: bool, field: &str, what: &str| {
            if !holds {
                problems.push(format!("--{field}: {what}"));
            }
        };
        for (field, percent) in
            [("max-errors", self.max_errors), ("false-alarms", self.false_alarms), ("misses", self.misses)]
        {
            need(percent > 0.0 && percent <= 50.0, field, "has to be more than 0 and at most 50 (per cent)");
        }
        need(self.worse >= 1.25 && self.worse <= 100.0, "worse", "has to be a factor from 1.25 to 100");
        for (field, time) in [
            ("window", self.window),
            ("max-p99", self.max_p99),
            ("stale-after", self.stale_after),
            ("every", self.every),
        ] {
            need(!time.is_zero(), field, "has to be longer than nothing");
        }
        need(self.canary != self.stable, "canary", "is the stable version: nothing could be compared");
        let is_label = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        need(is_label(&self.label), "label", "is no label's name: letters, digits and `_`, no digit first");
        need(
            matches!(self.prometheus.scheme(), "http" | "https"),
            "prometheus",
            "has to begin with http:// or https://",
        );
        problems
    }

    fn case(&self) -> std::io::Result<Case> {
        let mut server = self.prometheus.clone();
        if !server.path().ends_with('/') {
            server.set_path(&format!("{}/", server.path()));
        }
        let source = Source::new(server, self.matchers.clone(), &self.label, &self.errors, self.stale_after)?;
        let looks = match self.watch {
            None => 1,
            Some(watch) => (watch.as_secs_f64() / self.every.as_secs_f64()).ceil() as u32 + 1,
        };
        let limits = Limits {
            errors: self.max_errors / 100.0,
            p99: self.max_p99.as_secs_f64(),
            times: self.worse,
            false_alarms: self.false_alarms / 100.0,
            misses: self.misses / 100.0,
            looks,
        };
        let flag =
            self.on_fail_flag.clone().zip(self.unleash_url.clone()).zip(self.unleash_admin_token.clone());
        let flag = flag.map(|((name, server), token)| Flag {
            name,
            server,
            token,
            project: self.project.clone(),
            environment: self.environment.clone(),
        });
        Ok(Case {
            source,
            limits,
            versions: [self.canary.clone(), self.stable.clone()],
            window: self.window,
            watch: self.watch,
            every: self.every,
            patience: self.patience,
            on_fail: OnFail { command: self.on_fail.clone(), flag },
        })
    }
}

struct Case {
    source: Source,
    limits: Limits,
    /// Canary and stable.
    versions: [String; 2],
    window: Duration,
    watch: Option<Duration>,
    every: Duration,
    patience: Duration,
    on_fail: OnFail,
}

impl Case {
    /// The verdict of one look, or of the last one.
    async fn verdict(&self, json: bool) -> Result<Verdict, AdminError> {
        let Some(watch) = self.watch else {
            let verdict = match self.look(self.window).await {
                Err(AdminError::Missing(why)) => Verdict::missing(why),
                outcome => outcome?,
            };
            say(&verdict, json);
            return Ok(verdict);
        };
        let began = Instant::now();
        let mut next = began;
        loop {
            next += self.every;
            let elapsed = began.elapsed();
            let is_last = next > began + watch;
            // The last look is at all of it, so that it has the most requests to go by.
            let window = if is_last { self.window.max(elapsed) } else { self.window };
            let verdict = match self.look(window).await {
                Ok(verdict) => verdict,
                Err(error) if elapsed < self.patience && !is_last => {
                    complain(&format!("cutover: waiting for data: {error}"));
                    sleep_until(next).await;
                    continue;
                }
                // A judge that does not see the canary must not let it go on.
                Err(error) => Verdict::missing(error.to_string()),
            };
            say(&verdict, json);
            if is_last || verdict.outcome == Outcome::Fail {
                return Ok(verdict);
            }
            sleep_until(next).await;
        }
    }

    async fn look(&self, window: Duration) -> Result<Verdict, AdminError> {
        let [canary, stable] = &self.versions;
        let (canary, stable) =
            tokio::try_join!(self.source.observe(canary, window), self.source.observe(stable, window))?;
        Ok(judge(&canary, &stable, &self.limits))
    }
}

/// One line of JSON a look, or a line a finding.
fn say(verdict: &Verdict, json: bool) {
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
