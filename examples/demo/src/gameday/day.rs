//! One scenario's world: servers behind gates, three instances under load, and what is known about its failures.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cutover_checker::History;
use cutover_testkit::{Postgres, PostgresOptions, Proxy, Redis, Signal, Unleash, UnleashAdmin, wait_until};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::task::JoinSet;

use super::line::{Line, Window};
use crate::{
    args::Args,
    board::Board,
    customers::Customers,
    database::{Database, Side},
    dataset::Orders,
    failure::{During, Failure, Result},
    flags::Switchboard,
    instances::{self, Fleet},
    judge,
    ledger::Ledger,
    load::Load,
    proxy::{LoadBalancer, STABLE},
    servers::{Servers, Throwaway},
    stats::Stage,
    status, story,
    walk::{self, Walk},
};

/// Instances of release 2 at the beginning.
pub(crate) const INSTANCES: usize = 3;
/// No recovery may take longer: leases run out after 10 s, and a new process needs its time.
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);
/// No phase may take longer, with a fault on the way.
const PATIENCE: Duration = Duration::from_secs(120);
/// Load before the first fault.
const WARM: Duration = Duration::from_secs(2);

/// What all scenarios share: Unleash takes long to start, and knows of no scenario.
pub(crate) struct Shared {
    pub(crate) unleash: Unleash,
    _postgres: Postgres,
}

impl Shared {
    pub(crate) async fn start() -> Result<Self> {
        let postgres = Postgres::start(PostgresOptions::default()).await?;
        let unleash = Unleash::start(&postgres).await.during("the game day needs a real Unleash")?;
        Ok(Self { unleash, _postgres: postgres })
    }
}

/// The world of one scenario, and what happened in it.
pub(crate) struct Day {
    pub(crate) board: Arc<Board>,
    pub(crate) servers: Arc<Servers>,
    /// Ways to the servers that can be lost, held, slowed down or led elsewhere.
    pub(crate) gates: Gates,
    pub(crate) fleet: Fleet,
    pub(crate) walk: Walk,
    pub(crate) customers: Arc<Customers>,
    pub(crate) orders: Arc<Orders>,
    pub(crate) random: fastrand::Rng,
    pub(crate) args: Args,
    /// How long `chaos` lasts.
    pub(crate) chaos: Duration,
    pub(crate) line: Line,
    pub(crate) windows: Vec<Window>,
    /// A standby that is, or may become, the primary.
    pub(crate) standby: Option<Postgres>,
    pub(crate) fault_at: Instant,
    unleash_port: u16,
    /// Servers that took over, and ways to them.
    kept: Vec<Redis>,
    kept_gates: Vec<Proxy>,
    load: Vec<Load>,
    _watchers: JoinSet<()>,
}

/// The ways from the instances to the servers.
pub(crate) struct Gates {
    pub(crate) postgres: Proxy,
    pub(crate) redis: Proxy,
    pub(crate) unleash: Proxy,
}

impl Day {
    /// Starts servers, fills the table, starts the instances and the load.
    pub(crate) async fn begin(
        args: &Args,
        chaos: Duration,
        shared: &Shared,
        board: Arc<Board>,
        line: Line,
    ) -> Result<Self, (Line, Failure)> {
        match Self::start(args, chaos, shared, board, line.scenario.clone()).await {
            Ok(day) => Ok(Self { line, ..day }),
            Err(failure) => Err((line, failure)),
        }
    }

