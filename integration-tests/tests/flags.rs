//! Flags from a real Unleash.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as it does, by panicking")]

use std::time::Duration;

use cutover::flags::{Decisions, Flag, Flags, Gap, Lack, Subject, Switch, UnleashOptions};
use cutover_testkit::{KitError, Postgres, PostgresOptions, Signal, Unleash, if_installed, wait_until};

const NEW_FLOW: Flag = Flag::new("payment-new-flow", false);
const LIMIT: Duration = Duration::from_secs(30);

fn options(unleash: &Unleash) -> UnleashOptions {
    UnleashOptions {
        interval: Duration::from_millis(200),
        time_limit: Duration::from_millis(500),
        stale_after: Duration::from_secs(2),
        ..UnleashOptions::new(unleash.url(), unleash.backend_token(), "payments", "payments-1")
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    wait_until(what, LIMIT, async || Ok::<_, KitError>(done())).await.unwrap();
}

fn users_in(flags: &Flags) -> Vec<bool> {
    (0..400).map(|user| flags.decide(&NEW_FLOW, &Subject::new().user(format!("u{user}")))).collect()
}

#[tokio::test]
async fn a_rollout_a_phase_and_an_outage() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let Some(unleash) = if_installed(Unleash::start(&postgres).await).unwrap() else {
        return;
    };
    let admin = unleash.admin().unwrap();
    admin.ensure_flag("payment-new-flow").await.unwrap();
    admin.ensure_flag("payment-status").await.unwrap();

    let registry = prometheus::Registry::new();
    let flags = Flags::unleash(options(&unleash)).unwrap();
    flags.register(&registry).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    until("an answer", || flags.is_fresh()).await;
    assert_eq!(flags.switch("payment-status"), Switch::Off);
    assert_eq!(flags.switch("payment-nothing"), Switch::Off);
    assert_eq!(
        flags.coverage(["payment-new-flow", "payment-nothing"]),
        [Gap { flag: "payment-nothing".into(), lack: Lack::Missing }]
    );

    // A share of the users, always the same ones, and a request keeps what it had.
    admin.set_rollout("payment-new-flow", 25).await.unwrap();
    admin.enable("payment-new-flow").await.unwrap();
    until("a rollout", || users_in(&flags).contains(&true)).await;
    let some = users_in(&flags);
    let share = some.iter().filter(|on| **on).count();
    assert!((60..140).contains(&share), "{share} of 400 at 25 %");
    assert_eq!(users_in(&flags), some);
    let second = Flags::unleash(options(&unleash)).unwrap();
    tokio::time::timeout(LIMIT, second.ready()).await.unwrap();
    assert_eq!(users_in(&second), some);
    let subject = || Subject::new().user(format!("u{}", some.iter().position(|on| *on).unwrap()));
    let request = Decisions::new(flags.clone(), subject());
    assert!(request.decide(&NEW_FLOW));
    admin.disable("payment-new-flow").await.unwrap();
    until("the flag to be off", || !users_in(&flags).contains(&true)).await;
    assert!(request.decide(&NEW_FLOW));
    assert!(!Decisions::new(flags.clone(), subject()).decide(&NEW_FLOW));

    // The phase of a migration, told to who waits for it.
    let mut changed = flags.changed();
    admin.set_variant("payment-status", "ramp:25").await.unwrap();
    admin.enable("payment-status").await.unwrap();
    let ramp = Switch::On(Some("ramp:25".into()));
    let told = async {
        while flags.switch("payment-status") != ramp {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(LIMIT, told).await.unwrap();

    // The server hangs: not off, but unknown; and back.
    let process = unleash.process();
    process.signal(Signal::STOP).unwrap();
    until("stale", || !flags.is_fresh()).await;
    assert_eq!(flags.switch("payment-status"), Switch::Unknown);
    assert!(flags.is_ready());
    process.signal(Signal::CONT).unwrap();
    let told = async {
        while flags.switch("payment-status") != ramp {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(LIMIT, told).await.unwrap();

    // A restart while it is away begins with what another instance knows.
    let bootstrap = flags.snapshot();
    process.kill().await.unwrap();
    let third = Flags::unleash(UnleashOptions { bootstrap, ..options(&unleash) }).unwrap();
    assert!(third.is_ready() && !third.is_fresh());
    let variant = third.variant("payment-status", &Subject::new()).unwrap();
    assert_eq!(variant.payload.as_deref(), Some("ramp:25"));
    tokio::time::timeout(LIMIT, flags.close()).await.unwrap();

    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for part in [
        r#"feature_flag_decisions_total{enabled="true",flag="payment-new-flow"}"#,
        r#"feature_flags_fetches_total{result="failed"}"#,
        "feature_flags_last_success_timestamp_seconds",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}
