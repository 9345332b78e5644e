use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::handle::{Hook, Inner, Stage};
use super::{DrainReport, HookEnd, HookReport};

/// How long the closing by force waits for connection tasks to go. One whose handler blocks
/// its thread can't be dropped and must not hold up the hooks.
const FORCE: Duration = Duration::from_millis(250);

/// Everything after the begin, once.
pub(super) async fn run(inner: Arc<Inner>, began: Instant) {
    if !cfg!(cutover_break = "drain") {
        sleep_until(began + inner.options.propagation).await;
    }
    inner.enter(Stage::Closing);

    let deadline = began + inner.options.request_time();
    let ended = timeout_at(deadline, inner.registry.empty()).await;
    let cut = match ended {
        Ok(()) => Vec::new(),
        Err(_) => inner.registry.list(),
    };
    for cut in &cut {
        tracing::warn!(what = cut.for_logs(), age = ?cut.age, phase = %cut.phase, "cut at the deadline");
    }
    inner.enter(Stage::Forced);
    if timeout(FORCE, inner.registry.disconnected()).await.is_err() {
        tracing::warn!("a handler blocks its thread; going on without it");
    }
    let waited = began.elapsed();

    let hooks = inner.hooks.lock().unwrap_or_else(PoisonError::into_inner).take();
    let end = began + inner.options.hooks_end();
    let hooks = join_all(hooks.into_iter().flatten().map(|hook| run_hook(hook, end))).await;

    let report = DrainReport { cut, waited, hooks };
    tracing::info!(?waited, cut = report.cut.len(), "drained");
    let _ = inner.report.set(report);
    inner.enter(Stage::Finished);
}

async fn run_hook((name, hook): Hook, end: Instant) -> HookReport {
    let started = Instant::now();
    let left = end.saturating_duration_since(started);
    let hook = AssertUnwindSafe(async move { hook(left).await }).catch_unwind();
    let end = match timeout_at(end, hook).await {
        Ok(Ok(())) => HookEnd::Done,
        Ok(Err(_)) => HookEnd::Panicked,
        Err(_) => HookEnd::TimedOut,
    };
    if end != HookEnd::Done {
        tracing::warn!(%name, ?end, "drain hook did not come to its end");
    }
    HookReport { name, end, took: started.elapsed() }
}
