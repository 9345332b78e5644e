//! Flags of a real Unleash.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::{str::FromStr, sync::Arc, time::Duration};

use cutover::Cutover;
use cutover::flags::{
    Backup, Decisions, FileBackup, Flag, FlagProblemKind, Flags, PostgresBackup, RedisBackup, Subject,
    Switch, SwitchProblem, UnleashOptions,
};
use cutover::ledger::Ledger;
use cutover::migration::{MigrationSpec, PhaseRange};
use cutover::preflight::{Preflight, Severity};
use cutover::release::Release;
use cutover_testkit::{
    Folder, KitError, Postgres, PostgresOptions, Redis, Signal, Unleash, UnleashAdmin, if_installed,
    wait_until,
};
use sqlx::{Executor, PgPool, postgres::PgConnectOptions};

const NEW_FLOW: Flag = Flag::new("payment-new-flow", false);
const LIMIT: Duration = Duration::from_secs(60);

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

fn problems(flags: &Flags, declared: &[&str]) -> Vec<(String, FlagProblemKind)> {
    flags.coverage(declared.iter().copied()).into_iter().map(|problem| (problem.flag, problem.kind)).collect()
}

fn users_in(flags: &Flags) -> Vec<bool> {
    (0..400).map(|user| flags.decide(&NEW_FLOW, &Subject::new().user(format!("u{user}")))).collect()
}

