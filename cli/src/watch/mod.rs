//! `cutover status --watch`: a live picture on a terminal, otherwise one report after the other.

mod draw;
mod traffic;

use std::collections::{HashMap, VecDeque};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cutover::migration::admin::{AdminError, MigrationReport, report};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use crate::arguments::Arguments;
use crate::ledgers::{Database, code};
use crate::{complain, failed, print, printable, text};
use traffic::{Sample, Traffic};

const POLL: Duration = Duration::from_secs(1);
/// How long it waits for a ledger before it shows it as unreachable.
const LEDGER_LIMIT: Duration = Duration::from_secs(5);
/// Samples of a sparkline.
const SAMPLES: usize = 120;

#[derive(clap::Args)]
pub(crate) struct Watch {
    /// Refresh every second until interrupted. On a terminal: arrow keys scroll, `q` ends it
    #[arg(long)]
    pub(crate) watch: bool,
    /// With --watch: the Prometheus server that scrapes the service, to show requests, errors and latency
    #[arg(long, env = "PROMETHEUS_URL", hide_env_values = true, value_name = "URL")]
    prometheus: Option<String>,
    /// With --prometheus: a matcher for all series, such as 'service="payments"'; repeatable
    #[arg(long = "match", value_name = "MATCHER", requires = "prometheus")]
    matchers: Vec<String>,
}

/// The migrations of one ledger, or why it cannot be reached.
struct Shown {
    ledger: Option<String>,
    reports: Result<Vec<MigrationReport>, Problem>,
}

/// Why a ledger cannot be shown, with the exit status.
struct Problem {
    text: String,
    code: u8,
}

/// The latest values of something, oldest first.
type Series = VecDeque<u64>;

/// What the picture shows.
#[derive(Default)]
struct Picture {
    ledgers: Vec<Shown>,
    /// Rows per second of each migration, by its full name.
    rows: HashMap<String, Series>,
    /// The rows that were done at the last read.
    last_rows: HashMap<String, (Instant, i64)>,
    traffic: Option<Result<Vec<Sample>, String>>,
    scroll: u16,
}

pub(crate) async fn run(
    databases: &[Database],
    arguments: &Arguments,
    migration: Option<&str>,
    watch: &Watch,
) -> ExitCode {
    let traffic = match watch
        .prometheus
        .as_deref()
        .filter(|url| !url.is_empty())
        .map(|url| Traffic::new(url, watch.matchers.clone()))
    {
        None => None,
        Some(Ok(traffic)) => Some(traffic),
        Some(Err(problem)) => {
            complain(&format!("cutover: --prometheus: {problem}"));
            return ExitCode::from(2);
        }
    };
    if arguments.json || !std::io::stdout().is_terminal() {
        return lines(databases, arguments, migration).await;
    }
    // A wrong name or a ledger that is not installed is reported without a picture.
    let first = look(databases, migration).await;
    if let [Shown { reports: Err(problem), .. }] = &first[..] {
        failed(arguments, &problem.text);
        return ExitCode::from(problem.code);
    }
    let mut picture = Picture::default();
    picture.update(first);
    let mut terminal = match ratatui::try_init() {
        Ok(terminal) => terminal,
        Err(error) => {
            complain(&format!(
                "cutover: cannot draw on this terminal: {error}; `cutover status --watch | cat` prints lines"
            ));
            return ExitCode::from(1);
        }
    };
    let ended = live(&mut terminal, &mut picture, databases, migration, traffic).await;
    ratatui::restore();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        // The terminal has gone away.
        Err(_) => ExitCode::SUCCESS,
    }
}

