//! What the page can change: the same as the command line, through the same functions.

use axum::http::StatusCode;
use cutover::migration::Desired;
use cutover::migration::admin::{
    Actor, AdminError, PlanReport, approve, pause_work, plan, resume_work, retry_repairs, rollback, set_phase,
};
use maud::Markup;

use super::access::is_equal;
use super::{Shared, pages};

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
}

type Refusal = (StatusCode, String);

/// The form for the state of the migration.
pub(super) fn form(shared: &Shared, name: &str, now: &PlanReport) -> Markup {
    if shared.read_only {
        return pages::notice("This console was started with --read-only. It shows, and changes nothing.");
    }
    pages::form(name, now, &shared.csrf, shared.actor.as_deref())
}

/// Checks the form and does what it asks for. A refusal has changed nothing.
pub(super) async fn act(shared: &Shared, name: &str, form: &Action) -> Result<(), Refusal> {
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
    let ledger = &shared.ledger;
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
        other => {
            return Err((StatusCode::UNPROCESSABLE_ENTITY, format!("there is no action {other:?}")));
        }
    };
    done.map_err(refusal)
}

fn refusal(error: AdminError) -> Refusal {
    (status(&error), error.to_string())
}

pub(super) fn status(error: &AdminError) -> StatusCode {
    match error {
        AdminError::UnknownMigration { .. } | AdminError::Ambiguous { .. } => StatusCode::NOT_FOUND,
        AdminError::Ledger(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    }
}
