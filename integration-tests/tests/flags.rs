//! Flags from a real Unleash.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as it does, by panicking")]

use std::{str::FromStr, sync::Arc, time::Duration};

use cutover::Cutover;
use cutover::flags::{
    Backup, Decisions, FileBackup, Flag, FlagProblem, FlagProblemKind, Flags, PostgresBackup, RedisBackup,
    Subject, Switch, UnleashOptions,
};
use cutover::ledger::Ledger;
use cutover::release::Release;
use cutover_testkit::{
    Folder, KitError, Postgres, PostgresOptions, Redis, Signal, Unleash, UnleashAdmin, if_installed,
    wait_until,
};
use sqlx::{Executor, PgPool, postgres::PgConnectOptions};

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
    flags.register(&registry, &Release::new("payments", "stable").unwrap()).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    until("an answer", || flags.is_fresh()).await;
    assert_eq!(flags.switch("payment-status"), Switch::Off);
    assert_eq!(flags.switch("payment-nothing"), Switch::Off);
    assert_eq!(
        flags.coverage(["payment-new-flow", "payment-nothing"]),
        [FlagProblem { flag: "payment-nothing".into(), kind: FlagProblemKind::Missing }]
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
        r#"cutover_flag_decisions_total{enabled="true",flag="payment-new-flow",version="stable"}"#,
        r#"cutover_flag_fetches_total{result="failed"}"#,
        "cutover_flags_last_success_timestamp_seconds",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

/// Counts of one flag, as the server shows them to people.
async fn until_reported(admin: &UnleashAdmin, flag: &str, counts: (u64, u64)) {
    wait_until("counts in Unleash", LIMIT, async || admin.reported(flag).await.map(|found| found == counts))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_last_counts_reach_the_server_and_gaps_are_found() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let Some(unleash) = if_installed(Unleash::start(&postgres).await).unwrap() else {
        return;
    };
    let admin = unleash.admin().unwrap();
    for flag in ["payment-new-flow", "old", "gone"] {
        admin.ensure_flag(flag).await.unwrap();
    }
    admin.set_variant("payment-new-flow", "1").await.unwrap();
    admin.enable("payment-new-flow").await.unwrap();

    // Longer than the test: what arrives was sent by `close`.
    let hour = Duration::from_secs(3600);
    let flags = Flags::unleash(UnleashOptions { metrics_interval: hour, ..options(&unleash) }).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    let nobody = Subject::new();
    until("the flag to be on", || flags.switch("payment-new-flow") == Switch::On(Some("1".into()))).await;
    for _ in 0..5 {
        assert!(flags.decide(&NEW_FLOW, &nobody));
    }
    assert!(flags.variant("payment-new-flow", &nobody).unwrap().enabled);
    assert!(!flags.decide(&Flag::new("old", false), &nobody));

    let declared = ["payment-new-flow", "old", "gone", "never"];
    let gap = |flag: &str, kind| FlagProblem { flag: flag.into(), kind };
    assert_eq!(flags.coverage(declared), [gap("never", FlagProblemKind::Missing)]);
    admin.mark_stale("old").await.unwrap();
    admin.archive("gone").await.unwrap();
    let gaps = [
        gap("old", FlagProblemKind::Stale),
        gap("gone", FlagProblemKind::Missing),
        gap("never", FlagProblemKind::Missing),
    ];
    until("the gaps", || flags.coverage(declared) == gaps).await;

    tokio::time::timeout(LIMIT, flags.close()).await.unwrap();
    until_reported(&admin, "payment-new-flow", (6, 0)).await;
    until_reported(&admin, "old", (0, 1)).await;
}

#[tokio::test]
async fn a_new_instance_starts_right_while_unleash_is_away() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let Some(unleash) = if_installed(Unleash::start(&postgres).await).unwrap() else {
        return;
    };
    let admin = unleash.admin().unwrap();
    admin.ensure_flag("payment-new-flow").await.unwrap();
    admin.set_rollout("payment-new-flow", 25).await.unwrap();
    admin.enable("payment-new-flow").await.unwrap();

    let redis = Redis::start().await.unwrap();
    let pool = deadpool_redis::Config::from_url(redis.url()).create_pool(None).unwrap();
    let url = postgres.create_database("payments").await.unwrap();
    let ledger = Ledger::open(url.parse().unwrap()).await.unwrap();
    // What an instance may do at run time, and no more.
    let owner = PgPool::connect(&url).await.unwrap();
    owner.execute("create role app login").await.unwrap();
    ledger.grant("app").await.unwrap();
    let as_app = PgConnectOptions::from_str(&url).unwrap().username("app");
    let ledger = Ledger::existing(as_app).await.unwrap();
    let folder = Folder::new("flags").unwrap();
    let places: [Arc<dyn Backup>; 3] = [
        Arc::new(FileBackup::new(folder.path().join("flags"))),
        Arc::new(RedisBackup::new(pool.clone(), "flags:payments")),
        Arc::new(PostgresBackup::new(ledger, "payments")),
    ];
    let start = |place: &Arc<dyn Backup>| {
        let flags =
            Flags::unleash(UnleashOptions { backup: Some(place.clone()), ..options(&unleash) }).unwrap();
        let registry = prometheus::Registry::new();
        flags.register(&registry, &Release::new("payments", "stable").unwrap()).unwrap();
        (flags, registry)
    };
    let counted = |registry: &prometheus::Registry, result: &str| {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        text.contains(&format!("cutover_flag_backups_total{{result=\"{result}\"}} 1\n"))
    };

    let mut before = Vec::new();
    for place in &places {
        let (flags, registry) = start(place);
        until("kept", || counted(&registry, "saved")).await;
        before.push(users_in(&flags));
        tokio::time::timeout(LIMIT, flags.close()).await.unwrap();
    }
    assert!(before[0].contains(&true) && before.iter().all(|users| *users == before[0]));

    unleash.process().kill().await.unwrap();
    for place in &places {
        let (flags, registry) = start(place);
        tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
        assert!(!flags.is_fresh(), "{place:?}");
        assert_eq!(users_in(&flags), before[0], "{place:?}");
        assert!(counted(&registry, "restored"), "{place:?}");
    }

    // Damaged in place: refused, and said; the declared default counts.
    std::fs::write(folder.path().join("flags"), "cutover-flags/1 9 0\n{}").unwrap();
    let mut connection = pool.get().await.unwrap();
    let mut set = deadpool_redis::redis::cmd("SETRANGE");
    set.arg("flags:payments").arg(200).arg("!").exec_async(&mut connection).await.unwrap();
    owner.execute("update cutover.flag_states set state = set_byte(state, 200, 33)").await.unwrap();
    for place in &places {
        let (flags, registry) = start(place);
        until("refused", || counted(&registry, "refused")).await;
        assert!(!flags.is_ready(), "{place:?}");
        assert!(!users_in(&flags).contains(&true), "{place:?}");
    }
}

