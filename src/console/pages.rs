//! The pages as HTML. Every value is escaped by the template crate.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::charts::Charts;
use super::sides::SideNumbers;
use super::text::{self, age};
use crate::migration::Phase;
use crate::migration::admin::{
    BadRow, Details, Difference, MigrationReport, PlanReport, RollbackReport, WorkReport,
};

/// The address of a migration's page; `name` is `fleet/name`.
pub fn address(ledger: Option<&str>, name: &str) -> String {
    let encoded = |part| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string();
    let (fleet, name) = name.split_once('/').unwrap_or(("", name));
    let ledger = ledger.map(|ledger| format!("/ledgers/{}", encoded(ledger))).unwrap_or_default();
    format!("{ledger}/migrations/{}/{}", encoded(fleet), encoded(name))
}

/// Something that went wrong.
pub fn problem(why: &str) -> Markup {
    html! { p.notice.problem role="alert" { (why) } }
}

/// Something to notice.
pub fn notice(text: &str) -> Markup {
    html! { p.notice { (text) } }
}

/// A whole page. `about` says what the page covers.
pub fn page(title: &str, about: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " – cutover" }
                link rel="stylesheet" href="/style.css";
                script src="/script.js" defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    a href="/" { "cutover" }
                    span { (about) }
                    span id="connection" role="status" {}
                }
                main id="main" { (body) }
            }
        }
    }
}

/// The part that the script replaces: whenever an event brings a new one or, with `polls`, every two seconds.
pub fn live(shown: &str, polls: bool) -> Markup {
    html! { div id="live" data-polls=[polls.then_some("2")] { (PreEscaped(shown)) } }
}

/// The name of a ledger, and its migrations, or why it cannot be reached.
pub type LedgerState<'a> = (Option<&'a str>, Result<Vec<MigrationReport>, String>);

