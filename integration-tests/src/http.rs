//! HTTP requests to the servers' interfaces.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response};

use crate::KitError;

/// A client for servers on this machine, without a proxy and with a time limit.
pub(crate) fn client() -> Result<Client, KitError> {
    Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(30))
        .build()
        .map_err(KitError::http("make an HTTP client"))
}

/// Sends a request. The status must be a success or one of `also`.
pub(crate) async fn send(doing: &str, request: RequestBuilder, also: &[u16]) -> Result<Response, KitError> {
    let response = request.send().await.map_err(KitError::http(doing))?;
    let status = response.status();
    if status.is_success() || also.contains(&status.as_u16()) {
        return Ok(response);
    }
    Err(KitError::Refused {
        doing: doing.to_owned(),
        status: status.as_u16(),
        body: response.text().await.unwrap_or_default(),
    })
}

/// [`send`], with the response's body as JSON.
pub(crate) async fn json(doing: &str, request: RequestBuilder) -> Result<serde_json::Value, KitError> {
    let response = send(doing, request, &[]).await?;
    response.json().await.map_err(KitError::http(doing))
}