    async fn start(
        args: &Args,
        chaos: Duration,
        shared: &Shared,
        board: Arc<Board>,
        scenario: String,
    ) -> Result<Self> {
        if shared.unleash.process().exited().is_some() {
            board.note("Unleash has ended by itself and is started again");
            shared.unleash.restart().await?;
        }
        board.doing(format!("{scenario}: starting servers and {INSTANCES} instances"));
        let (servers, gates, unleash_port) = servers(shared).await?;
        let orders = Arc::new(Orders::Seeded { seed: args.seed, rows: args.rows });
        servers.database.load(&orders, |_| {}).await?;
        servers.switchboard.prepare().await?;
        let servers = Arc::new(servers);
        let logs = args.report.with_file_name("logs").join(&scenario);
        let mut fleet = Fleet::new(&args.bin_dir, logs, Arc::clone(&servers), Arc::clone(&board))?;
        fleet.has_gates = true;
        fleet.start_all(2, STABLE, INSTANCES).await?;
        let ledger = Ledger(servers.database.pool.clone());
        let customers = Arc::new(Customers::new(
            servers.proxy.url(),
            Arc::clone(&orders),
            args.seed,
            Arc::clone(&servers.session_ids),
        ));
        customers.log_in().await?;
        let mut watchers = JoinSet::new();
        watchers.spawn(instances::watch(Arc::clone(&board)));
        watchers.spawn(walk::watch(ledger.clone(), Arc::clone(&board)));
        watchers.spawn(story::count(Arc::clone(&board), Arc::clone(&customers)));
        customers.stats.enter(Stage::Migrate);
        let load = Load::start(Arc::clone(&customers), args.rate);
        tokio::time::sleep(WARM).await;
        Ok(Self {
            walk: Walk {
                ledger,
                board: Arc::clone(&board),
                patience: PATIENCE,
                look: Duration::from_secs(1),
                reached: Vec::new(),
            },
            random: fastrand::Rng::with_seed(args.seed),
            args: args.clone(),
            chaos,
            unleash_port,
            kept: Vec::new(),
            kept_gates: Vec::new(),
            windows: Vec::new(),
            standby: None,
            fault_at: Instant::now(),
            load: vec![load],
            _watchers: watchers,
            board,
            servers,
            gates,
            fleet,
            customers,
            orders,
            line: Line::default(),
        })
    }

    /// Ends the load, takes the instances away, judges, and says what came out.
    pub(crate) async fn end(mut self, ran: Result<()>) -> Line {
        self.may_serve_again();
        self.board.doing(format!("{}: judging every answer", self.line.scenario));
        self.end_load().await;
        let stopped = self.fleet.stop_all().await;
        let mut line = std::mem::take(&mut self.line);
        line.count(&self.customers.stats, &self.windows);
        let judged = match line.is_judged {
            true => Ok(()),
            false => self.judge(&mut line).await,
        };
        line.ended_early = ran.and(stopped).and(judged).err().map(|failure| failure.to_string());
        let _ = self.servers.switchboard.clear().await;
        line
    }

    async fn judge(&self, line: &mut Line) -> Result<()> {
        let judged =
            judge::all(&self.customers, &self.servers.database, &self.walk.ledger, &self.orders).await?;
        line.lost_writes += judged.rows.wrong;
        line.examples.extend(judged.rows.examples);
        line.add(judged.verdict);
        Ok(())
    }

    /// Says what is done now, and that from now on requests may fail for it.
    pub(crate) fn fault(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.board.doing(format!("{}: {what}", self.line.scenario));
        self.fault_at = Instant::now();
        if !self.windows.last().is_some_and(Window::is_open) {
            self.windows.push(Window { why: what, from: self.fault_at, until: None });
        }
    }

    /// Says what is done now, though no request may fail for it.
    pub(crate) fn trouble(&mut self, what: impl Into<String>) {
        self.board.doing(format!("{}: {}", self.line.scenario, what.into()));
        self.fault_at = Instant::now();
    }

    /// Waits until the proxy no longer sends the instance requests.
    pub(crate) async fn noticed(&mut self, name: &str) -> Result<()> {
        let instance = self.fleet.find(name)?;
        let (cluster, endpoint) = (instance.cluster, instance.endpoint.clone());
        let proxy = &self.servers.proxy;
        wait_until(&format!("the proxy to leave {name} out"), RECOVERED_WITHIN, async || {
            proxy.is_serving(cluster, &endpoint).await.map(|is_serving| !is_serving)
        })
        .await?;
        self.detected();
        Ok(())
    }

    pub(crate) fn detected(&mut self) {
        longest(&mut self.line.seconds_to_detect, self.fault_at.elapsed());
    }

