//! Requests to the servers that the command line asks.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use url::Url;

/// More than any answer that makes sense here.
const MAX_BODY: usize = 16 << 20;

/// A client for `http` and `https`, with a time limit for each request.
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    time_limit: Duration,
}

impl Http {
    /// # Errors
    ///
    /// The system's certificates can't be read, and `server` is an `https` one.
    pub(crate) fn new(server: &Url, time_limit: Duration) -> std::io::Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        let builder = hyper_rustls::HttpsConnectorBuilder::new();
        let connector = if server.scheme() == "https" {
            builder.with_provider_and_native_roots(provider)?.https_only().enable_http1().build()
        } else {
            // No certificate is ever looked at, and a machine may have none.
            let config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .map_err(std::io::Error::other)?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            builder.with_tls_config(config).https_or_http().enable_http1().build()
        };
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), time_limit })
    }

    /// The answer's status and body, or in words why there is none.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &Url,
        token: Option<&str>,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut request = Request::builder().method(method).uri(url.as_str());
        if let Some(token) = token {
            let mut token =
                HeaderValue::from_str(token).map_err(|_| "the token holds characters that no token has")?;
            token.set_sensitive(true);
            request = request.header(http::header::AUTHORIZATION, token);
        }
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        let exchange = async {
            let (head, body) = self.client.request(request).await.map_err(|e| root_cause(&e))?.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| root_cause(&*error))?;
            Ok((head.status, body.to_bytes()))
        };
        let late = Err(format!("no answer within {:?}", self.time_limit));
        tokio::time::timeout(self.time_limit, exchange).await.unwrap_or(late)
    }
}

/// The client says "client error (Connect)"; why is further down.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
