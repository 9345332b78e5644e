//! Constant load: a request is due every so often, whatever became of the ones before it.
//!
//! The schedule is fixed at the start and latency counts from when a request was *due*. So a stall of
//! two seconds shows as two seconds in everything that was due meanwhile, not as one slow request.

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

/// Seconds of load that may wait for an answer before requests that are due are dropped (and counted).
const PATIENCE: u32 = 30;

/// Load that runs until it is told to stop.
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

    /// Sends no more and waits until everything sent was answered or timed out.
    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A schedule that panicked has stopped too; what it did was counted.
        let _ = (&mut self.schedule).await;
    }
}

/// Load that nobody stopped is cut off.
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
    // All places free: nothing is under way.
    let _ = places.acquire_many(bound).await;
}
