//! Commands that ask for a step and wait until it is done, from `expand` to `contract`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use cutover::ledger::{Ledger, LedgerError};
use cutover::migration::admin::{
    Actor, AdminError, Difference, MigrationReport, PlanReport, approve, differences, plan, report, set_phase,
};
use cutover::migration::phase::Percent;
use cutover::migration::{Desired, Phase};
use serde::Serialize;
use tokio::task::JoinHandle;

use super::arguments::Arguments;
use super::progress::Progress;
use super::{complain, failed, say, text};

const POLL: Duration = Duration::from_millis(500);
/// How many differences are shown.
const SHOWN_DIFFERENCES: u32 = 20;

#[derive(clap::Args)]
pub(crate) struct Step {
    /// The migration: `name` or `fleet/name`
    pub(crate) migration: String,
    /// Show the step, what it requires and its SQL; change nothing
    #[arg(long, conflicts_with = "no_wait")]
    pub(crate) dry_run: bool,
    /// Set the desired phase and return without waiting
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Stop waiting after this long, with exit status 4; the step itself continues. For example 90s, 5m or 1h30m
    #[arg(long, value_parser = text::duration, value_name = "DURATION")]
    pub(crate) timeout: Option<Duration>,
    /// Why, for the history
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) reason: String,
}

#[derive(Serialize)]
struct Outcome<'a> {
    migration: &'a str,
    phase: String,
    ramp_percent: Option<i16>,
    done: bool,
    seconds: f64,
    waits_for: Option<String>,
    /// Who has set another desired phase since, and which.
    overruled: Option<String>,
    differences: Vec<Difference>,
}

/// A wait that ends after a time limit or by Ctrl-C.
pub(crate) struct Wait {
    began: Instant,
    limit: Option<Duration>,
    interrupt: JoinHandle<std::io::Result<()>>,
}

impl Wait {
    /// Create it before the first poll, so that no interrupt is missed.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        Self { began: Instant::now(), limit, interrupt: tokio::spawn(tokio::signal::ctrl_c()) }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Pauses before the next poll. Returns whether the wait is over instead.
    pub(crate) async fn is_over(&mut self) -> bool {
        let left = self.limit.map(|limit| limit.saturating_sub(self.began.elapsed()));
        tokio::select! {
            () = tokio::time::sleep(POLL.min(left.unwrap_or(POLL))) => left.is_some_and(|left| left.is_zero()),
            _ = &mut self.interrupt => true,
        }
    }
}

/// How long a wait goes on while the ledger does not answer, as during a failover.
const OUTAGE_LIMIT: Duration = Duration::from_secs(60);

/// Since when the ledger does not answer.
#[derive(Default)]
pub(crate) struct Outage(Option<Instant>);

impl Outage {
    /// What the ledger answered; `None` if it is to be asked again.
    pub(crate) fn tolerate<T>(&mut self, answer: Result<T, AdminError>) -> Result<Option<T>, AdminError> {
        let error = match answer {
            Ok(answer) => {
                self.0 = None;
                return Ok(Some(answer));
            }
            Err(error) => error,
        };
        let is_outage = matches!(
            error,
            AdminError::Ledger(
                LedgerError::Database(_) | LedgerError::Timeout { .. } | LedgerError::ReadOnly
            )
        );
        match self.0 {
            Some(since) if is_outage && since.elapsed() < OUTAGE_LIMIT => Ok(None),
            None if is_outage => {
                self.0 = Some(Instant::now());
                complain(&format!(
                    "cutover: the ledger does not answer, and is asked again for {} s: {error}",
                    OUTAGE_LIMIT.as_secs()
                ));
                Ok(None)
            }
            _ => Err(error),
        }
    }

    /// Reports that the wait ended without an answer.
    pub(crate) fn ended(name: &str) -> ExitCode {
        complain(&format!(
            "cutover: the ledger does not answer; the step continues; `cutover status {name}` shows its progress"
        ));
        ExitCode::from(4)
    }
}

/// Approves the drop and moves to `contract`.
pub(crate) async fn contract(
    ledger: &Ledger,
    arguments: &Arguments,
    actor: &str,
    step: &Step,
) -> Result<ExitCode, AdminError> {
    let is_next = plan(ledger, &step.migration, Phase::Contract).await?.phase == Phase::Retire.name();
    if is_next && !step.dry_run {
        approve(ledger, &step.migration, Actor::with_reason(actor, &step.reason)).await?;
    }
    run(ledger, arguments, actor, step, Phase::Contract.into()).await
}

