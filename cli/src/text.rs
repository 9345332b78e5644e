//! Reports as text.

use std::fmt::Write;
use std::time::Duration;

use cutover::migration::admin::{
    Difference, Event, ExternalWriteReport, InstanceReport, MigrationReport, PlanReport, RepairReport,
    WorkReport,
};

pub(crate) fn status(reports: &[MigrationReport]) -> String {
    if reports.is_empty() {
        return "no migration has been declared yet\n".into();
    }
    let mut text = String::new();
    for report in reports {
        let _ = writeln!(
            text,
            "{}/{}  {} (epoch {}, for {})",
            report.fleet,
            report.name,
            report.phase,
            report.epoch,
            age(report.phase_age_seconds)
        );
        if let Some(desired) = &report.desired {
            let _ = writeln!(text, "  desired   {desired}");
        }
        if let Some(waits) = &report.waits_for {
            let _ = writeln!(text, "  waits     {waits} (for {})", age(report.waits_seconds.unwrap_or(0.0)));
        }
        if let Some(by) = &report.paused_by {
            let _ = writeln!(text, "  paused    by {by} (for {})", age(report.paused_seconds.unwrap_or(0.0)));
        }
        if let Some(work) = &report.work {
            let _ = writeln!(text, "  work      {}", progress(work));
        }
        let rows = report.instances.iter().map(|one| instance(one, report)).collect::<Vec<_>>();
        text.push_str(&table(&["instance", "version", "range", "epoch", "lease", "state"], &rows));
        text.push('\n');
    }
    text
}

fn instance(one: &InstanceReport, report: &MigrationReport) -> [String; 6] {
    let state = match (&one.refusal, one.admitted) {
        (Some(reason), _) => format!("refused: {reason}"),
        (None, false) => "joining".into(),
        (None, true) if report.driver.as_deref() == Some(&one.name) => "serving, drives".into(),
        (None, true) => "serving".into(),
    };
    [
        one.name.clone(),
        one.version.clone(),
        one.range.clone().unwrap_or_else(|| "unaware".into()),
        one.acknowledged.map(|epoch| epoch.to_string()).unwrap_or_default(),
        if one.lease_seconds > 0.0 { age(one.lease_seconds) } else { "expired".into() },
        state,
    ]
}

/// A length of time as people write it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let time: jiff::SignedDuration =
        text.parse().map_err(|_| "write for example 90s, 5m or 1h30m".to_owned())?;
    Duration::try_from(time).map_err(|_| "has to be positive".to_owned())
}

