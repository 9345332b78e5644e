//! Steps that a person asks for and watches: expand, backfill, verify, contract.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use cutover::ledger::Ledger;
use cutover::migration::admin::{
    AdminError, Difference, MigrationReport, PlanReport, approve, differences, plan, report, set_phase,
};
use cutover::migration::{Desired, Phase};
use serde::Serialize;

use super::screen::Screen;
use super::{Arguments, complain, say, text};

/// Between looks at the ledger.
const LOOK: Duration = Duration::from_millis(500);
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
    /// Who has asked for something else meanwhile, and for what.
    overruled: Option<String>,
    differences: Vec<Difference>,
}

/// Approves the drop and goes to `contract`.
pub(crate) async fn contract(
    ledger: &Ledger,
    arguments: &Arguments,
    go: &Move,
    reason: &str,
) -> Result<ExitCode, AdminError> {
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
) -> Result<ExitCode, AdminError> {
    let now = plan(ledger, &go.migration, to).await?;
    let from: Phase = now.phase.parse().unwrap_or(Phase::Off);
    if let Some(refusal) = out_of_turn(&go.migration, from, to) {
        complain(&format!("cutover: {refusal}"));
        return Ok(ExitCode::from(1));
    }
    if go.dry_run {
        // The work of a phase is a need of the step after it.
        let shown = plan(ledger, &go.migration, last_of(to)).await?;
        say(arguments, &shown, || format!("nothing is asked for: this is a dry run\n{}", text::plan(&shown)));
        return Ok(ExitCode::SUCCESS);
    }
    // Elsewhere asking would be in vain, and the history would say otherwise.
    let elsewhere = now.desired_from.as_deref().filter(|source| *source != "ledger");
    if let Some(source) = elsewhere {
        complain(&format!(
            "cutover: {:?} goes by {source}, not by what is asked for here: set it there{}",
            go.migration,
            if go.no_wait { "" } else { "; waiting until it has been reached (--timeout ends that)" }
        ));
        if go.no_wait {
            return Ok(ExitCode::from(1));
        }
    }
    // From here on no interrupt is lost between two looks.
    let mut interrupt = tokio::spawn(tokio::signal::ctrl_c());
    // In the phase already, it may be about to go back.
    if elsewhere.is_none() && (from != to || turned_back(&now, to).is_some()) {
        set_phase(ledger, &go.migration, to.into(), &arguments.actor).await?;
    }
    if go.no_wait {
        say(arguments, &to.name(), || format!("{}: asked for {to}\n", go.migration));
        return Ok(ExitCode::SUCCESS);
    }
    let began = Instant::now();
    let screen = Screen::new();
    loop {
        let steps = plan(ledger, &go.migration, to).await?;
        let state = report(ledger, Some(&go.migration)).await?.pop();
        let mut outcome = Outcome {
            migration: &go.migration,
            done: is_done(to, &steps),
            seconds: began.elapsed().as_secs_f64(),
            waits_for: steps.waits_for.clone(),
            overruled: turned_back(&steps, to).filter(|_| elsewhere.is_none()),
            differences: Vec::new(),
            phase: steps.phase.clone(),
        };
        if to == Phase::Verify && steps.phase == to.name() && has_objected(&state, began) {
            outcome.differences = differences(ledger, &go.migration, NAMED).await?;
        }
        if outcome.done || outcome.overruled.is_some() || !outcome.differences.is_empty() {
            screen.end();
            say(arguments, &outcome, || ended(&outcome));
            return Ok(ExitCode::from(u8::from(!outcome.done)));
        }
        screen.show(&state, elsewhere);
        let left = go.timeout.map(|limit| limit.saturating_sub(began.elapsed()));
        let is_over = tokio::select! {
            () = tokio::time::sleep(LOOK.min(left.unwrap_or(LOOK))) => left.is_some_and(|left| left.is_zero()),
            _ = &mut interrupt => true,
        };
        if is_over {
            screen.end();
            say(arguments, &outcome, || {
                format!("{}: not done yet; it goes on (see `cutover status`)\n", go.migration)
            });
            return Ok(ExitCode::from(4));
        }
    }
}

/// Who wants it somewhere before `to` by now, in words.
fn turned_back(now: &PlanReport, to: Phase) -> Option<String> {
    let desired: Desired = now.desired.as_ref()?.parse().ok()?;
    let by = now.desired_by.as_deref().unwrap_or("somebody");
    (desired.phase < to).then(|| format!("{by} has asked for `{desired}`"))
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

fn is_done(to: Phase, steps: &PlanReport) -> bool {
    match steps.phase.parse::<Phase>() {
        // Whoever has asked for more has had this before it.
        Ok(phase) if phase > to => true,
        Ok(phase) if phase == to => match to {
            Phase::Backfill => steps.new_complete,
            Phase::Verify => steps.scanned,
            Phase::Contract => steps.dropped,
            _ => true,
        },
        _ => false,
    }
}

/// Whether a scan that ended since has found differences.
fn has_objected(state: &Option<MigrationReport>, began: Instant) -> bool {
    let work = state.as_ref().and_then(|state| state.work.as_ref());
    work.is_some_and(|work| {
        let is_new = work.ended_seconds.is_some_and(|ago| ago < began.elapsed().as_secs_f64());
        work.kind == "scan" && work.differences > 0 && is_new
    })
}

fn ended(outcome: &Outcome) -> String {
    let Outcome { migration, phase, done, overruled, differences, .. } = outcome;
    match overruled {
        _ if *done => format!("{migration}: done, in `{phase}`\n"),
        Some(overruled) => {
            format!(
                "{migration}: in `{phase}`, and {overruled} meanwhile (see `cutover history {migration}`)\n"
            )
        }
        None => format!("{migration}: the sides differ\n{}", text::differences(differences)),
    }
}
