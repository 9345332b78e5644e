//! What every migration of the generator has: a database of its own, a role, sessions, and a list of what went wrong.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::{Agent, DriverOptions, Migration, MigrationSpec, Phase};
use cutover::release::Release;
use cutover_testkit::Postgres;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Row as _};
use tokio::sync::RwLock;

use crate::Outcome;
use crate::damage::{Damage, Kind, is_cut};
use crate::life::STEP;
use crate::oracle::FIXED;

/// The `application_name` of the sessions of the driver's work, and of those of the service's own transactions.
const WORK: &str = "work";
const SERVICE: &str = "service";

pub(crate) struct Base {
    pub(crate) url: String,
    /// The service's pool, as its role.
    pub(crate) pool: PgPool,
    /// For copies, scans and changes of the schema, as the service's role.
    pub(crate) work: PgPool,
    /// For the judge, as superuser under the fixed settings.
    pub(crate) control: PgPool,
    pub(crate) version: i32,
    /// Connections of the driver's work are cut, and one of two instances is killed.
    pub(crate) has_faults: bool,
    /// Instances of other builds come and go.
    pub(crate) has_guests: bool,
    /// Those of them that write.
    pub(crate) guests: Mutex<Vec<Migration>>,
    /// How long a step may take.
    pub(crate) step: Duration,
    /// The judge writes this lock, so that no writer is in the middle of anything.
    pub(crate) quiet: RwLock<()>,
    pub(crate) is_over: AtomicBool,
    /// Values that cannot be mapped are to be corrected.
    pub(crate) corrects: AtomicBool,
    /// The way to `contract` has begun, after which nothing gives a row of columns apart another key.
    pub(crate) ends: AtomicBool,
    /// Open transactions matter at this moment, so that writers keep theirs open.
    pub(crate) is_moment: AtomicBool,
    /// For how many milliseconds writers keep a transaction open at most.
    pub(crate) longest_pause: u64,
    pub(crate) writes: AtomicU64,
    pub(crate) refusals: AtomicU64,
    pub(crate) longest_hold: Mutex<(Duration, String)>,
    pub(crate) damage: Mutex<Vec<Damage>>,
}

async fn pool(options: PgConnectOptions, size: u32, settings: String) -> Outcome<PgPool> {
    let pool = PgPoolOptions::new()
        .max_connections(size)
        .after_connect(move |connection, _| {
            let settings = settings.clone();
            Box::pin(async move {
                connection.execute(AssertSqlSafe(settings)).await?;
                Ok(())
            })
        })
        .connect_with(options.disable_statement_logging())
        .await?;
    Ok(pool)
}

