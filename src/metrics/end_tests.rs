//! When a response ends.

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::http::{Request, Response};
use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full};
use tower::ServiceExt;

use super::Metrics;
use super::tests::{Tail, body, exposition, metrics};

/// The sums of the times to the first byte and to the end of all requests.
async fn times(metrics: &Metrics) -> [f64; 2] {
    let page = exposition(metrics).await;
    ["http_request_first_byte_seconds_sum{", "http_request_duration_seconds_sum{"].map(|name| {
        let lines = page.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    })
}

/// A body whose only frame has to be waited for.
struct Late {
    waits: bool,
    body: Full<Bytes>,
}

impl http_body::Body for Late {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if std::mem::take(&mut self.waits) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        !self.waits && self.body.is_end_stream()
    }
}

async fn times_of<B>(response: impl Fn() -> B + Clone + Send + Sync + 'static) -> [f64; 2]
where
    B: http_body::Body<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
{
    let metrics = metrics();
    let answer = move || ready(Response::new(Body::new(response())));
    let app: Router = Router::new().route("/", any(answer)).layer(metrics.layer());
    let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    response.into_body().collect().await.unwrap();
    times(&metrics).await
}

#[tokio::test]
async fn a_response_that_is_complete_ends_with_its_head() {
    let [head, end] = times_of(|| Full::new(Bytes::from_static(b"hello"))).await;
    assert_eq!(head, end);
    let [head, end] = times_of(Empty::new).await;
    assert_eq!(head, end);
}

#[tokio::test]
async fn a_body_that_goes_on_ends_after_the_head() {
    // The second frame comes later, although it was there.
    let [head, end] = times_of(|| body(Tail::Ends)).await;
    assert!(head < end, "{head} {end}");
    let [head, end] = times_of(|| Late { waits: true, body: Full::new(Bytes::from_static(b"data")) }).await;
    assert!(head < end, "{head} {end}");
}
