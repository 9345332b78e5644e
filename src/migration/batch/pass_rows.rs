//! What a pass does with the rows of one batch.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::errors::{is_transient, may_concern_a_row};
use super::job::{findings, rows_differ};
use super::keyset::{Span, display_key};
use super::kind::PassKind;
use super::mapping::Mapping;
use super::pass::Pass;
use super::sides::{MappedRows, Sides};
use crate::ledger::jobs::{KeyText, Progress};
use crate::ledger::{bad_rows, begin_work, differences};
use crate::migration::coordinator::PlanError;
use crate::migration::runtime::Error;

impl Pass<'_> {
    /// Copies or compares the rows of a span. Returns how many rows were changed, and how many differ.
    ///
    /// `missing`: inserts the rows that the new table lacks first, as [`Scope::insert_missing`] does. If these are so many,
    /// there is no other row in the span.
    pub(super) async fn do_rows(
        &self,
        tx: &mut PgConnection,
        span: &Span,
        missing: Option<i64>,
    ) -> Result<(i64, i64), PlanError> {
        let Sides { old, new, .. } = self.scope.sides;
        if self.kind == PassKind::Back {
            self.lock_both(tx, span).await?;
        }
        let mapped = self.map(tx, span).await?;
        match self.kind {
            PassKind::Forward => {
                let mut changed = 0;
                if missing.is_some() {
                    changed += self.scope.insert_missing(span, &mapped).execute(tx).await?;
                }
                if missing != Some(changed) {
                    changed += self.scope.copy_forward(span, &mapped).execute(tx).await?;
                }
                Ok((changed + self.remove_orphans(tx, new, old, span).await?, 0))
            }
            PassKind::Back => {
                let changed = self.scope.copy_back(span, &mapped).execute(tx).await?;
                Ok((changed + self.remove_orphans(tx, old, new, span).await?, 0))
            }
            PassKind::Compare => Ok((0, self.compare(tx, span, &mapped).await?)),
        }
    }

    /// Whether rows can be missing in the table that the pass writes.
    pub(super) fn may_insert(&self) -> bool {
        self.kind == PassKind::Forward && self.scope.tables().len() > 1
    }

    /// Locks the rows of a copy back, the old side first, as writers do. What the copy decides from the old row is then true
    /// of its latest version. Where both mappings are SQL over one table, the update locks each row before it decides.
    async fn lock_both(&self, tx: &mut PgConnection, span: &Span) -> Result<(), sqlx::Error> {
        let Sides { old, new, forward, .. } = self.scope.sides;
        if old != new || forward.is_rust() {
            for table in self.scope.tables() {
                self.scope.lock(table, span).execute(&mut *tx).await?;
            }
        }
        Ok(())
    }

    /// Runs the mappings in Rust. A copy sets aside the rows on which they fail.
    async fn map(&self, tx: &mut PgConnection, span: &Span) -> Result<MappedRows, PlanError> {
        let Sides { old, new, forward, backward, .. } = self.scope.sides;
        let mut mapped = MappedRows::default();
        let copies = self.kind != PassKind::Compare;
        if forward.is_rust() {
            let rows = self.scope.rows(old, span, self.kind == PassKind::Forward).fetch_all(&mut *tx).await?;
            mapped.forward = Some(self.map_rows(tx, forward, &rows, 'f', copies).await?);
        }
        if self.kind != PassKind::Forward && backward.is_rust() {
            let rows = self.scope.rows(new, span, copies).fetch_all(&mut *tx).await?;
            mapped.backward = Some(self.map_rows(tx, backward, &rows, 'b', copies).await?);
        }
        if self.kind == PassKind::Compare && forward.is_rust() {
            let rows = self.scope.rows_back(span, &mapped).fetch_all(&mut *tx).await?;
            mapped.round_trip = Some(self.map_rows(tx, forward, &rows, 't', false).await?);
        }
        Ok(mapped)
    }

    async fn map_rows(
        &self,
        tx: &mut PgConnection,
        mapping: &Mapping,
        rows: &[PgRow],
        letter: char,
        set_aside: bool,
    ) -> Result<String, PlanError> {
        let (json, failed) = self.scope.run(mapping, rows, letter)?;
        if set_aside {
            for (key, error) in failed {
                self.set_aside(tx, &key, &error).await?;
            }
        }
        Ok(json)
    }

    pub(super) async fn set_aside(
        &self,
        tx: &mut PgConnection,
        key: &[String],
        error: &str,
    ) -> Result<(), PlanError> {
        let count = bad_rows::set_aside(tx, &self.job, key, error).await?;
        let limit = self.outline.batches.bad_rows;
        if count > i64::from(limit) {
            return Err(PlanError::Refused(format!(
                "more than {limit} rows could not be mapped (setting `BatchOptions::bad_rows`); the last one is {}: \
                 {error}. Correct the mapping or the rows",
                display_key(key)
            )));
        }
        tracing::warn!(migration = self.migration.name(), key = display_key(key), error, "row set aside");
        Ok(())
    }

    /// Tries the rows that were set aside once more, because they or the mapping may have been corrected.
    pub(super) async fn retry_bad_rows(&self) -> Result<(), PlanError> {
        let mut tx = self.begin().await?;
        let keys = bad_rows::keys(&mut tx, &self.job).await?;
        tx.rollback().await?;
        for key in keys {
            let mut tx = self.begin().await?;
            bad_rows::remove(&mut tx, &self.job, &key).await?;
            let progress = match self.do_rows(&mut tx, &Span::Keys(vec![key.clone()]), None).await {
                Ok((changed, differences)) => Progress { changed, differences, ..Progress::default() },
                Err(PlanError::Operation(Error::Database(error))) if may_concern_a_row(&error) => continue,
                Err(PlanError::Operation(error)) if is_transient(&error) => continue,
                Err(error) => return Err(error),
            };
            self.job.add(&mut tx, &progress).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// Removes rows of `table` that are not in `other`. A first statement locks them. A second one decides, because it sees
    /// everything that was committed before the locks.
    async fn remove_orphans(
        &self,
        tx: &mut PgConnection,
        table: &str,
        other: &str,
        span: &Span,
    ) -> Result<i64, sqlx::Error> {
        if table == other {
            return Ok(0);
        }
        let keys = keys(&self.scope.orphans(table, other, span).fetch_plain(&mut *tx).await?)?;
        if keys.is_empty() {
            return Ok(0);
        }
        self.scope.delete_orphans(table, other, &Span::Keys(keys)).execute(tx).await
    }

    /// Compares without locks, and then compares the rows that seemed to differ again with locks. So a row that is being
    /// written is no difference, and what is reported is true of the latest version of the row.
    async fn compare(
        &self,
        tx: &mut PgConnection,
        span: &Span,
        mapped: &MappedRows,
    ) -> Result<i64, PlanError> {
        let suspects = keys(&self.scope.differences(span, mapped).fetch_plain(&mut *tx).await?)?;
        if suspects.is_empty() {
            return Ok(0);
        }
        let span = Span::Keys(suspects);
        for table in self.scope.tables() {
            self.scope.lock(table, &span).execute(&mut *tx).await?;
        }
        let mapped = self.map(tx, &span).await?;
        let found = self.scope.differences(&span, &mapped).fetch_plain(&mut *tx).await?;
        for row in &found {
            let (key, what): (KeyText, String) = (row.try_get("key")?, row.try_get("what")?);
            tracing::warn!(migration = self.migration.name(), key = display_key(&key), what, "sides differ");
            let values = [row.try_get("expected")?, row.try_get("found")?];
            differences::record(tx, &self.job, &key, &what, values, self.outline.sensitive).await?;
        }
        Ok(i64::try_from(found.len()).unwrap_or(i64::MAX))
    }

    /// The error that names what a scan found, if it found something.
    pub(super) async fn report(&self) -> Result<(), PlanError> {
        let names = self.scope.key.plain_names().join(", ");
        let describe = |what: &str, keys: &[KeyText]| {
            let what = match what {
                "different" => "the new side is not what `forward` computes from the old side",
                "missing" => "the new side lacks rows",
                "extra" => "the new side has rows that the old side does not have",
                _ => "`forward` of `backward` does not give the new side's value back",
            };
            let keys: Vec<String> = keys.iter().map(|key| display_key(key)).collect();
            format!("{what}, {names} in [{}]", keys.join(", "))
        };
        let mut tx = begin_work(&self.outline.pool).await?;
        let found = findings(&mut tx, &self.job, describe).await?;
        tx.rollback().await?;
        let Some((count, found)) = found else { return Ok(()) };
        let differing = rows_differ(count, &format!(" of {}", self.scope.tables().join(" and ")));
        Err(PlanError::Refused(format!(
            "{differing}: {found}. Correct these rows, or run `cutover set-phase <migration> expand` and go forward \
             again for another copy"
        )))
    }
}

fn keys(rows: &[PgRow]) -> Result<Vec<KeyText>, sqlx::Error> {
    rows.iter().map(|row| row.try_get("key")).collect()
}