/// Moves to `to`, which must be the current or the next phase, and waits until the work of that phase is done.
pub(crate) async fn run(
    ledger: &Ledger,
    arguments: &Arguments,
    actor: &str,
    step: &Step,
    desired: Desired,
) -> Result<ExitCode, AdminError> {
    let (name, to) = (&step.migration, desired.phase);
    let now = plan(ledger, name, to).await?;
    let from: Phase = now.phase.parse().unwrap_or(Phase::Off);
    if let Some(refusal) = not_next(name, from, to) {
        failed(arguments, &refusal);
        return Ok(ExitCode::from(1));
    }
    if step.dry_run {
        // The step after `to` requires the work that runs in `to`.
        let shown = plan(ledger, name, after_work_of(to)).await?;
        say(arguments, &shown, || format!("dry run: nothing is changed\n{}", text::plan(&shown)));
        return Ok(ExitCode::SUCCESS);
    }
    // Where a flag decides, setting the phase here would have no effect, and the history would suggest otherwise.
    let flag = now.desired_from.as_deref().filter(|source| *source != "ledger");
    if let Some(flag) = flag {
        let text = format!(
            "the service takes the desired phase of {name:?} from {flag}; set it to `{desired}` there"
        );
        if step.no_wait {
            failed(arguments, &text);
            return Ok(ExitCode::from(1));
        }
        complain(&format!("cutover: {text} (waiting until the phase is reached)"));
    }
    let mut wait = Wait::new(step.timeout);
    // In `to` already, it may be on its way back.
    let wanted: Option<Desired> = now.desired.as_deref().and_then(|text| text.parse().ok());
    let has_percent = to == Phase::Ramp
        && wanted.is_none_or(|wanted| wanted != desired)
        && (desired.ramp != Percent::ALL || wanted.is_some_and(|wanted| wanted.phase == to));
    let is_set = flag.is_none() && (from != to || has_percent || overruled(&now, to).is_some());
    if is_set {
        set_phase(ledger, name, desired, Actor::with_reason(actor, &step.reason)).await?;
    }
    if step.no_wait {
        say(arguments, &desired.to_string(), || format!("{name}: desired phase set to {desired}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let percent = (is_set && to == Phase::Ramp).then(|| desired.ramp.get());
    let (progress, mut outage) = (Progress::new(), Outage::default());
    loop {
        let look = async { Ok((plan(ledger, name, to).await?, report(ledger, Some(name)).await?.pop())) };
        let Some((steps, state)) = outage.tolerate(look.await)? else {
            if wait.is_over().await {
                progress.end();
                return Ok(Outage::ended(name));
            }
            continue;
        };
        let mut outcome = Outcome {
            migration: name,
            done: is_done(to, percent, &steps),
            seconds: wait.seconds(),
            waits_for: steps.waits_for.clone(),
            overruled: overruled(&steps, to).filter(|_| flag.is_none()),
            differences: Vec::new(),
            phase: steps.phase.clone(),
            ramp_percent: steps.ramp_percent,
        };
        if to == Phase::Verify && steps.phase == to.name() && found_differences(&state, wait.seconds()) {
            outcome.differences = differences(ledger, name, SHOWN_DIFFERENCES).await?;
        }
        if outcome.done || outcome.overruled.is_some() || !outcome.differences.is_empty() {
            progress.end();
            say(arguments, &outcome, || ended(&outcome));
            return Ok(ExitCode::from(u8::from(!outcome.done)));
        }
        progress.show(&state, flag);
        if wait.is_over().await {
            progress.end();
            say(arguments, &outcome, || {
                let blocked = outcome
                    .waits_for
                    .as_ref()
                    .map(|text| format!("; it waits for: {text}"))
                    .unwrap_or_default();
                format!(
                    "{name}: not done yet{blocked}\nthe step continues; `cutover status {name}` shows its progress\n"
                )
            });
            return Ok(ExitCode::from(4));
        }
    }
}

/// Who has set a desired phase before `to`, and which.
fn overruled(now: &PlanReport, to: Phase) -> Option<String> {
    let desired: Desired = now.desired.as_ref()?.parse().ok()?;
    let by = now.desired_by.as_deref().unwrap_or("a statement on cutover.migrations");
    (desired.phase < to).then(|| format!("{by} has set the desired phase to `{desired}`"))
}

/// Why the step to `to` cannot be made from `from`.
fn not_next(name: &str, from: Phase, to: Phase) -> Option<String> {
    if from == to || (from < to && from.towards(to) == Some(to)) {
        return None;
    }
    if to < from {
        return Some(format!(
            "migration {name:?} is in `{from}`, past `{to}`; to go back, run `cutover set-phase {name} {to}`"
        ));
    }
    let next = from.towards(to).unwrap_or(to);
    Some(format!("migration {name:?} is in `{from}`; before `{to}`, run `cutover {next} {name}`"))
}

/// The phase whose step requires the work that runs in `to`.
fn after_work_of(to: Phase) -> Phase {
    match to {
        Phase::Backfill => Phase::Verify,
        Phase::Verify => Phase::Ramp,
        other => other,
    }
}

/// Whether the step to `to` is done. `percent`: the part of the keys that is read from the new side, if that was set.
fn is_done(to: Phase, percent: Option<u8>, steps: &PlanReport) -> bool {
    match steps.phase.parse::<Phase>() {
        // A later phase requires that this one is done.
        Ok(phase) if phase > to => true,
        Ok(phase) if phase == to => match to {
            Phase::Backfill => steps.new_complete,
            Phase::Verify => steps.scanned,
            Phase::Ramp => percent.is_none_or(|percent| steps.ramp_percent == Some(percent.into())),
            Phase::Contract => steps.ended_as.as_deref() == Some("finished"),
            _ => true,
        },
        _ => false,
    }
}

/// Whether a scan that ended within the last `seconds` found differences.
fn found_differences(state: &Option<MigrationReport>, seconds: f64) -> bool {
    let work = state.as_ref().and_then(|state| state.work.as_ref());
    work.is_some_and(|work| {
        let is_new = work.ended_seconds.is_some_and(|ago| ago < seconds);
        work.kind == "scan" && work.differences > 0 && is_new
    })
}

fn ended(outcome: &Outcome) -> String {
    let Outcome { migration, done, overruled, differences, .. } = outcome;
    let phase = text::phase(&outcome.phase, outcome.ramp_percent);
    match overruled {
        _ if *done => format!("{migration}: done, in `{phase}`\n"),
        Some(overruled) => format!(
            "{migration}: in `{phase}`; no longer waiting, because {overruled} (see `cutover history {migration}`)\n"
        ),
        None => format!("{migration}: the sides differ in these rows\n{}", text::differences(differences)),
    }
}
