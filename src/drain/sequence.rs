use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::stage::Stage;
use super::state::{Hook, State};
use super::{DrainReport, HookEnd, HookReport};

/// How long the sequence waits for cut connections to disappear. A connection whose handler blocks its thread
/// can't be dropped and must not delay the hooks.
const FORCE: Duration = Duration::from_millis(250);

/// Begins the drain unless it has begun, and returns at once.
pub(super) fn begin(state: &Arc<State>) {
    if !state.stages.begin() {
        return;
    }
    state.readiness.fail("draining");
    state.enter(Stage::Propagating);
    state.runtime.spawn(run(Arc::clone(state), Instant::now()));
}

/// Everything that happens after the beginning, once per process.
async fn run(state: Arc<State>, began: Instant) {
    let mut cut_short = state.cut_short.subscribe();
    let waiting = before(wait_for_the_end(&state, began), &mut cut_short).await;
    let reason = if waiting.is_some() { "deadline" } else { "cut short" };
    let ended = match waiting {
        Some(ended) => ended,
        None => {
            state.enter(Stage::Closing);
            timeout(FORCE, state.registry.empty()).await.is_ok()
        }
    };
    let cut = if ended { Vec::new() } else { state.registry.list() };
    for cut in &cut {
        tracing::warn!(what = cut.for_logs(), age = ?cut.age, phase = %cut.phase, reason, "cut by the drain");
    }
    state.enter(Stage::Forced);
    if timeout(FORCE, state.registry.disconnected()).await.is_err() {
        tracing::warn!("a handler blocks its thread; the drain continues without waiting for it");
    }
    let waited = began.elapsed();

    let hooks = state.hooks.lock().unwrap_or_else(PoisonError::into_inner).take();
    let end = match waiting {
        Some(_) => began + state.options.hooks_end(),
        // The hooks keep their time: they leave the fleet and give connections back.
        None => Instant::now() + state.options.hook_time,
    };
    let hooks = hooks.into_iter().flatten().map(|hook| run_hook(hook, end, cut_short.clone()));
    let hooks = join_all(hooks).await;

    let report = DrainReport { cut, waited, hooks };
    tracing::info!(?waited, cut = report.cut.len(), "drained");
    let _ = state.report.set(report);
    state.enter(Stage::Finished);
}

/// Waits for propagation, then until nothing is left or the deadline has passed; `true` if nothing is left.
async fn wait_for_the_end(state: &State, began: Instant) -> bool {
    if !cfg!(cutover_break = "drain") {
        sleep_until(began + state.options.propagation).await;
    }
    state.enter(Stage::Closing);
    timeout_at(began + state.options.request_time(), state.registry.empty()).await.is_ok()
}

/// The output of `work`, or `None` if the drain is cut short first.
async fn before<T>(work: impl Future<Output = T>, cut_short: &mut watch::Receiver<u32>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        // The sender lives in the state, which the sequence holds.
        Ok(()) = cut_short.changed() => None,
    }
}

async fn run_hook((name, hook): Hook, end: Instant, mut cut_short: watch::Receiver<u32>) -> HookReport {
    let started = Instant::now();
    let left = end.saturating_duration_since(started);
    let hook = AssertUnwindSafe(async move { hook(left).await }).catch_unwind();
    let end = match before(timeout_at(end, hook), &mut cut_short).await {
        Some(Ok(Ok(()))) => HookEnd::Done,
        Some(Ok(Err(_))) => HookEnd::Panicked,
        Some(Err(_)) | None => HookEnd::TimedOut,
    };
    if end != HookEnd::Done {
        tracing::warn!(%name, ?end, "drain hook did not finish");
    }
    HookReport { name, end, took: started.elapsed() }
}
