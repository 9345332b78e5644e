//! Load and judge together, against an in-memory service that is correct or has a fault.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use cutover_checker::Verdict;

use crate::{
    customers::Customers,
    dataset::Orders,
    load::Load,
    stats::{Counts, Stage},
    stub::{Fault, Stub},
};

/// So few that a busy machine serves them.
const RATE: u32 = 150;
const REQUESTS: u64 = 600;

/// Sends requests at the rate until there are enough.
async fn run(fault: Fault) -> (Counts, Verdict) {
    let orders = Arc::new(Orders::Seeded { seed: 5, rows: 300 });
    let first = |id| orders.first_status(id).unwrap();
    let memory: HashMap<u64, String> = (1..=300).map(|id| (id, first(id).to_owned())).collect();
    let stub = Stub::with("stub", fault, memory).await;
    let url = format!("http://{}", stub.address);
    let customers = Arc::new(Customers::new(url, Arc::clone(&orders), 9, Arc::default()));
    customers.log_in().await.unwrap();
    customers.stats.enter(Stage::Quiet);
    let began = Instant::now();
    let load = Load::start(Arc::clone(&customers), RATE);
    while customers.stats.counts().requests < REQUESTS {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    load.stop().await;

    let mut history = customers.recorder.history();
    for key in history.keys() {
        if let Some(status) = orders.first_status(key) {
            history.initial(key, status);
        }
        history.last(key, &stub.memory.orders.lock().unwrap()[&key]);
    }
    let counts = customers.stats.counts();
    let most = began.elapsed().as_secs_f64() * f64::from(RATE) + 1.0;
    assert!(counts.requests as f64 <= most, "more than {RATE} requests/s: {counts:?}");
    (counts, history.check())
}

#[tokio::test]
async fn a_correct_service_passes() {
    let (counts, verdict) = run(Fault::None).await;
    assert_eq!((counts.failed, counts.dropped, counts.sessions_lost), (0, 0, 0), "{counts:?}");
    assert!(verdict.is_clean(), "{verdict:?}");
    assert!(verdict.reads > 250 && verdict.writes > 100, "{verdict:?}");
}

#[tokio::test]
async fn lost_writes_are_found() {
    let (counts, verdict) = run(Fault::LosesWrites).await;
    assert_eq!(counts.failed, 0, "all answers looked correct: {counts:?}");
    assert!(verdict.lost_writes > 0 && verdict.stale_reads > 0, "{verdict:?}");
}

#[tokio::test]
async fn refusals_are_failures_but_not_lost_writes() {
    let (counts, verdict) = run(Fault::Overloaded).await;
    assert!(counts.failed > 0, "{counts:?}");
    assert_eq!(counts.failures["GET order: 503"], counts.failed);
    assert!(verdict.is_clean(), "{verdict:?}");
}

#[tokio::test]
async fn lost_sessions_are_failures() {
    let (counts, _) = run(Fault::LosesSessions).await;
    assert!(counts.sessions_lost > 0, "{counts:?}");
    assert_eq!(counts.failures["GET me: 401"], counts.failed);
}
