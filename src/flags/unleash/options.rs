//! How to reach the server, and what of it counts for how long.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;

use super::backup::Backup;
use crate::flags::error::{FlagsError, OptionProblem};

/// How to reach an Unleash server, and for how long its answers count.
///
/// ```no_run
/// use std::time::Duration;
/// use cutover::flags::{Flags, UnleashOptions};
///
/// # async fn start(token: String) -> Result<(), Box<dyn std::error::Error>> {
/// let options = UnleashOptions {
///     interval: Duration::from_secs(5),
///     ..UnleashOptions::new("http://unleash:4242/api", token, "payments", "payments-1")
/// };
/// let flags = Flags::unleash(options)?;
/// // A server that is away is no reason not to start.
/// let _ = tokio::time::timeout(Duration::from_secs(2), flags.ready()).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct UnleashOptions {
    /// The server, `http` or `https`; `/api` is added if it is not the end of the path.
    pub url: String,
    /// A backend token. Which environment and projects are seen is the token's affair.
    pub token: String,
    /// The application's name, which Unleash shows and strategies can look at.
    pub app_name: String,
    /// This instance's name, which Unleash shows.
    pub instance_id: String,
    /// Time between two polls, give or take a tenth.
    ///
    /// Default 1 s: the server itself looks for changes once a second, and whoever turns off a bad
    /// path waits for both, so that 2.1 s are the worst case and a shorter interval gains little. An
    /// answer that nothing changed (ETag) has no body: a hundred instances are a hundred tiny
    /// requests per second. After failures the time doubles, up to half of `stale_after`.
    pub interval: Duration,
    /// Time limit of each request to the server, and of each use of `backup`. Default 3 s.
    pub time_limit: Duration,
    /// For how long after the last answer the state counts as fresh. Default 30 s. Requests are
    /// decided by stale state too; a [`Switch`](crate::flags::Switch) is not.
    pub stale_after: Duration,
    /// Time between two reports of counted decisions to the server; zero for none. Default 60 s.
    pub metrics_interval: Duration,
    /// Keeps the last state, so that an instance that starts while the server is away begins with it
    /// and not with defaults: a [`FileBackup`](crate::flags::FileBackup),
    /// [`PostgresBackup`](crate::flags::PostgresBackup), `RedisBackup` or your own. It is asked in
    /// the background: await [`Flags::ready`](crate::flags::Flags::ready) with a time limit before
    /// serving. Problems with it are logged and counted, nothing more. Default none.
    pub backup: Option<Arc<dyn Backup>>,
    /// A state from [`Flags::snapshot`](crate::flags::Flags::snapshot) of another instance, for a
    /// service that keeps it elsewhere than in a file. Comes before `backup`. Default none.
    pub bootstrap: Option<Bytes>,
}

impl UnleashOptions {
    /// Options with defaults for everything that has one.
    pub fn new(
        url: impl Into<String>,
        token: impl Into<String>,
        app_name: impl Into<String>,
        instance_id: impl Into<String>,
    ) -> Self {
        Self {
            url: url.into(),
            token: token.into(),
            app_name: app_name.into(),
            instance_id: instance_id.into(),
            interval: Duration::from_secs(1),
            time_limit: Duration::from_secs(3),
            stale_after: Duration::from_secs(30),
            metrics_interval: Duration::from_secs(60),
            backup: None,
            bootstrap: None,
        }
    }

    /// The API's address, and whether it needs TLS.
    pub(super) fn check(&self) -> Result<Endpoint, FlagsError> {
        let mut problems = Vec::new();
        let mut problem = |field, text: &str| {
            let text = text.to_owned();
            problems.push(OptionProblem { field, text });
        };
        let endpoint = Endpoint::parse(&self.url);
        if let Err(text) = &endpoint {
            problem("url", text);
        }
        let header = |text: &str| !text.trim().is_empty() && http::HeaderValue::from_str(text).is_ok();
        if !header(&self.token) {
            problem("token", "must be a backend token of the server, on one line");
        }
        if !header(&self.app_name) {
            problem("app_name", "must be a name, on one line");
        }
        if !header(&self.instance_id) {
            problem("instance_id", "must be a name, on one line");
        }
        for (field, time) in [("interval", self.interval), ("time_limit", self.time_limit)] {
            if time.is_zero() {
                problem(field, "must be longer than zero");
            }
        }
        if self.stale_after <= self.interval.saturating_add(self.time_limit) {
            problem(
                "stale_after",
                "must be longer than `interval` and `time_limit` together, or one slow answer \
                 makes the state stale",
            );
        }
        match endpoint {
            Ok(endpoint) if problems.is_empty() => Ok(endpoint),
            _ => Err(FlagsError::Options(problems)),
        }
    }
}

impl fmt::Debug for UnleashOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only what can't hold a secret: a URL that was refused may have a password in it.
        f.debug_struct("UnleashOptions")
            .field("url", &Endpoint::parse(&self.url).map(|endpoint| endpoint.api))
            .field("app_name", &self.app_name)
            .field("instance_id", &self.instance_id)
            .field("interval", &self.interval)
            .field("time_limit", &self.time_limit)
            .field("stale_after", &self.stale_after)
            .field("metrics_interval", &self.metrics_interval)
            .field("backup", &self.backup)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, PartialEq)]
pub(super) struct Endpoint {
    pub(super) api: String,
    pub(super) tls: bool,
}

impl Endpoint {
    fn parse(url: &str) -> Result<Self, &'static str> {
        let uri: Uri =
            url.parse().map_err(|_| "is not a URL: it should look like `http://unleash:4242/api`")?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("must begin with `http://` or `https://`"),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err("must not hold a user or password: `token` is what the server asks for");
        }
        if uri.host().unwrap_or_default().is_empty() {
            return Err("has no host: it should look like `http://unleash:4242/api`");
        }
        if uri.query().is_some() {
            return Err("must end with its path: there is a `?` in it");
        }
        let mut api = url.trim_end_matches('/').to_owned();
        if !api.ends_with("/api") {
            api.push_str("/api");
        }
        Ok(Self { api, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let options = UnleashOptions {
            interval: Duration::ZERO,
            stale_after: Duration::ZERO,
            ..UnleashOptions::new("unleash:4242", "", "app", "a\nb")
        };
        let Err(FlagsError::Options(problems)) = options.check() else {
            panic!("accepted");
        };
        let fields: Vec<_> = problems.iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["url", "token", "instance_id", "interval", "stale_after"]);
    }

    #[test]
    fn urls() {
        for (url, api) in [
            ("http://h:4242", "http://h:4242/api"),
            ("http://h:4242/api/", "http://h:4242/api"),
            ("https://h/unleash", "https://h/unleash/api"),
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert_eq!(endpoint.api, api);
            assert_eq!(endpoint.tls, url.starts_with("https"));
        }
        for url in ["", "h:4242", "ftp://h/api", "http://u:p@h/api", "http:///api", "http://h/?a"] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        for url in ["http://h/api", "http://u:s3cret@h/api"] {
            let text = format!("{:?}", UnleashOptions::new(url, "s3cret", "app", "one"));
            assert!(!text.contains("s3cret") && text.contains("app"), "{text}");
        }
    }
}
