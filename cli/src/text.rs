//! Reports as text for a terminal.

use std::fmt::Write;
use std::time::Duration;

pub(crate) use cutover::console::text::{
    NO_MIGRATION, age, ended, event, external_writer, instance, no_driver, progress, repair, runbook,
    statements_on_lines,
};
use cutover::migration::admin::{
    Difference, Event, ExternalWriteReport, InstanceReport, MigrationReport, Need, PlanReport, RepairReport,
};
use cutover::migration::{Desired, Phase};

pub(crate) fn status(reports: &[MigrationReport]) -> String {
    if reports.is_empty() {
        return NO_MIGRATION.into();
    }
    let mut text = String::new();
    for report in reports {
        let _ = writeln!(
            text,
            "{}/{}  {} (epoch {}, for {})",
            report.fleet,
            report.name,
            phase(&report.phase, report.ramp_percent),
            report.epoch,
            age(report.phase_age_seconds)
        );
        if let Some(desired) = &report.desired {
            let _ = writeln!(text, "  desired   {desired}");
        }
        if let Some(waits) = &report.waits_for {
            let _ =
                writeln!(text, "  waits for {waits} (since {})", age(report.waits_seconds.unwrap_or(0.0)));
        }
        if let Some(by) = &report.paused_by {
            let _ = writeln!(
                text,
                "  paused    backfills and scans, by {by} (for {})",
                age(report.paused_seconds.unwrap_or(0.0))
            );
        }
        if let Some(ended) = ended(report) {
            let _ = writeln!(text, "  ended     {ended}");
        } else if let Some(why) = no_driver(report) {
            let _ = writeln!(text, "  driver    {why}");
        }
        if let Some(work) = &report.work {
            let _ = writeln!(text, "  work      {}", progress(work));
        }
        let rows = report.instances.iter().map(|one| instance(one, report)).collect::<Vec<_>>();
        text.push_str(&table(&["instance", "version", "phases", "epoch", "lease", "state"], &rows));
        text.push('\n');
    }
    text
}

/// Parses a duration such as `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let time: jiff::SignedDuration =
        text.parse().map_err(|_| "it is not a duration; write for example 90s, 5m or 1h30m".to_owned())?;
    Duration::try_from(time).map_err(|_| "a duration cannot be negative".to_owned())
}

