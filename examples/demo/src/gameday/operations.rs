//! Servers that stall, are demoted, or refuse a token; flags that disappear; a pooler in between.

use std::time::{Duration, Instant};

use cutover_testkit::{PgBouncer, PgBouncerOptions, Redis, Signal, wait_until};
use deadpool_redis::redis;
use sqlx::Connection;

use super::{
    day::{Day, INSTANCES},
    steps::found,
    world::port,
};
use crate::{
    failure::{Failure, Result},
    flags::Switchboard,
    ledger::MIGRATION,
    proxy::STABLE,
};

const BOUND: Duration = Duration::from_secs(60);
/// Longer than a lease.
const FROZEN: Duration = Duration::from_secs(12);
/// As long as it took the connections of a stalled commit to reach a server's limit without a bound.
const STALLED: Duration = Duration::from_secs(30);
/// Longer than the interval at which Unleash reads its tokens.
const TOKENS_READ: Duration = Duration::from_secs(100);
/// How long a phase has to stay although its flag is gone.
const HELD: Duration = Duration::from_secs(6);

/// Makes a Redis the replica of another one on this host, or of none.
pub(super) async fn follow(of: &Redis, primary: Option<u16>) -> Result<()> {
    let mut connection = redis::Client::open(of.url())?.get_multiplexed_async_connection().await?;
    let mut command = redis::cmd("REPLICAOF");
    match primary {
        Some(port) => command.arg("127.0.0.1").arg(port),
        None => command.arg("NO").arg("ONE"),
    };
    let () = command.query_async(&mut connection).await?;
    if primary.is_some() {
        wait_until("the replica to be in sync", BOUND, async || {
            let info: String =
                redis::cmd("INFO").arg("replication").query_async(&mut connection.clone()).await?;
            Ok::<_, Failure>(info.contains("master_link_status:up"))
        })
        .await?;
    }
    Ok(())
}

/// The connections to the old primary stay open. It answers every write with READONLY.
pub(super) async fn redis_demoted(day: &mut Day) -> Result<()> {
    let replica = Redis::start().await?;
    follow(&replica, Some(port(&day.redis()?.url())?)).await?;
    let new = port(&replica.url())?;
    day.fault("the primary of Redis becomes a replica, and stays up");
    day.gates.redis.hold();
    tokio::time::sleep(Duration::from_millis(500)).await;
    follow(&replica, None).await?;
    day.gates.redis.lead_to(new);
    follow(day.redis()?, Some(new)).await?;
    day.gates.redis.open();
    day.recovered().await?;
    day.keep(replica);
    day.go("ramp:50").await
}

/// The number of sessions on the server of the service's instances.
async fn sessions(day: &Day) -> Result<i64> {
    let mut watcher = sqlx::PgConnection::connect(&day.postgres()?.url("postgres")).await?;
    let count = "select count(*) from pg_stat_activity \
                 where datname = 'gameday' and backend_type = 'client backend'";
    Ok(sqlx::query_scalar(count).fetch_one(&mut watcher).await?)
}

pub(super) async fn primary_frozen(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    let before = sessions(day).await?;
    day.fault(format!("Postgres is frozen for {} s", FROZEN.as_secs()));
    day.postgres()?.pause()?;
    tokio::time::sleep(FROZEN).await;
    day.postgres()?.resume()?;
    day.recovered().await?;
    let after = sessions(day).await?;
    day.outcome.notes.push(format!("{before} sessions on the server before, {after} after"));
    day.go("retire").await
}

