//! Steps that a person asks for and watches: expand, backfill, verify, contract.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cutover::fleet::Ledger;
use cutover::migration::Phase;
use cutover::migration::control::{
    AskError, Difference, MigrationReport, PlanReport, approve, desire, differences, plan, report,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::{Arguments, say, text};

/// Between looks at the ledger.
const LOOK: Duration = Duration::from_millis(500);
/// Between lines where there is no terminal.
const LINE: Duration = Duration::from_secs(10);
/// Differences that are named.
const NAMED: u32 = 20;

#[derive(clap::Args)]
pub(crate) struct Move {
    /// `name` or `fleet/name`
    pub(crate) migration: String,
    /// Show what would be asked for, what has to hold and the statements; change nothing
    #[arg(long, conflicts_with = "no_wait")]
    dry_run: bool,
    /// Ask for it and return at once
    #[arg(long)]
    no_wait: bool,
    /// Stop waiting after this long, with exit status 4; what was asked for goes on
    #[arg(long, value_parser = text::duration)]
    timeout: Option<Duration>,
}

/// What became of it.
#[derive(Serialize)]
struct Outcome<'a> {
    migration: &'a str,
    phase: String,
    done: bool,
    seconds: f64,
    waits_for: Option<String>,
    differences: Vec<Difference>,
}

/// Approves the drop and goes to `contract`.
pub(crate) async fn contract(
    ledger: &Ledger,
    arguments: &Arguments,
    go: &Move,
    reason: &str,
) -> Result<ExitCode, AskError> {
    let is_ahead = plan(ledger, &go.migration, Phase::Contract).await?.phase == Phase::Retire.name();
    if is_ahead && !go.dry_run {
        approve(ledger, &go.migration, &arguments.actor, reason).await?;
    }
    run(ledger, arguments, go, Phase::Contract).await
}

/// Goes to `to`, which has to be the next step, and waits until what belongs to it is done.
pub(crate) async fn run(
    ledger: &Ledger,
    arguments: &Arguments,
    go: &Move,
    to: Phase,
) -> Result<ExitCode, AskError> {
    let now = plan(ledger, &go.migration, to).await?;
    let from: Phase = now.phase.parse().unwrap_or(Phase::Off);
    if let Some(refusal) = out_of_turn(&go.migration, from, to) {
        eprintln!("cutover: {refusal}");
        return Ok(ExitCode::from(1));
    }
    if go.dry_run {
        // The work of a phase is a need of the step after it.
        let shown = plan(ledger, &go.migration, last_of(to)).await?;
        say(arguments, &shown, || format!("nothing is asked for: this is a dry run\n{}", text::plan(&shown)));
        return Ok(ExitCode::SUCCESS);
    }
    if from != to {
        desire(ledger, &go.migration, to.into(), &arguments.actor).await?;
    }
    if go.no_wait {
        say(arguments, &to.name(), || format!("{}: asked for {to}\n", go.migration));
        return Ok(ExitCode::SUCCESS);
    }
    let began = Instant::now();
    let screen = Screen::new();
    loop {
        let (steps, state) = look(ledger, &go.migration, to).await?;
        let found = found(ledger, &go.migration, to, &steps, &state, began).await?;
        let done = is_done(to, &steps);
        if done || !found.is_empty() {
            screen.end();
            let outcome = outcome(&go.migration, &state, done, began, found);
            say(arguments, &outcome, || ended(&outcome));
            return Ok(ExitCode::from(u8::from(!done)));
        }
        screen.show(&state);
        let left = go.timeout.map(|limit| limit.saturating_sub(began.elapsed()));
        let is_over = tokio::select! {
            () = tokio::time::sleep(LOOK.min(left.unwrap_or(LOOK))) => left.is_some_and(|left| left.is_zero()),
            _ = tokio::signal::ctrl_c() => true,
        };
        if is_over {
            screen.end();
            let outcome = outcome(&go.migration, &state, false, began, Vec::new());
            say(arguments, &outcome, || {
                format!("{}: not done yet; it goes on (see `cutover status`)\n", go.migration)
            });
            return Ok(ExitCode::from(4));
        }
    }
}