/// One report after the other, until the reader is gone.
async fn lines(databases: &[Database], arguments: &Arguments, migration: Option<&str>) -> ExitCode {
    loop {
        let shown = look(databases, migration).await;
        for one in shown {
            let is_only = one.ledger.is_none();
            let text = match (&one.reports, arguments.json) {
                (Err(problem), _) if is_only => {
                    failed(arguments, &problem.text);
                    return ExitCode::from(problem.code);
                }
                (Ok(reports), true) if is_only => serde_json::to_string(reports).unwrap_or_default(),
                (Ok(reports), true) => {
                    serde_json::json!({"ledger": one.ledger, "result": reports}).to_string()
                }
                (Err(problem), true) => {
                    serde_json::json!({"ledger": one.ledger, "error": cutover::redact(&problem.text)})
                        .to_string()
                }
                (Ok(reports), false) => heading(&one) + &text::status(reports),
                (Err(problem), false) => format!("{}  {}\n", heading(&one), cutover::redact(&problem.text)),
            };
            // JSON has no control characters but line ends.
            if !print(&printable(&format!("{text}\n"))) {
                return ExitCode::SUCCESS;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn heading(one: &Shown) -> String {
    one.ledger.as_ref().map(|name| format!("ledger {name}\n")).unwrap_or_default()
}

async fn look(databases: &[Database], migration: Option<&str>) -> Vec<Shown> {
    let looks = databases.iter().map(|database| async {
        let read = async { report(database.ledger().await?, migration).await };
        let problem = |error: AdminError| Problem { text: database.describe(&error), code: code(&error) };
        Shown { ledger: database.name.clone(), reports: read.await.map_err(problem) }
    });
    futures_util::future::join_all(looks).await
}

/// Draws until a key ends it.
async fn live(
    terminal: &mut ratatui::DefaultTerminal,
    picture: &mut Picture,
    databases: &[Database],
    migration: Option<&str>,
    mut traffic: Option<Traffic>,
) -> std::io::Result<()> {
    let mut keys = keys();
    let mut tick = tokio::time::interval(POLL);
    loop {
        terminal.draw(|frame| draw::draw(picture, frame))?;
        tokio::select! {
            key = keys.recv() => match key {
                None => return Ok(()),
                Some(key) if ends(key) => return Ok(()),
                Some(key) => picture.scroll = match key.code {
                    KeyCode::Down | KeyCode::Char('j') => picture.scroll.saturating_add(1),
                    KeyCode::PageDown | KeyCode::Char(' ') => picture.scroll.saturating_add(10),
                    KeyCode::Up | KeyCode::Char('k') => picture.scroll.saturating_sub(1),
                    KeyCode::PageUp => picture.scroll.saturating_sub(10),
                    _ => picture.scroll,
                },
            },
            _ = tick.tick() => {
                match tokio::time::timeout(LEDGER_LIMIT, look(databases, migration)).await {
                    Ok(shown) => picture.update(shown),
                    // The state stays on the screen; the next read reports the ledger's own error.
                    Err(_) => continue,
                }
                if let Some(traffic) = &mut traffic {
                    picture.traffic = Some(traffic.read().await);
                }
            }
        }
    }
}

fn ends(key: KeyEvent) -> bool {
    let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

/// Key presses; a change of the terminal's size arrives as a key without an effect.
///
/// The runtime would wait for a blocking task of its own. A read can go on after the last key: when the terminal is restored,
/// what was typed after that key is discarded, although it was announced.
fn keys() -> mpsc::Receiver<KeyEvent> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(Duration::from_millis(100)) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(_) => return,
            }
            let key = match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => key,
                Ok(Event::Resize(..)) => KeyEvent::new(KeyCode::Null, KeyModifiers::NONE),
                Ok(_) => continue,
                Err(_) => return,
            };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    receiver
}

fn full_name(ledger: Option<&str>, report: &MigrationReport) -> String {
    let ledger = ledger.map(|name| format!("{name}: ")).unwrap_or_default();
    format!("{ledger}{}/{}", report.fleet, report.name)
}

impl Picture {
    fn update(&mut self, shown: Vec<Shown>) {
        for one in &shown {
            for report in one.reports.iter().flatten() {
                self.sample(full_name(one.ledger.as_deref(), report), report);
            }
        }
        self.ledgers = shown;
    }

    /// Adds the rows per second since the last read.
    fn sample(&mut self, name: String, report: &MigrationReport) {
        let done = report.work.as_ref().filter(|work| !work.finished).map(|work| work.rows_done);
        let rate = match (done, self.last_rows.get(&name)) {
            (Some(done), Some((at, last))) => {
                (done - last).max(0) as f64 / at.elapsed().as_secs_f64().max(0.001)
            }
            _ => 0.0,
        };
        match done {
            Some(done) => _ = self.last_rows.insert(name.clone(), (Instant::now(), done)),
            None => _ = self.last_rows.remove(&name),
        }
        push(self.rows.entry(name).or_default(), rate);
    }
}

fn push(series: &mut Series, value: f64) {
    series.push_back(value.max(0.0).round() as u64);
    series.drain(..series.len().saturating_sub(SAMPLES));
}
