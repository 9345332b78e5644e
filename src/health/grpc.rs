use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::broadcast::error::RecvError;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status as Code};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use super::{Check, CheckError, Health, ProbeOutcome};

impl Health {
    /// `grpc.health.v1.Health` for a tonic server, by the same state as the pages.
    ///
    /// Service `""` is readiness; any other is the check or [group](Check::group) of that
    /// name, so add a check (or a signal) named as your gRPC service to have it asked for.
    ///
    /// **Differences from `tonic-health`'s own service.** Nothing is SERVING before it is
    /// ready, and nothing but NOT_SERVING during a drain. A watch of an unknown service is
    /// answered with SERVICE_UNKNOWN and goes on, as the protocol says
    /// (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>). A drain ends watches
    /// instead of waiting for them.
    pub fn grpc(&self) -> health_server::HealthServer<GrpcHealth> {
        health_server::HealthServer::new(GrpcHealth { health: self.clone() })
    }

    fn serving(&self, service: &str) -> ServingStatus {
        let ready = match service {
            "" => Some(self.is_ready()),
            name => self.is_passing(name).map(|well| well && self.is_ready()),
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

fn says(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl health_server::Health for GrpcHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Code> {
        match self.health.serving(&request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Code::not_found("no health is kept for this service")),
            status => Ok(Response::new(says(status))),
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
                        return Some((Ok(says(now)), (health, changes, Some(now))));
                    }
                    // One that lags has missed changes, and looks again just the same.
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
    /// A check of a dependency that speaks gRPC, by its `grpc.health.v1.Health` service:
    /// well when it says SERVING about `service` (`""` for the server as a whole).
    ///
    /// The probe has a connection of its own, made from `endpoint` (which also holds TLS), so
    /// it doesn't wait behind the service's own calls.
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
