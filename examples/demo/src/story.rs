//! The demo's script, from loading the table to the verdict.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use crate::{
    args::{Args, Rule},
    board::Board,
    customers::Customers,
    dataset::Orders,
    deploy,
    failure::{Failure, Result},
    flags::Switchboard,
    instances::{self, Fleet},
    judge,
    ledger::Ledger,
    load::Load,
    proxy::STABLE,
    report::Report,
    servers::Servers,
    stats::{Stage, Stats},
    walk::{self, Walk},
};

const INSTANCES: usize = 3;
const WARM: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_secs(10);
/// Pause between two phases.
const LOOK: Duration = Duration::from_secs(3);

/// The demo's parts.
pub(crate) struct Story {
    pub(crate) args: Args,
    pub(crate) board: Arc<Board>,
    pub(crate) servers: Arc<Servers>,
    pub(crate) orders: Arc<Orders>,
}

impl Story {
    /// Runs the demo and fills `report`. If it ends early, everything until then is judged.
    pub(crate) async fn run(&self, report: &mut Report) -> Result<()> {
        self.load_orders(report).await?;
        self.servers.switchboard.prepare().await?;
        let logs = self.args.report.with_file_name("logs");
        let mut fleet =
            Fleet::new(&self.args.bin_dir, logs, Arc::clone(&self.servers), Arc::clone(&self.board))?;
        let ledger = Ledger::new(self.servers.database.pool.clone());
        let mut watchers = JoinSet::new();
        watchers.spawn(instances::watch(Arc::clone(&self.board)));
        watchers.spawn(walk::watch(ledger.clone(), Arc::clone(&self.board)));

        self.board.doing("starting three instances of release 1");
        fleet.start_all(1, STABLE, INSTANCES).await?;
        let url = self.servers.proxy.url();
        let session_ids = Arc::clone(&self.servers.session_ids);
        let customers = Arc::new(Customers::new(url, Arc::clone(&self.orders), self.args.seed, session_ids));
        watchers.spawn(count(Arc::clone(&self.board), Arc::clone(&customers)));
        customers.log_in().await?;
        let load = Load::start(Arc::clone(&customers), self.args.rate);

        let changes = self.change_everything(&mut fleet, &customers.stats, &ledger, report).await;
        self.board.doing("ending the load");
        load.stop().await;
        let stopped = fleet.stop_all().await;
        let judged = self.judge(&customers, &ledger, report).await;
        self.board.doing("done");
        changes.and(stopped).and(judged)
    }

    async fn load_orders(&self, report: &mut Report) -> Result<()> {
        let rows = self.orders.len();
        self.board.doing(format!("loading {rows} orders"));
        let board = Arc::clone(&self.board);
        let progress =
            move |done| board.update(|view| view.doing = format!("loading orders: {done} of {rows}"));
        report.rows = self.servers.database.load(&self.orders, progress).await?;
        Ok(())
    }

    /// Two deploys and a whole migration, forwards and backwards, while the load runs.
    async fn change_everything(
        &self,
        fleet: &mut Fleet,
        stats: &Stats,
        ledger: &Ledger,
        report: &mut Report,
    ) -> Result<()> {
        let switchboard = &self.servers.switchboard;
        self.board.doing("warming up");
        tokio::time::sleep(WARM).await;
        stats.enter(Stage::Quiet);
        self.board.doing("measuring latency without changes");
        tokio::time::sleep(QUIET).await;

        stats.enter(Stage::Deploy);
        report.deploys.push(deploy::roll(fleet, stats, 1, 2).await?);

        stats.enter(Stage::Migrate);
        // A larger table takes longer.
        let patience = Duration::from_secs(120 + report.rows / 5_000);
        let mut walk = Walk {
            ledger: ledger.clone(),
            board: Arc::clone(&self.board),
            patience,
            look: LOOK,
            reached: Vec::new(),
        };
        let walked = self.migrate(&mut walk, fleet, stats, report).await;
        report.phases.clone_from(&walk.reached);
        if let Ok(jobs) = ledger.finished_backfills().await {
            let last = jobs.last();
            report.rows_backfilled = last.map_or(0, |job| job.rows_done.unsigned_abs());
            report.backfill_rows_per_second = last.map_or(0.0, |job| job.rows_per_second());
        }
        walked?;
        switchboard.new_flow(100).await?;
        if !self.args.second {
            return Ok(());
        }
        walk.ledger = ledger.second();
        let walked = self.migrate_again(&mut walk, fleet, stats, report).await;
        report.phases = walk.reached;
        walked
    }

