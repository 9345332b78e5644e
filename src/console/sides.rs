//! What the metrics of a service say about the two sides of a migration.

use std::sync::Arc;

use futures_util::future::BoxFuture;

/// What the metrics of a service say about the two sides of a migration.
#[derive(Clone, Default)]
pub struct SideNumbers {
    /// Shadow reads of the last minutes by outcome.
    pub shadow_reads: Vec<(String, f64)>,
    /// Calls of a repository, by operation and side.
    pub calls: Vec<SideCalls>,
}

/// Calls of one side's repository in the last minutes.
#[derive(Clone, Default)]
pub struct SideCalls {
    /// `read` or `write`.
    pub operation: String,
    /// `old`, `new`, or `both` for a combined writer.
    pub side: String,
    /// Calls per second.
    pub rate: f64,
    /// Failed calls per second.
    pub failures: f64,
    /// Median of their duration in seconds.
    pub median: f64,
    /// 99th percentile of their duration in seconds.
    pub p99: f64,
}

/// Reads the numbers of the migration of this name, or says why it cannot.
pub type SideSource = Arc<dyn Fn(String) -> BoxFuture<'static, Result<SideNumbers, String>> + Send + Sync>;
