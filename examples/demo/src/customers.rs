//! The requests of the load, and the check of each answer.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cutover_checker::{History, Recorder};
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    client::{Answer, Client, NoAnswer, Who},
    dataset::Orders,
    failure::{Failure, Result},
    stats::Stats,
    status,
};

/// Number of users that are logged in at the same time.
const SESSIONS: usize = 50;
/// Number of orders that most requests use, so that each is read and written often.
const HOT: u64 = 2_000;
/// Number of users who pay. Flags are decided per user.
const PAYERS: u32 = 1_000;
/// Time limit of a request.
const LIMIT: Duration = Duration::from_secs(10);

/// All users of the service.
pub(crate) struct Customers {
    client: Client,
    url: String,
    orders: Arc<Orders>,
    pub(crate) recorder: Recorder,
    pub(crate) stats: Stats,
    seed: u64,
    sessions: Vec<Session>,
    /// The ids of all sessions.
    session_ids: Arc<Mutex<Vec<String>>>,
    /// Ids of orders that were created by requests.
    made: Mutex<Vec<u64>>,
}

/// A user's session. One request at a time uses it, so the expected answer is known.
struct Session {
    user: String,
    is_busy: AtomicBool,
    state: Mutex<SessionState>,
}

#[derive(Clone, Default)]
struct SessionState {
    cookie: Option<HeaderValue>,
    visits: u64,
}

impl Customers {
    /// `url` is the proxy's base URL, without a trailing slash.
    pub(crate) fn new(
        url: String,
        orders: Arc<Orders>,
        seed: u64,
        session_ids: Arc<Mutex<Vec<String>>>,
    ) -> Self {
        let session = |number| Session {
            user: format!("user-{number}"),
            is_busy: AtomicBool::new(false),
            state: Mutex::default(),
        };
        Self {
            client: Client::new(LIMIT),
            url,
            orders,
            // Not mapped: an answer that is not a canonical word is wrong.
            recorder: Recorder::new(8, str::to_owned),
            stats: Stats::default(),
            seed,
            sessions: (0..SESSIONS).map(session).collect(),
            session_ids,
            made: Mutex::default(),
        }
    }

    /// Logs all users in. Call it before the load starts.
    pub(crate) async fn log_in(&self) -> Result<()> {
        for session in &self.sessions {
            let state = self.new_session(&session.user).await;
            let state =
                state.map_err(|why| Failure::new(format!("POST /login of {}: {why}", session.user)))?;
            session.set(state);
        }
        Ok(())
    }

    /// Forgets created orders, after a failover that lost some of them.
    pub(crate) fn forget_made(&self) {
        lock(&self.made).clear();
    }

    /// Sends the request with this number. The same seed gives the same request.
    pub(crate) async fn one_request(&self, number: u64, due: Instant) {
        let mut rng =
            fastrand::Rng::with_seed(self.seed.wrapping_add(number.wrapping_mul(0x2545_F491_4F6C_DD1D)));
        let worker = number as usize;
        let choice = rng.u8(0..100);
        let outcome = match choice {
            0..60 => self.read_order(worker, self.an_order(&mut rng)).await,
            60..85 => {
                let status = status::CANONICAL[rng.usize(0..status::CANONICAL.len())];
                let user = rng.u32(0..PAYERS);
                self.pay(worker, self.an_order(&mut rng), status, user).await
            }
            85..90 => self.make_order(worker, &mut rng).await,
            _ => match self.free_session(&mut rng) {
                Some(session) => self.visit(session).await,
                None => self.read_order(worker, self.an_order(&mut rng)).await,
            },
        };
        match outcome {
            Ok(()) => self.stats.succeeded(due.elapsed()),
            Err(what) => self.stats.failed(what, due.elapsed()),
        }
    }

    async fn read_order(&self, worker: usize, id: u64) -> Result<(), String> {
        let start = self.recorder.now();
        let answer = self.send(Method::GET, &format!("/orders/{id}"), Who::default(), None).await;
        let end = self.recorder.now();
        if answer.as_ref().is_ok_and(|answer| answer.status == StatusCode::NOT_FOUND) {
            self.recorder.read(worker, id, History::ABSENT, start, end);
        }
        let answer = expect("GET order", answer)?;
        let found = answer.json();
        let status = found["status"].as_str().ok_or("GET order: no status in the response")?;
        self.recorder.read(worker, id, status, start, end);
        match found["id"].as_u64() == Some(id) {
            true => Ok(()),
            false => Err("GET order: response for another order".to_owned()),
        }
    }