    /// A second migration, of the column that the first one has made. Its phases are set in the ledger, not by a flag.
    async fn migrate_again(
        &self,
        walk: &mut Walk,
        fleet: &mut Fleet,
        stats: &Stats,
        report: &mut Report,
    ) -> Result<()> {
        stats.enter(Stage::Deploy);
        report.deploys.push(deploy::roll(fleet, stats, 3, 4).await?);
        stats.enter(Stage::Migrate);
        self.board.note("the second migration: from a word to a number");
        let switchboard = Switchboard::Sql(walk.ledger.clone());
        for phase in ["expand", "backfill", "verify", "ramp:50", "ramp:100"] {
            walk.go(&switchboard, phase).await?;
        }
        walk.fall_back(&switchboard).await?;
        for phase in ["ramp:100", "switch", "retire"] {
            walk.go(&switchboard, phase).await?;
        }
        walk.ledger.approve_contract().await?;
        walk.go(&switchboard, "contract").await?;
        match self.servers.database.has_column("new_payment_status").await? {
            true => {
                Err(Failure::new("the second migration is at contract, and its old column is still there"))
            }
            false => Ok(()),
        }
    }

    async fn migrate(
        &self,
        walk: &mut Walk,
        fleet: &mut Fleet,
        stats: &Stats,
        report: &mut Report,
    ) -> Result<()> {
        let (switchboard, database) = (&self.servers.switchboard, &self.servers.database);
        // Back to `off` once: the values written meanwhile are stale later, and must be copied again.
        for phase in ["off", "expand", "off", "expand", "backfill", "verify", "ramp:25"] {
            walk.go(switchboard, phase).await?;
        }
        switchboard.new_flow(50).await?;
        walk.go(switchboard, "ramp:100").await?;
        report.rollback_seconds = Some(walk.fall_back(switchboard).await?);
        if self.args.broken == Some(Rule::Agree) {
            // All the way at once: an instance that learns of it late still reads the old column when others no
            // longer write it.
            return walk.go(switchboard, "retire").await;
        }
        walk.go(switchboard, "ramp:100").await?;
        switchboard.new_flow(100).await?;
        walk.go(switchboard, "switch").await?;

        self.board.doing("comparing both columns of every row");
        let compared = database.compare_columns().await?;
        self.board.note(format!("{} rows compared, {} differ", compared.seen, compared.wrong));
        report.rows_that_differed = compared.wrong;
        report.examples.extend(compared.examples);

        walk.go(switchboard, "retire").await?;
        stats.enter(Stage::Deploy);
        report.deploys.push(deploy::roll(fleet, stats, 2, 3).await?);
        stats.enter(Stage::Migrate);
        self.board.note("approving the drop of the old column");
        walk.ledger.approve_contract().await?;
        walk.go(switchboard, "contract").await?;
        match database.has_column("old_payment_status").await? {
            true => Err(Failure::new("the ledger is at contract, and the old column is still there")),
            false => Ok(()),
        }
    }

    /// Holds every answer against every other, and against what is in the table at the end.
    async fn judge(&self, customers: &Customers, ledger: &Ledger, report: &mut Report) -> Result<()> {
        self.board.doing("judging every answer");
        let counts = customers.stats.counts();
        report.requests = counts.requests;
        report.failed = counts.failed;
        report.dropped = counts.dropped;
        report.sessions_lost = counts.sessions_lost;
        report.failures = counts.failures;
        report.paid_by_new_flow = counts.paid_by_new_flow;
        report.paid_by_legacy_flow = counts.paid_by_legacy_flow;
        let of = |stages: &[Stage]| customers.stats.of(stages);
        let (quiet, rollout) = (of(&[Stage::Quiet]), of(&[Stage::Deploy, Stage::Migrate]));
        (report.p50_ms_quiet, report.p99_ms_quiet) = (quiet.ms(50.0), quiet.ms(99.0));
        (report.p50_ms_rollout, report.p99_ms_rollout) = (rollout.ms(50.0), rollout.ms(99.0));
        report.p99_ms_deploys = of(&[Stage::Deploy]).ms(99.0);
        report.p99_ms_migration = of(&[Stage::Migrate]).ms(99.0);
        report.max_ms = rollout.max_ms();

        let judged = judge::all(customers, &self.servers.database, ledger, &self.orders).await?;
        report.wrong_rows = judged.rows.wrong;
        report.examples.extend(judged.rows.examples);
        report.lost_writes = judged.verdict.lost_writes;
        report.stale_reads = judged.verdict.stale_reads;
        report.examples.extend(judged.verdict.examples);
        report.keys_checked = judged.verdict.keys;
        report.reads_checked = judged.verdict.reads;
        report.writes_checked = judged.verdict.writes;
        Ok(())
    }
}

/// Keeps counts and percentiles on the board up to date. Never returns.
pub(crate) async fn count(board: Arc<Board>, customers: Arc<Customers>) {
    for tick in 0_u64.. {
        if tick % 5 == 0 {
            customers.stats.second();
        }
        let (counts, recent) = (customers.stats.counts(), customers.stats.recent());
        board.update(|view| {
            view.counts = counts;
            (view.p50_ms, view.p99_ms) = (recent.ms(50.0), recent.ms(99.0));
            if tick % 5 == 0 {
                view.second();
            }
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
