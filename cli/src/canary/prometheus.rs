//! What Prometheus knows about a version.

use std::path::PathBuf;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header::AUTHORIZATION};
use base64::prelude::{BASE64_STANDARD, Engine};
use futures_util::future::try_join_all;
use serde_json::Value;
use url::Url;

use super::judge::Observed;
use crate::http::{Http, server_address};

/// A series that has no sample in the window, but one in this time before it, is not new. A gap in the scrapes that is
/// longer than this makes a counter look as if it had started within the window.
const MEMORY: &str = "1h";
/// Longer than any scrape interval.
const SCRAPES: Duration = Duration::from_secs(120);

/// A Prometheus server, and which series of it to query.
pub(crate) struct Prometheus {
    pub(crate) http: Http,
    /// Without a login, so that it can be printed. The path ends with a slash.
    pub(crate) server: Url,
    pub(crate) login: Login,
    /// Sent with every request.
    pub(crate) headers: HeaderMap,
    /// Label matchers of every query, such as `service="payments"`.
    pub(crate) matchers: Vec<String>,
    /// The name of the version label.
    pub(crate) label: String,
    /// Which values of the label `status` are failures, as a regular expression.
    pub(crate) errors: String,
    /// A newest sample that is older than this is no data.
    pub(crate) stale_after: Duration,
}

/// How to log in to the server.
pub(crate) enum Login {
    None,
    Basic { user: String, password: Secret },
    Bearer(Secret),
}

/// A secret, or the file that holds it. The file is read for each request, because tokens in files are rotated.
pub(crate) enum Secret {
    Value(String),
    File(PathBuf),
}

/// Why there is no observation. None of these says anything about the canary.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    /// No response, or not in time, or not one of Prometheus.
    #[error("cannot query Prometheus at {server}: {problem}")]
    Unreachable { server: Url, problem: String },
    #[error(
        "Prometheus at {server} answered {status}: it needs a login that may query; \
         set --prometheus-user and --prometheus-password-file, or --prometheus-token-file"
    )]
    Unauthorized { server: Url, status: StatusCode },
    #[error("Prometheus refused the query {query}: {problem}")]
    Refused { query: String, problem: String },
    #[error("Prometheus returned a partial result, which is not used: {problem} (query {query})")]
    Partial { query: String, problem: String },
    /// A complete response without usable data.
    #[error("{0}")]
    NoData(String),
}

impl Prometheus {
    /// A server to show numbers of, with series that have these labels.
    ///
    /// # Errors
    ///
    /// Why the address cannot be used, without its password.
    pub(crate) fn to_show(url: &str, matchers: Vec<String>, time_limit: Duration) -> Result<Self, String> {
        let (server, login) = server_address(url)?;
        let http = Http::new(&server, None, time_limit).map_err(|error| error.to_string())?;
        let login = login
            .map_or(Login::None, |(user, password)| Login::Basic { user, password: Secret::Value(password) });
        Ok(Self {
            http,
            server,
            login,
            headers: HeaderMap::new(),
            matchers,
            label: "version".to_owned(),
            errors: "5..".to_owned(),
            stale_after: Duration::from_secs(60),
        })
    }