/// The steps ahead, each with what it requires and its SQL.
pub(crate) fn plan(report: &PlanReport) -> String {
    let mut text = format!("{}/{} is in `{}`\n", report.fleet, report.name, report.phase);
    if let Some(waits_for) = &report.waits_for {
        let _ = writeln!(text, "waits for: {waits_for}");
    }
    if let Some(source) = report.desired_from.as_deref().filter(|source| *source != "ledger") {
        let _ = writeln!(text, "the service takes the desired phase from {source}, not from the ledger");
    }
    match &report.published_by {
        Some(version) => _ = writeln!(text, "statements published by version {version}"),
        None => text.push_str("no build has published its statements\n"),
    }
    if let Some(seconds) = report.problems_seconds.filter(|_| !report.problems.is_empty()) {
        let _ = writeln!(text, "found in the database {} ago:", age(seconds));
    }
    for problem in &report.problems {
        let kind = if problem.is_blocking { "problem" } else { "warning" };
        let _ = writeln!(text, "  {kind}  {problem}");
    }
    for step in &report.steps {
        let _ = writeln!(text, "\n{} → {}", step.from, step.to);
        text.push_str(&needs(&step.needs));
        if let (Some(task), Some(sql)) = (step.task, &step.sql) {
            let _ = writeln!(text, "  {task}:");
            for line in statements_on_lines(sql).lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
    }
    if let Some(ended) = report.ended_as.as_ref().filter(|_| report.steps.is_empty() || report.phase == "off")
    {
        let _ = writeln!(text, "no step is left: the migration is {ended}");
    } else if report.steps.is_empty() {
        text.push_str("no step is left\n");
    }
    text
}

/// The way to this phase: the steps forward, or that it goes back.
pub(crate) fn way(report: &PlanReport, to: Desired) -> String {
    match report.phase.parse::<Phase>() {
        Ok(now) if to.phase < now && report.ended_as.is_none() => format!(
            "{}/{} would go back from `{now}` to `{to}`, one phase at a time\n",
            report.fleet, report.name
        ),
        _ => plan(report),
    }
}

/// What a step requires, one line each.
pub(crate) fn needs(needs: &[Need]) -> String {
    let line = |need: &Need| {
        let mark = match need.holds {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        let waits = need.waits_for.as_ref().map(|waits| format!(": {waits}")).unwrap_or_default();
        format!("  {mark:<4} {}{waits}\n", need.what)
    };
    needs.iter().map(line).collect()
}

pub(crate) fn differences(found: &[Difference]) -> String {
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
    let rows: Vec<[String; 4]> = found
        .iter()
        .map(|one| [one.key.join(", "), one.what.clone(), shown(&one.expected), shown(&one.found)])
        .collect();
    table(&["key", "what", "expected", "found"], &rows)
}

pub(crate) fn explain(reports: &[MigrationReport]) -> String {
    if reports.is_empty() {
        return NO_MIGRATION.into();
    }
    reports.iter().map(explain_one).collect::<Vec<_>>().join("\n")
}

/// A phase as `set-phase` takes it, such as `ramp:25`.
pub(crate) fn phase(phase: &str, ramp_percent: Option<i16>) -> String {
    ramp_percent.map_or_else(|| phase.to_owned(), |percent| format!("{phase}:{percent}"))
}

fn explain_one(report: &MigrationReport) -> String {
    let MigrationReport { fleet, name, epoch, .. } = report;
    let phase = phase(&report.phase, report.ramp_percent);
    let since = age(report.phase_age_seconds);
    let mut text = format!("{fleet}/{name} has been in `{phase}` (epoch {epoch}) for {since}.\n");
    match &report.desired {
        Some(desired) => _ = writeln!(text, "Its desired phase in the ledger is `{desired}`."),
        None => text.push_str("The ledger has no desired phase for it.\n"),
    }
    match &report.waits_for {
        Some(waits_for) => {
            let since = age(report.waits_seconds.unwrap_or(0.0));
            let _ = writeln!(text, "It has been waiting for {since}: {waits_for}.");
            let _ = writeln!(text, "{}", runbook(waits_for));
        }
        None => text.push_str("It waits for nothing.\n"),
    }
    if let Some(ended) = ended(report) {
        let _ = writeln!(text, "It is {ended}.");
    } else if let Some(why) = no_driver(report) {
        let _ = writeln!(text, "N{}.", &why[1..]);
    }
    for one in &report.instances {
        text.push_str(&not_serving(one, report));
    }
    if let Some(by) = &report.paused_by {
        let since = age(report.paused_seconds.unwrap_or(0.0));
        let _ = writeln!(
            text,
            "Its backfills and scans were paused {since} ago by {by}; `cutover resume {name}` resumes them."
        );
    }
    if let Some(work) = report.work.as_ref().filter(|work| !work.finished) {
        let _ = writeln!(text, "Running work: {}.", progress(work));
    }
    text
}

/// A sentence about an instance that does not serve at the current epoch; empty for one that does.
fn not_serving(one: &InstanceReport, report: &MigrationReport) -> String {
    let (name, seen) = (&one.name, age(one.seen_seconds.max(0.0)));
    match (&one.refusal, one.acknowledged) {
        (Some(reason), _) => format!("Instance {name} (last seen {seen} ago) is not admitted: {reason}.\n"),
        (None, Some(at)) if at < report.epoch => {
            let open = match one.older_open.unwrap_or(0) {
                0 => String::new(),
                open => {
                    let (s, since) =
                        (if open == 1 { "" } else { "s" }, age(one.waits_seconds.unwrap_or(0.0)));
                    format!(", with {open} operation{s} open for {since}")
                }
            };
            format!("Instance {name} (last seen {seen} ago) is still at epoch {at}{open}.\n")
        }
        _ if one.lease_seconds <= 0.0 => {
            format!("Instance {name} was last seen {seen} ago and its lease has expired.\n")
        }
        _ => String::new(),
    }
}

pub(crate) fn history(events: &[Event]) -> String {
    if events.is_empty() {
        return "the history has no event; that of a migration that was forgotten is in cutover.archive\n"
            .into();
    }
    let rows: Vec<[String; 6]> = events.iter().map(event).collect();
    table(&["at", "migration", "event", "epoch", "actor", "reason"], &rows)
}

pub(crate) fn repairs(rows: &[RepairReport]) -> String {
    if rows.is_empty() {
        return "no row waits for repair\n".into();
    }
    let mut cells: Vec<[String; 7]> = rows.iter().map(repair).collect();
    for [.., error] in &mut cells {
        *error = error.lines().next().unwrap_or_default().to_owned();
    }
    table(&["migration", "side", "key", "age", "attempts", "next attempt", "error"], &cells)
}

pub(crate) fn external_writes(writers: &[ExternalWriteReport]) -> String {
    if writers.is_empty() {
        return "no external write has been detected\n".into();
    }
    let cells: Vec<[String; 7]> = writers.iter().map(external_writer).collect();
    table(
        &["migration", "application", "role", "transactions", "not mirrored", "first seen", "last seen"],
        &cells,
    )
}

pub(crate) fn rows(count: i64) -> String {
    format!("{count} row{}", if count == 1 { "" } else { "s" })
}

fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
    // A line end in a reason would look like another row.
    let rows: Vec<[String; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| cell.replace('\n', "\\n"))).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("  {}\n", padded.join("  ").trim_end())
    };
    let mut text = line(*head);
    for row in &rows {
        text.push_str(&line(row.each_ref().map(String::as_str)));
    }
    text
}