/// The migrations of each ledger.
pub fn ledgers(shown: &[LedgerState<'_>]) -> Markup {
    html! {
        @for (ledger, result) in shown {
            @if let Some(ledger) = ledger { h2 { "Ledger " (ledger) } }
            @match result {
                Ok(reports) => (migrations(*ledger, reports)),
                Err(why) => (problem(&format!("This ledger cannot be reached: {why}"))),
            }
        }
    }
}

fn migrations(ledger: Option<&str>, reports: &[MigrationReport]) -> Markup {
    html! {
        @if reports.is_empty() { (notice(text::NO_MIGRATION)) }
        @for report in reports {
            @let name = full_name(report);
            @let label = ledger.map_or_else(|| name.clone(), |ledger| format!("{name}, ledger {ledger}"));
            section aria-label=(label) {
                // Below the heading of the ledger.
                @if ledger.is_some() { h3 { a href=(address(ledger, &name)) { (name) } } }
                @else { h2 { a href=(address(ledger, &name)) { (name) } } }
                (phases(report))
                (waiting(report))
                @if let Some(work) = running(report) { (progress(work)) }
            }
        }
    }
}

/// One migration, without the form.
pub(super) fn one(
    report: &MigrationReport,
    details: &Details,
    charts: &Charts,
    sides: Option<&Result<SideNumbers, String>>,
) -> Markup {
    html! {
        (phases(report))
        @if let Some(percent) = report.ramp_percent { p { (percent) " % of the keys are read from the new side." } }
        @if let Some(ended) = text::ended(report) { (notice(&format!("The migration is {ended}."))) }
        p {
            "Epoch " (report.epoch) ", in this phase for " (age(report.phase_age_seconds)) ". "
            @match &report.driver {
                Some(driver) => { "Driven by instance " (driver) "." }
                None => @if let Some(why) = text::no_driver(report) { span.bad { (why) "." } }
            }
        }
        h2 { "Waits for" }
        (waiting(report))
        @if let Some(by) = &report.paused_by {
            p.notice { "Backfills and scans have been paused by " (by) " for " (age(report.paused_seconds.unwrap_or(0.0))) "." }
        }
        @if let Some(work) = &report.work {
            h2 { "Work on rows" }
            (progress(work))
            (charts.rows())
        }
        @if has_two_sides(report) {
            h2 { "Both sides" }
            (both_sides(sides))
            (rows_of(&details.differences, &details.bad_rows))
        }
        h2 { "Instances" }
        (instances(report))
        @if let Some(plan) = &details.plan { (steps(plan)) }
        @if let Some(way_back) = &details.way_back { (back(way_back)) }
        (rows(details, charts))
    }
}

/// Whether requests use both sides in this phase.
pub(super) fn has_two_sides(report: &MigrationReport) -> bool {
    report.phase.parse().is_ok_and(|phase: Phase| (Phase::Expand..=Phase::Retire).contains(&phase))
}

/// How the requests' reads and writes of each side went.
fn both_sides(sides: Option<&Result<SideNumbers, String>>) -> Markup {
    let number = |value: f64, scale: f64| {
        if value.is_finite() { format!("{:.2}", value * scale) } else { "no data".into() }
    };
    html! {
        @match sides {
            None => p { "Latency of each side and shadow reads are in the service's metrics. `cutover console --prometheus URL` shows them here." },
            Some(Err(why)) => (problem(why)),
            Some(Ok(numbers)) => {
                @if numbers.calls.is_empty() { p { "Prometheus has no call of a repository in the last five minutes." } } @else {
                    (table("Calls of each side", &["Operation", "Side", "Calls/s", "Failed/s", "Median (ms)", "99th percentile (ms)"],
                        numbers.calls.iter().map(|one| vec![
                            one.operation.clone(), one.side.clone(), number(one.rate, 1.0), number(one.failures, 1.0),
                            number(one.median, 1e3), number(one.p99, 1e3),
                        ])))
                }
                p { (text::shadow_reads(&numbers.shadow_reads)) }
            }
        }
    }
}

/// Rows that stand against the next phase.
fn rows_of(differences: &[Difference], bad_rows: &[BadRow]) -> Markup {
    let shown = |value: &Option<String>| value.clone().unwrap_or_default();
    html! {
        h2 { "Rows that differ" }
        @if differences.is_empty() { p { "The latest scan found none, or there was none." } } @else {
            (table("Rows that differ", &["Key", "What", "Expected", "Found"], differences.iter().map(|row| vec![
                row.key.join(", "), row.what.clone(), shown(&row.expected), shown(&row.found),
            ])))
        }
        h2 { "Rows that are set aside" }
        @if bad_rows.is_empty() { p { "Every row could be mapped." } } @else {
            (table("Rows that are set aside", &["Key", "Work", "Error"], bad_rows.iter().map(|row| vec![
                row.key.join(", "), row.kind.clone(), row.error.clone(),
            ])))
        }
    }
}

/// The steps back, with what each costs.
fn back(way_back: &RollbackReport) -> Markup {
    html! {
        h2 { "Way back" }
        p { "“Roll back” goes to " code { (way_back.to) } " by these steps." }
        ol {
            @for step in &way_back.steps {
                li {
                    (step.from) " → " (step.to) ": "
                    @if let Some(work) = &step.work { (text::reverse_backfill(work)) " " }
                    (step.effect)
                    @for need in step.needs.iter().filter(|need| need.holds == Some(false)) {
                        " " span.bad { "Does not hold yet: " } (need.what) "."
                    }
                }
            }
        }
    }
}

fn full_name(report: &MigrationReport) -> String {
    format!("{}/{}", report.fleet, report.name)
}

fn running(report: &MigrationReport) -> Option<&WorkReport> {
    report.work.as_ref().filter(|work| !work.finished)
}

fn phases(report: &MigrationReport) -> Markup {
    let current: Option<Phase> = report.phase.parse().ok();
    let desired = report.desired.as_deref();
    html! {
        ol.phases aria-label="Phases" {
            @for phase in Phase::ALL {
                @let is_current = current == Some(phase);
                @let is_desired = desired.is_some_and(|text| text.split(':').next() == Some(phase.name()));
                li class=[class(current, phase, is_desired && !is_current)] aria-current=[is_current.then_some("step")] {
                    (phase)
                    @if is_desired && !is_current { " (desired)" }
                }
            }
        }
        @if let Some(desired) = desired.filter(|text| text.contains(':')) { p { "Desired: " (desired) } }
    }
}

fn class(current: Option<Phase>, phase: Phase, is_desired: bool) -> Option<&'static str> {
    if is_desired {
        Some("desired")
    } else {
        current.is_some_and(|current| phase < current).then_some("past")
    }
}

