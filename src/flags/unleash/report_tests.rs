//! Counts that the server receives.

use std::time::Duration;

use super::options::UnleashOptions;
use super::test_server::{A, LIMIT, Reply, Server, features, start, until};
use crate::flags::{Flags, Subject};

#[tokio::test]
async fn closing_sends_the_last_counts() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let flags = start(&server).await;
    until("registered", || !server.bodies("/api/client/register").is_empty()).await;
    for _ in 0..3 {
        flags.decide(&A, &Subject::new());
    }
    tokio::time::timeout(LIMIT, flags.close()).await.unwrap();
    let sent = server.bodies("/api/client/metrics");
    let yes: u64 = sent.iter().filter_map(|sent| sent["bucket"]["toggles"]["a"]["yes"].as_u64()).sum();
    assert_eq!(yes, 3, "{sent:?}");
    assert_eq!(sent[0]["appName"], "app");

    let polls = server.polls();
    flags.close().await;
    tokio::time::sleep(server.options().interval * 3).await;
    assert_eq!(server.polls(), polls);
    assert!(flags.decide(&A, &Subject::new()));
}

#[tokio::test]
async fn closing_does_not_wait_for_a_server_that_hangs() {
    let server = Server::start(Reply::Hang).await;
    let flags = Flags::unleash(UnleashOptions {
        time_limit: Duration::from_secs(3600),
        stale_after: Duration::from_secs(7200),
        ..server.options()
    })
    .unwrap();
    until("a poll", || server.polls() > 0).await;
    tokio::time::timeout(LIMIT, flags.close()).await.unwrap();
}

#[tokio::test]
async fn counts_of_a_refused_report_are_sent_again() {
    let server = Server::start(features(&[("a", true, "one")])).await;
    let options = UnleashOptions { metrics_interval: Duration::from_millis(1), ..server.options() };
    let flags = Flags::unleash(options).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    server.refuse_posts(true);
    flags.decide(&A, &Subject::new());
    flags.variant("a", &Subject::new());
    let tries = || server.bodies("/api/client/metrics").len();
    until("refused twice", || tries() >= 2).await;
    server.refuse_posts(false);
    let refused = tries();
    until("taken", || tries() > refused).await;
    flags.decide(&A, &Subject::new());
    flags.close().await;
    let sent = server.bodies("/api/client/metrics");
    let toggle = |sent: &serde_json::Value| sent["bucket"]["toggles"]["a"].clone();
    assert!(sent[..refused].iter().all(|sent| toggle(sent)["yes"].as_u64() > Some(0)), "{sent:?}");
    // A report may have been in progress when the server began to accept.
    let taken = server.accepted("/api/client/metrics");
    let sum = |of: &dyn Fn(serde_json::Value) -> Option<u64>| -> u64 {
        taken.iter().filter_map(|sent| of(toggle(sent))).sum()
    };
    assert_eq!(sum(&|a| a["yes"].as_u64()), 3, "{taken:?}");
    assert_eq!(sum(&|a| a["variants"]["v"].as_u64()), 1, "{taken:?}");
}
