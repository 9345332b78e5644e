//! The options of `cutover canary`.

use std::path::PathBuf;
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use clap::Args;

use super::actions::{Flag, OnFail};
use super::judge::Limits;
use super::prometheus::{Login, Prometheus, Secret};
use super::watch::{Judge, Watch};
use crate::http::{Http, server_address};

/// Time limit of one request to Prometheus.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Durations as in `90s`, `5m` or `1h30m`.
#[derive(Args)]
pub(crate) struct Canary {
    /// The Prometheus server; user and password in the URL are used to log in and never printed
    // A string, because the parser of a URL would print a wrong one with its password.
    #[arg(long, env = "PROMETHEUS_URL", hide_env_values = true, value_name = "URL")]
    prometheus: String,
    /// User for basic authentication at Prometheus
    #[arg(long, env = "PROMETHEUS_USER", value_name = "USER")]
    prometheus_user: Option<String>,
    /// Password of that user; the environment variable keeps it out of the process list
    #[arg(long, env = "PROMETHEUS_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    prometheus_password: Option<String>,
    /// File with the password of that user
    #[arg(long, env = "PROMETHEUS_PASSWORD_FILE", value_name = "FILE")]
    prometheus_password_file: Option<PathBuf>,
    /// Bearer token for Prometheus; the environment variable keeps it out of the process list
    #[arg(long, env = "PROMETHEUS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    prometheus_token: Option<String>,
    /// File with the bearer token, read again for each request
    #[arg(long, env = "PROMETHEUS_TOKEN_FILE", value_name = "FILE")]
    prometheus_token_file: Option<PathBuf>,
    /// One more header of each request, such as 'X-Scope-OrgID: payments', or @FILE with one header a line; repeatable
    #[arg(long, value_name = "HEADER")]
    prometheus_header: Vec<String>,
    /// File with the certificates (PEM) that sign Prometheus's; without it, the system's are trusted
    #[arg(long, env = "PROMETHEUS_CA_FILE", value_name = "FILE")]
    prometheus_ca_file: Option<PathBuf>,
    /// Version of the canary: a value of the version label
    #[arg(long, default_value = "canary")]
    canary: String,
    /// Version that the canary is compared with
    #[arg(long, default_value = "stable")]
    stable: String,
    /// Name of the version label
    #[arg(long, default_value = "version")]
    label: String,
    /// A matcher for all series, such as 'service="payments"'; repeatable
    #[arg(long = "match", value_name = "MATCHER")]
    matchers: Vec<String>,
    /// Which values of the label `status` are failures, as a regular expression
    #[arg(long, default_value = "5..", value_name = "REGEX")]
    errors: String,
    /// The time before now that a measurement covers
    #[arg(long, default_value = "5m", value_parser = crate::text::duration)]
    window: Duration,
    /// Highest share of failed requests, in per cent
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT")]
    max_errors: f64,
    /// Highest 99th percentile of durations; choose a bound of the histogram
    #[arg(long, default_value = "500ms", value_parser = crate::text::duration)]
    max_p99: Duration,
    /// The factor of a degradation that must be detected; a smaller one needs more requests
    #[arg(long, default_value_t = 2.0, value_name = "FACTOR")]
    worse: f64,
    /// Probability that a canary that equals the stable version fails, in per cent
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT")]
    false_alarms: f64,
    /// Probability that a canary that is worse by the factor passes, in per cent
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT")]
    misses: f64,
    /// A newest sample that is older than this is no data
    #[arg(long, default_value = "1m", value_parser = crate::text::duration)]
    stale_after: Duration,
    /// Measure again and again for this long; end early if the canary fails
    #[arg(long, value_parser = crate::text::duration, value_name = "DURATION")]
    watch: Option<Duration>,
    /// Time between two measurements
    #[arg(long, default_value = "5s", value_parser = crate::text::duration, requires = "watch")]
    every: Duration,
    /// Time after the first measurement in which a missing answer does not count
    #[arg(long, default_value = "30s", value_parser = crate::text::duration, requires = "watch")]
    patience: Duration,
    /// Measurements in a row that may have no answer (no response, or no data); one more ends with exit status 3
    #[arg(long, default_value_t = 4, value_name = "NUMBER", requires = "watch")]
    error_limit: u32,
    /// Failed measurements in a row that are tolerated, except for the last measurement
    #[arg(long, default_value_t = 0, value_name = "NUMBER", requires = "watch")]
    failure_limit: u32,
    /// Undecided measurements that are tolerated; one more ends with exit status 4. Default: no limit
    #[arg(long, value_name = "NUMBER", requires = "watch")]
    inconclusive_limit: Option<u32>,
    /// Run this in a shell when the canary fails; its standard input is the verdict as JSON
    #[arg(long, value_name = "COMMAND")]
    on_fail: Option<String>,
    /// Switch this flag off in Unleash when the canary fails
    #[arg(long, value_name = "FLAG", requires = "unleash_url", requires = "unleash_admin_token")]
    on_fail_flag: Option<String>,
    /// When the canary fails, print what --on-fail and --on-fail-flag would do instead of doing it
    #[arg(long)]
    dry_run: bool,
    /// The Unleash server, without /api
    #[arg(long, env = "UNLEASH_URL", hide_env_values = true, value_name = "URL")]
    unleash_url: Option<String>,
    /// A token that may switch flags
    #[arg(long, env = "UNLEASH_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    unleash_admin_token: Option<String>,
    /// Project of the flag
    #[arg(long, default_value = "default")]
    project: String,
    /// Environment of the flag
    #[arg(long, default_value = "production")]
    environment: String,
}

