use std::fmt;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::http::header::CONTENT_LENGTH;
use ::http::{Response, StatusCode};
use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::grpc::Status;
use super::grpc_web::WebStatus;
use super::labels::Abort;
use super::ticket::Ticket;

pin_project! {
    /// A response body that counts its request when it ends, whatever the reason.
    pub struct MetricsBody<B: Body> {
        #[pin]
        inner: B,
        status: Status,
        // Bytes that are left of a `Content-Length`. A server stops polling after the last one, without asking the
        // body for its end.
        left: Option<u64>,
        ticket: Option<Ticket>,
    }

    impl<B: Body> PinnedDrop for MetricsBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(ticket) = this.ticket
                && !ticket.panicked()
                && (*this.left == Some(0) || this.inner.is_end_stream())
            {
                ticket.completed(this.status.at_end(None));
            }
        }
    }
}

/// What the head of a response says about its end.
pub(super) struct Ending {
    status: Status,
    left: Option<u64>,
}

impl Ending {
    pub(super) fn of<B>(head: &Response<B>, to_head_request: bool) -> Self {
        let bodiless = to_head_request
            || head.status().is_informational()
            || head.status() == StatusCode::NO_CONTENT
            || head.status() == StatusCode::NOT_MODIFIED;
        let length = || head.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        Self { status: Status::of_head(head), left: if bodiless { Some(0) } else { length() } }
    }
}

impl<B: Body> MetricsBody<B> {
    pub(super) fn new(inner: B, ending: Ending, ticket: Option<Ticket>) -> Self {
        Self { inner, status: ending.status, left: ending.left, ticket }
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
        let Some(ticket) = this.ticket else { return this.inner.poll_frame(cx) };
        ticket.runs();
        let polled = this.inner.as_mut().poll_frame(cx);
        ticket.ran();
        match &polled {
            Poll::Pending => ticket.goes_on(),
            Poll::Ready(None) => ticket.completed(this.status.at_end(None)),
            Poll::Ready(Some(Err(_))) => ticket.aborted(Abort::BodyError),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    if let Some(left) = this.left {
                        *left = left.saturating_sub(u64::try_from(data.remaining()).unwrap_or(u64::MAX));
                    }
                    if let Status::Web(web) = this.status {
                        read(web, data);
                    }
                }
                // Trailers are the end; a server does not ask for more.
                if let Some(trailers) = frame.trailers_ref() {
                    ticket.completed(this.status.at_end(Some(trailers)));
                } else if *this.left != Some(0) && !this.inner.is_end_stream() {
                    ticket.goes_on();
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Reads the data without consuming it. Data in more than 16 pieces loses its end, and with it the status.
fn read(web: &mut WebStatus, data: &impl Buf) {
    let mut pieces = [IoSlice::new(&[]); 16];
    let count = data.chunks_vectored(&mut pieces);
    pieces.iter().take(count).for_each(|piece| web.read(piece));
}

impl<B: Body> fmt::Debug for MetricsBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsBody").field("status", &self.status).finish_non_exhaustive()
    }
}
