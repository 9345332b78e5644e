//! Constant load: requests are due at fixed times, whether or not earlier ones have been answered.
//!
//! Latency is measured from when a request was *due*. A stall of two seconds therefore shows in every request that was due
//! meanwhile, not as one slow request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};

use crate::customers::Customers;

/// Seconds of load that may be unanswered. Beyond that, requests that are due are dropped and counted as failed.
const PATIENCE: u32 = 30;

/// Load that runs until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    schedule: tokio::task::JoinHandle<()>,
}

impl Load {
    /// Starts sending `rate` requests a second.
    pub(crate) fn start(customers: Arc<Customers>, rate: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let schedule = tokio::spawn(run(customers, rate, Arc::clone(&stop)));
        Self { stop, schedule }
    }

    /// Sends no more requests, and waits until all are answered or have timed out.
    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A task that panicked has stopped, too.
        let _ = (&mut self.schedule).await;
    }
}

/// Aborts the load if it was not stopped.
impl Drop for Load {
    fn drop(&mut self) {
        self.schedule.abort();
    }
}

async fn run(customers: Arc<Customers>, rate: u32, stop: Arc<AtomicBool>) {
    let bound = rate * PATIENCE;
    let places = Arc::new(Semaphore::new(bound as usize));
    let began = Instant::now();
    for number in 0_u64.. {
        let due = began + Duration::from_nanos(number * 1_000_000_000 / u64::from(rate));
        sleep_until(due).await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match Arc::clone(&places).try_acquire_owned() {
            Err(_) => customers.stats.dropped(),
            Ok(place) => {
                let customers = Arc::clone(&customers);
                tokio::spawn(async move {
                    customers.one_request(number, due).await;
                    drop(place);
                });
            }
        }
    }
    // When all permits are free, no request is running.
    let _ = places.acquire_many(bound).await;
}
