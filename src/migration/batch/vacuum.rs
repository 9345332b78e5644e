use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, sleep};

use super::table_size::TableSize;
use crate::ledger::{READ_COMMITTED, begin, unprepared};

/// How often the statistics are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// How long autovacuum is waited for in all. It may be off for this table, or held up by an old snapshot.
const PATIENCE: Duration = Duration::from_secs(600);
/// Below this a table's dead rows are no matter.
const SMALL_BYTES: i64 = 256 << 20;

/// Keeps work from leaving more dead rows than autovacuum gets away with.
#[derive(Debug)]
pub(crate) struct Vacuum {
    looked: Instant,
    patience: Duration,
}

impl Default for Vacuum {
    fn default() -> Self {
        Self { looked: Instant::now(), patience: PATIENCE }
    }
}

impl Vacuum {
    /// Waits while a large table has more dead rows than live ones, which a single pass does not bring about by itself,
    /// if autovacuum can be expected to do something about it.
    pub(crate) async fn wait(&mut self, pool: &PgPool, table: &str) -> Result<(), sqlx::Error> {
        while self.looked.elapsed() >= EVERY && !self.patience.is_zero() {
            let mut tx = begin(pool, READ_COMMITTED).await?;
            let size = TableSize::estimate(&mut tx, table).await?;
            let outrun = is_outrun(&size) && autovacuum(&mut tx).await?;
            tx.rollback().await?;
            self.looked = Instant::now();
            if !outrun {
                return Ok(());
            }
            tracing::info!(table, dead_rows = size.dead_rows, rows = size.rows, "waiting for autovacuum");
            sleep(EVERY).await;
            self.patience = self.patience.saturating_sub(EVERY);
        }
        Ok(())
    }
}

fn is_outrun(size: &TableSize) -> bool {
    size.bytes > SMALL_BYTES && size.dead_rows > size.rows
}

async fn autovacuum(tx: &mut PgConnection) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar("select current_setting('autovacuum')::boolean").fetch_one(tx).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_pass_over_all_rows_is_not_held_up() {
        let size = |bytes, dead_rows| TableSize { rows: 1_000_000, bytes, dead_rows };
        assert!(!is_outrun(&size(1 << 30, 1_000_000)));
        assert!(is_outrun(&size(1 << 30, 1_000_001)));
        assert!(!is_outrun(&size(1 << 20, 1_000_001)));
    }
}
