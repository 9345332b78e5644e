use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::broadcast::error::RecvError;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status as Code};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use super::check::{Check, CheckError, ProbeOutcome};
use super::handle::Health;

impl Health {
    /// `grpc.health.v1.Health` for a tonic server, from the same state as the pages.
    ///
    /// Service `""` is readiness. Any other service is the check, signal or [group](Check::group) of that name, so give
    /// a check the name of your gRPC service to make it available.
    ///
    /// # Differences from the service of `tonic-health`
    ///
    /// A service is SERVING only while the instance is ready, so every service is NOT_SERVING during a drain. A watch of
    /// an unknown service receives SERVICE_UNKNOWN and continues, as the protocol requires
    /// (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>). A drain ends watches instead of waiting for
    /// them.
    pub fn grpc(&self) -> health_server::HealthServer<GrpcHealth> {
        health_server::HealthServer::new(GrpcHealth { health: self.clone() })
    }

    fn serving(&self, service: &str) -> ServingStatus {
        let ready = match service {
            "" => Some(self.is_ready()),
            name => self.is_passing(name).map(|passing| passing && self.is_ready()),
        };
        match ready {
            Some(true) => ServingStatus::Serving,
            Some(false) => ServingStatus::NotServing,
            None => ServingStatus::ServiceUnknown,
        }
    }
}

/// The service behind [`Health::grpc`].
#[derive(Debug, Clone)]
pub struct GrpcHealth {
    health: Health,
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl health_server::Health for GrpcHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Code> {
        match self.health.serving(&request.get_ref().service) {
            ServingStatus::ServiceUnknown => {
                Err(Code::not_found("no check, signal or group has the name of this service"))
            }
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Code>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Code> {
        let service = request.into_inner().service;
        let health = self.health.clone();
        let changes = health.status_changes();
        let states = stream::unfold((health, changes, None), move |(health, mut changes, last)| {
            let service = service.clone();
            async move {
                loop {
                    let now = health.serving(&service);
                    if last != Some(now) {
                        return Some((Ok(response(now)), (health, changes, Some(now))));
                    }
                    // A receiver that lags has missed changes; reading the state again is enough.
                    if matches!(changes.recv().await, Err(RecvError::Closed)) {
                        return None;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(states)))
    }
}

impl Check {
    /// A check of a dependency that speaks gRPC, through its `grpc.health.v1.Health` service. It passes if the answer
    /// for `service` (`""` for the whole server) is SERVING.
    ///
    /// Each probe makes a connection from `endpoint` (which also holds the TLS settings), so it does not wait behind the
    /// service's own calls.
    pub fn grpc(name: impl Into<Arc<str>>, endpoint: &Endpoint, service: impl Into<String>) -> Self {
        let (endpoint, service) = (endpoint.clone(), service.into());
        Self::new(name, move || probe(endpoint.clone(), service.clone()))
    }
}

async fn probe(endpoint: Endpoint, service: String) -> Result<ProbeOutcome, CheckError> {
    let mut client = HealthClient::new(endpoint.connect().await?);
    let answer = client.check(HealthCheckRequest { service }).await;
    let status = answer.map_err(|status| format!("{}: {}", status.code(), status.message()))?;
    match status.into_inner().status() {
        ServingStatus::Serving => Ok(ProbeOutcome::Pass),
        other => Err(format!("answered {}", other.as_str_name()).into()),
    }
}
