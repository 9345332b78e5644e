use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Check, CheckError, HealthError, ProbeOutcome};

impl Check {
    /// A check of a dependency that speaks HTTP: `GET` of an `http://` address, well when the
    /// answer's status is 2xx. Point it at the dependency's own readiness.
    ///
    /// Each probe has a connection of its own, so it doesn't wait in the queue of the
    /// service's client. For `https://` use [`Check::new`] with a client of your own.
    ///
    /// # Errors
    ///
    /// An address that isn't one, or is not `http://`.
    pub fn http(name: impl Into<Arc<str>>, url: &str) -> Result<Self, HealthError> {
        let name = name.into();
        let refused = |why: &str| HealthError::new(vec![format!("check {name:?}: url {url:?} {why}")]);
        let uri: Uri = url.parse().map_err(|error| refused(&format!("is no address: {error}")))?;
        if uri.scheme_str() != Some("http") {
            return Err(refused("must begin with `http://`; for others use `Check::new`"));
        }
        let Some(authority) = uri.authority().cloned() else {
            return Err(refused("names no host"));
        };
        if authority.as_str().contains('@') {
            return Err(refused("must not hold a user or password; use `Check::new` for those"));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self::new(name, move || probe(authority.clone(), path.clone())))
    }
}

async fn probe(authority: http::uri::Authority, path: String) -> Result<ProbeOutcome, CheckError> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with this probe, in whatever way that ends.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(path).header(HOST, authority.as_str()).body(Empty::<Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    if status.is_success() { Ok(ProbeOutcome::Pass) } else { Err(format!("answered {status}").into()) }
}
