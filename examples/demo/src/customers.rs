//! What the load asks for, and what it makes of the answers.

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

/// People who are logged in at the same time.
const SESSIONS: usize = 50;
/// Orders that most requests are about, so that each of them is read and written often.
const HOT: u64 = 2_000;
/// People who pay: flags are decided for each of them.
const PAYERS: u32 = 1_000;
/// An answer that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);

/// Everybody who uses the service.
pub(crate) struct Customers {
    client: Client,
    url: String,
    orders: Arc<Orders>,
    pub(crate) recorder: Recorder,
    pub(crate) stats: Stats,
    seed: u64,
    sessions: Vec<Session>,
    /// Every session there was, by the value of its cookie.
    session_ids: Arc<Mutex<Vec<String>>>,
    /// Orders made while the demo runs.
    made: Mutex<Vec<u64>>,
}

/// One person's session. One request at a time uses it, so what the next answer must say is known.
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
    /// `url` is where the balancer listens, without a slash at the end.
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
            // As it is: an answer that is not the canonical word is wrong.
            recorder: Recorder::new(8, str::to_owned),
            stats: Stats::default(),
            seed,
            sessions: (0..SESSIONS).map(session).collect(),
            session_ids,
            made: Mutex::default(),
        }
    }

    /// Logs everybody in. To be called before the load starts.
    pub(crate) async fn log_in(&self) -> Result<()> {
        for session in &self.sessions {
            let state = self.new_session(&session.user).await;
            let state =
                state.map_err(|why| Failure::new(format!("POST /login of {}: {why}", session.user)))?;
            session.set(state);
        }
        Ok(())
    }

    /// Forgets the orders that were made: a disaster took them.
    pub(crate) fn forget_made(&self) {
        lock(&self.made).clear();
    }

    /// The request with this number: the same again for the same seed.
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
        let status = found["status"].as_str().ok_or("GET order: answer without a status")?;
        self.recorder.read(worker, id, status, start, end);
        match found["id"].as_u64() == Some(id) {
            true => Ok(()),
            false => Err("GET order: another order than asked for".to_owned()),
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
            // Refused or failed: it should not have been carried out, but nobody can be sure.
            _ => self.recorder.write(worker, id, status, start, None),
        }
        let answer = expect("PUT payment", answer)?.json();
        self.stats.paid(answer["flow"] == "new");
        match answer["status"] == *status {
            true => Ok(()),
            false => Err("PUT payment: another status than sent".to_owned()),
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
        let id = answer["id"].as_u64().ok_or("POST order: answer without an id")?;
        let status = answer["status"].as_str().ok_or("POST order: answer without a status")?;
        self.recorder.write(worker, id, status, start, Some(self.recorder.now()));
        lock(&self.made).push(id);
        Ok(())
    }

    /// Each visit is counted in the session, so a session that was lost, or fell back, shows.
    async fn visit(&self, session: Turn<'_>) -> Result<(), String> {
        let mut state = session.0.get();
        let who = Who { cookie: state.cookie.as_ref(), ..Who::default() };
        let answer = self.send(Method::GET, "/me", who, None).await;
        if answer.as_ref().is_ok_and(|answer| answer.status == StatusCode::UNAUTHORIZED) {
            self.stats.session_lost();
            let fresh = self.new_session(&session.0.user).await;
            session.0.set(fresh.unwrap_or_default());
        }
        let answer = expect("GET me", answer)?;
        let visits = answer.json()["visits"].as_u64().ok_or("GET me: answer without visits")?;
        let fell_back = visits <= state.visits;
        state.visits = visits;
        state.cookie = answer.cookie.or(state.cookie);
        session.0.set(state);
        if fell_back {
            self.stats.session_lost();
            return Err("GET me: session fell back".to_owned());
        }
        Ok(())
    }

    async fn new_session(&self, user: &str) -> Result<SessionState, String> {
        let answer = self.send(Method::POST, "/login", Who::default(), Some(&json!({ "user": user }))).await;
        let cookie = expect("POST login", answer)?.cookie.ok_or("POST login: answer without a cookie")?;
        let id = cookie.to_str().ok().and_then(|cookie| cookie.split_once('='));
        lock(&self.session_ids).extend(id.map(|(_, id)| id.to_owned()));
        Ok(SessionState { cookie: Some(cookie), visits: 0 })
    }

    /// Four of five times a hot order, and among those the first ones far more often than the last.
    fn an_order(&self, rng: &mut fastrand::Rng) -> u64 {
        let rows = self.orders.len();
        let choice = rng.u8(0..100);
        if choice < 10 {
            let made = lock(&self.made);
            if !made.is_empty() {
                // The newest ones: where a new row goes wrong, it does so early.
                let newest = rng.usize(0..made.len().min(200));
                return made[made.len() - 1 - newest];
            }
        }
        let place = match choice {
            0..80 => {
                let hot = HOT.min(rows);
                let rank = (hot as f64 * rng.f64().powi(2)) as u64;
                // Spread over the whole table, so that the backfill passes hot rows all the time.
                rank * (rows / hot)
            }
            _ => rng.u64(0..rows),
        };
        self.orders.id_at(place)
    }

    fn free_session(&self, rng: &mut fastrand::Rng) -> Option<Turn<'_>> {
        let first = rng.usize(0..self.sessions.len());
        let all = self.sessions[first..].iter().chain(&self.sessions[..first]);
        let mut all = all;
        all.find(|session| !session.is_busy.swap(true, Ordering::Acquire)).map(Turn)
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

/// The right to use a session; the next one may when this is dropped.
struct Turn<'a>(&'a Session);

impl Drop for Turn<'_> {
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

/// Anything but a 2xx has failed, whatever the reason.
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