    /// What the version did in the last `window`.
    pub(super) async fn observe(&self, version: &str, window: Duration) -> Result<Observed, QueryError> {
        let errors = format!("status=~{}", quoted(&self.errors));
        let total = |matchers: &[&str]| {
            format!("sum ({})", self.growth("http_requests_total", version, matchers, window))
        };
        let duration = |suffix: &str| {
            let family = format!("http_request_duration_seconds{suffix}");
            self.growth(&family, version, &[], window)
        };
        let buckets = self.series("http_request_duration_seconds_bucket", version, &[]);
        let queries = [
            // A range, because a single failed scrape ends an instant series.
            format!(
                "count(last_over_time({}[{}]))",
                self.series("http_requests_total", version, &[]),
                milliseconds(self.stale_after)
            ),
            total(&[]),
            total(&[&errors]),
            total(&[r#"status="499""#]),
            format!("sum ({})", duration("_sum")),
            by_bound(&duration("_bucket")),
            changed_bounds(&buckets, window),
        ];
        let mut answers = try_join_all(queries.iter().map(|query| self.query(query))).await?;
        let pair = format!("{}={}", self.label, quoted(version));
        if let Some((bound, _)) = answers[6].first() {
            return Err(QueryError::NoData(format!(
                "the bounds of the histogram of {pair} changed within {} s (le={bound} is only in a part of it); \
                 wait until the change is out of the window",
                window.as_secs()
            )));
        }
        let buckets = merged(std::mem::take(&mut answers[5]));
        let one = |index: usize| answers[index].first().map(|series| series.1);
        let missing = |family: &str, time: Duration| {
            let seconds = time.as_secs_f64();
            QueryError::NoData(format!("Prometheus has no {family} for {pair} in the last {seconds} s"))
        };
        one(0).ok_or_else(|| missing("http_requests_total", self.stale_after))?;
        let observed = Observed {
            requests: one(1).ok_or_else(|| missing("http_requests_total", window))?,
            // A series exists only after the first failure.
            failed: one(2).unwrap_or(0.0),
            given_up: one(3).unwrap_or(0.0),
            seconds: one(4).ok_or_else(|| missing("http_request_duration_seconds_sum", window))?,
            buckets,
        };
        observed
            .check()
            .map_err(|why| QueryError::NoData(format!("the data for {pair} is unusable: {why}")))?;
        Ok(observed)
    }

    /// By how much the counters grew within the window, one value a series.
    ///
    /// `increase` counts from a series' first sample on, so it misses the first value of a new series: the first
    /// failure of a kind appears as a series whose first sample is one. That first sample is added, with the label
    /// `part`, for a series that is really new:
    ///
    /// - it has no sample before the window, not even before a gap, and
    /// - its instance has older samples than it, or the instance is new but Prometheus is not. A Prometheus that lost its
    ///   data, or was just installed, sees old counters for the first time.
    fn growth(&self, family: &str, version: &str, matchers: &[&str], window: Duration) -> String {
        let (window, earlier) = (milliseconds(window), milliseconds(window + SCRAPES));
        let series = self.series(family, version, matchers);
        let instances = self.series("http_requests_total", version, &[]);
        let before = format!("http_requests_total{{{}}} offset {earlier}", self.matchers.join(","));
        let first = format!("min_over_time({series}[{window}])");
        format!(
            "increase({series}[{window}]) or label_replace(\
             {first} unless last_over_time({series}[{MEMORY}] offset {window}) and (\
             count_over_time({series}[{window}]) < on (job, instance) group_left () \
             max by (job, instance) (count_over_time({instances}[{window}])) \
             or {first} and on () count({before})), \"part\", \"first\", \"\", \"\")"
        )
    }

    fn series(&self, family: &str, version: &str, matchers: &[&str]) -> String {
        let version = format!("{}={}", self.label, quoted(version));
        let all: Vec<&str> = [&*version]
            .into_iter()
            .chain(self.matchers.iter().map(|matcher| &**matcher))
            .chain(matchers.iter().copied())
            .collect();
        format!("{family}{{{}}}", all.join(","))
    }

    /// The values of the result, each with its bound if it is a bucket, else with 0.
    pub(crate) async fn query(&self, query: &str) -> Result<Vec<(f64, f64)>, QueryError> {
        let series = self.vector(query).await?;
        series.iter().map(value).collect::<Option<_>>().ok_or_else(|| QueryError::Unreachable {
            server: self.server.clone(),
            problem: "the result is no instant vector".into(),
        })
    }

    /// The series of an instant vector, as Prometheus writes them.
    pub(crate) async fn vector(&self, query: &str) -> Result<Vec<Value>, QueryError> {
        let unreachable = |problem: String| QueryError::Unreachable { server: self.server.clone(), problem };
        let mut url = self.server.join("api/v1/query").map_err(|error| unreachable(error.to_string()))?;
        url.query_pairs_mut().append_pair("query", query);
        let mut headers = self.headers.clone();
        if let Some(login) = self.login.header().map_err(unreachable)? {
            headers.insert(AUTHORIZATION, login);
        }
        let (status, body) = self.http.send(Method::GET, &url, headers).await.map_err(unreachable)?;
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(QueryError::Unauthorized { server: self.server.clone(), status });
        }
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|_| unreachable(format!("the response ({status}) is not one of Prometheus")))?;
        if answer["status"] != "success" {
            let problem = answer["error"].as_str().map_or_else(|| status.to_string(), cutover::redact);
            return Err(QueryError::Refused { query: query.to_owned(), problem });
        }
        // What Thanos and remote storage set when they could not read all of it. Hints on the query are in `infos`.
        if let Some(warnings) = answer["warnings"].as_array().filter(|warnings| !warnings.is_empty()) {
            let all: Vec<_> = warnings.iter().filter_map(Value::as_str).collect();
            return Err(QueryError::Partial {
                query: query.to_owned(),
                problem: cutover::redact(&all.join("; ")),
            });
        }
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }
}

