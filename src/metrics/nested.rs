use std::sync::{Arc, LazyLock};

use ::http::{Extensions, Request};
use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::response::Response;
use axum::routing::any;
use futures_util::FutureExt;
use tower_service::Service;

/// A router that answers with the path that matched, as the request's extensions say.
static PROBE: LazyLock<Router> = LazyLock::new(|| {
    let answer = |path: MatchedPath| async move {
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(path);
        response
    };
    Router::new().route("/", any(answer))
});

/// The prefix at which `Router::nest_service` placed the service that a request goes to.
///
/// axum keeps the prefix in the request's extensions under a private type, which only a router inside the nested
/// service turns into a [`MatchedPath`]. So this asks such a router. It clones the extensions: cache the result.
pub(crate) fn nested_prefix(extensions: &Extensions) -> Option<Arc<str>> {
    let mut request = Request::new(Body::empty());
    *request.extensions_mut() = extensions.clone();
    let response = PROBE.clone().call(request).now_or_never()?.ok()?;
    let path = response.extensions().get::<MatchedPath>()?.as_str();
    let prefix = path.strip_suffix('/').unwrap_or(path);
    (!prefix.is_empty()).then(|| prefix.into())
}
