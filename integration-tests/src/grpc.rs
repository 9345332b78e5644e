//! A gRPC service on tonic. The method selects how a call ends.

use std::{
    any::Any,
    convert::Infallible,
    fmt,
    future::{pending, ready},
    pin::Pin,
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, StreamExt, stream};
use tonic::{
    Code, Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{BoxFuture, Context, Poll, Service, http},
    server::{Grpc, NamedService},
};

/// How a call ends. Each is a method of [`GrpcEndings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcEnding {
    /// One message and `OK`.
    Fine,
    /// `UNAVAILABLE` instead of a message, in the head.
    StatusInHead,
    /// One message and then `INTERNAL`, in the trailers.
    StatusInTrailers,
    /// No response, ever.
    Hangs,
    /// One message, then nothing, without an end.
    Stalls,
    /// A panic before the head.
    Panics,
    /// One message and then a panic.
    PanicsInBody,
}

impl GrpcEnding {
    /// All endings.
    pub const ALL: [Self; 7] = [
        Self::Fine,
        Self::StatusInHead,
        Self::StatusInTrailers,
        Self::Hangs,
        Self::Stalls,
        Self::Panics,
        Self::PanicsInBody,
    ];

    /// The path of its method.
    pub fn path(self) -> String {
        format!("/{}/{self:?}", GrpcEndings::NAME)
    }
}

type Guard = Box<dyn Any + Send>;
type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// The service `kit.Endings`: server streaming, any bytes as messages.
///
/// It makes a guard for each call, and drops it when the service has dropped everything of the call.
#[derive(Clone)]
pub struct GrpcEndings {
    guard: Arc<dyn Fn() -> Guard + Send + Sync>,
}

impl GrpcEndings {
    /// `guard` makes the guards.
    pub fn new<G: Send + 'static>(guard: impl Fn() -> G + Send + Sync + 'static) -> Self {
        Self { guard: Arc::new(move || Box::new(guard())) }
    }
}

impl fmt::Debug for GrpcEndings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcEndings").finish_non_exhaustive()
    }
}

impl NamedService for GrpcEndings {
    const NAME: &'static str = "kit.Endings";
}

impl Service<http::Request<Body>> for GrpcEndings {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let ending = GrpcEnding::ALL.into_iter().find(|ending| ending.path() == path);
        let guard = (self.guard)();
        Box::pin(async move {
            Ok(match ending {
                Some(ending) => {
                    Grpc::new(BytesCodec).server_streaming(Call { ending, guard: Some(guard) }, request).await
                }
                None => Status::unimplemented("no such ending").into_http(),
            })
        })
    }
}

struct Call {
    ending: GrpcEnding,
    guard: Option<Guard>,
}

impl Service<tonic::Request<Bytes>> for Call {
    type Response = tonic::Response<Messages>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::Request<Bytes>) -> Self::Future {
        let (ending, guard) = (self.ending, self.guard.take());
        Box::pin(async move {
            let rest: Messages = match ending {
                GrpcEnding::StatusInHead => return Err(Status::new(Code::Unavailable, "in the head")),
                GrpcEnding::Hangs => pending().await,
                #[expect(clippy::panic, reason = "what it is for")]
                GrpcEnding::Panics => panic!("before the head"),
                GrpcEnding::Fine => Box::pin(stream::empty()),
                GrpcEnding::StatusInTrailers => {
                    Box::pin(stream::once(ready(Err(Status::new(Code::Internal, "in the trailers")))))
                }
                GrpcEnding::Stalls => Box::pin(stream::pending()),
                #[expect(clippy::panic, reason = "what it is for")]
                GrpcEnding::PanicsInBody => Box::pin(stream::poll_fn(|_| panic!("in the body"))),
            };
            let first = stream::iter([Ok(Bytes::from_static(b"message"))]);
            let messages = Yielding { inner: first.chain(rest), due: false };
            Ok(tonic::Response::new(Box::pin(messages.inspect(move |_| _ = &guard)) as Messages))
        })
    }
}

/// Yields once before each message but the first, so that earlier messages are sent first.
struct Yielding<S> {
    inner: S,
    due: bool,
}

impl<S: Stream + Unpin> Stream for Yielding<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if std::mem::take(&mut self.due) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.inner.poll_next_unpin(cx);
        self.due = next.is_ready();
        next
    }
}

/// A codec whose messages are raw bytes.
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
