//! Reads the ledger once for all viewers, and not at all without one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;

use super::charts::Charts;
use super::sides::{SideNumbers, SideSource};
use super::{Database, pages};
use crate::migration::admin::{AdminError, Details, MigrationReport, PlanReport, details, report};

const POLL: Duration = Duration::from_secs(2);
/// How often the slow part is read, if no change of the fast part calls for it.
const SLOW_POLL: Duration = Duration::from_secs(15);
/// Rows of a table.
const SHOWN_ROWS: u32 = 20;
/// How long the list waits for one of several ledgers.
const LEDGER_LIMIT: Duration = Duration::from_secs(5);

/// Prometheus has a new sample only after each scrape.
const SIDES_POLL: Duration = Duration::from_secs(5);

/// What a topic shows; `None` before the first read.
type State = Option<Shown>;

/// A part of a page that is replaced when it changes.
#[derive(Clone, Default)]
pub struct Shown {
    /// As HTML.
    pub html: Arc<str>,
    /// The status of a page with this part.
    pub status: StatusCode,
    /// The steps ahead of the migration that is shown.
    pub plan: Option<Arc<PlanReport>>,
}

/// One migration of one of the ledgers.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Topic {
    /// The position of its ledger.
    pub ledger: usize,
    /// `fleet/name`.
    pub name: String,
}

/// What the pages show. All viewers of a topic share one reader.
#[derive(Clone)]
pub struct Feed {
    databases: Arc<[Database]>,
    /// Where the numbers of both sides come from, if they are anywhere.
    sides: Option<SideSource>,
    /// Only migrations of this fleet are shown.
    fleet: Option<Arc<str>>,
    /// Those that an open page shows; `None` is the list of all migrations.
    topics: Arc<Mutex<HashMap<Option<Topic>, watch::Sender<State>>>>,
}

impl Feed {
    /// The migrations of these databases.
    pub fn new(databases: Arc<[Database]>) -> Self {
        Self { databases, sides: None, fleet: None, topics: Arc::default() }
    }

    /// Shows the numbers of both sides from this source, too.
    #[must_use]
    pub fn with_sides(self, sides: Option<SideSource>) -> Self {
        Self { sides, ..self }
    }

    /// The migrations of one fleet.
    pub fn of_fleet(database: Database, fleet: &str) -> Self {
        Self { fleet: Some(fleet.into()), ..Self::new(Arc::new([database])) }
    }

    /// The present state.
    pub async fn now(&self, topic: Option<&Topic>) -> Shown {
        let mut states = self.subscribe(topic);
        match states.wait_for(Option::is_some).await {
            Ok(state) => state.clone().unwrap_or_default(),
            Err(_) => Shown::default(),
        }
    }

    /// The states from now on. The first viewer of a topic starts its reader, and the last one ends it.
    pub fn subscribe(&self, topic: Option<&Topic>) -> watch::Receiver<State> {
        let topic = topic.cloned();
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = topics.get(&topic) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        topics.insert(topic.clone(), sender.clone());
        tokio::spawn(self.clone().read(topic, sender));
        receiver
    }

    async fn read(self, topic: Option<Topic>, sender: watch::Sender<State>) {
        let mut reader = Reader::default();
        loop {
            let shown = match &topic {
                None => self.all().await,
                Some(topic) => reader.read(&self, topic).await,
            };
            let now = shown.unwrap_or_else(|error| {
                let ledger = topic.as_ref().map_or(0, |topic| topic.ledger);
                let problem =
                    self.databases.get(ledger).map_or_else(|| error.to_string(), |one| one.describe(&error));
                let html = pages::problem(&problem).into_string().into();
                Shown { html, status: status(&error), plan: None }
            });
            sender.send_if_modified(|shown| {
                let is_new = shown.as_ref().is_none_or(|shown| shown.html != now.html);
                *shown = Some(now);
                is_new
            });
            tokio::time::sleep(POLL).await;
            let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
            // Subscriptions are made under this lock, so none is missed.
            if sender.receiver_count() == 0 {
                topics.remove(&topic);
                return;
            }
        }
    }
}

impl Feed {
    /// The migrations of all ledgers. One that cannot be reached is shown as such beside the others.
    async fn all(&self) -> Result<Shown, AdminError> {
        let reads = self.databases.iter().map(|database| async move {
            let read = async { report(database.ledger().await?, None).await };
            (database, timeout(LEDGER_LIMIT, read).await)
        });
        let mut shown = Vec::new();
        for (database, result) in join_all(reads).await {
            match (database.name.as_deref(), result) {
                (None, Ok(Err(error))) => return Err(error),
                (name, Ok(result)) => {
                    let is_shown = |report: &MigrationReport| {
                        self.fleet.as_ref().is_none_or(|fleet| **fleet == report.fleet)
                    };
                    let result = result.map(|reports| reports.into_iter().filter(is_shown).collect());
                    shown.push((name, result.map_err(|error| database.describe(&error))));
                }
                (name, Err(_)) => shown.push((name, Err(format!("no answer within {LEDGER_LIMIT:?}")))),
            }
        }
        let html = pages::ledgers(&shown).into_string().into();
        Ok(Shown { html, ..Shown::default() })
    }
}

/// The state of a topic between two reads.
#[derive(Default)]
struct Reader {
    details: Details,
    /// When the details were read, and for which state.
    read: Option<(Instant, String)>,
    sides: Option<(Instant, Result<SideNumbers, String>)>,
    charts: Charts,
}

impl Reader {
    async fn read(&mut self, feed: &Feed, topic: &Topic) -> Result<Shown, AdminError> {
        let (ledger, name) = (feed.databases[topic.ledger].ledger().await?, &*topic.name);
        let reports = report(ledger, Some(name)).await?;
        let Some(found) = reports.first() else { return Ok(Shown::default()) };
        let state = state(found);
        let is_due = self.read.as_ref().is_none_or(|(at, seen)| at.elapsed() >= SLOW_POLL || *seen != state);
        if is_due {
            self.details = details(ledger, name, SHOWN_ROWS).await?;
            self.charts.add_writers(&self.details.external_writes);
            self.read = Some((Instant::now(), state));
        }
        self.charts.add_rows(found);
        if let Some(source) = &feed.sides {
            self.read_sides(source, found).await;
        }
        let sides = self.sides.as_ref().map(|(_, sides)| sides);
        let html = pages::one(found, &self.details, &self.charts, sides).into_string().into();
        Ok(Shown { html, status: StatusCode::OK, plan: self.details.plan.clone() })
    }

    /// Reads the numbers of both sides in phases that have two.
    async fn read_sides(&mut self, source: &SideSource, report: &MigrationReport) {
        if !pages::has_two_sides(report) {
            self.sides = None;
        } else if self.sides.as_ref().is_none_or(|(at, _)| at.elapsed() >= SIDES_POLL) {
            self.sides = Some((Instant::now(), source(report.name.clone()).await));
        }
    }
}

/// A text that differs when the slow part is likely to have changed.
fn state(report: &MigrationReport) -> String {
    let MigrationReport { epoch, desired, waits_for, paused_by, work, .. } = report;
    let work = work.as_ref().map(|work| (&work.kind, work.finished));
    format!("{epoch} {desired:?} {waits_for:?} {paused_by:?} {work:?}")
}

/// The status of a response that shows this error.
pub fn status(error: &AdminError) -> StatusCode {
    match error {
        AdminError::UnknownMigration { .. } | AdminError::Ambiguous { .. } => StatusCode::NOT_FOUND,
        AdminError::Ledger(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    }
}
