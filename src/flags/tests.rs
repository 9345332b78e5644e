//! Decisions of a request, and the layers around a router.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode, request::Parts};
use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_service::Service;

use super::*;
use crate::flags::SwitchProblem;

const A: Flag = Flag::new("a", false);
const NAMES: [&str; 10] = ["f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9"];

#[test]
fn an_unknown_flag_gets_its_default_and_is_counted() {
    let registry = prometheus::Registry::new();
    let flags = Flags::fixed([("a", FixedFlag::ON)]);
    let release = crate::release::Release::new("payments", "canary").unwrap();
    flags.register(&registry, &release).unwrap();
    const GONE: Flag = Flag::new("gone", true);
    const LIMIT: Flag<u32> = Flag::new("limit", 7);
    assert!(flags.decide(&A, &Subject::new()));
    assert!(flags.decide(&GONE, &Subject::new()));
    assert_eq!(flags.value(&LIMIT, &Subject::new()), 7);
    flags.set("limit", FixedFlag::payload("8")).unwrap();
    assert_eq!(flags.value(&LIMIT, &Subject::new()), 8);
    flags.set("limit", FixedFlag::payload("many")).unwrap();
    assert_eq!(flags.value(&LIMIT, &Subject::new()), 7);
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for line in [
        r#"cutover_flag_decisions_total{enabled="true",flag="a",version="canary"} 1"#,
        r#"cutover_flag_decisions_total{enabled="false",flag="a",version="canary"} 0"#,
        r#"cutover_flag_decisions_total{enabled="true",flag="gone",version="canary"} 1"#,
        r#"cutover_flag_defaults_total{flag="a",version="canary"} 0"#,
        r#"cutover_flag_defaults_total{flag="gone",version="canary"} 1"#,
        r#"cutover_flag_defaults_total{flag="limit",version="canary"} 2"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(matches!(flags.register(&registry, &release), Err(FlagsError::Metrics(_))));
}

#[test]
fn the_first_decision_applies_to_the_whole_request() {
    let flags = Flags::fixed([("a", FixedFlag::OFF)]);
    let request = Decisions::new(flags.clone(), Subject::new());
    assert!(!request.decide(&A));
    flags.set("a", FixedFlag::ON).unwrap();
    assert!(!request.decide(&A));
    assert!(!request.clone().decide(&A));
    assert!(Decisions::new(flags, Subject::new()).decide(&A));
}

#[test]
fn a_flag_and_its_variant_do_not_contradict_each_other() {
    let flags = Flags::fixed([("a", FixedFlag::OFF)]);
    let off = Decisions::new(flags.clone(), Subject::new());
    assert!(!off.decide(&A));
    flags.set("a", FixedFlag::payload("x")).unwrap();
    assert!(!off.variant("a").unwrap().enabled);
    assert!(!off.decide(&A));

    let on = Decisions::new(flags.clone(), Subject::new());
    assert!(on.decide(&A));
    flags.set("a", FixedFlag::OFF).unwrap();
    let variant = on.variant("a").unwrap();
    assert!(variant.enabled && variant.payload.is_none());

    flags.set("a", FixedFlag::payload("x")).unwrap();
    let by_variant = Decisions::new(flags.clone(), Subject::new());
    assert_eq!(by_variant.variant("a").unwrap().payload.as_deref(), Some("x"));
    flags.set("a", FixedFlag::OFF).unwrap();
    assert!(by_variant.decide(&A));
}

#[test]
fn a_request_can_use_many_flags() {
    let flags = Flags::fixed(NAMES.map(|name| (name, FixedFlag::ON)));
    let request = Decisions::new(flags.clone(), Subject::new());
    for round in 0..2 {
        for name in NAMES {
            assert!(request.decide(&Flag::new(name, false)), "{name} in {round}");
            flags.set(name, FixedFlag::OFF).unwrap();
        }
    }
}

#[test]
fn threads_of_one_request_get_one_answer() {
    let flags = Flags::fixed(NAMES.map(|name| (name, FixedFlag::ON)));
    for _ in 0..100 {
        let request = Decisions::new(flags.clone(), Subject::new());
        let ask = || NAMES.map(|name| request.decide(&Flag::new(name, false)));
        let flip = || {
            for name in NAMES {
                flags.set(name, fastrand::bool().into()).unwrap();
            }
        };
        let answers = std::thread::scope(|scope| {
            let askers = [scope.spawn(ask), scope.spawn(ask), scope.spawn(ask)];
            scope.spawn(flip);
            askers.map(|asker| asker.join().unwrap())
        });
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }
}

#[tokio::test]
async fn only_the_chosen_function_runs() {
    let flags = Flags::fixed([("a", FixedFlag::ON)]);
    let never = || async { panic!("the wrong one") };
    let subject = Subject::new();
    assert_eq!(flags.gate(&A, &subject, || async { 1 }, never).await, 1);
    flags.set("a", FixedFlag::OFF).unwrap();
    assert_eq!(flags.gate(&A, &subject, never, || async { 2 }).await, 2);
}

#[tokio::test]
async fn a_change_is_announced() {
    let flags = Flags::fixed([("a", FixedFlag::ON)]);
    let mut changed = flags.changed();
    assert_eq!(flags.switch("b"), Switch::Unknown(SwitchProblem::Missing));
    flags.set("b", FixedFlag::payload("ramp:25")).unwrap();
    changed.changed().await.unwrap();
    assert_eq!(flags.switch("b"), Switch::On(Some("ramp:25".into())));
    assert_eq!(flags.switch("a"), Switch::On(None));
    assert_eq!(
        flags.coverage(["a", "c"]),
        [FlagProblem { flag: "c".into(), kind: FlagProblemKind::Missing }]
    );
    flags.ready().await;
}

async fn answer(
    app: impl Service<Request<Body>, Response = axum::response::Response, Error = Infallible>,
) -> String {
    let request = Request::get("/").header("x-user", "u1");
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.into()).unwrap()
}