    async fn pay(&self, worker: usize, id: u64, status: &str, user: u32) -> Result<(), String> {
        let start = self.recorder.now();
        let body = json!({ "status": status });
        let who = Who { user: Some(user), ..Who::default() };
        let answer = self.send(Method::PUT, &format!("/orders/{id}/payment"), who, Some(&body)).await;
        match &answer {
            Ok(answer) if answer.status.is_success() => {
                self.recorder.write(worker, id, status, start, Some(self.recorder.now()));
            }
            Err(NoAnswer::Unsent) => {}
            // Refused or failed: it may or may not have been executed.
            _ => self.recorder.write(worker, id, status, start, None),
        }
        let answer = expect("PUT payment", answer)?.json();
        self.stats.paid(answer["flow"] == "new");
        match answer["status"] == *status {
            true => Ok(()),
            false => Err("PUT payment: response with another status".to_owned()),
        }
    }

    async fn make_order(&self, worker: usize, rng: &mut fastrand::Rng) -> Result<(), String> {
        let start = self.recorder.now();
        let body = json!({
            "customer": format!("customer-{}", rng.u32(1..=50_000)),
            "amount_cents": rng.u32(100..100_000),
        });
        let answer =
            expect("POST order", self.send(Method::POST, "/orders", Who::default(), Some(&body)).await)?
                .json();
        let id = answer["id"].as_u64().ok_or("POST order: no id in the response")?;
        let status = answer["status"].as_str().ok_or("POST order: no status in the response")?;
        self.recorder.write(worker, id, status, start, Some(self.recorder.now()));
        lock(&self.made).push(id);
        Ok(())
    }

    /// Increments a counter in the session, so that a lost or reverted session is noticed.
    async fn visit(&self, session: SessionGuard<'_>) -> Result<(), String> {
        let mut state = session.0.get();
        let who = Who { cookie: state.cookie.as_ref(), ..Who::default() };
        let answer = self.send(Method::GET, "/me", who, None).await;
        if answer.as_ref().is_ok_and(|answer| answer.status == StatusCode::UNAUTHORIZED) {
            self.stats.session_lost();
            let fresh = self.new_session(&session.0.user).await;
            session.0.set(fresh.unwrap_or_default());
        }
        let answer = expect("GET me", answer)?;
        let visits = answer.json()["visits"].as_u64().ok_or("GET me: no visits in the response")?;
        let is_reverted = visits <= state.visits;
        state.visits = visits;
        state.cookie = answer.cookie.or(state.cookie);
        session.0.set(state);
        if is_reverted {
            self.stats.session_lost();
            return Err("GET me: session reverted".to_owned());
        }
        Ok(())
    }

    async fn new_session(&self, user: &str) -> Result<SessionState, String> {
        let answer = self.send(Method::POST, "/login", Who::default(), Some(&json!({ "user": user }))).await;
        let cookie = expect("POST login", answer)?.cookie.ok_or("POST login: no cookie in the response")?;
        let id = cookie.to_str().ok().and_then(|cookie| cookie.split_once('='));
        lock(&self.session_ids).extend(id.map(|(_, id)| id.to_owned()));
        Ok(SessionState { cookie: Some(cookie), visits: 0 })
    }

    /// Chooses an order: a hot one in four of five cases, the first of them far more often than the last.
    fn an_order(&self, rng: &mut fastrand::Rng) -> u64 {
        let rows = self.orders.len();
        let choice = rng.u8(0..100);
        if choice < 10 {
            let made = lock(&self.made);
            if !made.is_empty() {
                // One of the newest: errors with new rows show early.
                let newest = rng.usize(0..made.len().min(200));
                return made[made.len() - 1 - newest];
            }
        }
        let place = match choice {
            0..80 => {
                let hot = HOT.min(rows);
                let rank = (hot as f64 * rng.f64().powi(2)) as u64;
                // Hot orders are spread over the table, so that the backfill meets them all the time.
                rank * (rows / hot)
            }
            _ => rng.u64(0..rows),
        };
        self.orders.id_at(place)
    }

    fn free_session(&self, rng: &mut fastrand::Rng) -> Option<SessionGuard<'_>> {
        let first = rng.usize(0..self.sessions.len());
        let all = self.sessions[first..].iter().chain(&self.sessions[..first]);
        let mut all = all;
        all.find(|session| !session.is_busy.swap(true, Ordering::Acquire)).map(SessionGuard)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        who: Who<'_>,
        json: Option<&Value>,
    ) -> Result<Answer, NoAnswer> {
        self.client.send(method, &format!("{}{path}", self.url), who, json).await
    }
}

/// The exclusive use of a session until this is dropped.
struct SessionGuard<'a>(&'a Session);

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        self.0.is_busy.store(false, Ordering::Release);
    }
}

impl Session {
    fn get(&self) -> SessionState {
        lock(&self.state).clone()
    }

    fn set(&self, state: SessionState) {
        *lock(&self.state) = state;
    }
}

/// Anything but a 2xx is a failure.
fn expect(what: &str, answer: Result<Answer, NoAnswer>) -> Result<Answer, String> {
    match answer {
        Ok(answer) if answer.status.is_success() => Ok(answer),
        Ok(answer) => Err(format!("{what}: {}", answer.status.as_u16())),
        Err(none) => Err(format!("{what}: {}", none.text())),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