/// The steps that lie ahead, each with what it needs and what it executes.
pub(crate) fn plan(report: &PlanReport) -> String {
    let mut text = format!("{}/{} is in `{}`", report.fleet, report.name, report.phase);
    match &report.waits_for {
        Some(waits) => _ = writeln!(text, " and waits: {waits}"),
        None => text.push('\n'),
    }
    if let Some(source) = report.desired_from.as_deref().filter(|source| *source != "ledger") {
        let _ = writeln!(text, "the service takes its phase from {source}, not from what is asked for here");
    }
    match &report.published_by {
        Some(version) => _ = writeln!(text, "as version {version} would do it"),
        None => text.push_str("no build has published its statements\n"),
    }
    for step in &report.steps {
        let _ = writeln!(text, "\n{} → {}", step.from, step.to);
        for need in &step.needs {
            let mark = match need.holds {
                Some(true) => "yes",
                Some(false) => "no",
                None => "?",
            };
            let waits = need.waits_for.as_ref().map(|waits| format!(": {waits}")).unwrap_or_default();
            let _ = writeln!(text, "  {mark:<4} {}{waits}", need.what);
        }
        if let (Some(task), Some(sql)) = (step.task, &step.sql) {
            let _ = writeln!(text, "  {task}:");
            for line in sql.lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
    }
    if report.steps.is_empty() {
        text.push_str("nothing is left to do\n");
    }
    text
}

pub(crate) fn differences(found: &[Difference]) -> String {
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
    let rows: Vec<[String; 4]> = found
        .iter()
        .map(|one| [one.key.join(", "), one.what.clone(), shown(&one.expected), shown(&one.found)])
        .collect();
    table(&["key", "what", "expected", "found"], &rows)
}

pub(crate) fn progress(work: &WorkReport) -> String {
    let rate = work.rows_done as f64 / work.seconds.max(0.001);
    let end = match work.seconds_left() {
        Some(left) => format!("{} left", age(left)),
        None if work.finished => format!("done in {}", age(work.seconds)),
        None => "starting".into(),
    };
    let held = work.throttled_by.as_ref().filter(|_| !work.finished);
    let held = held.map(|why| format!("; held up: {why}")).unwrap_or_default();
    format!(
        "{}: {} of {} rows, {} changed, {} differ, {rate:.0} rows/s, {end}{held}",
        work.kind, work.rows_done, work.rows_total, work.rows_changed, work.differences
    )
}

pub(crate) fn explain(report: &MigrationReport) -> String {
    let mut text = format!(
        "{}/{} is in `{}` at epoch {} for {}.\n",
        report.fleet,
        report.name,
        report.phase,
        report.epoch,
        age(report.phase_age_seconds)
    );
    match &report.waits_for {
        Some(waits) => {
            let _ =
                writeln!(text, "It waits, for {} now: {waits}.", age(report.waits_seconds.unwrap_or(0.0)));
        }
        None => text.push_str("It waits for nothing.\n"),
    }
    for one in &report.instances {
        text.push_str(&in_the_way(one, report));
    }
    if let Some(by) = &report.paused_by {
        let since = age(report.paused_seconds.unwrap_or(0.0));
        let _ = writeln!(text, "The work on its rows was paused by {by}, {since} ago.");
    }
    if let Some(work) = &report.work
        && !work.finished
    {
        let _ = writeln!(text, "Work under way: {}.", progress(work));
    }
    if report.driver.is_none() {
        text.push_str("No instance drives it at the moment.\n");
    }
    text
}

/// What there is to say of an instance that isn't simply serving at the current epoch.
fn in_the_way(one: &InstanceReport, report: &MigrationReport) -> String {
    let seen = age(one.seen_seconds.max(0.0));
    match (&one.refusal, one.acknowledged) {
        (Some(reason), _) => {
            format!("Instance {}, last seen {seen} ago, is not admitted: {reason}.\n", one.name)
        }
        (None, Some(at)) if at < report.epoch => {
            let open = match one.older_open.unwrap_or(0) {
                0 => String::new(),
                open => {
                    let (s, since) =
                        (if open == 1 { "" } else { "s" }, age(one.waits_seconds.unwrap_or(0.0)));
                    format!(", {open} operation{s} open since {since}")
                }
            };
            format!("Instance {} at epoch {at}, last seen {seen} ago{open}.\n", one.name)
        }
        _ if one.lease_seconds <= 0.0 => {
            format!("Instance {} was last seen {seen} ago; its lease has run out.\n", one.name)
        }
        _ => String::new(),
    }
}

pub(crate) fn history(events: &[Event]) -> String {
    let rows: Vec<[String; 6]> = events
        .iter()
        .map(|event| {
            [
                event.at.clone(),
                format!("{}/{}", event.fleet, event.migration.as_deref().unwrap_or("-")),
                event.event.clone(),
                event.epoch.map(|epoch| epoch.to_string()).unwrap_or_default(),
                event.actor.clone(),
                event.reason.clone(),
            ]
        })
        .collect();
    table(&["at", "migration", "event", "epoch", "actor", "reason"], &rows)
}

pub(crate) fn repairs(rows: &[RepairReport]) -> String {
    if rows.is_empty() {
        return "no row waits for repair\n".into();
    }
    let cells: Vec<[String; 7]> = rows
        .iter()
        .map(|row| {
            [
                format!("{}/{}", row.fleet, row.migration),
                row.side.clone(),
                row.key.to_string(),
                age(row.age_seconds),
                row.attempts.to_string(),
                row.next_try_seconds.map_or_else(|| "given up".into(), |left| format!("in {}", age(left))),
                row.error.lines().next().unwrap_or_default().to_owned(),
            ]
        })
        .collect();
    table(&["migration", "side", "key", "since", "tries", "next try", "error"], &cells)
}

pub(crate) fn strangers(seen: &[ExternalWriteReport]) -> String {
    if seen.is_empty() {
        return "nobody has written past the library\n".into();
    }
    let cells: Vec<[String; 6]> = seen
        .iter()
        .map(|one| {
            [
                format!("{}/{}", one.fleet, one.migration),
                one.application.clone(),
                one.role.clone(),
                one.transactions.to_string(),
                one.first_seen.clone(),
                format!("{} ago", age(one.age_seconds)),
            ]
        })
        .collect();
    table(&["migration", "application", "role", "transactions", "first seen", "last seen"], &cells)
}

fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
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
    for row in rows {
        text.push_str(&line(row.each_ref().map(String::as_str)));
    }
    text
}

fn age(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}