impl Login {
    fn header(&self) -> Result<Option<HeaderValue>, String> {
        let text = match self {
            Self::None => return Ok(None),
            Self::Bearer(token) => format!("Bearer {}", token.read()?),
            Self::Basic { user, password } => {
                format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{}", password.read()?)))
            }
        };
        let invalid = |_| "the token contains characters that a header cannot have".to_owned();
        let mut value = HeaderValue::from_str(&text).map_err(invalid)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Secret {
    fn read(&self) -> Result<String, String> {
        let secret = match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::File(path) => std::fs::read_to_string(path)
                .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
                .map_err(|error| format!("cannot read {}: {error}", path.display())),
        };
        // A gateway may quote it in its answer.
        secret.inspect(|secret| cutover::remember(secret))
    }
}

/// Sums buckets by their bound.
///
/// Exporters write a bound as `1` or as `1.0`, and Prometheus 3 rewrites it. Series of different instances are added; two
/// spellings of one bucket of one instance count once.
fn by_bound(growth: &str) -> String {
    let bound = format!(r#"label_replace({growth}, "bound", "$1", "le", "(.*)")"#);
    let bound = format!(r#"label_replace({bound}, "bound", "$1", "le", "(.*)\\.0")"#);
    format!("sum by (bound) (max without (le) ({bound}))")
}

/// Buckets with fewer samples than others of their histogram: a change of spelling or of bounds within the window.
///
/// Such buckets end or begin in the middle, so that the sums of two bounds are of different times.
fn changed_bounds(buckets: &str, window: Duration) -> String {
    let samples = format!("count_over_time({buckets}[{}])", milliseconds(window));
    let fewer = format!("{samples} < ignoring (le) group_left () max without (le) ({samples})");
    format!(r#"label_replace({fewer}, "bound", "$1", "le", "(.*)")"#)
}

/// Sorts buckets by their bound and adds those whose bounds are the same number.
fn merged(mut buckets: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    buckets.sort_by(|low, high| low.0.total_cmp(&high.0));
    buckets.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        if is_same {
            kept.1 += next.1;
        }
        is_same
    });
    buckets
}

/// Rust parses `NaN`, `+Inf` and `-Inf` as Prometheus writes them.
fn value(series: &Value) -> Option<(f64, f64)> {
    let bound = series["metric"]["bound"].as_str().map_or(Some(0.0), |bound| bound.parse().ok())?;
    Some((bound, series["value"][1].as_str()?.parse().ok()?))
}

fn milliseconds(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bounds_are_added_and_sorted() {
        let buckets = vec![(f64::INFINITY, 5.0), (1.0, 2.0), (0.5, 1.0), (1.0, 2.0)];
        assert_eq!(merged(buckets), [(0.5, 1.0), (1.0, 4.0), (f64::INFINITY, 5.0)]);
    }
}
