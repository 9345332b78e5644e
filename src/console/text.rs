//! Values of reports as short texts, for the page and for the command line.

use crate::migration::admin::{
    Event, ExternalWriteReport, InstanceReport, MigrationReport, RepairReport, RollbackWork, WorkReport,
    runbook_sections,
};

/// What is shown while there is no migration.
pub const NO_MIGRATION: &str =
    "the ledger has no migration: one is registered when an instance that declares it first starts\n";

/// An instance as the cells of a table.
pub fn instance(one: &InstanceReport, report: &MigrationReport) -> [String; 6] {
    let state = match (&one.refusal, one.admitted) {
        (Some(reason), _) => format!("refused: {reason}"),
        (None, false) => "joining".into(),
        (None, true) if report.driver.as_deref() == Some(&one.name) => "serving, driver".into(),
        (None, true) => "serving".into(),
    };
    [
        one.name.clone(),
        one.version.clone(),
        one.range.clone().unwrap_or_else(|| "undeclared".into()),
        one.acknowledged.map(|epoch| epoch.to_string()).unwrap_or_default(),
        if one.lease_seconds > 0.0 { age(one.lease_seconds) } else { "expired".into() },
        state,
    ]
}

/// Where the runbook has more about what a migration waits for.
pub fn runbook(waits_for: &str) -> String {
    let sections = runbook_sections(waits_for).into_iter().map(|section| format!("\"{section}\""));
    format!("Runbook (docs/runbook.md): {}", sections.collect::<Vec<_>>().join(", "))
}

/// What to do if no instance drives the migration. `None` if one does, or if the migration has ended.
pub fn no_driver(report: &MigrationReport) -> Option<String> {
    if report.driver.is_some() || report.ended_as.is_some() {
        return None;
    }
    let declares = |one: &&InstanceReport| one.range.is_some();
    let last =
        report.instances.iter().filter(declares).max_by(|a, b| a.lease_seconds.total_cmp(&b.lease_seconds));
    Some(match last {
        Some(one) if one.lease_seconds > 0.0 => {
            "no instance drives it yet: one of those that declare it takes over within 15 s".to_owned()
        }
        // An instance that can write to the ledger would have removed its row.
        Some(one) => format!(
            "no instance drives it: {} has not renewed its lease for {}; its log and its /healthz say why, or start an \
             instance that declares this migration",
            one.name,
            age(one.seen_seconds)
        ),
        None => "no instance drives it: start an instance that declares this migration".to_owned(),
    })
}

/// How the migration ended, and what to do about its code.
pub fn ended(report: &MigrationReport) -> Option<String> {
    let code = match report.ended_as.as_deref()? {
        "abandoned" => {
            "builds that declare it use the old side; its declaration, its `DualWrite` and the code of the new side"
        }
        _ => "its declaration, its `DualWrite` and the code of the old side",
    };
    let since = age(report.ended_seconds.unwrap_or(0.0));
    Some(format!("{}, {since} ago; {code} can be removed", report.ended_as.as_deref()?))
}

/// A job in a line.
pub fn progress(work: &WorkReport) -> String {
    let rate = work.rows_done as f64 / work.seconds.max(0.001);
    let end = match work.seconds_left() {
        Some(left) => format!("{} left", age(left)),
        None if work.finished => format!("done in {}", age(work.seconds)),
        None => "starting".into(),
    };
    let held = work.throttled_by.as_ref().filter(|_| !work.finished);
    let held = held.map(|why| format!("; held back by {why}")).unwrap_or_default();
    format!(
        "{}: {} of {} rows, {} changed, {} differ, {rate:.0} rows/s, {end}{held}",
        work.kind, work.rows_done, work.rows_total, work.rows_changed, work.differences
    )
}

/// The shadow reads of the last minutes, by outcome.
pub fn shadow_reads(outcomes: &[(String, f64)]) -> String {
    let count = |name: &str| {
        outcomes.iter().filter(|(outcome, _)| outcome == name).map(|(_, count)| count).sum::<f64>()
    };
    let (same, different) = (count("same"), count("different"));
    if same + different < 0.5 {
        return "No shadow read was compared in the last five minutes.".into();
    }
    let share = 100.0 * same / (same + different);
    format!(
        "Shadow reads of the last five minutes: {share:.2} % agree ({same:.0} same, {different:.0} different, {:.0} failed, \
         {:.0} dropped).",
        count("error"),
        count("dropped"),
    )
}

