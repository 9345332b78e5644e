//! The ledger itself: installation and upgrade, the rights it needs, what its constraints refuse, and poolers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up is a failed test")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::time::Duration;

use cutover::fleet::{Fleet, FleetOptions, Membership};
use cutover::health::Health;
use cutover::ledger::{Ledger, LedgerError};
use cutover::migration::admin::{AdminError, approve, set_phase};
use cutover::migration::{Agent, DriverOptions, MigrationSpec};
use cutover::migration::{Phase, PhaseRange};
use cutover::release::Release;
use cutover_testkit::{PgBouncer, Postgres, PostgresOptions, if_installed, wait_until};
use http_body_util::BodyExt;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tower::ServiceExt;

type Outcome = Result<(), Box<dyn std::error::Error>>;

mod constraints;
mod upgrade;

const LIMIT: Duration = Duration::from_secs(60);

async fn execute(url: &str, statements: &str) -> Result<(), sqlx::Error> {
    let mut session = PgConnection::connect(url).await?;
    session.execute(AssertSqlSafe(statements)).await?;
    session.close().await
}

async fn ask<T>(url: &str, query: &'static str) -> Result<T, sqlx::Error>
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let mut session = PgConnection::connect(url).await?;
    // Behind a pooler, a statement with a name would stay in a session that others use.
    let mut tx = session.begin().await?;
    let answer = sqlx::query_scalar(query).persistent(false).fetch_one(&mut *tx).await?;
    tx.commit().await?;
    session.close().await?;
    Ok(answer)
}

async fn until(url: &str, query: &'static str) -> Outcome {
    wait_until(query, LIMIT, async || ask::<bool>(url, query).await).await?;
    Ok(())
}

fn as_role(url: &str, role: &str) -> String {
    url.replace("postgres@", &format!("{role}@"))
}

async fn open(url: &str) -> Result<Ledger, LedgerError> {
    Ledger::open(url.parse()?).await
}

async fn join(url: &str, name: &str, health: &Health, options: FleetOptions) -> Result<Fleet, LedgerError> {
    let release = Release::new("shop", "1").unwrap().with_instance(name).unwrap();
    Fleet::join(open(url).await?, &release, options, health).await
}

