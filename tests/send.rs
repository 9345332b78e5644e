//! The futures of public functions can be spawned. It is the compiler that tests it.
#![cfg(all(feature = "console", feature = "deadpool", feature = "unleash"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up is a failed test")]
#![allow(dead_code, reason = "the functions that are listed are compiled, and not called")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use cutover::console::{Database, Feed, with_headers};
use cutover::drain::Drain;
use cutover::flags::{Decisions, Flag, Flags, Subject};
use cutover::fleet::{Fleet, FleetOptions};
use cutover::front::BoxError;
use cutover::health::{Check, Health};
use cutover::ledger::{Ledger, Step};
use cutover::migration::admin::{self, Actor};
use cutover::migration::mirror::{Mirror, MirrorSource, MirrorStore, MirrorTx};
use cutover::migration::{
    Agent, DriverOptions, DualWrite, Error, FencedPool, Guard, Isolation, Key, Migration, MigrationSpec,
    Migrations, Phase, PinnedTx, Rows,
};
use cutover::pool::{Admission, ConnectionShare, PoolGuard, PoolWaitMetrics, ShareOptions};
use cutover::preflight::Preflight;
use cutover::release::Release;
use cutover::testing::EveryPhase;
use cutover::{Cutover, Instance};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::net::{TcpListener, TcpStream};

/// A value that another thread can take over.
fn sent<T: Send>(_: T) {}

fn service() -> Cutover {
    Cutover::service("shop")
}

fn front(instance: &Instance) {
    sent(service().run(async |_: &Instance| Ok::<_, BoxError>(Router::new())));
    sent(service().run(async |instance: &Instance| {
        instance.admitted().await;
        Ok::<_, BoxError>(None::<Router>)
    }));
    sent(service().start());
    sent(service().preflight());
    sent(Preflight::new().run());
    sent(instance.admitted());
    sent(instance.serve(Router::new()));
    sent(instance.serve_admin());
}

fn drain(drain: &Drain, listener: TcpListener, other: TcpListener, third: TcpListener) {
    sent(drain.begun());
    sent(drain.propagated());
    sent(drain.finished());
    sent(drain.serve(listener, Router::new()));
    sent(drain.serve_with(other, |stream: TcpStream| async move { Ok(stream) }, Router::new()));
    sent(drain.serve_admin(third, Router::new()));
}

fn flags(flags: &Flags, decisions: &Decisions, subject: &Subject, flag: &Flag, text: &Flag<String>) {
    sent(flags.ready());
    sent(flags.close());
    sent(flags.gate(flag, subject, || async { 1 }, || async { 2 }));
    sent(decisions.gate(flag, || async { 1 }, || async { 2 }));
    sent(decisions.resolve(flag, Duration::ZERO));
    sent(decisions.resolve_value(text, Duration::ZERO));
}

fn ledger(ledger: &Ledger, options: PgConnectOptions, next: Step) {
    sent(Ledger::open(options.clone()));
    sent(Ledger::open_with_step(options.clone(), next));
    sent(Ledger::existing(options.clone()));
    sent(Ledger::existing_with_step(options.clone(), next));
    sent(Ledger::can_install(&options));
    sent(ledger.grant("app"));
}

fn fleet(ledger: Ledger, release: &Release, health: &Health, fleet: &Fleet, agent: &Agent, check: &Check) {
    sent(Fleet::join(ledger, release, FleetOptions::default(), health));
    sent(fleet.leave());
    sent(Agent::start(fleet.clone(), Vec::new(), DriverOptions::default(), health));
    sent(agent.admitted());
    sent(agent.leave());
    sent(check.once());
}

fn pool(
    fleet: &Fleet,
    share: fn() -> ConnectionShare,
    pool: PgPool,
    guard: PoolGuard,
    admission: &Admission,
) {
    let (options, connect) = (ShareOptions::default(), (*pool.connect_options()).clone());
    sent(ConnectionShare::lease(fleet, &options));
    sent(ConnectionShare::lease_as(fleet, String::new(), &options));
    sent(share().sqlx(PgPoolOptions::new(), connect));
    sent(share().attach(pool));
    sent(guard.leave());
    sent(admission.admit());
}

fn waits(waits: &PoolWaitMetrics) {
    sent(waits.measure(async {}));
}

fn people(ledger: &Ledger, actor: fn() -> Actor<'static>, specs: &[MigrationSpec]) {
    let name = "status";
    sent(admin::incompatible_builds(ledger, "shop", specs));
    sent(admin::set_phase(ledger, name, Phase::Off.into(), actor()));
    sent(admin::approve(ledger, name, actor()));
    sent(admin::pause_work(ledger, name, actor()));
    sent(admin::resume_work(ledger, name, actor()));
    sent(admin::retry_repairs(ledger, name, actor()));
    sent(admin::finish(ledger, name, actor(), true));
    sent(admin::baseline(ledger, name, actor(), true));
    sent(admin::abandon(ledger, name, true, actor(), true));
    sent(admin::forget(ledger, name, actor(), true));
    sent(admin::rollback(ledger, name, actor(), true));
    sent(admin::plan(ledger, name, Phase::Contract));
    sent(admin::migration_files(ledger, name));
    sent(admin::report(ledger, Some(name)));
    sent(admin::differences(ledger, name, 1));
    sent(admin::bad_rows(ledger, name, 1));
    sent(admin::repairs(ledger, Some(name), 1));
    sent(admin::count_repairs(ledger, name));
    sent(admin::external_writes(ledger, Some(name), 1));
    sent(admin::history(ledger, Some(name), 1));
}