    /// Waits until all instances serve again and requests succeed; from then on none may fail.
    pub(crate) async fn recovered(&mut self) -> Result<()> {
        let serving = async || {
            for instance in &self.fleet.instances {
                let is_serving = self.servers.proxy.is_serving(instance.cluster, &instance.endpoint).await?;
                if !is_serving || !self.fleet.is_ready(instance).await? {
                    return Ok(false);
                }
            }
            Ok::<_, Failure>(true)
        };
        if let Err(error) = wait_until("all instances to serve again", RECOVERED_WITHIN, serving).await {
            let mut why = error.to_string();
            for instance in &self.fleet.instances {
                why += &format!("\n{}{}", instance.name(), self.fleet.readiness(instance).await);
            }
            return Err(Failure::new(why));
        }
        // A connection that broke is noticed when it is used.
        self.second_without_failure("requests to succeed again").await?;
        longest(&mut self.line.seconds_to_recover, self.fault_at.elapsed());
        self.may_serve_again();
        Ok(())
    }

    fn may_serve_again(&mut self) {
        if let Some(window) = self.windows.last_mut().filter(|window| window.is_open()) {
            window.until = Some(Instant::now());
        }
    }

    /// Walks to a phase, with nothing else going on.
    pub(crate) async fn go(&mut self, phase: &str) -> Result<()> {
        if phase == "contract" {
            self.walk.ledger.approve_contract().await?;
        }
        self.walk.go(&self.servers.switchboard, phase).await
    }

    /// Asks for a phase and does not wait.
    pub(crate) async fn ask_for(&mut self, phase: &str) -> Result<()> {
        if phase == "contract" {
            self.walk.ledger.approve_contract().await?;
        }
        self.board.doing(format!("{}: asking for {phase}", self.line.scenario));
        self.servers.switchboard.set_phase(phase).await
    }

    /// The instance that moves the migration, or does its work.
    pub(crate) async fn driver(&self) -> Result<String> {
        found("a driver among the instances", RECOVERED_WITHIN, async || {
            let driver: Option<String> = sqlx::query_scalar(
                "select i.name from cutover.migrations m join cutover.instances i on i.id = m.driver",
            )
            .fetch_optional(&self.servers.database.pool)
            .await?;
            Ok(driver.filter(|name| self.fleet.find(name).is_ok()))
        })
        .await
    }

    /// An instance that is not the driver.
    pub(crate) async fn bystander(&mut self) -> Result<String> {
        let driver = self.driver().await?;
        let others: Vec<&str> = self
            .fleet
            .instances
            .iter()
            .map(instances::Instance::name)
            .filter(|name| *name != driver)
            .collect();
        let chosen = self.random.choice(others).map(str::to_owned);
        chosen.ok_or_else(|| Failure::new("there is no instance besides the driver"))
    }

