//! The flag server, through Unleash's own client (`unleash-api-client`).
//!
//! The client provides the protocol: endpoints, headers, registration, and the types of reports. Its polling, its counts and
//! its decisions are not used: see the module's "Differences from Unleash's client".

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use unleash_api_client::api::{Metrics, features_endpoint};
use unleash_api_client::client::FeatureKey;
use unleash_api_client::http::TransportRef;
use unleash_api_client::{Client, ClientBuilder};

use super::http_client::HttpClient;
use super::options::{Endpoint, UnleashOptions};
use super::transport::{Carrier, Checked, NoState};
use crate::flags::error::{FetchError, unavailable, wrong_url};

/// Flags have names, not an enum, in this library.
#[derive(Clone, Copy, Debug)]
enum NoKey {}

impl FeatureKey for NoKey {
    fn name(self) -> &'static str {
        match self {}
    }
}

pub(super) struct Server {
    client: Client<NoKey>,
    transport: Arc<Checked>,
    api: String,
    interval_ms: u64,
}

impl Server {
    pub(super) fn new(options: &UnleashOptions, endpoint: Endpoint) -> std::io::Result<Self> {
        let carrier = match &options.transport {
            Some(transport) => Carrier::Users(transport.clone()),
            None => Carrier::Own(Box::new(HttpClient::new(options, endpoint.proxy, endpoint.tls)?)),
        };
        let transport = Arc::new(Checked::new(carrier, &options.token, options.time_limit));
        let interval_ms = u64::try_from(options.interval.as_millis()).unwrap_or(u64::MAX);
        let mut builder =
            ClientBuilder::default().interval(interval_ms).sdk_flavour("cutover", env!("CARGO_PKG_VERSION"));
        for (name, strategy) in &options.strategies {
            let strategy = strategy.clone();
            builder = builder.strategy(name, Box::new(move |parameters| strategy.evaluate(parameters)));
        }
        let client = builder
            .into_client_with_transport(
                &endpoint.api,
                &options.app_name,
                &options.instance_id,
                Some(options.token.clone()),
                TransportRef::from(Arc::clone(&transport) as Arc<_>),
            )
            .map_err(std::io::Error::other)?;
        Ok(Self { client, transport, api: endpoint.api, interval_ms })
    }

    /// The state, as the server sent it.
    pub(super) async fn features(&self) -> Result<Bytes, NoState> {
        let url = features_endpoint(&self.api);
        match self.client.http.get_json::<Box<RawValue>>(&url, Some(self.interval_ms)).await {
            Ok(state) => Ok(String::from(Box::<str>::from(state)).into()),
            Err(error) => {
                Err(error.downcast::<NoState>().unwrap_or_else(|error| self.no_flags(error).into()))
            }
        }
    }

    /// The last state is in use from now on, so that the server need not send it again.
    pub(super) fn confirm(&self) {
        self.transport.confirm();
    }

    /// The error for an answer that is not a list of flags.
    pub(super) fn no_flags(&self, error: impl std::fmt::Display) -> FetchError {
        wrong_url(format!("{} answered with no list of flags: {error}", features_endpoint(&self.api)))
    }

    pub(super) async fn register(&self) -> Result<(), FetchError> {
        self.client.register().await.map_err(|error| unavailable(error.to_string()))
    }

    pub(super) async fn report<T: Serialize + Sync>(&self, report: &T) -> Result<(), FetchError> {
        let url = Metrics::endpoint(&self.api);
        match self.client.http.post_json(&url, report, None).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(unavailable(format!("{url} refused the report"))),
            Err(error) => Err(unavailable(error.to_string())),
        }
    }

    /// The id of this process in requests.
    pub(super) fn connection(&self) -> &str {
        self.transport.connection()
    }
}