impl Canary {
    /// # Errors
    ///
    /// All problems with the options.
    pub(super) fn judge(self) -> Result<Judge, Vec<String>> {
        let mut problems = self.problems();
        let prometheus = self.prometheus().map_err(|more| problems.extend(more));
        let flag = self.flag().map_err(|problem| problems.push(problem));
        let (Ok(prometheus), Ok(flag), true) = (prometheus, flag, problems.is_empty()) else {
            return Err(problems);
        };
        let measurements =
            self.watch.map_or(1, |watch| (watch.as_secs_f64() / self.every.as_secs_f64()).ceil() as u32 + 1);
        let limits = Limits {
            errors: self.max_errors / 100.0,
            p99: self.max_p99.as_secs_f64(),
            times: self.worse,
            false_alarms: self.false_alarms / 100.0,
            misses: self.misses / 100.0,
            measurements,
        };
        let watch = self.watch.map(|duration| Watch {
            duration,
            every: self.every,
            patience: self.patience,
            error_limit: self.error_limit,
            failure_limit: self.failure_limit,
            inconclusive_limit: self.inconclusive_limit,
        });
        Ok(Judge {
            prometheus,
            limits,
            canary: self.canary,
            stable: self.stable,
            window: self.window,
            watch,
            on_fail: OnFail { command: self.on_fail, flag, dry_run: self.dry_run },
        })
    }

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
            need(percent > 0.0 && percent <= 50.0, field, "must be more than 0 and at most 50 (per cent)");
        }
        need(self.worse >= 1.25 && self.worse <= 100.0, "worse", "must be a factor from 1.25 to 100");
        for (field, time) in [
            ("window", self.window),
            ("max-p99", self.max_p99),
            ("stale-after", self.stale_after),
            ("every", self.every),
        ] {
            need(!time.is_zero(), field, "must be longer than 0 s");
        }
        need(self.canary != self.stable, "canary", "must differ from --stable");
        let is_label = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        need(is_label(&self.label), "label", "must be letters, digits and `_`, and not begin with a digit");
        problems
    }

    fn prometheus(&self) -> Result<Prometheus, Vec<String>> {
        let mut problems = Vec::new();
        let (server, from_url) = match server_address(&self.prometheus) {
            Ok(address) => address,
            Err(problem) => return Err(vec![format!("--prometheus: {problem}")]),
        };
        let login = self.login(from_url).map_err(|problem| problems.push(problem));
        let headers = headers(&self.prometheus_header).map_err(|problem| problems.push(problem));
        let http = Http::new(&server, self.prometheus_ca_file.as_deref(), TIME_LIMIT)
            .map_err(|error| problems.push(format!("cannot read the trusted certificates: {error}")));
        let (Ok(login), Ok(headers), Ok(http)) = (login, headers, http) else { return Err(problems) };
        Ok(Prometheus {
            http,
            server,
            login,
            headers,
            matchers: self.matchers.clone(),
            label: self.label.clone(),
            errors: self.errors.clone(),
            stale_after: self.stale_after,
        })
    }

    /// An option has precedence over what the URL contains.
    fn login(&self, from_url: Option<crate::http::Login>) -> Result<Login, String> {
        let secret = |name: &str, value: &Option<String>, file: &Option<PathBuf>| match (value, file) {
            (Some(_), Some(_)) => Err(format!("--{name}: set it or --{name}-file, not both")),
            (Some(value), None) => Ok(Some(Secret::Value(value.clone()))),
            (None, Some(file)) => Ok(Some(Secret::File(file.clone()))),
            (None, None) => Ok(None),
        };
        let password =
            secret("prometheus-password", &self.prometheus_password, &self.prometheus_password_file)?;
        let token = secret("prometheus-token", &self.prometheus_token, &self.prometheus_token_file)?;
        match (&self.prometheus_user, password, token, from_url) {
            (None, None, Some(token), _) => Ok(Login::Bearer(token)),
            (_, _, Some(_), _) => {
                Err("set the token of Prometheus or a user with a password, not both".into())
            }
            (Some(user), Some(password), None, _) => Ok(Login::Basic { user: user.clone(), password }),
            (Some(user), None, None, Some((_, password))) => {
                Ok(Login::Basic { user: user.clone(), password: Secret::Value(password) })
            }
            (None, Some(password), None, Some((user, _))) => Ok(Login::Basic { user, password }),
            (Some(_), None, None, None) => {
                Err("--prometheus-user: needs --prometheus-password-file or PROMETHEUS_PASSWORD".into())
            }
            (None, Some(_), None, None) => Err("a password of Prometheus needs --prometheus-user".into()),
            (None, None, None, Some((user, password))) => {
                Ok(Login::Basic { user, password: Secret::Value(password) })
            }
            (None, None, None, None) => Ok(Login::None),
        }
    }

    fn flag(&self) -> Result<Option<Flag>, String> {
        let (Some(name), Some(url), Some(token)) =
            (&self.on_fail_flag, &self.unleash_url, &self.unleash_admin_token)
        else {
            return Ok(None);
        };
        let (server, login) = server_address(url).map_err(|problem| format!("--unleash-url: {problem}"))?;
        if login.is_some() {
            return Err(
                "--unleash-url: remove the user from the URL; Unleash takes --unleash-admin-token".into()
            );
        }
        cutover::remember(token);
        Ok(Some(Flag {
            name: name.clone(),
            server,
            token: token.clone(),
            project: self.project.clone(),
            environment: self.environment.clone(),
        }))
    }
}

/// Errors do not contain the header, whose value may be a secret.
fn headers(options: &[String]) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let mut add = |line: &str| {
        let (name, value) = line.split_once(':').ok_or("a header has no colon; write 'NAME: VALUE'")?;
        let name =
            HeaderName::try_from(name.trim()).map_err(|_| "the name of a header has wrong characters")?;
        let mut value =
            HeaderValue::from_str(value.trim()).map_err(|_| "the value of a header has wrong characters")?;
        value.set_sensitive(true);
        headers.append(name, value);
        Ok(())
    };
    for option in options {
        let problem = |why: String| format!("--prometheus-header: {why}");
        if let Some(file) = option.strip_prefix('@') {
            let text = std::fs::read_to_string(file)
                .map_err(|error| problem(format!("cannot read {file}: {error}")))?;
            let mut lines = text.lines().filter(|line| !line.trim().is_empty());
            lines.try_for_each(&mut add).map_err(|why: &str| problem(why.into()))?;
        } else {
            add(option).map_err(|why: &str| problem(why.into()))?;
        }
    }
    Ok(headers)
}