/// What a step back costs, as a sentence.
pub fn reverse_backfill(work: &RollbackWork) -> String {
    let counted = |rows: i64| format!("{rows} row{}", if rows == 1 { "" } else { "s" });
    let rows = work.rows.map_or_else(|| "all rows".into(), counted);
    let done = if work.rows_done > 0 { format!(", {} done", work.rows_done) } else { String::new() };
    let left = work.seconds_left.map(|left| format!(", about {}", age(left))).unwrap_or_default();
    format!("First, the reverse backfill copies {rows} from the new side to the old one{done}{left}.")
}

/// An event of the history as the cells of a table.
pub fn event(event: &Event) -> [String; 6] {
    [
        event.at.clone(),
        format!("{}/{}", event.fleet, event.migration.as_deref().unwrap_or("-")),
        event.event.clone(),
        event.epoch.map(|epoch| epoch.to_string()).unwrap_or_default(),
        event.actor.clone(),
        event.reason.clone(),
    ]
}

/// A row that waits for repair as the cells of a table.
pub fn repair(row: &RepairReport) -> [String; 7] {
    [
        format!("{}/{}", row.fleet, row.migration),
        row.side.clone(),
        row.key.to_string(),
        age(row.age_seconds),
        row.attempts.to_string(),
        row.next_try_seconds.map_or_else(|| "given up".into(), |left| format!("in {}", age(left))),
        row.error.clone(),
    ]
}

/// An external writer as the cells of a table.
pub fn external_writer(one: &ExternalWriteReport) -> [String; 7] {
    [
        format!("{}/{}", one.fleet, one.migration),
        one.application.clone(),
        one.role.clone(),
        one.transactions.to_string(),
        one.unmirrored.to_string(),
        one.first_seen.clone(),
        format!("{} ago", age(one.age_seconds)),
    ]
}

/// A duration in a readable unit, with the next smaller unit where that matters.
pub fn age(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        0..120 => format!("{whole} s"),
        120..7200 => format!("{} min", whole / 60),
        7200..172_800 => format!("{} h {} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3600 % 24),
    }
}

/// SQL with each statement on a line, also of the body of a guard function. What it does stays the same: SQL in which a literal
/// could be mistaken for code is returned as it is.
pub fn statements_on_lines(sql: &str) -> String {
    let dollars = sql.matches('$').count() - 2 * sql.matches("$guard$").count();
    if dollars > 0 || sql.contains('\\') || sql.contains("/*") {
        return sql.to_owned();
    }
    let mut text = String::with_capacity(sql.len());
    let (mut quote, mut is_comment) = (None, false);
    let mut rest = sql.chars().peekable();
    while let Some(c) = rest.next() {
        text.push(c);
        match (quote, c) {
            _ if is_comment => is_comment = c != '\n',
            (None, '\'' | '"') => quote = Some(c),
            // A doubled quote ends the literal and begins the next one.
            (Some(open), c) if open == c => quote = None,
            (None, '-') => is_comment = rest.peek() == Some(&'-'),
            (None, ';') if rest.peek() == Some(&' ') => {
                rest.next();
                text.push('\n');
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ends_of_statements_begin_a_line() {
        for (sql, text) in [
            ("drop table a; drop table b", "drop table a;\ndrop table b"),
            (
                "as $guard$ begin x := 'a; ''b; '; y := \"c; \"; end $guard$; drop",
                "as $guard$ begin x := 'a; ''b; ';\ny := \"c; \";\nend $guard$;\ndrop",
            ),
            ("-- it's; one\nselect 1; select 2", "-- it's; one\nselect 1;\nselect 2"),
            ("select $$a; b$$; select 1", "select $$a; b$$; select 1"),
            (r"select E'it\'s; '; select 1", r"select E'it\'s; '; select 1"),
            ("/* it's */ select 'a; b'", "/* it's */ select 'a; b'"),
        ] {
            assert_eq!(statements_on_lines(sql), text);
        }
    }
}
