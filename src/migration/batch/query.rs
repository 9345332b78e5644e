//! A statement over a span of rows.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::ledger::unprepared;

/// A statement that contains the keys of its rows. Its parameters are the JSON of mappings in Rust.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) text: String,
    json: Vec<String>,
}

impl Query {
    pub(crate) fn new(text: String) -> Self {
        Self { text, json: Vec::new() }
    }

    pub(super) fn bind(mut self, json: String) -> Self {
        self.json.push(json);
        self
    }

    /// The statement that makes the server plan this one, and so check it, without running it.
    pub(crate) fn explained(mut self) -> Self {
        self.text.insert_str(0, "explain ");
        self
    }

    /// Returns the number of rows affected. The statement has no name, so the server plans it for these values.
    pub(crate) async fn execute(self, tx: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let done = if self.json.is_empty() {
            // One round trip instead of two.
            sqlx::raw_sql(AssertSqlSafe(self.text)).execute(tx).await?
        } else {
            self.prepared().execute(tx).await?
        };
        Ok(i64::try_from(done.rows_affected()).unwrap_or(i64::MAX))
    }

    /// The rows, with values in the binary format, which every type can be decoded from.
    pub(crate) async fn fetch_all(self, tx: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        self.prepared().fetch_all(tx).await
    }

    /// The rows of a statement without JSON whose columns are numbers and texts, in one round trip.
    pub(super) async fn fetch_plain(self, tx: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        if !self.json.is_empty() {
            return self.fetch_all(tx).await;
        }
        sqlx::raw_sql(AssertSqlSafe(self.text)).fetch_all(tx).await
    }

    fn prepared(self) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
        self.json
            .into_iter()
            .fold(unprepared::query(AssertSqlSafe(self.text)), |query, json| query.bind(json))
    }
}
