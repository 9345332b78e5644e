//! Requests to the server: with a time limit, a size limit, a check of the status, and an ETag so that an unchanged
//! state is not downloaded again.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::backup::LARGEST_STATE;
use super::options::UnleashOptions;
use crate::flags::error::{FetchError, FetchErrorKind};

/// The features as the server sent them.
pub(super) struct Features {
    pub(super) body: Bytes,
    pub(super) etag: Option<HeaderValue>,
}

pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    time_limit: Duration,
    headers: HeaderMap,
}

/// The name of this library in requests to the server.
pub(super) const SDK: &str = concat!("cutover:", env!("CARGO_PKG_VERSION"));

impl Http {
    /// `connection` distinguishes this process from others with the same name.
    pub(super) fn new(options: &UnleashOptions, tls: bool, connection: &str) -> std::io::Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        let builder = hyper_rustls::HttpsConnectorBuilder::new();
        let connector = if tls {
            builder.with_provider_and_native_roots(provider)?.https_only().enable_http1().build()
        } else {
            // Plain HTTP checks no certificate, and the machine may have none.
            let config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .map_err(std::io::Error::other)?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            builder.with_tls_config(config).https_or_http().enable_http1().build()
        };
        let interval = options.interval.as_millis().to_string();
        let mut headers = HeaderMap::new();
        for (name, text) in [
            ("authorization", options.token.as_str()),
            ("unleash-appname", &options.app_name),
            ("unleash-instanceid", &options.instance_id),
            ("unleash-connection-id", connection),
            ("unleash-sdk", SDK),
            ("unleash-interval", &interval),
        ] {
            let mut value = HeaderValue::from_str(text).map_err(std::io::Error::other)?;
            value.set_sensitive(name == "authorization");
            headers.insert(HeaderName::from_static(name), value);
        }
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            time_limit: options.time_limit,
            headers,
        })
    }

    /// The features, or `None` if `etag` is still current.
    pub(super) async fn get(
        &self,
        url: &str,
        etag: Option<&HeaderValue>,
    ) -> Result<Option<Features>, FetchError> {
        let mut request = Request::new(Full::default());
        if let Some(etag) = etag {
            request.headers_mut().insert(header::IF_NONE_MATCH, etag.clone());
        }
        let (head, body) = self.send(url, request).await.map_err(unavailable)?;
        let answer = || format!("{} answered {}{}", url, head.status, self.excerpt(&body));
        match head.status {
            StatusCode::OK => Ok(Some(Features { body, etag: head.headers.get(header::ETAG).cloned() })),
            StatusCode::NOT_MODIFIED if etag.is_some() => Ok(None),
            StatusCode::NOT_MODIFIED => Err(unavailable(format!("{}, but has sent no state yet", answer()))),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(FetchError {
                kind: FetchErrorKind::TokenRefused,
                message: format!("the flag server refused the token: {}", answer()),
            }),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(unavailable(answer())),
            status if status.is_server_error() => Err(unavailable(answer())),
            _ => Err(wrong_url(answer())),
        }
    }

    /// The beginning of an answer, on one line and without the token.
    fn excerpt(&self, body: &Bytes) -> String {
        const MAX_CHARS: usize = 200;
        let text = String::from_utf8_lossy(body.get(..4 * MAX_CHARS).unwrap_or(body)).into_owned();
        let token = self.headers.get(header::AUTHORIZATION).and_then(|token| token.to_str().ok());
        let text = token.map_or(text.clone(), |token| text.replace(token, "***"));
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let line: String = line.chars().take(MAX_CHARS).collect();
        if line.is_empty() { line } else { format!(": {line}") }
    }

    pub(super) async fn post(&self, url: &str, content: &Value) -> Result<(), String> {
        let mut request = Request::new(Full::from(content.to_string()));
        *request.method_mut() = Method::POST;
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json);
        let (head, _) = self.send(url, request).await?;
        if head.status.is_success() { Ok(()) } else { Err(format!("{url} answered {}", head.status)) }
    }

    async fn send(
        &self,
        url: &str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(http::response::Parts, Bytes), String> {
        *request.uri_mut() = url.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
        request.headers_mut().extend(self.headers.clone());
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| causes(&error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, LARGEST_STATE).collect().await;
            Ok((head, body.map_err(|error| causes(&*error))?.to_bytes()))
        };
        match tokio::time::timeout(self.time_limit, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {:?}", self.time_limit)),
        }
    }
}

/// The whole chain, because "connection refused" is its last element.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn unavailable(message: impl Into<String>) -> FetchError {
    FetchError { kind: FetchErrorKind::Unavailable, message: message.into() }
}

pub(super) fn wrong_url(message: impl Into<String>) -> FetchError {
    FetchError { kind: FetchErrorKind::WrongUrl, message: message.into() }
}
