//! HTTP requests to the servers that the command line uses: Prometheus and Unleash.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use percent_encoding::percent_decode_str;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use url::Url;

/// The largest response that is read.
const MAX_BODY: usize = 16 << 20;

/// User name and password.
pub(crate) type Login = (String, String);

/// A client for `http` and `https`, with a time limit for each request.
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    time_limit: Duration,
}

impl Http {
    /// A client for `server`. It trusts the certificates of `ca_file` (PEM) or, without it, those of the system.
    ///
    /// # Errors
    ///
    /// `server` is an `https` one and the certificates cannot be read.
    pub(crate) fn new(server: &Url, ca_file: Option<&Path>, time_limit: Duration) -> std::io::Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        let config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .map_err(std::io::Error::other)?;
        let config = match ca_file {
            // Over `http` no certificate is checked, and a container may have none.
            _ if server.scheme() == "http" => config.with_root_certificates(rustls::RootCertStore::empty()),
            Some(file) => config.with_root_certificates(certificates(file)?),
            None => config.with_native_roots()?,
        };
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), time_limit })
    }

    /// Sends a request without a body. Returns the response's status and body, or why there is no response.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<(StatusCode, Bytes), String> {
        let request = Request::builder().method(method).uri(url.as_str()).body(Empty::new());
        let mut request = request.map_err(|error| error.to_string())?;
        *request.headers_mut() = headers;
        let exchange = async {
            let (head, body) = self.client.request(request).await.map_err(|e| root_cause(&e))?.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| root_cause(&*error))?;
            Ok((head.status, body.to_bytes()))
        };
        let late = Err(format!("no response within {:?}", self.time_limit));
        tokio::time::timeout(self.time_limit, exchange).await.unwrap_or(late)
    }
}

fn certificates(file: &Path) -> std::io::Result<rustls::RootCertStore> {
    let failed = |problem: String| std::io::Error::other(format!("{}: {problem}", file.display()));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| failed(error.to_string()))? {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if roots.is_empty() { Err(failed("it holds no certificate in PEM format".into())) } else { Ok(roots) }
}

/// Reads the address of a server. User name and password are returned separately, so that the URL can be printed.
///
/// # Errors
///
/// Why the text is no address, without the text itself, which may contain a password.
pub(crate) fn server_address(text: &str) -> Result<(Url, Option<Login>), String> {
    let problem = |why: &str| format!("{why}; write for example https://prometheus.example.com:9090");
    let mut url = Url::parse(text).map_err(|error| problem(&format!("it is no URL ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(problem("it begins with neither http:// nor https://"));
    }
    let decoded = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
    let password = url.password().map(decoded);
    let has_login = password.is_some() || !url.username().is_empty();
    let login = has_login.then(|| (decoded(url.username()), password.unwrap_or_default()));
    // Neither fails for a URL that has a host, and both schemes require one.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok((url, login))
}

/// The client's own error says only "client error (Connect)". The reason is its last source.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::server_address;

    #[test]
    fn a_login_in_an_address_is_decoded_and_taken_out() {
        let (url, login) = server_address("https://user:s%40cret@host:9090/prometheus?x=y").expect("a URL");
        assert_eq!(url.as_str(), "https://host:9090/prometheus/");
        assert_eq!(login, Some(("user".into(), "s@cret".into())));
        let (url, login) = server_address("http://host").expect("a URL");
        assert_eq!((url.as_str(), login), ("http://host/", None));
    }

    #[test]
    fn a_wrong_address_is_refused_without_its_secret() {
        for text in ["http://user:secret@", "postgres://user:secret@host", "user:secret@host", "secret"] {
            let problem = server_address(text).expect_err("no address");
            assert!(!problem.contains("secret"), "{problem}");
        }
    }
}
