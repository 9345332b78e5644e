//! What stands before the instances: a real Envoy, or the demo's own balancer.
use std::net::SocketAddr;

/// Where an instance answers requests, and where it says how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) health: SocketAddr,
}
