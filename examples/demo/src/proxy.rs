//! The proxy before the instances: Envoy, or the demo's own balancer.

use std::net::SocketAddr;

use cutover_testkit::{Cluster, Envoy, EnvoyOptions, KitError};

use crate::{balancer::Balancer, failure::Result};

/// Gets all requests but the canary's share.
pub(crate) const STABLE: &str = "stable";
/// One instance of a new release.
pub(crate) const CANARY: &str = "canary";

/// The addresses of an instance: for requests, and for health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) health: SocketAddr,
}

/// Envoy or the balancer.
pub(crate) enum LoadBalancer {
    Envoy(Envoy),
    Own(Balancer),
}

impl LoadBalancer {
    /// Starts Envoy if it is installed, else the balancer.
    pub(crate) async fn start() -> Result<Self> {
        let cluster = |name: &str| Cluster { name: name.to_owned(), endpoints: Vec::new() };
        // As service meshes do: retry on another instance if the first one cannot have started the request.
        let options = EnvoyOptions { retry: true };
        match Envoy::start_with(vec![cluster(STABLE), cluster(CANARY)], options).await {
            Ok(envoy) => Ok(Self::Envoy(envoy)),
            Err(KitError::Missing { .. }) => Ok(Self::Own(Balancer::start(&[STABLE, CANARY]).await?)),
            Err(error) => Err(error.into()),
        }
    }

    /// The base URL for requests, without a trailing slash.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Envoy(envoy) => envoy.url(),
            Self::Own(balancer) => balancer.url(),
        }
    }

    /// Sends this percentage of the requests to the canary.
    pub(crate) async fn set_canary_share(&self, percent: u32) -> Result<()> {
        let weights = [(STABLE, 100 - percent), (CANARY, percent)];
        match self {
            Self::Envoy(envoy) => Ok(envoy.set_weights(&weights).await?),
            Self::Own(balancer) => {
                balancer.set_weights(&weights);
                Ok(())
            }
        }
    }

    pub(crate) async fn set_endpoints(&self, cluster: &str, endpoints: &[Endpoint]) -> Result<()> {
        match self {
            Self::Envoy(envoy) => {
                let endpoint = |endpoint: &Endpoint| cutover_testkit::Endpoint {
                    name: endpoint.name.clone(),
                    addr: endpoint.address,
                    health: endpoint.health,
                };
                Ok(envoy.set_endpoints(cluster, endpoints.iter().map(endpoint).collect()).await?)
            }
            Self::Own(balancer) => {
                balancer.set_endpoints(cluster, endpoints);
                Ok(())
            }
        }
    }

    /// Whether an instance gets requests, according to the proxy's health checks.
    pub(crate) async fn is_serving(&self, cluster: &str, endpoint: &Endpoint) -> Result<bool> {
        match self {
            Self::Envoy(envoy) => Ok(envoy.healthy(cluster).await?.contains(&endpoint.address)),
            Self::Own(balancer) => Ok(balancer.is_serving(&endpoint.name)),
        }
    }
}
