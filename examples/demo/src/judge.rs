//! Judges every recorded answer against all others, and against the table at the end.

use cutover_checker::Verdict;
use sqlx::{Connection, PgConnection};

use crate::{
    customers::Customers,
    database::{Database, Rows, Side},
    dataset::Orders,
    failure::{During, Failure, Result},
    ledger::Ledger,
};

/// The result.
pub(crate) struct Judged {
    pub(crate) rows: Rows,
    pub(crate) verdict: Verdict,
}

/// Judges everything that was recorded. Call it when no request is running.
pub(crate) async fn all(
    customers: &Customers,
    database: &Database,
    ledger: &Ledger,
    orders: &Orders,
) -> Result<Judged> {
    let mut history = customers.recorder.history();
    let is_complete = async |ledger: &Ledger| {
        Ok::<_, Failure>(ledger.standing().await?.is_some_and(|standing| standing.is_new_complete()))
    };
    let side = match (is_complete(ledger).await?, is_complete(&ledger.second()).await?) {
        (_, true) => Side::Second,
        (true, false) => Side::New,
        (false, false) => Side::Old,
    };
    let rows = database.last_values(side, orders, &mut history).await;
    let rows = rows.during("reading the final values")?;
    // The search is CPU-bound.
    let verdict = tokio::task::spawn_blocking(move || history.check()).await?;
    Ok(Judged { rows, verdict })
}

/// The status of every order in one of the columns, by key.
pub(crate) async fn values(url: &str, side: Side) -> Result<Vec<(u64, String)>> {
    let mut connection = PgConnection::connect(url).await?;
    let rows: Vec<(i64, Option<String>)> = sqlx::query_as(side.query()).fetch_all(&mut connection).await?;
    let value =
        |(id, raw): (i64, Option<String>)| (id.unsigned_abs(), side.meaning(raw.as_deref()).to_owned());
    Ok(rows.into_iter().map(value).collect())
}
