//! One statement of an external session, and what may come of it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cutover::migration::{Isolation, Phase, PinnedTx};
use fastrand::Rng;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection};
use tokio::time::sleep;

use super::{After, Change, Writer};
use crate::Outcome;
use crate::base::{Base, lock};
use crate::oracle::{Row, Value};

/// Levels of transactions, the usual one more often.
pub(crate) const ISOLATIONS: [&str; 4] =
    ["read committed", "read committed", "repeatable read", "serializable"];

/// The same for an instance's own transactions.
pub(crate) const LEVELS: [Isolation; 4] =
    [Isolation::ReadCommitted, Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable];

/// Failures after which a writer repeats its transaction.
pub(crate) const TRANSIENT: [&str; 6] = ["40001", "40P01", "55P03", "57014", "ZC001", "ZC002"];

/// As a rule returns at once, sometimes after a moment, and now and then after most of a second; more often after half a
/// second while open transactions matter.
pub(crate) async fn linger(base: &Base, rng: &mut Rng) {
    let lasts = base.is_moment.load(Ordering::Relaxed) && rng.bool();
    let usual = [0, 0, 0, 0, 0, 60, 200, 800][rng.usize(..8)];
    let most = base.longest_pause.min(if lasts { 500 } else { usual });
    if most > 0 {
        sleep(Duration::from_millis(rng.u64(most / 4..most))).await;
    }
}

/// How a session that knows nothing of the library connects: as the superuser, or as the role of the service.
pub(crate) fn outside(base: &Base, rng: &mut Rng, name: &str) -> Outcome<PgConnectOptions> {
    let options: PgConnectOptions = match rng.bool() {
        true => base.url.parse()?,
        false => (*base.pool.connect_options()).clone(),
    };
    Ok(options.disable_statement_logging().application_name(name))
}

/// Runs one statement in an instance's own transaction, and commits it.
pub(crate) async fn run_pinned(
    base: &Base,
    rng: &mut Rng,
    mut tx: PinnedTx,
    sql: &str,
) -> Result<(), sqlx::Error> {
    tx.execute(AssertSqlSafe(sql)).await?;
    linger(base, rng).await;
    tx.commit().await.map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Runs one statement in a transaction, and measures how long it takes.
pub(crate) async fn run(
    base: &Base,
    rng: &mut Rng,
    session: &mut PgConnection,
    isolation: &str,
    sql: &str,
    copy: Option<&str>,
) -> Result<(), sqlx::Error> {
    let mut statement = format!("begin isolation level {isolation}");
    let has_snapshot = isolation != "read committed" && rng.bool();
    if has_snapshot {
        statement += "; select 1 from public.parents limit 1";
    }
    session.execute(AssertSqlSafe(statement)).await?;
    if has_snapshot {
        linger(base, rng).await;
    }
    let began = Instant::now();
    let outcome = match copy {
        None => session.execute(AssertSqlSafe(sql)).await.map(|_| ()),
        Some(line) => copy_in(session, sql, line).await,
    };
    let held = began.elapsed();
    {
        let mut longest = lock(&base.longest_hold);
        if held > longest.0 {
            *longest = (held, sql.to_owned());
        }
    }
    if outcome.is_ok() {
        linger(base, rng).await;
    }
    let end = if outcome.is_ok() { "commit" } else { "rollback" };
    let ended = session.execute(end).await;
    outcome?;
    ended?;
    base.writes.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

impl Writer {
    /// Runs one statement in a transaction.
    pub(super) async fn run(
        &mut self,
        session: &mut PgConnection,
        isolation: &str,
        sql: &str,
        copy: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        run(&self.world, &mut self.rng, session, isolation, sql, copy).await
    }

    #[expect(clippy::too_many_arguments, reason = "all of it describes one write")]
    pub(super) async fn settle(
        &self,
        number: usize,
        before: Option<&Row>,
        phases: &[Phase],
        change: &Change,
        what: &str,
        sql: &str,
        outcome: Result<(), sqlx::Error>,
    ) -> Outcome {
        let mut allowed = Vec::new();
        let mut is_refusable = false;
        for phase in phases {
            match self.after(number, *phase, before, change) {
                Some(after) => allowed.push(after),
                None => is_refusable = true,
            }
            // The old column and its guard trigger may be gone already.
            if let (Phase::Contract, Change::Insert { old: None, new }) = (phase, change) {
                let values = &self.world.values;
                let new = new.as_ref().unwrap_or(&values.default_new);
                let images = Some((values.default_old.clone(), new.clone()));
                allowed.push(After { phase: *phase, images, is_unmappable: false, knows_new: true });
            }
        }
        let what = format!("{what} in {phases:?} (`{}`)", sql.chars().take(300).collect::<String>());
        match outcome {
            Ok(()) => self.judge(number, before, &allowed, &what).await,
            Err(error) => {
                let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
                let is_gone = matches!(&*code, "42703" | "42P01")
                    && phases.iter().any(|phase| matches!(phase, Phase::Off | Phase::Contract));
                if !(TRANSIENT.contains(&&*code) || code == "ZC003" && is_refusable || is_gone) {
                    self.world.fail_write(&error, format!("{what} failed: {error}"));
                }
                self.world.refusals.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// A line of CSV, under settings that every session reads the same way.
    pub(super) async fn copy_line(&self, keys: &[String], value: &Value, named: &[bool]) -> Outcome<String> {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let mut fields = Vec::new();
        for key in keys {
            let text: String = sqlx::query_scalar(AssertSqlSafe(format!("select {key}::text")))
                .fetch_one(&self.world.control)
                .await?;
            fields.push(quoted(&text));
        }
        let texts = value.old_texts.iter().zip(named).filter(|(_, named)| **named);
        fields.extend(texts.map(|(text, _)| text.as_deref().map(quoted).unwrap_or_default()));
        Ok(format!("{}\n", fields.join(",")))
    }
}

async fn copy_in(session: &mut PgConnection, sql: &str, line: &str) -> Result<(), sqlx::Error> {
    let mut stream = session.copy_in_raw(sql).await?;
    stream.send(line.as_bytes()).await?;
    stream.finish().await.map(|_| ())
}
