use std::time::Duration;

use prometheus::{CounterVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The kinds of long work, as the ledger names them.
const KINDS: [&str; 3] = ["backfill", "reverse_backfill", "scan"];

/// Metrics of backfills, scans and shadow reads. The rate is `rate(cutover_migration_rows_done_total[1m])`, summed over the
/// fleet.
pub(crate) struct WorkMetrics {
    families: Option<Families>,
}

struct Families {
    done: IntCounterVec,
    total: IntGaugeVec,
    held: CounterVec,
    shadow: IntCounterVec,
    removable: IntGauge,
    driver: IntGauge,
}

impl WorkMetrics {
    pub(crate) fn new(migration: &str) -> Self {
        let described = |name, help| Opts::new(name, help).const_label("migration", migration);
        let done = IntCounterVec::new(
            described("cutover_migration_rows_done_total", "Rows that this process has copied or compared."),
            &["kind"],
        );
        let total = IntGaugeVec::new(
            described(
                "cutover_migration_rows_expected",
                "Rows that the latest job of this kind covers, over the whole fleet.",
            ),
            &["kind"],
        );
        let held = CounterVec::new(
            described(
                "cutover_migration_throttled_seconds_total",
                "Time for which this process's jobs were throttled.",
            ),
            &["kind", "reason"],
        );
        let shadow = IntCounterVec::new(
            described(
                "cutover_migration_shadow_reads_total",
                "Reads of this process that were compared between both sides.",
            ),
            &["outcome"],
        );
        let removable = IntGauge::with_opts(described(
            "cutover_migration_removable",
            "1 if the migration has ended, so that a build may leave out its declaration and its DualWrite; otherwise 0.",
        ));
        let driver = IntGauge::with_opts(described(
            "cutover_migration_driver",
            "1 on the instance that drives the migration, otherwise 0.",
        ));
        let families = match (done, total, held, shadow, removable, driver) {
            (Ok(done), Ok(total), Ok(held), Ok(shadow), Ok(removable), Ok(driver)) => {
                Some(Families { done, total, held, shadow, removable, driver })
            }
            _ => None,
        };
        if let Some(Families { done, total, shadow, .. }) = &families {
            for outcome in ["same", "different", "error", "dropped"] {
                shadow.with_label_values(&[outcome]);
            }
            for kind in KINDS {
                done.with_label_values(&[kind]);
                total.with_label_values(&[kind]);
            }
        }
        Self { families }
    }

    pub(crate) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        if let Some(Families { done, total, held, shadow, removable, driver }) = &self.families {
            registry.register(Box::new(driver.clone()))?;
            registry.register(Box::new(removable.clone()))?;
            registry.register(Box::new(shadow.clone()))?;
            registry.register(Box::new(done.clone()))?;
            registry.register(Box::new(total.clone()))?;
            registry.register(Box::new(held.clone()))?;
        }
        Ok(())
    }

    /// Whether a build may leave the migration out.
    pub(crate) fn set_removable(&self, is_removable: bool) {
        if let Some(Families { removable, .. }) = &self.families {
            removable.set(i64::from(is_removable));
        }
    }

    /// Whether this instance drives the migration.
    pub(crate) fn set_driver(&self, is_driver: bool) {
        if let Some(Families { driver, .. }) = &self.families {
            driver.set(i64::from(is_driver));
        }
    }

    /// A batch was committed.
    pub(crate) fn did(&self, kind: &str, rows: i64) {
        if let Some(Families { done, .. }) = &self.families {
            done.with_label_values(&[kind]).inc_by(u64::try_from(rows).unwrap_or(0));
        }
    }

    /// The number of rows of the latest job.
    pub(crate) fn expects(&self, kind: &str, rows: i64) {
        if let Some(Families { total, .. }) = &self.families {
            total.with_label_values(&[kind]).set(rows);
        }
    }

    /// A shadow read ended with this outcome: `same`, `different`, `error`, or `dropped` (not compared).
    pub(crate) fn compared(&self, outcome: &str) {
        if let Some(Families { shadow, .. }) = &self.families {
            shadow.with_label_values(&[outcome]).inc();
        }
    }

    /// A job was throttled for this long.
    pub(crate) fn held(&self, kind: &str, reason: &str, time: Duration) {
        if let Some(Families { held, .. }) = &self.families {
            held.with_label_values(&[kind, reason]).inc_by(time.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_migrations_share_a_registry_and_begin_at_zero() {
        let registry = Registry::new();
        for name in ["one", "other"] {
            WorkMetrics::new(name).register(&registry).expect("new");
        }
        let work = WorkMetrics::new("third");
        work.register(&registry).expect("new");
        work.did("scan", 7);
        work.expects("scan", 70);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        for line in [
            "cutover_migration_rows_done_total{kind=\"backfill\",migration=\"one\"} 0",
            "cutover_migration_rows_done_total{kind=\"scan\",migration=\"third\"} 7",
            "cutover_migration_rows_expected{kind=\"scan\",migration=\"third\"} 70",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