#[tokio::test]
async fn rollouts_and_switches_survive_an_outage() {
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
    assert_eq!(flags.switch("payment-nothing"), Switch::Unknown(SwitchProblem::Missing));
    assert_eq!(
        problems(&flags, &["payment-new-flow", "payment-nothing"]),
        [("payment-nothing".to_owned(), FlagProblemKind::Missing)]
    );

    // A rollout reaches the same users in every instance, and a request keeps its decision.
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

    // A change of the phase of a migration is announced.
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

    // While the server hangs, the switch is unknown and not off.
    let process = unleash.process();
    process.signal(Signal::STOP).unwrap();
    until("stale", || !flags.is_fresh()).await;
    assert!(matches!(flags.switch("payment-status"), Switch::Unknown(SwitchProblem::NotFresh(Some(_)))));
    assert!(flags.is_ready());
    process.signal(Signal::CONT).unwrap();
    let told = async {
        while flags.switch("payment-status") != ramp {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(LIMIT, told).await.unwrap();

    // A new instance begins with the state of another one while the server is down.
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

/// Waits until the server shows these counts of a flag.
async fn until_reported(admin: &UnleashAdmin, flag: &str, counts: (u64, u64)) {
    wait_until("counts in Unleash", LIMIT, async || admin.reported(flag).await.map(|found| found == counts))
        .await
        .unwrap();
}

#[tokio::test]
async fn close_sends_the_last_counts_and_coverage_is_checked() {
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

    // Longer than the test, so that `close` sends what arrives.
    let hour = Duration::from_secs(3600);
    let flags = Flags::unleash(UnleashOptions { metrics_interval: hour, ..options(&unleash) }).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    let anyone = Subject::new();
    until("the flag to be on", || flags.switch("payment-new-flow") == Switch::On(Some("1".into()))).await;
    for _ in 0..5 {
        assert!(flags.decide(&NEW_FLOW, &anyone));
    }
    assert!(flags.variant("payment-new-flow", &anyone).unwrap().enabled);
    assert!(!flags.decide(&Flag::new("old", false), &anyone));

    let declared = ["payment-new-flow", "old", "gone", "never"];
    let problem = |flag: &str, kind| (flag.to_owned(), kind);
    assert_eq!(problems(&flags, &declared), [problem("never", FlagProblemKind::Missing)]);
    admin.mark_stale("old").await.unwrap();
    admin.archive("gone").await.unwrap();
    let expected = [
        problem("old", FlagProblemKind::Stale),
        problem("gone", FlagProblemKind::Missing),
        problem("never", FlagProblemKind::Missing),
    ];
    until("the problems", || problems(&flags, &declared) == expected).await;

    tokio::time::timeout(LIMIT, flags.close()).await.unwrap();
    until_reported(&admin, "payment-new-flow", (6, 0)).await;
    until_reported(&admin, "old", (0, 1)).await;
}

#[tokio::test]
async fn a_new_instance_starts_from_a_backup_in_an_outage() {
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
    // With the rights of an instance at run time only.
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

    // A damaged backup is refused and counted, and the declared default applies.
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

/// An instance in its own process, because the front door reads the flag server from the environment. It prints its
/// first decision.
#[tokio::test]
#[ignore = "another test starts it with its environment"]
async fn instance_of_the_front_door() {
    let pool = PgPool::connect(&std::env::var("TEST_DATABASE").unwrap()).await.unwrap();
    let release = Release::new("payments", "stable").unwrap();
    let service = Cutover::service("payments").release(release).postgres(pool.clone());
    let service = service.admin(([127, 0, 0, 1], 0).into());
    let instance = service.start().await.unwrap();
    tokio::time::timeout(LIMIT, instance.flags().ready()).await.unwrap();
    println!("decided {}", instance.flags().decide(&NEW_FLOW, &Subject::new()));
    wait_until("a kept state", LIMIT, async || {
        let kept = sqlx::query_scalar("select exists (select from cutover.flag_states)");
        kept.fetch_one(&pool).await
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_front_door_stores_the_last_state_in_the_ledger() {
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
    // The server shows a change within about a second.
    let shown = Flags::unleash(options(&unleash)).unwrap();
    until("the flag to be on", || shown.switch("payment-new-flow") == Switch::On(Some("1".into()))).await;
    let text = decided().await;
    assert!(text.contains("decided true"), "{text}");

    unleash.process().kill().await.unwrap();
    let text = decided().await;
    assert!(text.contains("decided true"), "{text}");
}

const SWITCHED: [&str; 3] = ["archived", "off", "split"];

/// An instance whose migrations are in `switch`, each by a flag of its name.
async fn instance_in_switch(url: &str, flags: &Flags) -> cutover::Instance {
    Ledger::open(url.parse().unwrap()).await.unwrap();
    let pool = PgPool::connect(url).await.unwrap();
    pool.execute(
        "begin;
         insert into cutover.fleets (name) values ('payments');
         insert into cutover.migrations (fleet, name, epoch, phase, new_complete)
             select 'payments', name, 6, 'switch', true from unnest(array['archived', 'off', 'split']) name;
         insert into cutover.epochs (migration_id, epoch, phase, previous_phase, closed_at, drained_at, actor, reason)
             select m.id, number, reached, lag(reached) over (partition by m.id order by number),
                    case when number < 6 then now() end, case when number < 6 then now() end, 'test', 'test'
             from cutover.migrations m, unnest(array['off', 'expand', 'backfill', 'verify', 'ramp', 'switch'])
                 with ordinality as line (reached, number);
         commit",
    )
    .await
    .unwrap();
    let release = Release::new("payments", "stable").unwrap();
    let mut service = Cutover::service("payments").release(release).postgres(pool).flags(flags.clone());
    for migration in SWITCHED {
        service = service.migration_by_flag(MigrationSpec::new(migration, PhaseRange::FULL), migration);
    }
    service.start().await.unwrap()
}

#[tokio::test]
async fn only_a_flag_that_is_turned_off_moves_a_migration_back() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let Some(unleash) = if_installed(Unleash::start(&postgres).await).unwrap() else {
        return;
    };
    let admin = unleash.admin().unwrap();
    for flag in SWITCHED {
        admin.ensure_flag(flag).await.unwrap();
        admin.set_variant(flag, "switch").await.unwrap();
        admin.enable(flag).await.unwrap();
    }
    let url = postgres.create_database("payments").await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    let flags = Flags::unleash(options(&unleash)).unwrap();
    let on = Switch::On(Some("switch".into()));
    until("the flags", || SWITCHED.iter().all(|flag| flags.switch(flag) == on)).await;
    let _instance = instance_in_switch(&url, &flags).await;
    let shows = async |migration: &str, column: &'static str, part: &str| {
        wait_until(&format!("{column} of {migration}"), LIMIT, async || {
            let row = sqlx::query_scalar::<_, Option<String>>(column).bind(migration);
            row.fetch_one(&pool).await.map(|text| text.unwrap_or_default().contains(part))
        })
        .await
        .unwrap();
    };
    const PHASE: &str = "select phase from cutover.migrations where name = $1";
    const WAITS_FOR: &str = "select waits_for from cutover.migrations where name = $1";

    admin.archive("archived").await.unwrap();
    shows("archived", WAITS_FOR, "no flag of this name").await;
    admin.set_rollout("split", 50).await.unwrap();
    shows("split", WAITS_FOR, "rollout of 50 %").await;
    admin.disable("off").await.unwrap();
    shows("off", PHASE, "verify").await;
    for migration in ["archived", "split"] {
        shows(migration, PHASE, "switch").await;
    }
    let moved: i64 = sqlx::query_scalar(
        "select count(*) from cutover.epochs e join cutover.migrations m on m.id = e.migration_id \
         where e.epoch > 6 and m.name <> 'off'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(moved, 0, "a migration whose flag has no clear answer did not move");
}

#[tokio::test]
async fn a_preflight_reports_a_refused_token_and_a_wrong_url() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let Some(unleash) = if_installed(Unleash::start(&postgres).await).unwrap() else {
        return;
    };
    unleash.admin().unwrap().ensure_flag("payment-new-flow").await.unwrap();
    let report = async |url: String, token: &str| {
        // The report says what the server answers, however slowly it does.
        let options = UnleashOptions { time_limit: LIMIT, stale_after: 2 * LIMIT, ..options(&unleash) };
        let flags = Flags::unleash(UnleashOptions { url, token: token.to_owned(), ..options });
        Preflight::new().flags(flags.unwrap(), ["payment-new-flow"]).run().await
    };
    let good = report(unleash.url(), unleash.backend_token()).await;
    assert!(good.passed, "{good}");
    for token in ["*:development.0123456789abcdef", unleash.admin_token()] {
        let refused = report(unleash.url(), token).await;
        let text = refused.to_string();
        assert!(!refused.passed, "{text}");
        assert!(text.contains("the flag server refused the token") && text.contains("answered 40"), "{text}");
        assert!(text.contains("set UNLEASH_TOKEN") && !text.contains(token), "{text}");
    }
    let wrong = report(format!("{}/other", unleash.url()), unleash.backend_token()).await;
    let text = wrong.to_string();
    assert!(!wrong.passed && text.contains("/other/api/client/features answered"), "{text}");

    // An unreachable server is a warning, because an instance starts without it.
    unleash.process().kill().await.unwrap();
    let unreachable = report(unleash.url(), unleash.backend_token()).await;
    assert!(unreachable.passed, "{unreachable}");
    assert_eq!(unreachable.of(Severity::Warning).count(), 1, "{unreachable}");
}
