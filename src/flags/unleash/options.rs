//! How to reach the server, and how long its answers are valid.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use unleash_api_client::http::TransportRef;

use super::backup::Backup;
use super::custom::CustomStrategy;
use super::fleet_polling::FleetPolling;
use crate::config::{ConfigError, Problem};

/// How to reach an Unleash server, and how long its answers are valid.
///
/// A struct literal ends with `..UnleashOptions::new(…)`, so new fields do not break it.
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
/// // Start even if the server is unreachable.
/// let _ = tokio::time::timeout(Duration::from_secs(2), flags.ready()).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct UnleashOptions {
    /// The server's `http` or `https` URL. `/api` is appended if the path does not end with it.
    pub url: String,
    /// A backend token. It determines which environment and projects are visible.
    pub token: String,
    /// The application's name. Unleash shows it, and strategies can use it.
    pub app_name: String,
    /// This instance's name, which Unleash shows.
    pub instance_id: String,
    /// Time between two polls, with a jitter of 10 %.
    ///
    /// Default 1 s. The server itself looks for changes once a second, so a change arrives within 2.1 s at worst, and a
    /// shorter interval gains little. An unchanged state (ETag) is an answer without a body. After failures the time doubles,
    /// up to half of `stale_after`. With `fleet`, only one instance polls this often.
    pub interval: Duration,
    /// Lets one elected instance poll for the fleet; the others receive the state through the ledger, and poll at
    /// `direct_interval` only. A change arrives as fast as without it, and requests per second do not grow with the fleet
    /// beyond the direct polls. An instance that cannot use the ledger polls at `interval`. If the elected instance dies,
    /// another takes over when its lease of three intervals (at least 2 s) has ended. Default none.
    pub fleet: Option<FleetPolling>,
    /// Time between two polls of an instance that does not poll for its fleet. Without `fleet`, it has no effect. Default
    /// 15 s.
    pub direct_interval: Duration,
    /// Time limit of each request to the server, and of each use of `backup`. Default 3 s.
    pub time_limit: Duration,
    /// How long after the last answer the state is fresh. Default 30 s. Requests are decided by a stale state too; a
    /// [`Switch`](crate::flags::Switch) is not.
    pub stale_after: Duration,
    /// Time between two reports of decision counts to the server; zero turns reports off. Default 60 s.
    pub metrics_interval: Duration,
    /// Stores the last state, so that an instance that starts while the server is unreachable begins with it and not with
    /// defaults: a [`FileBackup`](crate::flags::FileBackup), [`PostgresBackup`](crate::flags::PostgresBackup),
    /// `RedisBackup` or your own. It is loaded in the background, so await
    /// [`Flags::ready`](crate::flags::Flags::ready) with a time limit before serving. Its errors are logged and counted
    /// and have no other effect. Default none.
    pub backup: Option<Arc<dyn Backup>>,
    /// A state from [`Flags::snapshot`](crate::flags::Flags::snapshot) of another instance, for a service that stores it
    /// itself. It takes precedence over `backup`. Default none.
    pub bootstrap: Option<Bytes>,
    /// The application's own activation strategies, by name. A strategy that a flag uses and that is not here is false,
    /// which is logged. A parent flag's custom strategies are not evaluated for its children: the engine gives them the
    /// results of the child. Default none.
    pub strategies: HashMap<String, CustomStrategy>,
    /// The TLS configuration for `https`, for a private certificate authority or a client certificate. It is there with
    /// feature `tls-ring` or `tls-aws-lc`. Default: the system's root certificates and no client certificate.
    #[cfg(feature = "_rustls")]
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The `http` URL of a proxy that tunnels connections to the server (`CONNECT`). Default none.
    pub proxy: Option<String>,
    /// The application's own transport, instead of this library's HTTP client. `tls` and `proxy` are not used then. The
    /// limits of time and size still apply, but ETag, `Retry-After` and compression are up to the transport: an answer
    /// 304 means that the state has not changed since the last one. Default none.
    pub transport: Option<TransportRef>,
}