fn waiting(report: &MigrationReport) -> Markup {
    html! {
        @match &report.waits_for {
            Some(waits_for) => p.notice { (waits_for) " (for " (age(report.waits_seconds.unwrap_or(0.0))) "). " (text::runbook(waits_for)) },
            None => p { "It waits for nothing." },
        }
    }
}

fn progress(work: &WorkReport) -> Markup {
    let share = (work.rows_done as f64 / work.rows_total.max(1) as f64).min(1.0);
    html! {
        @if !work.finished {
            progress aria-label=(work.kind) max="1" value=(format!("{share:.3}")) { (format!("{:.0} %", share * 100.0)) }
        }
        p class=[(work.differences > 0).then_some("bad")] { (text::progress(work)) }
    }
}

fn instances(report: &MigrationReport) -> Markup {
    let rows = report.instances.iter().map(|one| {
        let [name, version, range, epoch, lease, state] = text::instance(one, report);
        let open = match one.older_open.unwrap_or(0) {
            0 => String::new(),
            open => format!("{open} for {}", age(one.waits_seconds.unwrap_or(0.0))),
        };
        vec![name, version, range, epoch, lease, open, state]
    });
    let head = [
        "Instance",
        "Version",
        "Phases of its build",
        "Epoch",
        "Lease left",
        "Open at older epochs",
        "State",
    ];
    table("Instances of the fleet", &head, rows)
}

/// The steps ahead. Each opens to its requirements and statements.
fn steps(plan: &PlanReport) -> Markup {
    html! {
        h2 { "Steps ahead" }
        @if plan.steps.is_empty() { p { "No step is left." } }
        @for step in &plan.steps {
            details id=(format!("step-{}", step.to)) {
                summary {
                    (step.from) " → " (step.to)
                    @if step.needs.iter().any(|need| need.holds == Some(false)) { span.bad { " (not yet possible)" } }
                }
                ul {
                    @for need in &step.needs {
                        li {
                            @match need.holds {
                                Some(true) => span.good { "holds: " },
                                Some(false) => span.bad { "does not hold: " },
                                None => "not known from here: ",
                            }
                            (need.what)
                            @if let Some(waits_for) = &need.waits_for { ": " (waits_for) }
                        }
                    }
                }
                @if let Some(sql) = &step.sql { pre tabindex="0" { code { (text::statements_on_lines(sql)) } } }
            }
        }
    }
}

fn rows(details: &Details, charts: &Charts) -> Markup {
    html! {
        h2 { "Rows that wait for repair" }
        @if details.repairs.is_empty() { p { "None." } } @else {
            (table("Rows that wait for repair", &["Side", "Key", "Age", "Attempts", "Next attempt", "Error"],
                details.repairs.iter().map(|row| text::repair(row)[1..].to_vec())))
        }
        h2 { "External writers" }
        @if details.external_writes.is_empty() { p { "No external write has been detected." } } @else {
            (table("External writers", &["Application", "Role", "Transactions", "Not mirrored", "First seen", "Last seen"],
                details.external_writes.iter().map(|one| text::external_writer(one)[1..].to_vec())))
            (charts.writers())
        }
        h2 { "History" }
        (table("History", &["At", "Event", "Epoch", "Actor", "Reason"],
            details.history.iter().map(|event| {
                let [at, _, event, epoch, actor, reason] = text::event(event);
                vec![at, event, epoch, actor, reason]
            })))
    }
}

fn table(label: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Markup {
    html! {
        // Focusable, because it may scroll.
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table {
                thead { tr { @for name in head { th scope="col" { (name) } } } }
                tbody { @for row in rows { tr { @for cell in row { td { (cell) } } } } }
            }
        }
    }
}
