//! The transport of the client, custom strategies, and impressions.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flate2::{Compression, write::GzEncoder};
use http::{StatusCode, header};
use serde_json::json;
use unleash_api_client::Context;
use unleash_api_client::http::{Request, Response, Transport};

use super::test_server::{A, LIMIT, Reply, Server, features, start, until};
use super::{CustomStrategy, UnleashOptions};
use crate::flags::{Flag, Flags, Subject};

fn body(on: bool) -> String {
    let Reply::Features(text) = features(&[("a", on, "")]) else { unreachable!() };
    text
}

#[tokio::test]
async fn a_compressed_state_is_read() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(body(true).as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let server =
        Server::start(Reply::With(StatusCode::OK, (header::CONTENT_ENCODING, "gzip".into()), gzip)).await;
    let flags = start(&server).await;
    assert!(flags.decide(&A, &Subject::new()));
    let seen = server.seen.lock().unwrap();
    assert_eq!(seen[0].headers[header::ACCEPT_ENCODING], "gzip");
    assert_eq!(seen[0].headers["unleash-client-spec"], unleash_yggdrasil::SUPPORTED_SPEC_VERSION);
}

#[tokio::test]
async fn a_server_that_says_when_to_retry_is_obeyed() {
    let wait = (header::RETRY_AFTER, "30".to_owned());
    let server = Server::start(Reply::With(StatusCode::TOO_MANY_REQUESTS, wait, Vec::new())).await;
    let flags = Flags::unleash(server.options()).unwrap();
    until("the answer", || flags.last_fetch_error().is_some()).await;
    // Without the header, the next attempt would follow within two intervals of 20 ms.
    tokio::time::sleep(server.options().interval * 20).await;
    assert_eq!(server.polls(), 1);
}

/// A transport that answers by itself.
struct Canned {
    status: u16,
    requests: Mutex<Vec<Request>>,
}

#[async_trait]
impl Transport for Canned {
    async fn execute(&self, request: Request) -> Result<Response, anyhow::Error> {
        self.requests.lock().unwrap().push(request);
        if self.status == 0 {
            anyhow::bail!("the line with token s3cret is cut");
        }
        Ok(Response { status: self.status, body: body(true).into_bytes() })
    }
}

async fn over(status: u16) -> (Flags, Arc<Canned>) {
    let transport = Arc::new(Canned { status, requests: Mutex::default() });
    let flags = Flags::unleash(UnleashOptions {
        interval: Duration::from_millis(20),
        transport: Some(transport.clone()),
        ..UnleashOptions::new("http://unleash", "s3cret", "app", "one")
    })
    .unwrap();
    until("a request", || flags.is_fresh() || flags.last_fetch_error().is_some()).await;
    (flags, transport)
}

#[tokio::test]
async fn the_application_can_bring_its_own_transport() {
    let (flags, transport) = over(200).await;
    assert!(flags.decide(&A, &Subject::new()));
    let is_poll = |request: &Request| request.url == "http://unleash/api/client/features";
    assert!(transport.requests.lock().unwrap().iter().any(is_poll));
}

#[tokio::test]
async fn the_status_of_the_applications_transport_counts() {
    let (flags, _) = over(503).await;
    assert!(!flags.is_ready(), "the body of an error is not applied");
    let (flags, _) = over(0).await;
    let error = flags.last_fetch_error().unwrap().to_string();
    assert!(error.contains("the line with token *** is cut"), "{error}");
}

/// Subjects with the user that the strategy's parameter names.
fn by_user() -> CustomStrategy {
    CustomStrategy::new(|parameters| {
        let user = parameters.and_then(|mut parameters| parameters.remove("user"));
        Box::new(move |subject: &Context| subject.user_id.is_some() && subject.user_id == user)
    })
}

#[tokio::test]
async fn unregistered_strategies_keep_their_number() {
    let registered = json!({"name": "byUser", "parameters": {"user": "alice"}});
    let state = json!({"version": 2, "features": [
        // The strategy that is on for all users is not registered, and comes first.
        {"name": "a", "enabled": true, "strategies": [{"name": "everybody"}, registered]},
        // The registered one has a constraint that excludes Alice; taking its result for the other's would let her in.
        {"name": "b", "enabled": true, "strategies": [
            {"name": "everybody"},
            {"name": "byUser", "parameters": {"user": "alice"}, "constraints": [
                {"contextName": "userId", "operator": "NOT_IN", "values": ["alice"]},
            ]},
        ]},
    ]});
    let server = Server::start(Reply::Features(state.to_string())).await;
    let strategies = [("byUser".to_owned(), by_user())].into();
    let flags = Flags::unleash(UnleashOptions { strategies, ..server.options() }).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    let (alice, bob) = (Subject::new().user("alice"), Subject::new().user("bob"));
    assert!(flags.decide(&A, &alice));
    assert!(flags.variant("a", &alice).unwrap().enabled);
    assert!(!flags.decide(&A, &bob));
    assert!(!flags.decide(&Flag::new("b", false), &alice));
    until("registered", || !server.bodies("/api/client/register").is_empty()).await;
    assert_eq!(server.bodies("/api/client/register")[0]["strategies"], json!(["byUser"]));
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn flags_with_impression_data_announce_decisions() {
    let state = json!({"version": 2, "features": [
        {"name": "a", "enabled": true, "impressionData": true, "strategies": [{"name": "default"}]},
        {"name": "b", "enabled": true, "strategies": [{"name": "default"}]},
    ]});
    let server = Server::start(Reply::Features(state.to_string())).await;
    let flags = start(&server).await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    tracing::subscriber::with_default(subscriber, || {
        let subject = Subject::new().user("u1").session("s3cret");
        flags.decide(&A, &subject);
        flags.decide(&Flag::new("b", false), &subject);
        flags.switch("a");
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let events: Vec<_> = text.lines().filter(|line| line.contains("flag decided")).collect();
    assert_eq!(events.len(), 1, "{text}");
    assert!(
        events[0].contains(r#"cutover::flags::impression: flag decided flag="a" enabled=true"#),
        "{text}"
    );
    assert!(events[0].contains("u1") && !events[0].contains("s3cret"), "{text}");
}