impl UnleashOptions {
    /// Options with the defaults.
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
            fleet: None,
            direct_interval: Duration::from_secs(15),
            time_limit: Duration::from_secs(3),
            stale_after: Duration::from_secs(30),
            metrics_interval: Duration::from_secs(60),
            backup: None,
            bootstrap: None,
            strategies: HashMap::new(),
            #[cfg(feature = "_rustls")]
            tls: None,
            proxy: None,
            transport: None,
        }
    }

    /// The API's endpoint, or every unusable option.
    pub(super) fn check(&self) -> Result<Endpoint, ConfigError> {
        let mut problems = Vec::new();
        let mut problem = |field: &'static str, text: &str| problems.push(Problem::new(field, text));
        let endpoint = Endpoint::parse(&self.url);
        if let Err(text) = endpoint {
            problem("url", text);
        }
        #[cfg(not(any(feature = "_rustls", feature = "tls-native")))]
        if self.transport.is_none() && matches!(&endpoint, Ok(endpoint) if endpoint.tls) {
            problem("url", crate::tls::WITHOUT);
        }
        let proxy = self.proxy.as_deref().map(proxy_uri).transpose();
        if let Err(text) = proxy {
            problem("proxy", text);
        }
        let is_header = |text: &str| !text.trim().is_empty() && http::HeaderValue::from_str(text).is_ok();
        if !is_header(&self.token) {
            problem("token", "is empty or not one line of ASCII; use a backend token of the server");
        }
        if !is_header(&self.app_name) {
            problem("app_name", "is empty or not one line of ASCII; use the name of the service");
        }
        if !is_header(&self.instance_id) {
            problem("instance_id", "is empty or not one line of ASCII; use the name of the pod");
        }
        for (field, time) in [("interval", self.interval), ("time_limit", self.time_limit)] {
            if time.is_zero() {
                problem(field, "0 s is too short; use a time above zero");
            }
        }
        let slowest =
            if self.fleet.is_some() { self.direct_interval.max(self.interval) } else { self.interval };
        let shortest = slowest.saturating_add(self.time_limit);
        if self.stale_after <= shortest {
            let text = format!(
                "{:?} is too short, because one slow answer would make the state stale; use more than `interval` \
                 (`direct_interval` with `fleet`) and `time_limit` together ({shortest:?})",
                self.stale_after
            );
            problem("stale_after", &text);
        }
        ConfigError::check(problems)?;
        let refused = |field| move |text| ConfigError { problems: vec![Problem::new(field, text)] };
        let proxy = proxy.map_err(refused("proxy"))?;
        Ok(Endpoint { proxy, ..endpoint.map_err(refused("url"))? })
    }
}

impl fmt::Debug for UnleashOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only what cannot contain a secret: a URL that was refused may contain a password.
        f.debug_struct("UnleashOptions")
            .field("url", &Endpoint::parse(&self.url).map(|endpoint| endpoint.api))
            .field("app_name", &self.app_name)
            .field("instance_id", &self.instance_id)
            .field("interval", &self.interval)
            .field("time_limit", &self.time_limit)
            .field("stale_after", &self.stale_after)
            .field("metrics_interval", &self.metrics_interval)
            .field("backup", &self.backup)
            .field("strategies", &self.strategies.keys())
            .field("transport", &self.transport.is_some())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, PartialEq)]
pub(super) struct Endpoint {
    pub(super) api: String,
    pub(super) tls: bool,
    pub(super) proxy: Option<Uri>,
}

fn proxy_uri(url: &str) -> Result<Uri, &'static str> {
    const EXAMPLE: &str = "is not the URL of a proxy; use one like http://proxy:3128";
    let uri: Uri = url.parse().map_err(|_| EXAMPLE)?;
    let authority = uri.authority().ok_or(EXAMPLE)?;
    if authority.as_str().contains('@') {
        return Err("contains a user or password, which is not supported; use a proxy that needs none");
    }
    if uri.scheme_str() == Some("http") { Ok(uri) } else { Err(EXAMPLE) }
}

impl Endpoint {
    fn parse(url: &str) -> Result<Self, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "is not a URL; use one like http://unleash:4242/api")?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("has the wrong scheme; use `http://` or `https://`"),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err("contains a user or password; the server authenticates by `token`");
        }
        if uri.host().unwrap_or_default().is_empty() {
            return Err("has no host; use one like http://unleash:4242/api");
        }
        if uri.query().is_some() {
            return Err("contains a `?`; end it with the path");
        }
        let mut api = url.trim_end_matches('/').to_owned();
        if !api.ends_with("/api") {
            api.push_str("/api");
        }
        Ok(Self { api, tls, proxy: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_unusable_options_are_reported_at_once() {
        let options = UnleashOptions {
            interval: Duration::ZERO,
            stale_after: Duration::ZERO,
            proxy: Some("socks5://proxy".into()),
            ..UnleashOptions::new("unleash:4242", "", "app", "a\nb")
        };
        let problems = options.check().unwrap_err().problems;
        let fields: Vec<_> = problems.iter().map(|problem| &*problem.field).collect();
        assert_eq!(fields, ["url", "proxy", "token", "instance_id", "interval", "stale_after"]);
    }

    #[test]
    fn urls_get_the_api_path_or_are_refused() {
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
    fn debug_output_contains_no_secret() {
        for url in ["http://h/api", "http://u:s3cret@h/api"] {
            let text = format!("{:?}", UnleashOptions::new(url, "s3cret", "app", "one"));
            assert!(!text.contains("s3cret") && text.contains("app"), "{text}");
        }
    }
}
