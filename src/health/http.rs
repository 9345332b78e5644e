use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::check::{Check, CheckError, ProbeOutcome};
use crate::config::{ConfigError, Problem};

impl Check {
    /// A check of a dependency that speaks HTTP: `GET` of an `http://` URL, which passes if the status of the response
    /// is 2xx. Use the URL of the dependency's own readiness.
    ///
    /// Each probe makes a connection, so it does not wait in the queue of the service's client. For `https://` use
    /// [`Check::new`] with your own client.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `url` is not a URL that begins with `http://`, or contains a user.
    pub fn http(name: impl Into<Arc<str>>, url: &str) -> Result<Self, ConfigError> {
        let name = name.into();
        let refused = |problem: String| ConfigError {
            problems: vec![Problem::new(format!("check {name:?}: url"), problem)],
        };
        let uri: Uri = url.parse().map_err(|error| refused(format!("{url:?} is not a URL: {error}")))?;
        if uri.scheme_str() != Some("http") {
            return Err(refused(format!(
                "{url:?} must begin with `http://`; for other schemes use `Check::new`"
            )));
        }
        let Some(authority) = uri.authority().cloned() else {
            return Err(refused(format!("{url:?} has no host")));
        };
        if authority.as_str().contains('@') {
            return Err(refused(
                "must not contain a user or password; use `Check::new` for those".to_owned(),
            ));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self::new(name, move || probe(authority.clone(), path.clone())))
    }
}

async fn probe(authority: http::uri::Authority, path: String) -> Result<ProbeOutcome, CheckError> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Dropping the set aborts the connection, so it ends with this probe.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(path).header(HOST, authority.as_str()).body(Empty::<Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    if status.is_success() { Ok(ProbeOutcome::Pass) } else { Err(format!("answered {status}").into()) }
}