#[tokio::test]
async fn a_layer_pins_decisions_for_a_router() {
    async fn user(decisions: Decisions) -> String {
        format!("new {:?}", decisions.subject().user_id())
    }
    let subject = |head: &Parts| {
        let user = head.headers.get("x-user").unwrap().to_str().unwrap();
        Subject::new().user(user)
    };
    let flags = Flags::fixed([("a", FixedFlag::ON)]);
    let new = Router::new().route("/", get(user));
    let legacy = Router::new().route("/", get(async || "legacy"));
    let app =
        legacy.layer(FlagRouterLayer::new(A, new)).layer(FlagsLayer::new(flags.clone()).subject(subject));
    assert_eq!(answer(app.clone()).await, r#"new Some("u1")"#);
    flags.set("a", FixedFlag::OFF).unwrap();
    assert_eq!(answer(app).await, "legacy");
}

#[tokio::test]
async fn decisions_of_an_outer_layer_are_kept() {
    let outer = Flags::fixed([("a", FixedFlag::ON)]);
    let inner = Flags::fixed([("a", FixedFlag::OFF)]);
    let app = Router::new()
        .route("/", get(async |d: Decisions| d.decide(&A).to_string()))
        .layer(FlagsLayer::new(inner))
        .layer(FlagsLayer::new(outer));
    assert_eq!(answer(app).await, "true");
}

#[tokio::test]
async fn without_a_layer_the_router_uses_the_default() {
    let say = |text: &'static str| Router::new().route("/", get(async move || text));
    let gate = |default| FlagRouter::new(Flag::new("a", default), say("new"), say("legacy"));
    assert_eq!(answer(gate(false)).await, "legacy");
    assert_eq!(answer(gate(true)).await, "new");

    let handler = Router::new().route("/", get(async |_: Decisions| "fine"));
    let response = handler.oneshot(Request::get("/").body(Body::empty()).unwrap());
    assert_eq!(response.await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
}

/// A service that is never ready.
#[derive(Clone)]
struct Jammed;

impl Service<Request<()>> for Jammed {
    type Response = &'static str;
    type Error = Infallible;
    type Future = std::future::Pending<Result<&'static str, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Pending
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::pending()
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_service_that_is_not_ready_does_not_block_legacy() {
    let flags = Flags::fixed([("a", FixedFlag::OFF)]);
    let legacy = service_fn(async |_: Request<()>| Ok::<_, Infallible>("legacy"));
    let app = FlagsLayer::new(flags.clone()).layer(FlagRouter::new(A, Jammed, legacy));
    assert_eq!(app.clone().oneshot(Request::new(())).await, Ok("legacy"));
    flags.set("a", FixedFlag::ON).unwrap();
    let stuck = app.oneshot(Request::new(()));
    let limit = std::time::Duration::from_secs(60);
    assert!(tokio::time::timeout(limit, stuck).await.is_err());
}

#[tokio::test]
async fn decisions_are_current_only_within_their_request() {
    async fn service(request: Request<()>) -> Result<String, Infallible> {
        let user = || Decisions::current().and_then(|d| d.subject().user_id().map(str::to_owned));
        let at_first = user();
        tokio::task::yield_now().await;
        assert!(tokio::spawn(async { Decisions::current().is_none() }).await.unwrap());
        assert!(request.extensions().get::<Decisions>().is_none());
        assert_eq!(user(), at_first);
        Ok(at_first.unwrap_or_default())
    }
    fn subject(head: &Parts) -> Subject {
        Subject::new().user(head.uri.path())
    }
    let flags = Flags::fixed([("a", FixedFlag::ON)]);
    let layer = FlagsLayer::new(flags).subject(subject);
    let app = layer.layer(service_fn(service));
    let ask = |path| app.clone().oneshot(Request::get(path).body(()).unwrap());
    // Two requests of one task take turns.
    let (one, other) = tokio::join!(ask("/1"), ask("/2"));
    assert_eq!((one.unwrap().as_str(), other.unwrap().as_str()), ("/1", "/2"));
    assert!(Decisions::current().is_none());

    let broken =
        layer.layer(service_fn(async |_: Request<()>| -> Result<(), Infallible> { panic!("broken") }));
    let polled = std::panic::AssertUnwindSafe(broken.oneshot(Request::new(())));
    assert!(futures_util::FutureExt::catch_unwind(polled).await.is_err());
    assert!(Decisions::current().is_none());

    let found = service_fn(async |request: Request<()>| {
        Ok::<_, Infallible>(request.extensions().get::<Decisions>().is_some())
    });
    assert_eq!(layer.in_extensions().layer(found).oneshot(Request::new(())).await, Ok(true));
}

#[tokio::test]
async fn decisions_that_are_used_again_carry_nothing_over() {
    let kept = std::sync::Mutex::new(Vec::new());
    let flags = Flags::fixed([("a", FixedFlag::OFF)]);
    let subject = |head: &Parts| match head.uri.path() {
        "/" => Subject::new(),
        user => Subject::new().user(user),
    };
    let service = service_fn(async |request: Request<()>| {
        let decisions = Decisions::current().unwrap();
        let answer = (decisions.subject().user_id().is_some(), decisions.decide(&A));
        if request.uri().path() == "/kept" {
            kept.lock().unwrap().push(decisions);
        }
        Ok::<_, Infallible>(answer)
    });
    let app = FlagsLayer::new(flags.clone()).subject(subject).layer(service);
    let ask = async |path: &str| app.clone().oneshot(Request::get(path).body(()).unwrap()).await.unwrap();
    assert_eq!(ask("/user").await, (true, false));
    assert_eq!(ask("/kept").await, (true, false));
    flags.set("a", FixedFlag::ON).unwrap();
    assert_eq!([ask("/").await, ask("/").await], [(false, true); 2]);
    let kept = kept.lock().unwrap();
    assert_eq!((kept[0].subject().user_id(), kept[0].decide(&A)), (Some("/kept"), false));
}
