use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{Extensions, Method, StatusCode, header::ALLOW};
use tokio::net::unix;

use super::DrainOptions;
use super::sequence;
use super::stage::Stage;
use super::state::State;

/// The header that carries the [`DrainSecret`](super::DrainSecret).
const SECRET_HEADER: &str = "x-cutover-drain-secret";

pub(super) fn router(state: Arc<State>) -> Router {
    let handler = move |request: Request| {
        let refusal = refusal(&state.options, &request);
        let state = Arc::clone(&state);
        async move {
            if let Some(refusal) = refusal {
                return refusal;
            }
            sequence::begin(&state);
            state.stages.reached(Stage::Closing).await;
            "draining: endpoints had time to propagate\n".into_response()
        }
    };
    Router::new().route("/drain", any(handler))
}

/// The answer to a request that may not drain this process.
fn refusal(options: &DrainOptions, request: &Request) -> Option<Response> {
    let has_secret = match (&options.secret, request.headers().get(SECRET_HEADER)) {
        (Some(secret), Some(header)) => secret.matches(header.as_bytes()),
        _ => false,
    };
    match *request.method() {
        Method::POST if has_secret || is_same_host(request.extensions()) => None,
        // A link, a browser's prefetch or a scanner sends a GET, but not the header.
        Method::GET if has_secret => None,
        Method::POST => {
            let text = format!(
                "a POST from another host needs the header {SECRET_HEADER} with the value of CUTOVER_DRAIN_SECRET\n"
            );
            Some((StatusCode::FORBIDDEN, text).into_response())
        }
        _ => {
            let text = format!("use POST, or GET with the header {SECRET_HEADER}\n");
            Some((StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "POST")], text).into_response())
        }
    }
}

/// Whether the peer is a process of this host (in Kubernetes: of this pod).
fn is_same_host(extensions: &Extensions) -> bool {
    if let Some(ConnectInfo(peer)) = extensions.get::<ConnectInfo<SocketAddr>>() {
        // Not all of 127.0.0.0/8: Istio's sidecar forwards requests of other hosts from 127.0.0.6.
        return match peer.ip().to_canonical() {
            IpAddr::V4(ip) => ip == std::net::Ipv4Addr::LOCALHOST,
            IpAddr::V6(ip) => ip == std::net::Ipv6Addr::LOCALHOST,
        };
    }
    extensions.get::<ConnectInfo<unix::SocketAddr>>().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_itself_counts_as_the_same_host() {
        let from = |peer: &str| {
            let mut extensions = Extensions::new();
            extensions.insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
            is_same_host(&extensions)
        };
        for same in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(from(same), "{same}");
        }
        for other in ["10.0.0.1:1", "127.0.0.6:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1"] {
            assert!(!from(other), "{other}");
        }
        assert!(!is_same_host(&Extensions::new()), "a server that says nothing about the peer");
    }
}
