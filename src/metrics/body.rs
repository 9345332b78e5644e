use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::header::CONTENT_LENGTH;
use ::http::{Response, StatusCode};
use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::grpc;
use super::http::Abort;
use super::ticket::Ticket;

pin_project! {
    /// A response body that counts its request when it ends, by whatever end.
    pub struct MetricsBody<B: Body> {
        #[pin]
        inner: B,
        // `None`: the trailers of a gRPC call tell.
        status: Option<u16>,
        // Bytes still owed under a `Content-Length`. A server stops polling when it has
        // sent them, without asking the body for its end.
        owed: Option<u64>,
        ticket: Option<Ticket>,
    }

    impl<B: Body> PinnedDrop for MetricsBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(ticket) = this.ticket
                && !ticket.panicked()
                && (*this.owed == Some(0) || this.inner.is_end_stream())
            {
                ticket.completed(this.status.unwrap_or(grpc::UNKNOWN));
            }
        }
    }
}

/// What the head of a response says about its end.
pub(super) struct Ending {
    status: Option<u16>,
    owed: Option<u64>,
}

impl Ending {
    pub(super) fn of<B>(head: &Response<B>, to_head_request: bool) -> Self {
        let bodiless = to_head_request
            || head.status().is_informational()
            || head.status() == StatusCode::NO_CONTENT
            || head.status() == StatusCode::NOT_MODIFIED;
        let length = || head.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        Self { status: grpc::status_of_head(head), owed: if bodiless { Some(0) } else { length() } }
    }
}

impl<B: Body> MetricsBody<B> {
    pub(super) fn new(inner: B, ending: Ending, ticket: Option<Ticket>) -> Self {
        Self { inner, status: ending.status, owed: ending.owed, ticket }
    }
}

impl<B: Body> Body for MetricsBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = match this.ticket {
            Some(ticket) => ready!(ticket.run(|| this.inner.as_mut().poll_frame(cx))),
            None => ready!(this.inner.poll_frame(cx)),
        };
        if let Some(ticket) = this.ticket {
            match &frame {
                None => ticket.completed(this.status.unwrap_or(grpc::UNKNOWN)),
                Some(Err(_)) => ticket.aborted(Abort::BodyError),
                Some(Ok(frame)) => {
                    if let (Some(owed), Some(data)) = (&mut *this.owed, frame.data_ref()) {
                        let sent = u64::try_from(data.remaining()).unwrap_or(u64::MAX);
                        *owed = owed.saturating_sub(sent);
                    }
                    // Trailers are the end, and a server doesn't ask for more.
                    if let Some(trailers) = frame.trailers_ref() {
                        let status = this.status.or_else(|| grpc::status_of(trailers));
                        ticket.completed(status.unwrap_or(grpc::UNKNOWN));
                    }
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Body> fmt::Debug for MetricsBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsBody").field("status", &self.status).finish_non_exhaustive()
    }
}
