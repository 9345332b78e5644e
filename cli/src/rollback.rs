//! `cutover rollback`: back to reading only the old side.

use std::fmt::Write;
use std::process::ExitCode;

use cutover::console::text::reverse_backfill;
use cutover::ledger::Ledger;
use cutover::migration::admin::{Actor, AdminError, RollbackReport, RollbackStep, report, rollback};
use cutover::migration::{Desired, Phase};
use serde::Serialize;

use super::arguments::Arguments;
use super::progress::Progress;
use super::step::{Outage, Step, Wait};
use super::text;
use super::{complain, print, printable, say};

#[derive(Serialize)]
struct Outcome<'a> {
    migration: &'a str,
    from: &'a str,
    phase: String,
    to: &'a str,
    done: bool,
    seconds: f64,
    waits_for: Option<String>,
    /// Who has set a later phase since, and which.
    overruled: Option<String>,
    /// The way back as it was at the start.
    steps: &'a [RollbackStep],
}

/// Shows the way back, sets the desired phase and waits until every instance reads only the old side.
pub(crate) async fn run(
    ledger: &Ledger,
    arguments: &Arguments,
    actor: &str,
    step: &Step,
) -> Result<ExitCode, AdminError> {
    let name = &step.migration;
    let by = Actor::with_reason(actor, &step.reason);
    let mut wait = Wait::new(step.timeout);
    let start = rollback(ledger, name, by, step.dry_run).await?;
    if step.dry_run {
        say(arguments, &start, || format!("dry run: nothing is changed\n{}", way_back(&start)));
        return Ok(ExitCode::SUCCESS);
    }
    let flag = start.decided_by.as_deref();
    if let Some(flag) = flag.filter(|_| !start.reads_old) {
        complain(&format!(
            "cutover: the service takes the desired phase of {name:?} from {flag}; switch it off or set it to `{}` there{}",
            start.to,
            if step.no_wait { "" } else { " (waiting until the phase is reached)" }
        ));
    }
    if step.no_wait {
        say(arguments, &start, || way_back(&start));
        return Ok(ExitCode::from(u8::from(flag.is_some() && !start.reads_old)));
    }
    if !arguments.json {
        print(&printable(&way_back(&start)));
    }
    let (progress, mut outage) = (Progress::new(), Outage::default());
    loop {
        let look =
            async { Ok((rollback(ledger, name, by, true).await?, report(ledger, Some(name)).await?.pop())) };
        let Some((now, state)) = outage.tolerate(look.await)? else {
            if wait.is_over().await {
                progress.end();
                return Ok(Outage::ended(name));
            }
            continue;
        };
        let outcome = Outcome {
            migration: name,
            from: &start.phase,
            to: &start.to,
            done: now.reads_old,
            seconds: wait.seconds(),
            overruled: overruled(&now).filter(|_| flag.is_none()),
            phase: now.phase,
            waits_for: now.waits_for,
            steps: &start.steps,
        };
        if outcome.done || outcome.overruled.is_some() {
            progress.end();
            say(arguments, &outcome, || ended(&outcome));
            return Ok(ExitCode::from(u8::from(!outcome.done)));
        }
        progress.show(&state, flag);
        if wait.is_over().await {
            progress.end();
            say(arguments, &outcome, || ended(&outcome));
            return Ok(ExitCode::from(4));
        }
    }
}

/// Who has set a phase that reads the new side, and which.
fn overruled(now: &RollbackReport) -> Option<String> {
    let desired: Desired = now.desired.as_ref()?.parse().ok()?;
    let by = now.desired_by.as_deref().unwrap_or("a statement on cutover.migrations");
    (desired.phase > Phase::Verify).then(|| format!("{by} has set the desired phase to `{desired}`"))
}

fn ended(outcome: &Outcome) -> String {
    let Outcome { migration, phase, done, overruled, waits_for, .. } = outcome;
    match overruled {
        _ if *done => format!("{migration}: done, in `{phase}`: every instance reads only the old side\n"),
        Some(overruled) => format!(
            "{migration}: in `{phase}`; no longer waiting, because {overruled} (see `cutover history {migration}`)\n"
        ),
        None => {
            let blocked =
                waits_for.as_ref().map(|text| format!("; it waits for: {text}")).unwrap_or_default();
            format!(
                "{migration}: not done yet{blocked}\n\
                 the way back continues; `cutover status {migration}` shows its progress\n"
            )
        }
    }
}

/// The steps back, with what each costs and requires.
fn way_back(report: &RollbackReport) -> String {
    let RollbackReport { fleet, name, phase, to, steps, .. } = report;
    let mut text = match (steps.is_empty(), report.reads_old) {
        (true, true) => format!(
            "{fleet}/{name} is in `{phase}`: every instance reads only the old side; it stays there\n"
        ),
        (true, false) => {
            format!("{fleet}/{name} is in `{phase}`; some instances are still at the phase before it\n")
        }
        _ => format!("{fleet}/{name} goes back from `{phase}` to `{to}`\n"),
    };
    if report.driver.is_none() && !steps.is_empty() {
        text.push_str("no instance drives it: start an instance that declares this migration\n");
    }
    if let Some(waits_for) = report.waits_for.as_ref().filter(|_| !report.reads_old) {
        let _ = writeln!(text, "waits for: {waits_for}");
    }
    for step in steps {
        let _ = writeln!(text, "\n{} → {}", step.from, step.to);
        if let Some(work) = &step.work {
            let _ = writeln!(text, "  {}", reverse_backfill(work));
        }
        let _ = writeln!(text, "  {}", step.effect);
        text.push_str(&text::needs(&step.needs));
    }
    text
}