async fn agent(url: &str, name: &str, health: &Health) -> Result<Agent, LedgerError> {
    let fleet = join(url, name, health, FleetOptions::default()).await?;
    Agent::start(
        fleet,
        vec![MigrationSpec::new("status", PhaseRange::FULL)],
        DriverOptions::default(),
        health,
    )
    .await
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_reported_as_a_timeout() -> Outcome {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("postgres://app@{}/app", silent.local_addr()?);
    let error = open(&url).await.expect_err("refused");
    assert!(matches!(error, LedgerError::Timeout { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_missing_ledger_differs_from_one_that_may_not_be_created() -> Outcome {
    let url = Postgres::fresh_database().await?;
    assert!(matches!(Ledger::existing(url.parse()?).await, Err(LedgerError::Missing)));
    execute(&url, "create role outsider login").await?;
    let error = open(&as_role(&url, "outsider")).await.expect_err("refused");
    assert!(matches!(&error, LedgerError::NotInstalled { role } if role == "outsider"), "{error}");
    assert!(error.to_string().contains("cutover install --grant-to outsider"), "{error}");
    assert!(!ask::<bool>(&url, "select exists (select from pg_namespace where nspname = 'cutover')").await?);
    Ok(())
}

#[tokio::test]
async fn a_role_without_ddl_rights_is_enough_for_a_whole_walk() -> Outcome {
    let url = Postgres::fresh_database().await?;
    execute(&url, "create role \"the app\" login; create role nobody_here login").await?;
    let ledger = open(&url).await?;
    let error = open(&as_role(&url, "nobody_here")).await.expect_err("refused");
    assert!(matches!(&error, LedgerError::NoRights { role, .. } if role == "nobody_here"), "{error}");
    ledger.grant("the app").await?;
    let app = as_role(&url, "the%20app");
    let (health, other) = (Health::new(), Health::new());
    let (_a, _b) = (agent(&app, "a", &health).await?, agent(&app, "b", &other).await?);
    // People work with the same role.
    let people = Ledger::existing(app.parse()?).await?;
    set_phase(&people, "status", Phase::Backfill.into(), "me").await?;
    until(&url, "select phase = 'backfill' from cutover.migrations").await?;
    set_phase(&people, "status", Phase::Off.into(), "me").await?;
    until(&url, "select phase = 'off' from cutover.migrations").await?;
    for forbidden in [
        "create table cutover.more (x int)",
        "update cutover.ledger set version = 3",
        "delete from cutover.history",
        "update cutover.history set actor = 'somebody else'",
    ] {
        assert!(execute(&app, forbidden).await.is_err(), "{forbidden}");
    }
    Ok(())
}

#[tokio::test]
async fn a_standby_is_refused() -> Outcome {
    let primary = Postgres::start(PostgresOptions::default()).await?;
    let standby = primary.standby().await?;
    let error = open(&standby.admin_url()).await.expect_err("refused");
    assert!(matches!(error, LedgerError::ReadOnly), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_read_only_role_is_refused_with_what_ends_it() -> Outcome {
    let url = Postgres::fresh_database().await?;
    let owner = "Read \"only\"";
    let database: String = ask(&url, "select quote_ident(current_database())").await?;
    let role = format!("\"{}\"", owner.replace('"', "\"\""));
    execute(&url, &format!("create role {role} login superuser")).await?;
    let app = as_role(&url, "Read%20%22only%22");
    for setting in [
        format!("alter role {role} set"),
        format!("alter database {database} set"),
        format!("alter role {role} in database {database} set"),
    ] {
        execute(&url, &format!("{setting} default_transaction_read_only = on")).await?;
        let error = open(&app).await.expect_err(&setting);
        let LedgerError::ReadOnlySession { remedy, .. } = &error else { panic!("{setting}: {error}") };
        execute(&url, &format!("set transaction read write; {remedy}")).await?;
        open(&app).await?;
    }
    let by_options = format!("{app}?options[default_transaction_read_only]=on");
    let error = open(&by_options).await.expect_err("refused").to_string();
    assert!(
        error.contains("remove default_transaction_read_only from the options of the connection"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn bad_options_and_names_are_refused_with_valid_ones() -> Outcome {
    let url = Postgres::fresh_database().await?;
    let health = Health::new();
    let short = FleetOptions { lease: Duration::from_secs(3), ..FleetOptions::default() };
    let error = join(&url, "a", &health, short).await.expect_err("refused").to_string();
    assert!(error.contains("fleet.lease") && error.contains("6s"), "{error}");
    let fleet = join(&url, "a", &health, FleetOptions::default()).await?;
    let start = async |specs, options| {
        Agent::start(fleet.clone(), specs, options, &health).await.expect_err("refused")
    };
    let spec = |name: &str| MigrationSpec::new(name, PhaseRange::FULL);
    let error = start(vec![spec("x"), spec("x"), spec("")], DriverOptions::default()).await.to_string();
    assert!(error.contains("\"x\" is declared twice") && error.contains("1 to 63"), "{error}");
    let hasty = DriverOptions { leadership_lease: Duration::ZERO, ..DriverOptions::default() };
    let error = start(vec![spec("x")], hasty).await.to_string();
    assert!(error.contains("driver.leadership_lease") && error.contains("2s"), "{error}");
    assert_eq!(ask::<i64>(&url, "select count(*) from cutover.migrations").await?, 0);

    execute(&url, constraints::STATE).await?;
    let ledger = open(&url).await?;
    let error = set_phase(&ledger, "stauts", Phase::Ramp.into(), "me").await.expect_err("refused");
    assert!(error.to_string().contains("the ledger has shop/status"), "{error}");
    let error = approve(&ledger, "status", "me").await.expect_err("refused");
    assert!(matches!(&error, AdminError::NotInRetire { phase, .. } if phase == "expand"), "{error}");
    let untouched = "select count(*) = 0 from cutover.approvals, cutover.history";
    assert!(ask::<bool>(&url, untouched).await?);
    assert!(ask::<bool>(&url, "select desired is null from cutover.migrations").await?);
    Ok(())
}

#[tokio::test]
async fn a_lost_lease_does_not_hold_before_it_is_taken_up() -> Outcome {
    let url = Postgres::fresh_database().await?;
    let health = Health::new();
    let options = FleetOptions {
        lease: Duration::from_secs(20),
        renew_every: Duration::from_millis(100),
        ..FleetOptions::default()
    };
    // Nothing follows the membership here, as if the follower hung.
    let fleet = join(&url, "a", &health, options).await?;
    let Membership::Joined(first) = *fleet.membership().borrow() else { panic!("joined") };
    assert!(fleet.lease().holds());
    execute(&url, "delete from cutover.instances").await?;
    let mut membership = fleet.membership();
    let again = |now: &Membership| matches!(now, Membership::Joined(id) if *id != first);
    tokio::time::timeout(LIMIT, membership.wait_for(again)).await??;
    // It is alive in the ledger and is renewed there.
    let renewed: String = ask(&url, "select lease_until::text from cutover.instances").await?;
    wait_until("renewals", LIMIT, async || {
        Ok::<_, sqlx::Error>(
            ask::<String>(&url, "select lease_until::text from cutover.instances").await? != renewed,
        )
    })
    .await?;
    assert!(!fleet.lease().holds());
    // A follower takes it up.
    let agent = Agent::start(fleet.clone(), vec![], DriverOptions::default(), &health).await?;
    wait_until("the lease holds", LIMIT, async || Ok::<_, LedgerError>(fleet.lease().holds())).await?;
    wait_until("ready", LIMIT, async || Ok::<_, LedgerError>(health.is_ready())).await?;
    // An agent that is dropped ends its lease.
    drop(agent);
    assert!(!fleet.lease().holds());
    until(&url, "select bool_and(lease_until < clock_timestamp()) from cutover.instances").await?;
    Ok(())
}

#[tokio::test]
async fn an_instance_rejoins_after_the_ledger_lost_its_migration() -> Outcome {
    let url = Postgres::fresh_database().await?;
    let health = Health::new();
    let agent = agent(&url, "a", &health).await?;
    let migration = agent.migration("status").expect("declared");
    wait_until("admitted", LIMIT, async || Ok::<_, LedgerError>(migration.current().is_some())).await?;
    let pin = migration.pin()?;
    // As after a failover to a standby without it, where another migration got its id.
    execute(
        &url,
        "begin; delete from cutover.acknowledgements; delete from cutover.epochs; delete from cutover.migrations; \
         insert into cutover.migrations (id, fleet, name) overriding system value values (1, 'shop', 'other'); \
         insert into cutover.epochs (migration_id, epoch, phase, actor, reason) values (1, 1, 'off', 'x', 'x'); commit",
    )
    .await?;
    wait_until("out", LIMIT, async || Ok::<_, LedgerError>(!pin.holds())).await?;
    wait_until("back", LIMIT, async || Ok::<_, LedgerError>(migration.pin().is_ok_and(|pin| pin.holds())))
        .await?;
    execute(&url, "update cutover.migrations set desired = 'backfill' where name = 'status'").await?;
    until(&url, "select phase = 'backfill' from cutover.migrations where name = 'status'").await?;
    assert_eq!(
        ask::<String>(&url, "select phase from cutover.migrations where name = 'other'").await?,
        "off"
    );
    let pool = sqlx::PgPool::connect(&url).await?;
    migration.begin(&pool).await?.rollback().await?;
    Ok(())
}

async fn report(health: &Health) -> Result<String, Box<dyn std::error::Error>> {
    let request = axum::http::Request::get("/healthz?verbose").body(axum::body::Body::empty())?;
    let answer = health.router().oneshot(request).await?.into_body().collect().await?;
    Ok(String::from_utf8(answer.to_bytes().to_vec())?)
}

/// Every commit waits for a standby that does not exist.
#[tokio::test]
async fn stalled_commits_use_a_fixed_number_of_connections() -> Outcome {
    const AGENTS: usize = 3;
    /// Connections of the ledger for each, and one that asks what they wait for.
    const MOST: i64 = 5 * AGENTS as i64;
    let seconds = std::env::var("TESTKIT_STALL_SECONDS").map_or(Ok(15), |seconds| seconds.parse::<u64>())?;
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let url = postgres.create_database("stalled").await?;
    let healths: Vec<Health> = (0..AGENTS).map(|_| Health::new()).collect();
    let mut agents = Vec::new();
    for (number, health) in healths.iter().enumerate() {
        let url = format!("{url}?application_name=agent");
        agents.push(agent(&url, &format!("agent-{number}"), health).await?);
    }
    let pins = || agents.iter().all(|agent| agent.migration("status").is_some_and(|m| m.pin().is_ok()));
    wait_until("admitted", LIMIT, async || Ok::<_, LedgerError>(pins())).await?;
    execute(&url, "alter system set synchronous_standby_names = 'missing'").await?;
    execute(&url, "select pg_reload_conf()").await?;
    let of_agents = "select count(*) from pg_stat_activity where application_name = 'agent'";
    let mut most = 0;
    for _ in 0..seconds * 4 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        most = most.max(ask::<i64>(&url, of_agents).await?);
    }
    assert!(most > 0, "no session was counted");
    let waiting =
        ask::<i64>(&url, "select count(*) from pg_stat_activity where wait_event = 'SyncRep'").await?;
    assert!(waiting > 0, "no commit is stalled");
    assert!(most <= MOST, "{most} sessions");
    assert!(!pins(), "the lease could not be renewed and has ended");
    execute(&url, "alter system reset synchronous_standby_names").await?;
    execute(&url, "select pg_reload_conf()").await?;
    wait_until("admitted again", LIMIT, async || Ok::<_, LedgerError>(pins())).await?;
    Ok(())
}

#[tokio::test]
async fn behind_a_pooler_everything_works_and_health_warns() -> Outcome {
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let direct = postgres.create_database("pooled").await?;
    let Some(pooler) = if_installed(PgBouncer::start(&postgres, 3).await)? else { return Ok(()) };
    let url = pooler.url("pooled");
    let (health, other, third) = (Health::new(), Health::new(), Health::new());
    let _direct = agent(&direct, "c", &third).await?;
    let (a, _b) = (agent(&url, "a", &health).await?, agent(&url, "b", &other).await?);
    for phase in ["backfill", "off"] {
        execute(&url, &format!("update cutover.migrations set desired = '{phase}'")).await?;
        wait_until(phase, LIMIT, async || {
            ask::<bool>(&url, "select phase = desired and waits_for is null from cutover.migrations").await
        })
        .await?;
    }
    let pool = sqlx::PgPool::connect_with(
        url.parse::<sqlx::postgres::PgConnectOptions>()?.statement_cache_capacity(0),
    )
    .await?;
    let migration = a.migration("status").expect("declared");
    migration.begin(&pool).await?.commit().await?;
    wait_until("a warning", LIMIT, async || {
        let text = report(&health).await.unwrap_or_default();
        if text.contains("notifications don't arrive") { Ok(true) } else { Err(text) }
    })
    .await?;
    assert!(health.is_ready());
    // It has a connection of its own, past the pooler.
    assert!(!report(&third).await?.contains("notifications don't arrive"));
    Ok(())
}
