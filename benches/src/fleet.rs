use std::time::{Duration, Instant};

use anyhow::Result;
use cutover::ledger::Ledger;
use cutover::migration::Phase;
use cutover_testkit::{Postgres, wait_until};
use futures_util::future::try_join_all;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgPool};

use super::table::Table;
use super::timing::quantile;
use super::world::{self, Instance, LIMIT};

/// Many instances in this process, on one server.
struct Many {
    instances: Vec<Instance>,
    ledger: PgPool,
    _postgres: Postgres,
}

impl Many {
    /// Up to 50 instances share one ledger handle: with one each, a thousand would need two thousand connections.
    async fn start(count: usize) -> Result<Self> {
        let postgres = world::server(&[("max_connections", "200")]).await?;
        let url = postgres.create_database("bench").await?;
        let mut instances = Vec::new();
        let share = count.div_ceil(20);
        while instances.len() < count {
            let ledger = Ledger::open(url.parse()?).await?;
            let some = instances.len()..(instances.len() + share).min(count);
            let starting = some.map(|number| Instance::start(ledger.clone(), format!("i{number}")));
            instances.extend(try_join_all(starting).await?);
        }
        for instance in &instances {
            instance.at(Phase::Off).await?;
        }
        let ledger = PgPoolOptions::new().max_connections(1).connect(&url).await?;
        Ok(Self { instances, ledger, _postgres: postgres })
    }

    async fn set_desired(&self, phase: Phase) -> Result<()> {
        sqlx::query("update cutover.migrations set desired = $1")
            .bind(phase.name())
            .execute(&self.ledger)
            .await?;
        Ok(())
    }

    /// Waits until only this phase is in use.
    async fn settled(&self, phase: Phase) -> Result<()> {
        let settled = async || {
            sqlx::query_scalar::<_, bool>(
                "select m.phase = $1 and not exists (select 1 from cutover.epochs e \
                 where e.migration_id = m.id and e.epoch < m.epoch and e.drained_at is null) \
                 from cutover.migrations m",
            )
            .bind(phase.name())
            .fetch_one(&self.ledger)
            .await
        };
        Ok(wait_until(&format!("only {phase} to be in use"), LIMIT, settled).await?)
    }

    /// Asks for the next phase. Returns the milliseconds from the new epoch's start until all instances have
    /// acknowledged it, until the old epoch is closed, and until it is drained.
    async fn flip_to(&self, phase: Phase) -> Result<[f64; 3]> {
        self.set_desired(phase).await?;
        let acknowledged = loop {
            let (at, missing, age): (String, i64, f64) = sqlx::query_as(
                "select m.phase, (select count(*) from cutover.acknowledgements a where a.epoch < m.epoch), \
                        1000 * extract(epoch from clock_timestamp() - e.opened_at)::float8 \
                 from cutover.migrations m join cutover.epochs e on e.migration_id = m.id and e.epoch = m.epoch",
            )
            .fetch_one(&self.ledger)
            .await?;
            if at == phase.name() && missing == 0 {
                break age;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        self.settled(phase).await?;
        let (closed, drained): (f64, f64) = sqlx::query_as(
            "select 1000 * extract(epoch from o.closed_at - n.opened_at)::float8, \
                    1000 * extract(epoch from o.drained_at - n.opened_at)::float8 \
             from cutover.migrations m \
             join cutover.epochs n on n.migration_id = m.id and n.epoch = m.epoch \
             join cutover.epochs o on o.migration_id = m.id and o.epoch = m.epoch - 1",
        )
        .fetch_one(&self.ledger)
        .await?;
        Ok([acknowledged, closed, drained])
    }

    /// Transactions, and bytes of write-ahead log, so far.
    async fn spent(&self) -> Result<(i64, i64)> {
        self.ledger.execute("select pg_stat_force_next_flush()").await?;
        Ok(sqlx::query_as(
            "select xact_commit, (pg_current_wal_lsn() - '0/0')::bigint \
             from pg_stat_database where datname = current_database()",
        )
        .fetch_one(&self.ledger)
        .await?)
    }
}

pub(crate) async fn flip(quick: bool) -> Result<()> {
    let mut table = Table::new(
        "Agreement on a new phase (ms since its epoch began), and load of the fleet at rest",
        &["acked p50", "acked p90", "closed p50", "drained p50", "tx/s/instance", "WAL B/s/inst."],
    );
    let (sizes, flips, rest) = if quick { (vec![3, 100], 4, 3) } else { (vec![3, 100, 1_000], 5, 10) };
    for count in sizes {
        let many = Many::start(count).await?;
        let mut times: [Vec<f64>; 3] = Default::default();
        for flip in 0..flips {
            let phase = if flip % 2 == 0 { Phase::Expand } else { Phase::Off };
            for (all, one) in times.iter_mut().zip(many.flip_to(phase).await?) {
                all.push(one);
            }
        }
        // Statistics arrive late: those of the phase changes have to be in before the measurement begins.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (began, before) = (Instant::now(), many.spent().await?);
        tokio::time::sleep(Duration::from_secs(rest)).await;
        let (time, after) = (began.elapsed().as_secs_f64() * count as f64, many.spent().await?);
        let [mut acknowledged, mut closed, mut drained] = times;
        table.row(
            format!("{count} instances"),
            vec![
                quantile(&mut acknowledged, 0.5),
                quantile(&mut acknowledged, 0.9),
                quantile(&mut closed, 0.5),
                quantile(&mut drained, 0.5),
                (after.0 - before.0) as f64 / time,
                (after.1 - before.1) as f64 / time,
            ],
        );
    }
    table.publish("flip")
}

/// From setting the desired phase until every instance reads only the old side, and no transaction of `ramp` is left.
pub(crate) async fn rollback(quick: bool) -> Result<()> {
    let many = Many::start(3).await?;
    many.set_desired(Phase::Verify).await?;
    many.settled(Phase::Backfill).await?;
    // What a backfill and a scan leave in the ledger.
    many.ledger
        .execute(
            "update cutover.migrations set new_complete = true; \
             insert into cutover.jobs (migration_id, kind, epoch, finished_at) \
             select id, 'scan', epoch, clock_timestamp() from cutover.migrations",
        )
        .await?;
    let (mut reads_old, mut settled) = (Vec::new(), Vec::new());
    for _ in 0..if quick { 2 } else { 10 } {
        many.set_desired(Phase::Ramp).await?;
        many.settled(Phase::Ramp).await?;
        let began = Instant::now();
        many.set_desired(Phase::Verify).await?;
        for instance in &many.instances {
            instance.at(Phase::Verify).await?;
        }
        reads_old.push(began.elapsed().as_secs_f64() * 1e3);
        many.settled(Phase::Verify).await?;
        settled.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let mut table =
        Table::new("Rollback from `ramp` to reading the old side, 3 instances (ms)", &["p50", "max"]);
    for (name, times) in [("new reads use the old side", &mut reads_old), ("`ramp` is drained", &mut settled)]
    {
        table.row(name, vec![quantile(times, 0.5), quantile(times, 1.0)]);
    }
    table.publish("rollback")
}
