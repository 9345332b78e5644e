//! This library's own HTTP client for the flag server: a pool of connections, compressed answers, private certificate
//! authorities, client certificates, and a proxy.

use std::io::Read;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::rt::TokioExecutor;
use unleash_api_client::http::{Method as RequestMethod, Request};
use unleash_yggdrasil::SUPPORTED_SPEC_VERSION;

use super::backup::LARGEST_STATE;
use super::options::UnleashOptions;
use super::secure::{Secured, secured};
use crate::config::{UNLEASH, tls_advice};
use crate::flags::error::{FetchError, FetchErrorKind, unavailable};

/// Without this header, the server repeats every segment in each strategy that uses it.
const CLIENT_SPEC: HeaderName = HeaderName::from_static("unleash-client-spec");

/// An answer with any status.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

pub(super) enum HttpClient {
    Direct(Client<Secured<HttpConnector>, Full<Bytes>>),
    Proxied(Client<Secured<Tunnel<HttpConnector>>, Full<Bytes>>),
}

impl HttpClient {
    pub(super) fn new(options: &UnleashOptions, proxy: Option<Uri>, tls: bool) -> std::io::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        let client = Client::builder(TokioExecutor::new());
        Ok(match proxy {
            Some(proxy) => Self::Proxied(client.build(secured(options, tls, Tunnel::new(proxy, connector))?)),
            None => Self::Direct(client.build(secured(options, tls, connector)?)),
        })
    }

    pub(super) async fn send(
        &self,
        request: Request,
        etag: Option<HeaderValue>,
    ) -> Result<Answer, FetchError> {
        let request = converted(request, etag).map_err(unavailable)?;
        let answer = match self {
            Self::Direct(client) => client.request(request).await,
            Self::Proxied(client) => client.request(request).await,
        };
        let (head, body) = answer.map_err(|error| not_sent(causes(&error)))?.into_parts();
        let body = Limited::new(body, LARGEST_STATE).collect().await;
        let mut body = body.map_err(|error| not_sent(causes(&*error)))?.to_bytes();
        if head
            .headers
            .get(header::CONTENT_ENCODING)
            .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"gzip"))
        {
            let read = tokio::task::spawn_blocking(move || gunzip(&body)).await;
            let read = read.map_err(|error| unavailable(error.to_string()))?;
            body = read.map_err(|error| unavailable(format!("gzip: {error}")))?;
        }
        Ok(Answer { status: head.status, headers: head.headers, body })
    }
}

/// The error of an exchange without a complete answer, from its text.
fn not_sent(text: String) -> FetchError {
    match tls_advice(&text, &UNLEASH) {
        Some(advice) => {
            FetchError { kind: FetchErrorKind::NotTrusted, message: format!("{advice} ({text})") }
        }
        None => unavailable(text),
    }
}

fn converted(request: Request, etag: Option<HeaderValue>) -> Result<http::Request<Full<Bytes>>, String> {
    let body = Bytes::from(request.body.unwrap_or_default());
    let mut converted = http::Request::new(Full::new(body));
    *converted.uri_mut() = request.url.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let headers = converted.headers_mut();
    for (name, text) in request.headers {
        let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is not the name of a header"))?;
        // The value may be the token.
        let mut value = HeaderValue::from_str(&text).map_err(|_| format!("header {name} is not one line"))?;
        value.set_sensitive(name == header::AUTHORIZATION);
        headers.insert(name, value);
    }
    headers.insert(CLIENT_SPEC, HeaderValue::from_static(SUPPORTED_SPEC_VERSION));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    headers.extend(etag.map(|etag| (header::IF_NONE_MATCH, etag)));
    if request.method == RequestMethod::Post {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *converted.method_mut() = Method::POST;
    }
    Ok(converted)
}

fn gunzip(body: &[u8]) -> std::io::Result<Bytes> {
    let mut text = Vec::new();
    // One byte more than the limit, so that a larger state is noticed.
    MultiGzDecoder::new(body).take(LARGEST_STATE as u64 + 1).read_to_end(&mut text)?;
    Ok(text.into())
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
