//! Rolling restarts behind a real proxy, under load.

use std::{error::Error, time::Duration};

use axum::{Router, routing::get};
use cutover::{
    drain::{Drain, DrainOptions},
    health::Health,
};
use cutover_testkit::{
    Cluster, Endpoint, Envoy, Load, Replaceable, if_installed, put_behind, rolling_restarts,
};
use tokio::net::TcpListener;

type Failure = Box<dyn Error + Send + Sync>;

/// An instance that needs 5 ms for each response. Without `drains` it stops like a server without a drain.
async fn instance(number: usize, drains: bool) -> Result<Replaceable, Failure> {
    let health = Health::new();
    let options = DrainOptions {
        grace: Duration::from_secs(40),
        // Longer than a busy proxy needs for two checks of its health.
        propagation: Duration::from_secs(3),
        hook_time: Duration::from_secs(1),
        margin: Duration::from_secs(1),
        ..DrainOptions::default()
    };
    let drain = Drain::new(&health, options)?;
    let app = Router::new().route(
        "/",
        get(|| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            "hello"
        }),
    );
    let public = TcpListener::bind("127.0.0.1:0").await?;
    let admin = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint =
        Endpoint { name: format!("i{number}"), addr: public.local_addr()?, health: admin.local_addr()? };
    let pages = health.router();
    let serving = tokio::spawn({
        let drain = drain.clone();
        async move {
            if drains {
                tokio::try_join!(drain.serve(public, app), drain.serve_admin(admin, pages))
                    .map(|(report, ())| report.cut)
            } else {
                let leave = drain.clone();
                let admin = tokio::spawn(async move { drain.serve_admin(admin, pages).await });
                let shutdown = async move { leave.begun().await };
                axum::serve(public, app).with_graceful_shutdown(shutdown).await?;
                admin.abort();
                Ok(Vec::new())
            }
        }
    });
    let leave = Box::pin(async move {
        drain.begin();
        let cut = serving.await??;
        if cut.is_empty() { Ok(()) } else { Err(format!("cut: {cut:?}").into()) }
    });
    Ok(Replaceable { endpoint, leave })
}

/// The failures, and the number of requests.
async fn restarts(times: usize, drains: bool) -> Result<Option<(Vec<String>, usize)>, Failure> {
    let cluster = Cluster { name: "stable".to_owned(), endpoints: Vec::new() };
    let Some(envoy) = if_installed(Envoy::start(vec![cluster]).await)? else { return Ok(None) };
    let running = vec![instance(100, drains).await?, instance(101, drains).await?];
    let start = async |number| instance(number, drains).await;
    put_behind(&envoy, "stable", &running).await?;
    let address = envoy.url().trim_start_matches("http://").parse()?;
    let load = Load::start(address, "/", 200, 200, 16);
    rolling_restarts(&envoy, "stable", running, times, Duration::from_millis(300), start).await?;
    let shots = load.stop().await;
    let sent = shots.len();
    Ok(Some((shots.into_iter().filter_map(|shot| shot.failure).collect(), sent)))
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_behind_a_proxy_fail_no_request() {
    let Some((failed, sent)) = restarts(3, true).await.unwrap() else { return };
    assert_eq!(failed, [""; 0], "of {sent}");
    assert!(sent > 500, "{sent}");
}

/// The same with axum's own graceful shutdown, to show that the test above can fail. Whether a request reaches a closed
/// listener before the proxy notices depends on timing, so the test repeats until one does.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closes_its_listener_at_once_fails_requests() {
    let mut sent = 0;
    for _ in 0..10 {
        let Some((failed, requests)) = restarts(2, false).await.unwrap() else { return };
        sent += requests;
        if !failed.is_empty() {
            return;
        }
    }
    panic!("none of {sent} requests failed");
}
