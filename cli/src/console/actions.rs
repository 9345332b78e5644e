//! What the page can change: the same as the command line, through the same functions.

use axum::http::StatusCode;
use cutover::console::{Topic, status};
use cutover::migration::Desired;
use cutover::migration::admin::{
    Actor, AdminError, PlanReport, abandon, approve, pause_work, plan, resume_work, retry_repairs, rollback,
    set_phase,
};
use maud::Markup;

use super::access::is_equal;
use super::{Shared, pages};
use crate::ledgers::Database;

/// The fields of the form.
#[derive(serde::Deserialize)]
pub(super) struct Action {
    action: String,
    #[serde(default)]
    phase: String,
    #[serde(default)]
    actor: String,
    #[serde(default)]
    reason: String,
    /// The name of the migration, typed or by a checkbox.
    #[serde(default)]
    confirm: String,
    #[serde(default)]
    csrf: String,
    /// `this` ledger, the `others`, or `all`.
    #[serde(default, rename = "where")]
    scope: String,
}

type Refusal = (StatusCode, String);

/// The form for the state of the migration.
pub(super) fn form(shared: &Shared, topic: &Topic, now: &PlanReport) -> Markup {
    if shared.read_only {
        return pages::notice("This console was started with --read-only. It shows, and changes nothing.");
    }
    pages::form(&pages::FormOf {
        address: &shared.address(topic),
        name: &topic.name,
        now,
        csrf: &shared.csrf,
        actor: shared.actor.as_deref(),
        has_other_ledgers: shared.databases.len() > 1,
    })
}

/// Checks the form and does what it asks for. A refusal has changed nothing.
pub(super) async fn act(shared: &Shared, topic: &Topic, form: &Action) -> Result<(), Refusal> {
    let name = &*topic.name;
    let refuse = |status: StatusCode, text: &str| Err((status, text.to_owned()));
    if shared.read_only {
        return refuse(StatusCode::FORBIDDEN, "the console was started with --read-only");
    }
    if !is_equal(&form.csrf, &shared.csrf) {
        return refuse(
            StatusCode::FORBIDDEN,
            "the form is not one of this console's pages, or the console was restarted since; load the page again",
        );
    }
    let (actor, reason) = (form.actor.trim(), form.reason.trim());
    if actor.is_empty() || reason.is_empty() {
        return refuse(
            StatusCode::UNPROCESSABLE_ENTITY,
            "give your name and a reason; the history keeps both",
        );
    }
    if form.confirm.trim() != name {
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, "the action was not confirmed");
    }
    let by = Actor::with_reason(actor, reason);
    let mut done = Vec::new();
    for (index, database) in shared.databases.iter().enumerate() {
        let is_meant = match &*form.scope {
            "all" => true,
            "others" => index != topic.ledger,
            _ => index == topic.ledger,
        };
        if !is_meant {
            continue;
        }
        act_on(database, name, form, by).await.map_err(|(status, problem)| {
            let Some(ledger) = &database.name else { return (status, problem) };
            let before = match &done[..] {
                [] => "No ledger was changed before it.".to_owned(),
                done => format!("It was done on ledger {}.", done.join(", ")),
            };
            (
                status,
                format!(
                    "Ledger {ledger}: {problem}. {before} The action did not run on the ledgers after it."
                ),
            )
        })?;
        done.extend(database.name.as_deref());
    }
    Ok(())
}

async fn act_on(database: &Database, name: &str, form: &Action, by: Actor<'_>) -> Result<(), Refusal> {
    let refusal = |error: AdminError| (status(&error), database.describe(&error));
    let ledger = database.ledger().await.map_err(refusal)?;
    let done = match &*form.action {
        "set-phase" => {
            let phase: Desired = form.phase.parse().map_err(|error| {
                (StatusCode::UNPROCESSABLE_ENTITY, format!("phase {:?}: {error}", form.phase))
            })?;
            let now = plan(ledger, name, phase.phase).await.map_err(refusal)?;
            if let Some(flag) = now.desired_from.filter(|source| source != "ledger") {
                let text = format!("the service takes the desired phase from {flag}; set it there");
                return Err((StatusCode::CONFLICT, text));
            }
            set_phase(ledger, name, phase, by).await
        }
        "rollback" => match rollback(ledger, name, by, false).await {
            Ok(report) => match report.decided_by {
                Some(flag) => Err((
                    StatusCode::CONFLICT,
                    format!("the service takes the desired phase from {flag}; switch it off there"),
                ))?,
                None => Ok(()),
            },
            Err(error) => Err(error),
        },
        "pause" => pause_work(ledger, name, by).await,
        "resume" => resume_work(ledger, name, by).await,
        "retry-repairs" => retry_repairs(ledger, name, by).await.map(drop),
        "approve" => approve(ledger, name, by).await.map(drop),
        "abandon" => abandon(ledger, name, false, by, false).await.map(drop),
        "abandon-and-drop" => abandon(ledger, name, true, by, false).await.map(drop),
        other => {
            return Err((StatusCode::UNPROCESSABLE_ENTITY, format!("there is no action {other:?}")));
        }
    };
    done.map_err(refusal)
}