/// Why this step is not the one to ask for now.
fn out_of_turn(name: &str, from: Phase, to: Phase) -> Option<String> {
    if from == to || from.towards(to) == Some(to) && from < to {
        return None;
    }
    Some(match to < from {
        true => format!(
            "migration {name:?} is in `{from}`, past `{to}`; `cutover desired {name} {to}` would go back"
        ),
        false => {
            let next = from.towards(to).unwrap_or(to);
            let how = match next {
                Phase::Expand | Phase::Backfill | Phase::Verify => format!("cutover {next} {name}"),
                _ => format!("cutover desired {name} {next}"),
            };
            format!("migration {name:?} is in `{from}`: `{how}` comes before `{to}`")
        }
    })
}

/// The step of which the work that is done in `to` is a need.
fn last_of(to: Phase) -> Phase {
    match to {
        Phase::Backfill => Phase::Verify,
        Phase::Verify => Phase::Ramp,
        other => other,
    }
}

async fn look(
    ledger: &Ledger,
    name: &str,
    to: Phase,
) -> Result<(PlanReport, Option<MigrationReport>), AskError> {
    let steps = plan(ledger, name, to).await?;
    Ok((steps, report(ledger, Some(name)).await?.pop()))
}

fn is_done(to: Phase, steps: &PlanReport) -> bool {
    steps.phase == to.name()
        && match to {
            Phase::Backfill => steps.new_complete,
            Phase::Verify => steps.scanned,
            Phase::Contract => steps.dropped,
            _ => true,
        }
}

/// What a scan that ended since has objected to.
async fn found(
    ledger: &Ledger,
    name: &str,
    to: Phase,
    steps: &PlanReport,
    state: &Option<MigrationReport>,
    began: Instant,
) -> Result<Vec<Difference>, AskError> {
    let work = state.as_ref().and_then(|state| state.work.as_ref());
    let has_ended = work.is_some_and(|work| {
        let is_new = work.ended_seconds.is_some_and(|ago| ago < began.elapsed().as_secs_f64());
        work.kind == "scan" && work.differences > 0 && is_new
    });
    if to == Phase::Verify && steps.phase == to.name() && has_ended {
        return differences(ledger, name, NAMED).await;
    }
    Ok(Vec::new())
}

fn outcome<'a>(
    migration: &'a str,
    state: &Option<MigrationReport>,
    done: bool,
    began: Instant,
    differences: Vec<Difference>,
) -> Outcome<'a> {
    let state = state.as_ref();
    Outcome {
        migration,
        phase: state.map(|state| state.phase.clone()).unwrap_or_default(),
        done,
        seconds: began.elapsed().as_secs_f64(),
        waits_for: state.and_then(|state| state.waits_for.clone()),
        differences,
    }
}

fn ended(outcome: &Outcome) -> String {
    let Outcome { migration, phase, done, differences, .. } = outcome;
    if *done {
        return format!("{migration}: done, in `{phase}`\n");
    }
    format!("{migration}: the sides differ\n{}", text::differences(differences))
}

/// What is going on, on the terminal or in a line now and then.
struct Screen {
    bar: ProgressBar,
    said: std::cell::Cell<Option<Instant>>,
}

impl Screen {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:30} {msg}") {
            bar.set_style(style);
        }
        Self { bar, said: std::cell::Cell::new(None) }
    }

    fn show(&self, state: &Option<MigrationReport>) {
        let Some(state) = state else { return };
        let work = state.work.as_ref().filter(|work| !work.finished);
        let mut line = format!("{} in `{}`", state.name, state.phase);
        if let Some(work) = work {
            self.bar.set_length(work.rows_total.unsigned_abs());
            self.bar.set_position(work.rows_done.unsigned_abs());
            line += &format!("; {}", text::progress(work));
        }
        if state.driver.is_none() {
            line += "; no instance drives it: does the service run, with this migration declared?";
        } else if let Some(waits) = &state.waits_for {
            line += &format!("; waits: {waits}");
        }
        if std::io::stderr().is_terminal() {
            self.bar.set_message(line);
            self.bar.tick();
        } else if self.said.get().is_none_or(|said| said.elapsed() >= LINE) {
            eprintln!("{line}");
            self.said.set(Some(Instant::now()));
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
