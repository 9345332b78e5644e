//! A table `orders` in a database of its own, and instances of a fleet that migrate a column of it.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use cutover::ConfigError;
use cutover::fleet::{Fleet as Membership, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::PhaseRange;
use cutover::migration::{Agent, DriverOptions, Migration, MigrationSpec, Plan, PlanProblem};
use cutover::migration::{BatchOptions, ColumnMigration, ColumnMigrationBuilder, TableMigration};
use cutover::release::Release;
use cutover_testkit::{KitError, Postgres, wait_until};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SOON: Duration = Duration::from_secs(120);

/// The pause of a writer between two rounds. It leaves a part of the processor to the move, and to the tests beside this one.
pub(crate) const PACE: Duration = Duration::from_millis(15);

/// The database and the table, before an instance has joined.
pub(crate) struct World {
    pub(crate) pool: PgPool,
    pub(crate) url: String,
}

/// One instance.
pub(crate) struct Fleet {
    pub(crate) migration: Migration,
    pub(crate) agent: Agent,
    health: Health,
}

impl World {
    pub(crate) async fn new(rows: i64) -> Outcome<Self> {
        Self::at(Postgres::fresh_database().await?, rows).await
    }

    /// In the database at this address.
    pub(crate) async fn at(url: String, rows: i64) -> Outcome<Self> {
        let pool = PgPoolOptions::new().max_connections(12).connect(&url).await?;
        pool.execute(
            "create table orders (id bigint generated always as identity primary key, note text, old_status text)",
        )
        .await?;
        let world = Self { pool, url };
        world.fill(rows).await?;
        Ok(world)
    }

    /// Rows whose old status is ` LEGACY<id> `.
    async fn fill(&self, rows: i64) -> Outcome {
        sqlx::query("insert into orders (old_status) select '' from generate_series(1, $1)")
            .bind(rows)
            .execute(&self.pool)
            .await?;
        self.pool
            .execute("update orders set old_status = format(' LEGACY%s ', id) where old_status = ''")
            .await?;
        Ok(())
    }

    /// Restores the initial rows.
    pub(crate) async fn refill(&self) -> Outcome {
        let again = "update orders set old_status = format(' LEGACY%s ', id), new_status = 'legacy' || id";
        self.pool.execute(again).await?;
        Ok(())
    }

    /// A plan without guard trigger, because the tests make external writes on purpose.
    pub(crate) fn plan(&self) -> Result<ColumnMigration, ConfigError> {
        self.describe().without_guard_trigger().build()
    }

    pub(crate) fn describe(&self) -> ColumnMigrationBuilder {
        ColumnMigration::new(self.pool.clone(), "orders")
            .key("id")
            .column("old_status", "new_status", "text")
            .forward("lower(trim(old_status))")
            .backward("upper(new_status)")
            .batches(BatchOptions { min_rows: 200, ..BatchOptions::default() })
    }

    /// Moves the rows to a table `orders_2` with a key of its own, and carries over what is attached.
    pub(crate) fn to_orders_2(&self) -> Result<TableMigration, ConfigError> {
        TableMigration::new(self.pool.clone(), "orders", "orders_2")
            .create("create table orders_2 (id bigint primary key, note text, status text)")
            .same("note")
            .column("status", "old_status")
            .column_back("old_status", "status")
            .carry_over()
            .build()
    }

    /// An admitted instance. Its driver does the plan's work; without a plan it takes the work for done. Its other migration
    /// stays in `off`.
    pub(crate) async fn instance(&self, name: &str, plan: Option<ColumnMigration>) -> Outcome<Fleet> {
        let spec = MigrationSpec::new("status", PhaseRange::FULL);
        self.take_part(name, plan.into_iter().fold(spec, MigrationSpec::plan)).await
    }

    /// The same with any plan.
    pub(crate) async fn instance_of(&self, name: &str, plan: impl Plan + 'static) -> Outcome<Fleet> {
        self.take_part(name, MigrationSpec::new("status", PhaseRange::FULL).plan(plan)).await
    }

    /// An instance with a short quiet period after external writes that cannot be copied.
    pub(crate) async fn brief(&self, name: &str, plan: impl Plan + 'static) -> Outcome<Fleet> {
        let spec = MigrationSpec::new("status", PhaseRange::FULL)
            .plan(plan)
            .external_write_quiet_period(Duration::from_millis(500));
        self.take_part(name, spec).await
    }

    /// An instance whose reads also go to these standbys.
    pub(crate) async fn reading(
        &self,
        name: &str,
        plan: ColumnMigration,
        standbys: &[String],
    ) -> Outcome<Fleet> {
        let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(plan).standbys(standbys);
        self.take_part(name, spec).await
    }

    /// An instance with a short lease.
    pub(crate) async fn short_lived(&self, name: &str, plan: impl Plan + 'static) -> Outcome<Fleet> {
        let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(plan);
        let (lease, renew_every) = (Duration::from_secs(2), Duration::from_millis(400));
        self.join(vec![spec], name, FleetOptions { lease, renew_every, ..FleetOptions::default() }).await
    }

    async fn take_part(&self, name: &str, spec: MigrationSpec) -> Outcome<Fleet> {
        self.join(vec![spec], name, FleetOptions::default()).await
    }

    /// An instance with these migrations, the first of which is `status`.
    pub(crate) async fn join(
        &self,
        specs: Vec<MigrationSpec>,
        name: &str,
        options: FleetOptions,
    ) -> Outcome<Fleet> {
        self.join_to_drive(specs, name, options, DriverOptions::default()).await
    }

    /// The same with other options of the driver.
    pub(crate) async fn join_to_drive(
        &self,
        specs: Vec<MigrationSpec>,
        name: &str,
        options: FleetOptions,
        driver: DriverOptions,
    ) -> Outcome<Fleet> {
        let joined = self.start(specs, name, options, driver).await?;
        let is_admitted = async || joined.agent.migrations().all(|migration| migration.current().is_some());
        self.until("admitted", is_admitted).await?;
        Ok(joined)
    }

    /// An instance that is not admitted, for the test's reason.
    pub(crate) async fn seek(&self, name: &str, plan: impl Plan + 'static) -> Outcome<Fleet> {
        let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(plan);
        self.start(vec![spec], name, FleetOptions::default(), DriverOptions::default()).await
    }

    async fn start(
        &self,
        specs: Vec<MigrationSpec>,
        name: &str,
        options: FleetOptions,
        driver: DriverOptions,
    ) -> Outcome<Fleet> {
        let health = Health::new();
        let ledger = Ledger::open(self.url.parse()?).await?;
        let release = Release::new("shop", "1")?.with_instance(name)?;
        let fleet = Membership::join(ledger, &release, options, &health).await?;
        let mut specs: Vec<_> = specs.into_iter().map(|spec| spec.soak(Duration::ZERO)).collect();
        specs.push(MigrationSpec::new("other", PhaseRange::FULL));
        let agent = Agent::start(fleet, specs, driver, &health).await?;
        let migration = agent.migration("status").ok_or("declared")?;
        Ok(Fleet { migration, agent, health })
    }

    /// Requests a phase and waits until the fleet has arrived and the epoch before is drained.
    pub(crate) async fn go(&self, wish: &str) -> Outcome {
        self.go_within(wish, SOON).await
    }

    pub(crate) async fn go_within(&self, wish: &str, limit: Duration) -> Outcome {
        self.ask(wish).await?;
        let phase = wish.split(':').next().unwrap_or(wish);
        wait_until(&format!("arrival at {wish}"), limit, async || self.arrived(phase).await).await?;
        Ok(())
    }

    /// The migration's id in the ledger.
    pub(crate) async fn id(&self) -> Outcome<i32> {
        let query = "select id from cutover.migrations where name = 'status'";
        Ok(sqlx::query_scalar(query).fetch_one(&self.pool).await?)
    }

    /// Requests a phase.
    pub(crate) async fn ask(&self, wish: &str) -> Outcome {
        sqlx::query("update cutover.migrations set desired = $1 where name = 'status'")
            .bind(wish)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Whether the fleet is in the requested phase.
    pub(crate) async fn is_at(&self, wish: &str) -> Outcome<bool> {
        let query = "select split_part($1, ':', 1) = phase from cutover.migrations where name = 'status'";
        Ok(sqlx::query_scalar(query).bind(wish).fetch_one(&self.pool).await?)
    }

    async fn arrived(&self, phase: &str) -> Result<bool, String> {
        let (at, waits_for, settled): (String, Option<String>, bool) = sqlx::query_as(
            "select m.phase, m.waits_for, not exists (select 1 from cutover.epochs e where e.migration_id = m.id \
                and e.epoch < m.epoch and e.drained_at is null) from cutover.migrations m where name = 'status'",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| error.to_string())?;
        if at == phase && settled { Ok(true) } else { Err(format!("at {at}, waits for {waits_for:?}")) }
    }

    /// The driver's `waits_for`; empty if it waits for nothing.
    pub(crate) async fn reason(&self) -> Outcome<String> {
        let query = "select coalesce(waits_for, '') from cutover.migrations where name = 'status'";
        Ok(sqlx::query_scalar(query).fetch_one(&self.pool).await?)
    }

    /// A role of its own that owns table `orders` and may run the migration, and the world as this role sees it.
    pub(crate) async fn as_owner(&self) -> Outcome<(World, String)> {
        let database = self.url.rsplit('/').next().unwrap_or_default();
        let role = format!("service_{database}");
        self.external(&format!(
            "create role {role} login; grant all on schema public to {role}; alter table orders owner to {role}; \
             grant create on database {database} to {role}"
        ))
        .await?;
        let url = format!("{}?user={role}", self.url);
        let pool =
            PgPoolOptions::new().max_connections(8).connect_with(url.parse::<PgConnectOptions>()?).await?;
        Ok((World { pool, url }, role))
    }

    /// Waits until the driver's `waits_for` contains `part`.
    pub(crate) async fn waits_for(&self, part: &str) -> Outcome {
        let query = "select waits_for from cutover.migrations where name = 'status'";
        let ask = async || match sqlx::query_scalar::<_, Option<String>>(query).fetch_one(&self.pool).await {
            Ok(Some(text)) if text.contains(part) => Ok(true),
            other => Err(format!("{other:?}")),
        };
        Ok(wait_until(&format!("a wait for {part:?}"), SOON, ask).await?)
    }

    /// Requests a phase, which is not to come, and waits until the driver's `waits_for` contains `part`.
    pub(crate) async fn is_held(&self, wish: &str, part: &str) -> Outcome {
        self.ask(wish).await?;
        let is_decided = async || {
            self.reason().await.is_ok_and(|reason| reason.contains(part))
                || self.is_at(wish).await.unwrap_or(false)
        };
        self.until("the driver's decision", is_decided).await?;
        if self.is_at(wish).await? { Err(format!("{wish} is not held by {part:?}").into()) } else { Ok(()) }
    }

    /// Waits until the new side is complete.
    pub(crate) async fn filled(&self) -> Outcome {
        let complete = "select new_complete from cutover.migrations where name = 'status'";
        let ask = async || sqlx::query_scalar(complete).fetch_one(&self.pool).await.unwrap_or(false);
        Ok(self.until("the end of the backfill", ask).await?)
    }

    /// Waits until the migration has ended.
    pub(crate) async fn ended(&self) -> Outcome {
        self.ended_within(SOON).await
    }

    pub(crate) async fn ended_within(&self, limit: Duration) -> Outcome {
        let ended = "select ended_as is not null from cutover.migrations where name = 'status'";
        let ask = async || sqlx::query_scalar::<_, bool>(ended).fetch_one(&self.pool).await;
        Ok(wait_until("the end of the migration", limit, ask).await?)
    }

    /// What a plan says before it is declared.
    pub(crate) async fn problems(&self, plan: &impl Plan) -> Outcome<Vec<PlanProblem>> {
        let mut ledger = self.pool.acquire().await?;
        Ok(plan.problems(None, &mut ledger).await?)
    }

    /// Those of its problems that hold `expand`.
    pub(crate) async fn refusals(&self, plan: &impl Plan) -> Outcome<Vec<PlanProblem>> {
        Ok(self.problems(plan).await?.into_iter().filter(|problem| problem.is_blocking).collect())
    }

    /// Runs statements in a session that does not go through the library.
    pub(crate) async fn external(&self, sql: &str) -> Outcome {
        let mut session = PgConnection::connect(&self.url).await?;
        session.execute(AssertSqlSafe(sql)).await.map_err(|error| format!("{sql}: {error}"))?;
        Ok(session.close().await?)
    }

    pub(crate) async fn until(&self, what: &str, ask: impl AsyncFn() -> bool) -> Result<(), KitError> {
        wait_until(what, SOON, async || Ok::<_, KitError>(ask().await)).await
    }

    pub(crate) async fn approve(&self) -> Outcome {
        self.pool
            .execute(
                "insert into cutover.approvals (migration_id, phase, actor, reason) \
                 select id, 'contract', 'test', 'test' from cutover.migrations where name = 'status'",
            )
            .await?;
        Ok(())
    }

    pub(crate) async fn has_column(&self, name: &str) -> bool {
        let query = "select exists (select 1 from pg_attribute \
            where attrelid = 'orders'::regclass and attname = $1 and not attisdropped)";
        sqlx::query_scalar(query).bind(name).fetch_one(&self.pool).await.unwrap_or(true)
    }

    pub(crate) async fn row(&self, id: i64) -> Outcome<(Option<String>, Option<String>)> {
        // Either column may be missing.
        let query =
            "select to_jsonb(o) ->> 'old_status', to_jsonb(o) ->> 'new_status' from orders o where id = $1";
        Ok(sqlx::query_as(query).bind(id).fetch_one(&self.pool).await?)
    }
}

impl Fleet {
    /// Waits until what this instance says of its health contains `part`.
    pub(crate) async fn says(&self, part: &str) -> Outcome {
        let ask = async || match format!("{:?}", self.health) {
            text if text.contains(part) => Ok(true),
            text => Err(text),
        };
        Ok(wait_until(&format!("health with {part:?}"), SOON, ask).await?)
    }
}

/// Polls a future this many times and then drops it. `Some` if it was ready by then.
pub(crate) async fn interrupted<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        let asked = future.as_mut().poll(context).map(Some);
        if left == 0 && asked.is_pending() {
            return Poll::Ready(None);
        }
        asked
    })
    .await
}
