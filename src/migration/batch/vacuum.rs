use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, sleep};

use super::table_size;
use crate::ledger::jobs::TableSize;
use crate::ledger::{begin_work, unprepared};

/// How often the statistics are read.
const POLL: Duration = Duration::from_secs(5);
/// How long a pass waits for autovacuum in all. Autovacuum may be off for the table, or an old snapshot may prevent it
/// from removing rows.
const PATIENCE: Duration = Duration::from_secs(600);
/// In a table below this size dead rows do not matter.
const SMALL_BYTES: i64 = 256 << 20;

/// Keeps a pass from leaving more dead rows than autovacuum can remove.
#[derive(Debug)]
pub(crate) struct Vacuum {
    checked: Instant,
    patience: Duration,
}

impl Default for Vacuum {
    fn default() -> Self {
        Self { checked: Instant::now(), patience: PATIENCE }
    }
}

impl Vacuum {
    /// Waits while a large table has more dead rows than live ones, if autovacuum can be expected to remove them. A single
    /// pass does not create as many.
    pub(crate) async fn wait(&mut self, pool: &PgPool, table: &str) -> Result<(), sqlx::Error> {
        while self.checked.elapsed() >= POLL && !self.patience.is_zero() {
            let mut tx = begin_work(pool).await?;
            let size = table_size::estimate(&mut tx, table).await?;
            let must_wait = has_too_many_dead_rows(&size) && is_autovacuum_on(&mut tx).await?;
            tx.rollback().await?;
            self.checked = Instant::now();
            if !must_wait {
                return Ok(());
            }
            tracing::info!(table, dead_rows = size.dead_rows, rows = size.rows, "waiting for autovacuum");
            sleep(POLL).await;
            self.patience = self.patience.saturating_sub(POLL);
        }
        Ok(())
    }
}

fn has_too_many_dead_rows(size: &TableSize) -> bool {
    size.bytes > SMALL_BYTES && size.dead_rows > size.rows
}

async fn is_autovacuum_on(tx: &mut PgConnection) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar("select current_setting('autovacuum')::boolean").fetch_one(tx).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_pass_over_all_rows_does_not_wait() {
        let size = |bytes, dead_rows| TableSize { rows: 1_000_000, bytes, dead_rows };
        assert!(!has_too_many_dead_rows(&size(1 << 30, 1_000_000)));
        assert!(has_too_many_dead_rows(&size(1 << 30, 1_000_001)));
        assert!(!has_too_many_dead_rows(&size(1 << 20, 1_000_001)));
    }
}
