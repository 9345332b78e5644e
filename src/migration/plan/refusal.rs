use crate::ledger::describe_error;
use crate::migration::catalog::PlanProblem;
use crate::migration::coordinator::PlanError;

/// Why a plan cannot do its work, as one refusal.
pub(crate) fn refuse(problems: &[PlanProblem]) -> Result<(), PlanError> {
    let blocking: Vec<String> =
        problems.iter().filter(|problem| problem.is_blocking).map(ToString::to_string).collect();
    if blocking.is_empty() { Ok(()) } else { Err(PlanError::Refused(blocking.join(". "))) }
}

/// The server cannot compute something that the plan describes.
pub(super) fn not_computed(what: &str, error: &sqlx::Error) -> PlanProblem {
    PlanProblem::blocking(
        format!("the {what} cannot be used: {}", describe_error(error)),
        "correct it in the plan",
    )
}