impl Base {
    /// An empty database. `own_role`: an ordinary role owns it and runs the service. `settings`: those of its sessions.
    pub(crate) async fn new(
        own_role: bool,
        settings: &[&'static str],
        has_faults: bool,
        prepare: &'static str,
    ) -> Outcome<Self> {
        static ROLE: AtomicU32 = AtomicU32::new(1);
        let url = Postgres::fresh_database().await?;
        let admin: PgConnectOptions = url.parse()?;
        let control = pool(admin.clone(), 4, FIXED.to_owned()).await?;
        control.execute(prepare).await?;
        let role = format!("service_{}", ROLE.fetch_add(1, Ordering::Relaxed));
        let mut options = admin.clone();
        if own_role {
            let database = admin.get_database().unwrap_or_default();
            control
                .execute(AssertSqlSafe(format!(
                    "create role {role} login; grant create on database {database} to {role}; \
                     grant all on schema public to {role}; alter schema public owner to {role}"
                )))
                .await?;
            options = admin.clone().username(&role);
        }
        let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::integer")
            .fetch_one(&control)
            .await?;
        let settings = format!("set statement_timeout = '30s'; {}", settings.join("; "));
        let work = pool(options.clone().application_name(WORK), 10, settings.clone()).await?;
        let pool = pool(options.application_name(SERVICE), 10, settings).await?;
        Ok(Self {
            url,
            pool,
            work,
            control,
            version,
            has_faults,
            has_guests: false,
            guests: Mutex::default(),
            // What a fault stops is retried after growing pauses.
            step: if has_faults { STEP * 2 } else { STEP },
            quiet: RwLock::default(),
            is_over: AtomicBool::new(false),
            corrects: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            is_moment: AtomicBool::new(false),
            longest_pause: 800,
            writes: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            longest_hold: Mutex::default(),
            damage: Mutex::default(),
        })
    }

    /// A session of the service's role without its settings.
    pub(crate) async fn owner(&self) -> Outcome<PgConnection> {
        let options = (*self.pool.connect_options()).clone().application_name("owner");
        Ok(PgConnection::connect_with(&options).await?)
    }

    pub(crate) fn fail(&self, kind: Kind, damage: impl Into<String>) {
        let mut list = lock(&self.damage);
        if list.len() < 5 {
            list.push(kind.of(damage));
        }
    }

    /// A write has failed, other than with a connection that was cut.
    pub(crate) fn fail_write(&self, error: &(dyn std::error::Error + 'static), damage: impl Into<String>) {
        if !(self.has_faults && is_cut(error)) {
            self.fail(Kind::of_failed_write(error), damage);
        }
    }

    /// An instance of the service.
    pub(crate) async fn join(&self, name: &str, specs: Vec<MigrationSpec>) -> Outcome<(Agent, Migration)> {
        let agent = self.member(name, specs, FleetOptions::default()).await?;
        let migration = agent.migration("subject").ok_or("declared")?;
        Ok((agent, migration))
    }

    /// The same of any build.
    pub(crate) async fn member(
        &self,
        name: &str,
        specs: Vec<MigrationSpec>,
        options: FleetOptions,
    ) -> Outcome<Agent> {
        let health = Health::new();
        let ledger = Ledger::open((*self.pool.connect_options()).clone()).await?;
        let release = Release::new("shop", "1")?.with_instance(name)?;
        let fleet = Fleet::join(ledger, &release, options, &health).await?;
        Ok(Agent::start(fleet, specs, DriverOptions::default(), &health).await?)
    }

    /// The migration's phase, and what it waits for.
    pub(crate) async fn phase(&self) -> Outcome<(Phase, Option<String>)> {
        self.phase_of("subject").await
    }

    /// The same of another migration.
    pub(crate) async fn phase_of(&self, migration: &str) -> Outcome<(Phase, Option<String>)> {
        let query = "select phase, waits_for from cutover.migrations where name = $1";
        let row = sqlx::query(query).bind(migration).fetch_one(&self.control).await?;
        Ok((row.get::<String, _>(0).parse()?, row.get(1)))
    }

    /// What `cutover repairs --retry` does.
    pub(crate) async fn retry_repairs(&self) -> Outcome {
        let retry = "update cutover.repairs set attempts = 0, dead = false, next_try_at = clock_timestamp()";
        self.control.execute(retry).await?;
        Ok(())
    }

    /// The rows that wait for repair, for the text of a failure.
    pub(crate) async fn pending_repairs(&self) -> Outcome<String> {
        let query = "select coalesce(string_agg(format('%s %s after %s attempts, next in %s: %s', side, key, attempts, \
            next_try_at - clock_timestamp(), error), '; '), 'none') from cutover.repairs";
        Ok(sqlx::query_scalar(query).fetch_one(&self.control).await?)
    }

    pub(crate) async fn desire(&self, phase: &str) -> Outcome {
        let update = "update cutover.migrations set desired = $1 where name = 'subject'";
        sqlx::query(update).bind(phase).execute(&self.control).await?;
        Ok(())
    }

    pub(crate) async fn approve(&self) -> Outcome {
        let approve = "insert into cutover.approvals (migration_id, phase, actor, reason) \
            select id, 'contract', 'test', 'test' from cutover.migrations where name = 'subject'";
        self.control.execute(approve).await?;
        Ok(())
    }

    /// Whether a copy has set rows aside.
    pub(crate) async fn has_bad_rows(&self) -> Outcome<bool> {
        let query = "select exists (select from cutover.bad_rows)";
        Ok(sqlx::query_scalar(query).fetch_one(&self.control).await?)
    }

    /// Ends one session of the work, of the ledger or of the service, if there is one.
    pub(crate) async fn cut(&self) -> Outcome {
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and application_name in ($1, $2, 'cutover-ledger') order by random() limit 1",
        )
        .bind(WORK)
        .bind(SERVICE)
        .execute(&self.control)
        .await?;
        Ok(())
    }
}

/// The lines that are missing, and those that are there instead.
pub(crate) fn differing<'a>(expected: &'a [String], found: &'a [String]) -> [Vec<&'a String>; 2] {
    [(expected, found), (found, expected)]
        .map(|(all, other)| all.iter().filter(|line| !other.contains(line)).collect())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
