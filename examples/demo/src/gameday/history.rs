//! Writes that do not come from the load, and the judgement of the recorded history.

use cutover_checker::History;
use sqlx::{Connection, Executor, PgConnection};

use super::{day::Day, outcome::Outcome};
use crate::{
    database::Side,
    failure::{During, Result},
    judge, status,
};

/// Exit status and output of `cutover canary`.
pub(crate) struct Judgement {
    pub(crate) status: Option<i32>,
    pub(crate) output: String,
}

impl Day {
    pub(super) async fn judge(&self, outcome: &mut Outcome) -> Result<()> {
        let judged =
            judge::all(&self.customers, &self.servers.database, &self.walk.ledger, &self.orders).await?;
        outcome.lost_writes += judged.rows.wrong;
        outcome.examples.extend(judged.rows.examples);
        outcome.add(judged.verdict);
        Ok(())
    }

    /// Writes an order's old column by SQL, without the library. Returns false if the write was refused. The write is
    /// judged like all others.
    pub(crate) async fn external_write(&mut self) -> Result<bool> {
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

    /// Records how long answers were bad: from the first one after the fault to the last.
    pub(crate) fn note_bad_answers(&mut self) {
        let failed = self.customers.stats.failed_requests();
        let mut bad = failed.iter().filter(|failed| failed.at >= self.fault_at).map(|failed| failed.at);
        if let Some(first) = bad.next() {
            let last = bad.next_back().unwrap_or(first);
            self.outcome.seconds_of_bad_answers = Some(last.duration_since(first).as_secs_f64());
        }
    }

    /// Runs `cutover canary`.
    pub(crate) async fn judge_canary(&self, prometheus: &str, arguments: &[&str]) -> Result<Judgement> {
        let program = self.args.bin_dir.join("cutover");
        let mut command = tokio::process::Command::new(program);
        command.args(["canary", "--prometheus", prometheus]).args(arguments).kill_on_drop(true);
        let output = command.output().await.during("running cutover canary")?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Judgement { status: output.status.code(), output: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Judges a history with a failover that lost writes.
    ///
    /// `separated` is when the standby lost its connection to the primary, `killed` when the primary was gone, and
    /// `resumed` when the standby began to serve with the values in `start`.
    pub(crate) async fn judge_lossy_failover(
        &mut self,
        separated: u64,
        killed: u64,
        resumed: u64,
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
        // Everything before the failover has to be consistent, including the part that was lost.
        let mut before = whole.between(0, killed);
        initial(&mut before);
        // No write is lost that was acknowledged while the standby was connected. Later ones may be lost.
        let mut kept = whole.between(0, killed).unsure_after(separated);
        initial(&mut kept);
        start.iter().for_each(|(key, value)| kept.last(*key, value));
        // Everything after the failover starts from the standby's values.
        let mut after = whole.between(resumed, u64::MAX);
        start.iter().for_each(|(key, value)| after.initial(*key, value));
        end.iter().for_each(|(key, value)| after.last(*key, value));
        for mut history in [before, kept, after] {
            self.outcome.add(history.check());
        }
        self.outcome.is_judged = true;
        Ok(())
    }
}
