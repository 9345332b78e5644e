//! Polling: which answers are applied, and what is known when there is none.

use std::time::Duration;

use http::{StatusCode, header};

use super::UnleashOptions;
use super::backup::LARGEST_STATE;
use super::test_server::{A, A_DEFAULT_ON, LIMIT, Reply, Server, features, start, until};
use crate::flags::{
    FetchErrorKind, FixedFlag, Flag, FlagProblem, FlagProblemKind, Flags, FlagsError, Subject, Switch,
    SwitchProblem,
};

#[tokio::test]
async fn the_default_applies_until_the_server_was_reached() {
    let server = Server::start(Reply::Status(StatusCode::BAD_GATEWAY, String::new())).await;
    let flags = Flags::unleash(server.options()).unwrap();
    server.polled_again().await;
    assert!(!flags.is_ready() && !flags.is_fresh());
    assert!(flags.decide(&A_DEFAULT_ON, &Subject::new()));
    assert!(!flags.decide(&A, &Subject::new()));
    assert!(matches!(flags.switch("a"), Switch::Unknown(_)));
    assert!(flags.coverage(["a"]).is_empty());

    server.reply(features(&[("a", false, "")]));
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    assert!(!flags.decide(&A_DEFAULT_ON, &Subject::new()));
    until("fresh", || flags.is_fresh()).await;
    assert_eq!(flags.switch("a"), Switch::Off);
}

#[tokio::test]
async fn only_a_complete_successful_answer_is_applied() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let flags = start(&server).await;
    let off = match features(&[("a", false, "")]) {
        Reply::Features(text) => text,
        _ => unreachable!(),
    };
    for bad in [
        Reply::Status(StatusCode::SERVICE_UNAVAILABLE, off.clone()),
        Reply::Status(StatusCode::UNAUTHORIZED, off.clone()),
        Reply::Status(StatusCode::FOUND, off.clone()),
        Reply::Status(StatusCode::OK, off[..off.len() - 1].to_owned()),
        Reply::Status(StatusCode::OK, "<html>".to_owned()),
    ] {
        server.reply(bad);
        server.polled_again().await;
        assert!(flags.decide(&A, &Subject::new()));
        until("stale", || !flags.is_fresh()).await;
        server.reply(features(&[("a", true, "")]));
        until("fresh", || flags.is_fresh()).await;
    }
    // The ETag of an answer that was not applied is not used either.
    server.reply(Reply::Features(off));
    until("the good answer", || !flags.decide(&A, &Subject::new())).await;
    let seen = server.seen.lock().unwrap();
    let mut asked = seen.iter().filter_map(|seen| seen.headers.get(header::IF_NONE_MATCH));
    assert!(asked.all(|etag| etag != "\"bad\""));
}

#[tokio::test]
async fn the_state_becomes_stale_when_the_server_hangs() {
    let server = Server::start(features(&[("a", true, "ramp:25")])).await;
    let flags = start(&server).await;
    until("fresh", || flags.is_fresh()).await;
    assert_eq!(flags.switch("a"), Switch::On(Some("ramp:25".into())));
    let mut changed = flags.changed();
    changed.mark_unchanged();

    server.reply(Reply::Hang);
    until("stale", || !flags.is_fresh()).await;
    assert!(matches!(flags.switch("a"), Switch::Unknown(_)));
    assert!(flags.decide(&A, &Subject::new()));

    server.reply(features(&[("a", true, "ramp:25")]));
    // The state is the same, but that it is fresh again is a change too.
    tokio::time::timeout(LIMIT, changed.changed()).await.unwrap().unwrap();
    assert_eq!(flags.switch("a"), Switch::On(Some("ramp:25".into())));
}