/// An instance as the front door makes it, in a process of its own: it takes the flag server from its environment.
/// Prints what it decides as soon as it is started.
#[tokio::test]
#[ignore = "another test starts it, with what it needs in its environment"]
async fn instance_of_the_front_door() {
    let pool = PgPool::connect(&std::env::var("TEST_DATABASE").unwrap()).await.unwrap();
    let release = Release::new("payments", "stable").unwrap();
    let service = Cutover::service("payments").release(release).postgres(pool.clone());
    let service = service.admin(([127, 0, 0, 1], 0).into());
    let instance = service.start().await.unwrap();
    println!("decided {}", instance.flags().decide(&NEW_FLOW, &Subject::new()));
    wait_until("a kept state", LIMIT, async || {
        let kept = sqlx::query_scalar("select exists (select from cutover.flag_states)");
        kept.fetch_one(&pool).await
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_front_door_keeps_the_last_state_in_the_ledger() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let Some(unleash) = if_installed(Unleash::start(&postgres).await).unwrap() else {
        return;
    };
    let admin = unleash.admin().unwrap();
    admin.ensure_flag("payment-new-flow").await.unwrap();
    admin.set_variant("payment-new-flow", "1").await.unwrap();
    admin.enable("payment-new-flow").await.unwrap();
    let url = postgres.create_database("payments").await.unwrap();
    let decided = async || {
        let mut instance = tokio::process::Command::new(std::env::current_exe().unwrap());
        instance.args(["--exact", "instance_of_the_front_door", "--ignored", "--nocapture"]);
        instance.env("TEST_DATABASE", &url).env("UNLEASH_URL", unleash.url());
        instance.env("UNLEASH_TOKEN", unleash.backend_token()).kill_on_drop(true);
        let output = instance.output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    // The server shows a toggle within a second.
    let shown = Flags::unleash(options(&unleash)).unwrap();
    until("the flag to be on", || shown.switch("payment-new-flow") == Switch::On(Some("1".into()))).await;
    let text = decided().await;
    assert!(text.contains("decided true"), "{text}");

    unleash.process().kill().await.unwrap();
    let text = decided().await;
    assert!(text.contains("decided true"), "{text}");
}