/// No standby has the name that commits wait for.
pub(super) async fn commit_stalled(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    let before = sessions(day).await?;
    day.fault(format!("commits stall for {} s", STALLED.as_secs()));
    day.postgres()?.execute("alter system set synchronous_standby_names = 'nobody'").await?;
    day.postgres()?.execute("select pg_reload_conf()").await?;
    let (began, mut most) = (Instant::now(), 0);
    while began.elapsed() < STALLED {
        most = most.max(sessions(day).await?);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    day.postgres()?.execute("alter system reset synchronous_standby_names").await?;
    day.postgres()?.execute("select pg_reload_conf()").await?;
    day.recovered().await?;
    day.outcome.notes.push(format!("{before} sessions on the server before, at most {most} meanwhile"));
    // Each instance has a share of ten, four for the ledger, and one to listen. The rest are the demo's.
    let bound = before.max(15 * INSTANCES as i64 + 10);
    if most > bound {
        return Err(Failure::new(format!(
            "{most} sessions on the server while commits stalled; expected at most {bound}"
        )));
    }
    day.go("retire").await
}

pub(super) async fn pooler(day: &mut Day) -> Result<()> {
    // Named statements need a pooler that keeps them for its clients, or one session per client.
    let options = match PgBouncer::current() {
        Ok(program) => PgBouncerOptions {
            program: Some(program),
            pool_size: 20,
            settings: vec!["max_prepared_statements = 200".to_owned()],
            ..PgBouncerOptions::default()
        },
        Err(_) => PgBouncerOptions { pool_size: 60, session_mode: true, ..PgBouncerOptions::default() },
    };
    let mode = if options.session_mode { "session" } else { "transaction" };
    let pooler = PgBouncer::start_with(day.postgres()?, &options).await?;
    day.step(format!("the instances are replaced by others that connect through PgBouncer in {mode} mode"));
    day.replace_all(&[("DATABASE_URL", pooler.url("gameday"))]).await?;
    for phase in ["ramp:50", "retire", "verify", "retire"] {
        day.go(phase).await?;
    }
    // The instances are drained while the pooler still runs.
    day.end_load().await;
    day.fleet.stop_all().await
}

/// An instance starts while Postgres and Redis are away: it is alive and unready, and becomes ready when they are back.
pub(super) async fn start_in_outage(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    day.fault("Postgres and Redis are away, and an instance starts");
    day.gates.postgres.lose();
    day.gates.redis.lose();
    let number = day.fleet.instances.len();
    day.fleet.launch(2, STABLE)?;
    let name = day.fleet.instances[number].name().to_owned();
    found("the new instance to answer /livez", BOUND, async || {
        Ok(day.fleet.page(&name, "/livez").await.is_ok_and(|(status, _)| status == 200).then_some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    if let Some(status) = day.fleet.find(&name)?.process.exited() {
        return Err(Failure::new(format!("{name} ended with {status} instead of waiting")));
    }
    let (status, why) = day.fleet.page(&name, "/readyz").await?;
    if status != 503 || why.trim().is_empty() {
        return Err(Failure::new(format!("{name} answered /readyz with {status}: {why:?}")));
    }
    day.outcome.notes.push(format!("meanwhile /readyz says: {}", why.trim().replace('\n', "; ")));
    // The demo's own connections would otherwise wait for answers that were dropped.
    day.gates.postgres.cut();
    day.gates.postgres.open();
    day.gates.redis.open();
    day.fleet.settle(number..number + 1).await?;
    day.recovered().await?;
    day.go("switch").await
}

pub(super) async fn token_revoked(day: &mut Day) -> Result<()> {
    let unleash = switchboard(day)?;
    let token = unleash.create_token("gameday").await?;
    day.step("the instances use a token of their own");
    day.replace_all(&[("UNLEASH_TOKEN", token.clone())]).await?;
    day.go("ramp:50").await?;
    day.step("the token is revoked");
    unleash.revoke_token(&token).await?;
    // Unleash reads its tokens once a minute.
    found("Unleash to refuse the token", TOKENS_READ, async || {
        Ok((!unleash.accepts(&token).await?).then_some(()))
    })
    .await?;
    day.ask_for("switch").await?;
    tokio::time::sleep(HELD).await;
    day.still_at("ramp").await?;
    day.step("a deploy with a valid token");
    day.replace_all(&[]).await?;
    let began = Instant::now();
    day.walk.arrive("switch", began).await
}

/// Only an explicit "off" moves back. A flag that is gone says nothing.
pub(super) async fn flag_archived(day: &mut Day) -> Result<()> {
    day.go("retire").await?;
    day.step("the migration's flag is archived");
    let unleash = switchboard(day)?;
    unleash.archive(MIGRATION).await?;
    tokio::time::sleep(HELD).await;
    day.still_at("retire").await?;
    let held = day.fleet.page(day.fleet.instances[0].name(), "/metrics").await?.1;
    let held =
        held.lines().find(|line| line.starts_with("cutover_migration_flag_held{") && line.ends_with(" 1"));
    match held {
        Some(line) => day.outcome.notes.push(line.to_owned()),
        None => return Err(Failure::new("no metric says that the flag is missing")),
    }
    // A restored flag is off until it is enabled, and that would be an explicit "off".
    day.gates.unleash.lose();
    unleash.revive(MIGRATION).await?;
    day.servers.switchboard.set_phase("ramp:50").await?;
    day.gates.unleash.open();
    let began = Instant::now();
    day.walk.arrive("ramp", began).await
}

/// One instance polls for the fleet. Without it, another one does.
pub(super) async fn leader_of_flags_killed(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    let leader = found("an instance that polls Unleash", BOUND, async || polls_flags(day).await).await?;
    day.fault(format!("kill -9 of {leader}, which polls Unleash for the fleet"));
    day.signal(&leader, Signal::KILL)?;
    day.ask_for("switch").await?;
    let began = Instant::now();
    day.walk.arrive("switch", began).await?;
    let seconds = began.elapsed().as_secs_f64();
    let note = format!(
        "{seconds:.1} s from the change of the flag to the new phase, with the lease of the killed instance"
    );
    day.outcome.notes.push(note);
    day.replace(&leader).await?;
    day.recovered().await
}

/// The instance whose count of polls grows the most within two seconds.
async fn polls_flags(day: &Day) -> Result<Option<String>> {
    let before = polls(day).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = polls(day).await?;
    let grown = before.into_iter().zip(after).map(|((name, before), (_, after))| (name, after - before));
    Ok(grown.filter(|(_, grown)| *grown > 0.0).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(name, _)| name))
}

async fn polls(day: &Day) -> Result<Vec<(String, f64)>> {
    let mut polls = Vec::new();
    for instance in &day.fleet.instances {
        let (_, metrics) = day.fleet.page(instance.name(), "/metrics").await?;
        let counts = metrics.lines().filter(|line| line.starts_with("cutover_flag_fetches_total{"));
        let sum = counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum();
        polls.push((instance.name().to_owned(), sum));
    }
    Ok(polls)
}

fn switchboard(day: &Day) -> Result<cutover_testkit::UnleashAdmin> {
    match &day.servers.switchboard {
        Switchboard::Unleash(unleash) => Ok(unleash.clone()),
        Switchboard::Sql(_) => Err(Failure::new("the scenario has no Unleash")),
    }
}
