//! HTTP as the client needs it: with a time limit, with the answer's status looked at, and without
//! downloading again what did not change.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use unleash_api_client::http::{Method, Request, Response, Transport};

/// More than any set of flags; an endless answer must not fill the memory.
const MAX_BODY: usize = 64 << 20;

/// The features as the server sent them.
pub(super) struct Features {
    pub(super) body: Bytes,
    pub(super) etag: Option<HeaderValue>,
}

/// Sends what the client asks it to.
///
/// The client reads the body of a GET whatever its status, and knows nothing of ETags. So the
/// answer to a GET is left here, to be [taken](Self::take), and the client is given `null`.
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    time_limit: Duration,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    etag: Option<HeaderValue>,
    features: Option<Features>,
}

impl Http {
    pub(super) fn new(tls: bool, time_limit: Duration) -> std::io::Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        let builder = hyper_rustls::HttpsConnectorBuilder::new();
        let connector = if tls {
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
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            time_limit,
            kept: Mutex::default(),
        })
    }

    /// What the last GET brought; `None` if nothing has changed.
    pub(super) fn take(&self) -> Option<Features> {
        self.kept().features.take()
    }

    /// These features are in use now: from the next GET on, only a change is asked for.
    pub(super) fn applied(&self, etag: Option<HeaderValue>) {
        self.kept().etag = etag;
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, request: Request) -> Result<Response, anyhow::Error> {
        let mut builder = http::Request::builder().uri(&request.url).method(match request.method {
            Method::Get => http::Method::GET,
            Method::Post => http::Method::POST,
        });
        for (name, value) in &request.headers {
            let mut value = HeaderValue::from_str(value)?;
            value.set_sensitive(name.eq_ignore_ascii_case("authorization"));
            builder = builder.header(name, value);
        }
        let is_get = request.method == Method::Get;
        if is_get {
            if let Some(etag) = &self.kept().etag {
                builder = builder.header(header::IF_NONE_MATCH, etag);
            }
        } else {
            builder = builder.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::from(request.body.unwrap_or_default());
        let answer = self.client.request(builder.body(body)?).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
        if !is_get {
            return Ok(Response { status: head.status.as_u16(), body: body.into() });
        }
        let features = match head.status {
            StatusCode::OK => Some(Features { body, etag: head.headers.get(header::ETAG).cloned() }),
            StatusCode::NOT_MODIFIED => None,
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                anyhow::bail!("the server refused the token ({status})")
            }
            status => anyhow::bail!("the server answered {status}"),
        };
        self.kept().features = features;
        Ok(Response { status: StatusCode::OK.as_u16(), body: b"null".into() })
    }
}

#[async_trait]
impl Transport for Http {
    async fn execute(&self, request: Request) -> Result<Response, anyhow::Error> {
        match tokio::time::timeout(self.time_limit, self.send(request)).await {
            Ok(outcome) => outcome,
            Err(_) => anyhow::bail!("no answer within {:?}", self.time_limit),
        }
    }
}