fn console(database: &Database, feed: &Feed) {
    sent(database.ledger());
    sent(feed.now(None));
    sent(with_headers(Default::default()));
}

fn migration<P: FencedPool>(
    one: &Migration,
    several: &Migrations,
    pool: &P,
    tx: fn() -> PinnedTx<P::Transaction>,
) {
    sent(one.read(async |pin| Ok::<_, Error>(pin.phase())));
    sent(one.begin(pool));
    sent(one.begin_isolated(pool, Isolation::default()));
    sent(several.begin(pool));
    sent(several.begin_isolated(pool, Isolation::default()));
    sent(tx().commit());
    sent(tx().rollback());
}

/// A repository.
struct Orders;

impl Orders {
    async fn set(&self, _: &mut PinnedTx, _: i64) -> Result<i64, Error> {
        Ok(1)
    }

    async fn get(&self) -> Result<i64, Error> {
        Ok(1)
    }
}

fn dual(both: &DualWrite<Orders, Orders>, pool: &PgPool, tx: fn() -> &'static mut PinnedTx, guard: Guard) {
    let (id, key) = (1_i64, || Key::of("1"));
    sent(both.write_with(
        tx(),
        Rows::one(&id),
        async |old, tx| old.set(tx, id).await,
        async |new, tx| new.set(tx, id).await,
    ));
    sent(both.write_at_once(
        tx(),
        async |old, tx| old.set(tx, id).await,
        async |new, tx| new.set(tx, id).await,
        async |old, _, tx| old.set(tx, id).await,
    ));
    sent(both.insert_with(
        tx(),
        None::<i64>,
        async |old, tx, _| old.set(tx, 1).await,
        async |new, tx, _| new.set(tx, 1).await,
    ));
    sent(both.read_with(key(), async |old| old.get().await, async |new| new.get().await));
    sent(both.read_in_with(
        tx(),
        key(),
        async |old, tx| old.set(tx, 1).await,
        async |new, tx| new.set(tx, 1).await,
    ));
    sent(both.repair_with(pool, async |old, _, tx, _| old.set(tx, 1).await.map(|_| ())));
    sent(DualWrite::protect_new_side(both, tx(), Rows::one(&id)));
    sent(DualWrite::finish_new_side(both, tx(), guard, Ok::<_, Error>(1)));
}

fn mirror<S: MirrorSource, M: MirrorStore>(mirror: &Mirror<S, M>, tx: fn() -> MirrorTx<S, M>) {
    sent(mirror.begin());
    sent(mirror.read("1"));
    sent(mirror.deliver());
    sent(mirror.run_delivery());
    let mut put = tx();
    sent(put.put("1", None));
    sent(tx().commit());
    sent(tx().rollback());
}

fn testing(every: EveryPhase) {
    sent(every.run(async |_: &cutover::testing::Visit<i64>| Ok::<_, Error>(1)));
}

/// How many lines pass a call of a function of this name on.
fn calls(listed: &str, name: &str) -> usize {
    let calls = [format!(".{name}("), format!("::{name}("), format!("({name}(")];
    let lines = listed.lines().filter(|line| line.trim_start().starts_with("sent("));
    lines.filter(|line| calls.iter().any(|call| line.contains(call))).count()
}

/// The names of the public functions that are `async` or return `impl Future`.
fn public_async(folder: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            public_async(&path, into);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("pub async fn ").chain(text.match_indices("pub fn ")) {
            let head = text[at..].split(['{', ';']).next().unwrap();
            if head.starts_with("pub async") || head.contains("impl Future") {
                let name = head.split("fn ").nth(1).unwrap().split(['(', '<']).next().unwrap();
                into.push(name.to_owned());
            }
        }
    }
}

#[test]
fn every_public_async_function_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = Vec::new();
    public_async(&root.join("src"), &mut names);
    assert!(names.len() > 80, "{names:?}");
    let listed = fs::read_to_string(root.join("tests/send.rs")).unwrap();
    // Several types have a function of the same name.
    names.sort();
    let missing = names.chunk_by(|a, b| a == b).filter(|same| calls(&listed, &same[0]) < same.len());
    let missing: Vec<_> = missing.map(|same| &same[0]).collect();
    assert!(missing.is_empty(), "add a call to tests/send.rs: {missing:?}");
}
