//! One measurement, or several until the time is over or a limit is reached.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::actions::OnFail;
use super::judge::{Limits, Outcome, Verdict, judge};
use super::prometheus::{Prometheus, QueryError};
use super::report;
use crate::complain;

/// A canary, how to judge it, and what to do if it fails.
pub(super) struct Judge {
    pub(super) prometheus: Prometheus,
    pub(super) limits: Limits,
    pub(super) canary: String,
    pub(super) stable: String,
    pub(super) window: Duration,
    pub(super) watch: Option<Watch>,
    pub(super) on_fail: OnFail,
}

/// Repeated measurements. The limits are those of an analysis in Argo Rollouts.
pub(super) struct Watch {
    pub(super) duration: Duration,
    pub(super) every: Duration,
    pub(super) patience: Duration,
    /// Measurements without an answer in a row that are tolerated.
    pub(super) error_limit: u32,
    /// Failed measurements in a row that are tolerated.
    pub(super) failure_limit: u32,
    /// Undecided measurements that are tolerated.
    pub(super) inconclusive_limit: Option<u32>,
}

impl Judge {
    /// The verdict of the only, or of the deciding measurement.
    ///
    /// # Errors
    ///
    /// There is no answer. That is no evidence against the canary, so it does not fail.
    pub(super) async fn verdict(&self, json: bool) -> Result<Verdict, QueryError> {
        match &self.watch {
            Some(watch) => self.watch(watch, json).await,
            None => {
                let verdict = self.measure(self.window).await?;
                report(&verdict, json);
                Ok(verdict)
            }
        }
    }

    async fn watch(&self, watch: &Watch, json: bool) -> Result<Verdict, QueryError> {
        let began = Instant::now();
        let mut next = began;
        let (mut errors, mut failures, mut undecided) = (0, 0, 0);
        loop {
            // A measurement that took long, such as one of a server that did not respond, delays the next one.
            next = (next + watch.every).max(Instant::now());
            let elapsed = began.elapsed();
            let is_last = next > began + watch.duration;
            // The last measurement covers the whole watch, so it has the most requests.
            let window = if is_last { self.window.max(elapsed) } else { self.window };
            match self.measure(window).await {
                Err(error) => {
                    errors += u32::from(elapsed >= watch.patience);
                    if errors > watch.error_limit {
                        return Err(error);
                    }
                    complain(&format!("cutover: no answer, measuring again: {error}"));
                }
                Ok(verdict) => {
                    report(&verdict, json);
                    errors = 0;
                    failures = if verdict.outcome == Outcome::Fail { failures + 1 } else { 0 };
                    undecided += u32::from(verdict.outcome == Outcome::Undecided);
                    let is_undecided = watch.inconclusive_limit.is_some_and(|limit| undecided > limit);
                    if is_last || is_undecided || failures > watch.failure_limit {
                        return Ok(verdict);
                    }
                }
            }
            sleep_until(next).await;
        }
    }

    async fn measure(&self, window: Duration) -> Result<Verdict, QueryError> {
        let (canary, stable) = tokio::try_join!(
            self.prometheus.observe(&self.canary, window),
            self.prometheus.observe(&self.stable, window)
        )?;
        Ok(judge(&canary, &stable, &self.limits))
    }
}
