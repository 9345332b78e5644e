//! A statement with its parameters.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::ledger::unprepared;

/// A statement whose parameters are texts and arrays of texts.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) text: String,
    values: Vec<Value>,
}

#[derive(Debug, Clone)]
enum Value {
    One(String),
    Many(Vec<String>),
}

impl Query {
    pub(crate) fn new(text: String) -> Self {
        Self { text, values: Vec::new() }
    }

    pub(crate) fn bind(mut self, value: String) -> Self {
        self.values.push(Value::One(value));
        self
    }

    pub(crate) fn bind_all(mut self, values: Vec<String>) -> Self {
        self.values.push(Value::Many(values));
        self
    }

    /// The statement that makes the server plan this one, and so check it, without running it.
    pub(crate) fn explained(mut self) -> Self {
        self.text.insert_str(0, "explain ");
        self
    }

    /// Returns the number of rows affected. The statement has no name, so the server plans it for these values.
    pub(crate) async fn execute(self, tx: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let query = self.values.into_iter().fold(unprepared::query(AssertSqlSafe(self.text)), bind);
        Ok(i64::try_from(query.execute(tx).await?.rows_affected()).unwrap_or(i64::MAX))
    }

    pub(crate) async fn fetch_all(self, tx: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        let query = self.values.into_iter().fold(unprepared::query(AssertSqlSafe(self.text)), bind);
        query.fetch_all(tx).await
    }
}

type SqlxQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bind(query: SqlxQuery<'_>, value: Value) -> SqlxQuery<'_> {
    match value {
        Value::One(value) => query.bind(value),
        Value::Many(values) => query.bind(values),
    }
}
