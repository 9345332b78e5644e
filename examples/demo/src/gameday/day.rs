//! The setting of one scenario: servers behind gates, three instances under load, and its outcome.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cutover_testkit::{Postgres, Proxy, Redis};
use tokio::task::JoinSet;

use super::{
    outcome::{Outcome, Window},
    world::{self, Gates, Shared},
};
use crate::{
    args::Args,
    board::Board,
    customers::Customers,
    dataset::Orders,
    failure::{Failure, Result},
    instances::{self, Fleet},
    ledger::Ledger,
    load::Load,
    proxy::STABLE,
    servers::Servers,
    stats::Stage,
    story,
    walk::{self, Walk},
};

/// Instances of release 2 at the beginning.
pub(crate) const INSTANCES: usize = 3;
/// Time limit of a move, including a fault.
const PATIENCE: Duration = Duration::from_secs(120);
/// Load before the first fault.
const WARM: Duration = Duration::from_secs(2);

/// A running scenario.
pub(crate) struct Day {
    pub(crate) board: Arc<Board>,
    pub(crate) servers: Arc<Servers>,
    /// Proxies before the servers, which can drop, hold, delay or redirect connections.
    pub(crate) gates: Gates,
    pub(crate) fleet: Fleet,
    pub(crate) walk: Walk,
    pub(crate) customers: Arc<Customers>,
    pub(crate) orders: Arc<Orders>,
    pub(crate) random: fastrand::Rng,
    pub(crate) args: Args,
    /// How long `chaos` lasts.
    pub(crate) chaos: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) windows: Vec<Window>,
    /// A standby that is, or may become, the primary.
    pub(crate) standby: Option<Postgres>,
    pub(crate) fault_at: Instant,
    pub(super) unleash_port: u16,
    /// Servers that have taken over, and gates before them. They live until the scenario ends.
    kept: Vec<Redis>,
    kept_gates: Vec<Proxy>,
    pub(super) load: Vec<Load>,
    _watchers: JoinSet<()>,
}

impl Day {
    /// Starts the servers, fills the table, and starts the instances and the load.
    pub(crate) async fn begin(
        args: &Args,
        chaos: Duration,
        shared: &Shared,
        board: Arc<Board>,
        outcome: Outcome,
    ) -> Result<Self, (Outcome, Failure)> {
        match Self::start(args, chaos, shared, board, outcome.scenario.clone()).await {
            Ok(day) => Ok(Self { outcome, ..day }),
            Err(failure) => Err((outcome, failure)),
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
            board.note("Unleash has exited; restarting it");
            shared.unleash.restart().await?;
        }
        board.doing(format!("{scenario}: starting servers and {INSTANCES} instances"));
        let (servers, gates, unleash_port) = world::start(shared).await?;
        let orders = Arc::new(Orders::Seeded { seed: args.seed, rows: args.rows });
        servers.database.load(&orders, |_| {}).await?;
        servers.switchboard.prepare().await?;
        let servers = Arc::new(servers);
        let logs = args.report.with_file_name("logs").join(&scenario);
        let mut fleet = Fleet::new(&args.bin_dir, logs, Arc::clone(&servers), Arc::clone(&board))?;
        fleet.has_gates = true;
        fleet.start_all(2, STABLE, INSTANCES).await?;
        let ledger = Ledger::new(servers.database.pool.clone());
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
            outcome: Outcome::default(),
        })
    }

    /// Stops load and instances, and judges the scenario. `ran` is its own result.
    pub(crate) async fn end(mut self, ran: Result<()>) -> Outcome {
        self.close_window();
        self.board.doing(format!("{}: judging every answer", self.outcome.scenario));
        self.end_load().await;
        let stopped = self.fleet.stop_all().await;
        let mut outcome = std::mem::take(&mut self.outcome);
        outcome.count(&self.customers.stats, &self.windows);
        let judged = match outcome.is_judged {
            true => Ok(()),
            false => self.judge(&mut outcome).await,
        };
        outcome.ended_early = ran.and(stopped).and(judged).err().map(|failure| failure.to_string());
        let _ = self.servers.switchboard.clear().await;
        outcome
    }

    pub(super) fn postgres_url(&self) -> Result<String> {
        Ok(match &self.standby {
            Some(standby) => standby.url("gameday"),
            None => self.postgres()?.url("gameday"),
        })
    }

    pub(super) async fn end_load(&mut self) {
        for load in self.load.drain(..) {
            load.stop().await;
        }
    }

    /// Keeps a server until the scenario ends.
    pub(crate) fn keep(&mut self, redis: Redis) {
        self.kept.push(redis);
    }

    pub(crate) fn keep_gate(&mut self, gate: Proxy) {
        self.kept_gates.push(gate);
    }

    pub(crate) fn postgres(&self) -> Result<&Postgres> {
        self.servers.throwaway.postgres.as_ref().ok_or_else(|| Failure::new("the scenario has no Postgres"))
    }

    pub(crate) fn redis(&self) -> Result<&Redis> {
        self.servers.throwaway.redis.as_ref().ok_or_else(|| Failure::new("the scenario has no Redis"))
    }
}
