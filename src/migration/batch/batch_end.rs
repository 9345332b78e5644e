//! Where the next batch of a range ends.

use sqlx::PgConnection;

use super::keyset::{BatchEnd, Span};
use super::pass::Pass;
use super::query::Query;
use crate::ledger::jobs::Range;
use crate::migration::coordinator::PlanError;

impl Pass<'_> {
    /// The query for the number of the next rows of a range, and the last key of these rows.
    pub(super) fn batch_end(&self, range: &Range, rows: u32) -> Query {
        let left = Span::Between { from: range.from.clone(), to: range.to.clone() };
        self.scope.key.batch_end(&self.scope.tables(), &left, &rows.to_string())
    }

    pub(super) async fn end_of(
        &self,
        range: &Range,
        rows: u32,
        tx: &mut PgConnection,
    ) -> Result<BatchEnd, PlanError> {
        let found = self.batch_end(range, rows).fetch_plain(tx).await;
        let mut found = found.map_err(|error| self.not_about_a_row(error))?;
        Ok(BatchEnd::of(&found.pop().ok_or(sqlx::Error::RowNotFound)?, rows)?)
    }

    /// How many rows are left of a batch that is too large for the memory of this process.
    pub(super) async fn fitting(
        &self,
        range: &Range,
        end: &BatchEnd,
        tx: &mut PgConnection,
    ) -> Result<Option<u32>, PlanError> {
        let Some(last) = &end.last else { return Ok(None) };
        let span = Span::Between { from: range.from.clone(), to: last.clone() };
        let mut fewest = None;
        for table in &self.row_bytes {
            let rows = table.fitting(&self.scope.key, &span, tx).await?;
            fewest = fewest.into_iter().chain(rows).min();
        }
        Ok(fewest)
    }
}