    pub(crate) fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        Ok(self.fleet.find(name)?.process.signal(signal)?)
    }

    /// Puts a new instance in the place of one that is gone, as an orchestrator does.
    pub(crate) async fn replace(&mut self, name: &str) -> Result<()> {
        let (release, cluster) = {
            let gone = self.fleet.find(name)?;
            (gone.release, gone.cluster)
        };
        self.fleet.bury(name).await?;
        self.fleet.start(release, cluster).await
    }

    /// Runs a statement as somebody else than the service.
    pub(crate) async fn sql(&self, statement: &str) -> Result<u64> {
        Ok(self.servers.database.pool.execute(AssertSqlSafe(statement)).await?.rows_affected())
    }

    /// Fails if the migration went on although nobody could have asked it to.
    pub(crate) async fn still_at(&self, phase: &str) -> Result<()> {
        let standing = self.walk.ledger.standing().await?.unwrap_or_default();
        match standing.phase == phase {
            true => Ok(()),
            false => Err(Failure::new(format!("the migration went on to {}", standing.phase))),
        }
    }

    /// Whether the new side is complete, as the ledger has it.
    pub(crate) async fn is_new_complete(&self) -> Result<bool> {
        let complete = sqlx::query_scalar("select new_complete from cutover.migrations");
        Ok(complete.fetch_optional(&self.servers.database.pool).await?.unwrap_or(false))
    }

    /// Waits until a second passes in which no request fails, though an instance is out.
    pub(crate) async fn served_by_the_others(&mut self) -> Result<()> {
        self.second_without_failure("the others to serve everybody").await?;
        self.may_serve_again();
        Ok(())
    }

    async fn second_without_failure(&self, what: &str) -> Result<()> {
        let failed = || self.customers.stats.counts().failed;
        wait_until(what, RECOVERED_WITHIN, async || {
            let before = failed();
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, Failure>(failed() == before)
        })
        .await?;
        Ok(())
    }

    /// Sends one instance a large request that it refuses, past the proxy.
    pub(crate) async fn post_large(&self, name: &str) -> Result<()> {
        let url = format!("http://{}/orders", self.fleet.find(name)?.endpoint.address);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(1)).build()?;
        client
            .post(url)
            .header("content-type", "application/json")
            .body(vec![b' '; 1_900_000])
            .send()
            .await?;
        Ok(())
    }

    /// Writes an order's old column by SQL, as somebody who does not know the library; false if that was refused. The
    /// write is judged like everybody's.
    pub(crate) async fn stranger_writes(&mut self) -> Result<bool> {
        let id = self.orders.id_at(self.random.u64(0..self.orders.len()));
        let words = ["SETTLED", " Paid", "void", "CHARGEBACK", "sent"];
        let word = words[self.random.usize(0..words.len())];
        let mut session = PgConnection::connect(&self.postgres_url()?).await?;
        session.execute("set application_name = 'nightly job'").await?;
        let recorder = &self.customers.recorder;
        let start = recorder.now();
        let written = sqlx::query("update orders set old_payment_status = $1 where id = $2")
            .bind(word)
            .bind(id.cast_signed())
            .execute(&mut session)
            .await;
        let is_written = written.is_ok_and(|done| done.rows_affected() == 1);
        if is_written {
            recorder.write(0, id, status::canonical(Some(word)), start, Some(recorder.now()));
        }
        session.close().await?;
        Ok(is_written)
    }

    fn postgres_url(&self) -> Result<String> {
        Ok(match &self.standby {
            Some(standby) => standby.url("gameday"),
            None => self.postgres()?.url("gameday"),
        })
    }

    /// Sends so many requests a second more, from now to the end.
    pub(crate) fn more_load(&mut self, rate: u32) {
        self.load.push(Load::start(Arc::clone(&self.customers), rate));
    }

    async fn end_load(&mut self) {
        for load in self.load.drain(..) {
            load.stop().await;
        }
    }

    /// How long answers were bad, from the first one after the fault to the last.
    pub(crate) fn note_bad_answers(&mut self) {
        let failed = self.customers.stats.failed_ones();
        let mut bad = failed.iter().filter(|failed| failed.at >= self.fault_at).map(|failed| failed.at);
        if let Some(first) = bad.next() {
            let last = bad.next_back().unwrap_or(first);
            self.line.seconds_of_bad_answers = Some(last.duration_since(first).as_secs_f64());
        }
    }

    /// Keeps a server until the scenario ends.
    pub(crate) fn keep(&mut self, redis: Redis) {
        self.kept.push(redis);
    }

    pub(crate) fn keep_gate(&mut self, gate: Proxy) {
        self.kept_gates.push(gate);
    }

    pub(crate) fn unleash_is_back(&self) {
        self.gates.unleash.lead_to(self.unleash_port);
        self.gates.unleash.cut();
    }

    /// Asks the judge, once.
    pub(crate) async fn judge_canary(&self, prometheus: &str, arguments: &[&str]) -> Result<Judgement> {
        let program = self.args.bin_dir.join("cutover");
        let mut command = tokio::process::Command::new(program);
        command.args(["canary", "--prometheus", prometheus]).args(arguments).kill_on_drop(true);
        let output = command.output().await.during("running the judge")?;
        let said = [output.stdout, output.stderr].concat();
        Ok(Judgement { status: output.status.code(), said: String::from_utf8_lossy(&said).into_owned() })
    }

    /// Judges a history that a lossy failover cut in two.
    ///
    /// `apart` is when the standby heard the last of the primary, `over` when the primary was gone, `again` when the
    /// standby began to serve with these values.
    pub(crate) async fn judge_around(
        &mut self,
        apart: u64,
        over: u64,
        again: u64,
        start: &[(u64, String)],
    ) -> Result<()> {
        self.end_load().await;
        let end = judge::values(&self.postgres_url()?, Side::New).await?;
        let whole = self.customers.recorder.history();
        let initial = |history: &mut History| {
            for key in history.keys() {
                if let Some(first) = self.orders.first_status(key) {
                    history.initial(key, first);
                }
            }
        };
        // What was answered before has to be true in itself, the lost end of it included.
        let mut before = whole.between(0, over);
        initial(&mut before);
        // Nothing is gone that was acknowledged while the standby listened; of what came then it may have had a part.
        let mut kept = whole.between(0, over).unsure_after(apart);
        initial(&mut kept);
        start.iter().for_each(|(key, value)| kept.last(*key, value));
        // What the standby had is where everything goes on from.
        let mut after = whole.between(again, u64::MAX);
        start.iter().for_each(|(key, value)| after.initial(*key, value));
        end.iter().for_each(|(key, value)| after.last(*key, value));
        for mut history in [before, kept, after] {
            self.line.add(history.check());
        }
        self.line.is_judged = true;
        Ok(())
    }

    pub(crate) fn postgres(&self) -> Result<&Postgres> {
        self.servers
            .throwaway
            .postgres
            .as_ref()
            .ok_or_else(|| Failure::new("there is no Postgres of our own"))
    }

    pub(crate) fn redis(&self) -> Result<&Redis> {
        self.servers.throwaway.redis.as_ref().ok_or_else(|| Failure::new("there is no Redis of our own"))
    }
}