#[tokio::test]
async fn an_unchanged_state_is_not_downloaded_again() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let registry = prometheus::Registry::new();
    let flags = start(&server).await;
    flags.register(&registry, &crate::release::Release::new("app", "stable").unwrap()).unwrap();
    let mut changed = flags.changed();
    changed.mark_unchanged();
    server.polled_again().await;
    server.polled_again().await;
    assert!(!changed.has_changed().unwrap());
    server.reply(features(&[("a", false, ""), ("b", true, "")]));
    tokio::time::timeout(LIMIT, changed.changed()).await.unwrap().unwrap();
    assert!(!flags.decide(&A, &Subject::new()));

    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(text.contains(r#"cutover_flag_fetches_total{result="changed"} 2"#), "{text}");
    assert!(!text.contains(r#"cutover_flag_fetches_total{result="unchanged"} 0"#), "{text}");
    let seconds = text
        .lines()
        .find_map(|line| line.strip_prefix("cutover_flags_last_success_timestamp_seconds "))
        .unwrap();
    assert!(seconds.parse::<f64>().unwrap() > 1.7e9, "{seconds}");

    let seen = server.seen.lock().unwrap();
    let mut asked = seen.iter().filter_map(|seen| seen.headers.get(header::IF_NONE_MATCH));
    assert!(asked.next().is_some());
    let poll = &seen[0];
    assert_eq!(poll.path, "/api/client/features");
    assert_eq!(poll.headers[header::AUTHORIZATION], "token");
    assert_eq!(poll.headers["unleash-appname"], "app");
    assert_eq!(poll.headers["unleash-instanceid"], "one");
}

#[tokio::test]
async fn polling_ends_with_the_last_clone() {
    let server = Server::start(features(&[])).await;
    let flags = start(&server).await;
    server.polled_again().await;
    drop(flags);
    until("the end", {
        let mut last = (server.polls(), std::time::Instant::now());
        move || {
            let polls = server.polls();
            if polls != last.0 {
                last = (polls, std::time::Instant::now());
            }
            last.1.elapsed() > Duration::from_millis(200)
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_above_the_size_limit_is_refused() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let flags = start(&server).await;
    let Reply::Features(mut huge) = features(&[("a", false, "")]) else { unreachable!() };
    huge.push_str(&" ".repeat(LARGEST_STATE));
    server.reply(Reply::Features(huge));
    until("stale", || !flags.is_fresh()).await;
    assert!(flags.decide(&A, &Subject::new()));
}

#[tokio::test]
async fn a_flag_that_panics_the_engine_gets_its_default() {
    let broken = serde_json::json!({"version": 2, "features": [
        {"name": "a", "enabled": true, "strategies": [{
            "name": "flexibleRollout",
            "parameters": {"rollout": "100", "stickiness": "default", "groupId": "a"},
            "variants": [{"name": "v", "weight": 0, "stickiness": "default"}],
        }]},
        {"name": "b", "enabled": true, "strategies": [{"name": "default"}]},
    ]});
    let server = Server::start(Reply::Features(broken.to_string())).await;
    let flags = start(&server).await;
    for subject in [Subject::new(), Subject::new().user("u1")] {
        assert_eq!(flags.variant("a", &subject), None);
        assert_eq!(flags.value(&Flag::new("a", 7), &subject), 7);
        assert!(flags.decide(&Flag::new("b", false), &subject));
    }
    // Printing the panics can take longer than the state stays fresh.
    until("fresh", || flags.is_fresh()).await;
    assert_eq!(flags.switch("a"), Switch::Unknown(SwitchProblem::Broken));
    assert_eq!(flags.switch("missing"), Switch::Unknown(SwitchProblem::Missing));
}

#[tokio::test]
async fn constraints_can_use_the_application_name() {
    let text = serde_json::json!({"version": 2, "features": [{
        "name": "a", "enabled": true, "stale": true, "strategies": [{
            "name": "default",
            "constraints": [{"contextName": "appName", "operator": "IN", "values": ["app"]}],
        }],
    }]});
    let server = Server::start(Reply::Features(text.to_string())).await;
    let flags = start(&server).await;
    assert!(flags.decide(&A, &Subject::new()));
    // A flag that is not in the state gets its default.
    assert!(flags.decide(&Flag::new("b", true), &Subject::new()));
    assert!(flags.variant("b", &Subject::new()).is_none());
    let problem = |flag: &str, kind| FlagProblem { flag: flag.into(), kind };
    assert_eq!(
        flags.coverage(["a", "b"]),
        [problem("a", FlagProblemKind::Stale), problem("b", FlagProblemKind::Missing)]
    );
    assert!(matches!(flags.set("a", FixedFlag::OFF), Err(FlagsError::NotFixed)));
}

#[test]
fn flags_of_a_server_need_a_runtime() {
    let options = UnleashOptions::new("http://localhost", "token", "app", "one");
    assert!(matches!(Flags::unleash(options), Err(FlagsError::NoRuntime)));
}

#[tokio::test]
async fn the_last_error_tells_a_refused_token_from_an_outage() {
    use FetchErrorKind::{TokenRefused, Unavailable, WrongUrl};
    let server = Server::start(features(&[("a", true, "")])).await;
    let flags = start(&server).await;
    until("fresh", || flags.is_fresh()).await;
    assert_eq!(flags.last_fetch_error(), None);
    for (status, body, kind, part) in [
        (StatusCode::UNAUTHORIZED, r#"{"message":"no access"}"#, TokenRefused, "no access"),
        (StatusCode::FORBIDDEN, "", TokenRefused, "403 Forbidden"),
        (StatusCode::NOT_FOUND, "no such page", WrongUrl, "404 Not Found: no such page"),
        (StatusCode::OK, "<html>", WrongUrl, "no list of flags"),
        (StatusCode::SERVICE_UNAVAILABLE, "starting", Unavailable, "503"),
    ] {
        server.reply(Reply::Status(status, body.to_owned()));
        until("the error", || flags.last_fetch_error().is_some_and(|error| error.kind == kind)).await;
        until("its text", || flags.last_fetch_error().is_some_and(|error| error.message.contains(part)))
            .await;
    }
    until("stale", || !flags.is_fresh()).await;
    let Switch::Unknown(SwitchProblem::NotFresh(Some(error))) = flags.switch("a") else { panic!() };
    assert!(error.contains("503"), "{error}");

    server.reply(Reply::Status(StatusCode::UNAUTHORIZED, "you sent token here".to_owned()));
    until("refused", || flags.last_fetch_error().is_some_and(|error| error.kind == TokenRefused)).await;
    let text = flags.last_fetch_error().unwrap().to_string();
    assert!(text.contains("you sent *** here"), "the token is not shown: {text}");
}

/// A flag that is on, with these strategies.
fn flag(name: &str, strategies: serde_json::Value) -> serde_json::Value {
    serde_json::json!({"name": name, "enabled": true, "strategies": strategies})
}

#[tokio::test]
async fn a_switch_that_can_give_two_answers_is_unknown() {
    use serde_json::json;
    let rollout = |percent: &str, stickiness: &str| {
        json!([{
            "name": "flexibleRollout",
            "parameters": {"rollout": percent, "stickiness": stickiness, "groupId": "g"},
        }])
    };
    let variants = |payloads: &[&str]| {
        let variants = payloads.iter().map(|payload| {
            json!({"name": payload, "weight": 500, "payload": {"type": "string", "value": payload}})
        });
        json!([{
            "name": "flexibleRollout",
            "parameters": {"rollout": "100", "stickiness": "random", "groupId": "g"},
            "variants": variants.collect::<Vec<_>>(),
        }])
    };
    let mut child = flag("child", json!([{"name": "default"}]));
    child["dependencies"] = json!([{"feature": "random", "enabled": true}]);
    let mut off = flag("off", rollout("50", "random"));
    off["enabled"] = json!(false);
    let state = json!({"version": 2, "features": [
        flag("random", rollout("50", "random")),
        flag("default", rollout("99", "default")),
        flag("legacy", json!([{"name": "gradualRolloutRandom", "parameters": {"percentage": "10"}}])),
        flag("two", variants(&["ramp", "switch"])),
        child,
        flag("same", variants(&["ramp", "ramp"])),
        flag("all", rollout("100", "random")),
        flag("none", rollout("0", "random")),
        off,
    ]});
    let server = Server::start(Reply::Features(state.to_string())).await;
    let flags = start(&server).await;
    until("fresh", || flags.is_fresh()).await;
    for (flag, part) in [
        ("random", "rollout of 50 %, stickiness random"),
        ("default", "rollout of 99 %"),
        ("legacy", "gradualRolloutRandom"),
        ("two", "2 variants with different payloads"),
        ("child", "its parent flag \"random\""),
    ] {
        let Switch::Unknown(SwitchProblem::Ambiguous(text)) = flags.switch(flag) else {
            panic!("{flag}: {:?}", flags.switch(flag))
        };
        assert!(text.contains(part), "{flag}: {text}");
    }
    assert_eq!(flags.switch("same"), Switch::On(Some("ramp".into())));
    assert_eq!(flags.switch("all"), Switch::On(None));
    assert_eq!(flags.switch("none"), Switch::Unknown(SwitchProblem::NoStrategy));
    assert_eq!(flags.switch("off"), Switch::Off, "a person turned it off, whatever its rollout is");
}
