//! The pages of the command line's console: those of the library, with forms.

pub(super) use cutover::console::pages::{address, notice, problem};
use cutover::console::pages::{live, page};
use cutover::migration::Phase;
use cutover::migration::admin::PlanReport;
use maud::{Markup, html};

fn console_page(title: &str, body: &Markup) -> Markup {
    page(title, "migrations of this database", body)
}

pub(super) fn list(shown: &str) -> Markup {
    console_page("Migrations", &html! { h1 { "Migrations" } (live(shown, false)) })
}

pub(super) fn migration(name: &str, shown: &str, form: Option<&Markup>) -> Markup {
    console_page(
        name,
        &html! {
            h1 { (name) }
            (live(shown, false))
            @if let Some(form) = form {
                h2 id="change" { "Change" }
                (form)
            }
        },
    )
}

/// A refused action, with the way back to its migration.
pub(super) fn refused(name: &str, address: &str, why: &str) -> Markup {
    console_page(
        "Refused",
        &html! {
            h1 { "Refused" }
            (problem(why))
            p { a href=(address) { "Back to " (name) } }
        },
    )
}

pub(super) fn alone(why: &str) -> Markup {
    console_page("Refused", &html! { h1 { "Refused" } (problem(why)) })
}

pub(super) fn login(why: Option<&str>) -> Markup {
    console_page(
        "Access token",
        &html! {
            h1 { "Access token" }
            @if let Some(why) = why { (problem(why)) }
            form method="post" action="/login" {
                label { "Token" input type="password" name="token" required autocomplete="current-password"; }
                button { "Open the console" }
            }
        },
    )
}

/// What the form of a migration needs to know.
pub(super) struct FormOf<'a> {
    pub(super) address: &'a str,
    pub(super) name: &'a str,
    pub(super) now: &'a PlanReport,
    pub(super) csrf: &'a str,
    pub(super) actor: Option<&'a str>,
    pub(super) has_other_ledgers: bool,
}

/// All actions. The phase can change while the page is open, so an action that it does not allow is refused when it is asked for.
pub(super) fn form(of: &FormOf<'_>) -> Markup {
    let FormOf { address, name, now, csrf, actor, has_other_ledgers } = *of;
    let flag = now.desired_from.as_deref().filter(|source| *source != "ledger");
    if let Some(how) = &now.ended_as {
        return notice(&format!("The migration is {how}. There is nothing to change."));
    }
    html! {
        @if let Some(flag) = flag {
            (notice(&format!("The service takes the desired phase from {flag}. Set it there.")))
        }
        form method="post" action=(format!("{address}/action")) {
            input type="hidden" name="csrf" value=(csrf);
            label {
                "Action"
                select name="action" required {
                    @if flag.is_none() { option value="set-phase" { "Set the desired phase" } }
                    @if flag.is_none() { option value="rollback" { "Roll back: read only the old side" } }
                    option value="pause" { "Pause backfills and scans" }
                    option value="resume" { "Resume backfills and scans" }
                    option value="retry-repairs" { "Retry all repairs now" }
                    option value="approve" { "In retire: approve the drop of the old side" }
                    option value="abandon" { "In off: abandon the migration" }
                    option value="abandon-and-drop" { "In off: abandon it, and drop what expand made" }
                }
            }
            @if flag.is_none() {
                label {
                    "Desired phase (for “Set the desired phase”)"
                    input name="phase" list="phases" value=(now.desired.as_deref().unwrap_or(&now.phase));
                }
                datalist id="phases" { @for phase in Phase::ALL { option value=(phase) {} } option value="ramp:10" {} }
            }
            @if has_other_ledgers {
                label {
                    "Where"
                    select name="where" {
                        option value="this" { "On this ledger" }
                        option value="others" { "On all other ledgers" }
                        option value="all" { "On all ledgers" }
                    }
                }
            }
            label { "Your name" input name="actor" required value=(actor.unwrap_or_default()); }
            label { "Reason" input name="reason" required autocomplete="off"; }
            label { "Type " (name) " to confirm" input name="confirm" required autocomplete="off"; }
            button { "Do it" }
        }
    }
}