/// Asks until there is an answer.
pub(crate) async fn found<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Err(error) if began.elapsed() > limit => return Err(error),
            Ok(None) if began.elapsed() > limit => {
                return Err(Failure::new(format!("waited {} s for {what}", limit.as_secs())));
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn longest(seconds: &mut Option<f64>, time: Duration) {
    *seconds = Some(seconds.unwrap_or(0.0).max(time.as_secs_f64()));
}

/// What the judge of canaries ended with, and its words.
pub(crate) struct Judgement {
    pub(crate) status: Option<i32>,
    pub(crate) said: String,
}

async fn servers(shared: &Shared) -> Result<(Servers, Gates, u16)> {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let settings = vec![setting("max_connections", "100"), setting("wal_keep_size", "256MB")];
    let postgres = Postgres::start(PostgresOptions { fsync: true, settings }).await?;
    postgres.create_database("gameday").await?;
    let redis = Redis::start().await?;
    let port = |url: &str| {
        let url = reqwest::Url::parse(url)?;
        url.port().ok_or_else(|| Failure::new(format!("{url} has no port")))
    };
    let unleash_port = port(&shared.unleash.url())?;
    let gates = Gates {
        postgres: Proxy::start(postgres.port())?,
        redis: Proxy::start(port(&redis.url())?)?,
        unleash: Proxy::start(unleash_port)?,
    };
    let url = format!("postgres://postgres@127.0.0.1:{}/gameday", gates.postgres.port());
    let database = Database::prepare(&url, false).await?;
    let unleash_url = format!("http://127.0.0.1:{}", gates.unleash.port());
    let admin = UnleashAdmin::new(shared.unleash.url(), shared.unleash.admin_token())?;
    let proxy = LoadBalancer::start().await?;
    if matches!(proxy, LoadBalancer::Own(_)) {
        return Err(Failure::new("the game day needs a real Envoy: scripts/servers envoy"));
    }
    let servers = Servers {
        versions: Default::default(),
        redis_url: format!("redis://127.0.0.1:{}/", gates.redis.port()),
        session_ids: Arc::default(),
        own_sessions: None,
        unleash: Some((unleash_url, shared.unleash.backend_token().to_owned())),
        switchboard: Switchboard::Unleash(admin),
        proxy,
        database,
        fallbacks: Vec::new(),
        throwaway: Throwaway { redis: Some(redis), postgres: Some(postgres), ..Throwaway::default() },
    };
    Ok((servers, gates, unleash_port))
}
