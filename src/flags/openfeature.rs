//! Flags from an OpenFeature provider.

use std::future::Future;

use futures_util::FutureExt;
use open_feature::{
    Client, EvaluationContext, EvaluationDetails, EvaluationError, EvaluationErrorCode, EvaluationResult,
    StructValue, Value,
};
use tokio::task::coop::unconstrained;

use super::flag::{PayloadKind, Switch, Variant};
use super::names::Name;
use super::problem::{FlagProblemKind, SwitchProblem};
use super::subject::Subject;

/// Evaluates flags through the application's client, with its hooks and contexts.
pub(super) struct OpenFeature(Client);

/// A flag that no provider has. The answer "not found" shows that the provider answers.
const PROBE: &str = "cutover-probe";

impl OpenFeature {
    pub(super) fn new(client: Client) -> Self {
        Self(client)
    }

    /// `None` also if the provider would have to wait.
    pub(super) fn enabled(&self, name: &Name<'_>, subject: &Subject) -> Option<bool> {
        at_once(self.resolve(name, subject)).flatten()
    }

    /// `None` also if the provider would have to wait.
    pub(super) fn variant(&self, name: &Name<'_>, subject: &Subject) -> Option<Variant> {
        at_once(self.resolve_variant(name, subject)).flatten()
    }

    pub(super) async fn resolve(&self, name: &Name<'_>, subject: &Subject) -> Option<bool> {
        self.0.get_bool_value(name.text, Some(&context(subject)), None).await.ok()
    }

    pub(super) async fn resolve_variant(&self, name: &Name<'_>, subject: &Subject) -> Option<Variant> {
        self.evaluate(name.text, &context(subject)).await.ok()
    }

    /// A flag of OpenFeature has one type, which only the provider knows, so all types are tried.
    async fn evaluate(&self, name: &str, context: &EvaluationContext) -> EvaluationResult<Variant> {
        let some = Some(context);
        let string = self.0.get_string_details(name, some, None).await;
        if let Some(answer) = typed(string, PayloadKind::String, |text| text) {
            return answer;
        }
        let int = self.0.get_int_details(name, some, None).await;
        if let Some(answer) = typed(int, PayloadKind::Number, |number| number.to_string()) {
            return answer;
        }
        let float = self.0.get_float_details(name, some, None).await;
        if let Some(answer) = typed(float, PayloadKind::Number, |number| number.to_string()) {
            return answer;
        }
        let value = self.0.get_struct_details::<StructValue>(name, some, None).await;
        if let Some(answer) = typed(value, PayloadKind::Json, |value| json(Value::Struct(value)).to_string())
        {
            return answer;
        }
        let on = self.0.get_bool_details(name, some, None).await?;
        Ok(Variant { name: on.variant, ..Variant::plain(on.value) })
    }

    /// Whether the provider answers, without waiting.
    pub(super) fn is_answering(&self) -> bool {
        matches!(self.probe(PROBE), Some(Ok(_) | Err(Refusal::NotFound | Refusal::OtherType)))
    }

    pub(super) fn switch(&self, name: &str, subject: &Subject) -> Switch {
        match at_once(self.evaluate(name, &context(subject))) {
            Some(Ok(variant)) if variant.enabled => Switch::On(variant.payload),
            Some(Ok(_)) => Switch::Off,
            // Also for a provider that has not loaded its flags yet, which may report any flag as missing.
            Some(Err(error)) if matches!(Refusal::of(&error), Refusal::NotFound) => {
                Switch::Unknown(SwitchProblem::Missing)
            }
            Some(Err(error)) => Switch::Unknown(SwitchProblem::NotFresh(error.message)),
            None => {
                let waits = "the OpenFeature provider does not answer without waiting";
                Switch::Unknown(SwitchProblem::NotFresh(Some(waits.to_owned())))
            }
        }
    }

    pub(super) fn problem(&self, name: &Name<'_>) -> Option<FlagProblemKind> {
        match self.probe(name.text) {
            Some(Err(Refusal::NotFound)) => Some(FlagProblemKind::Missing),
            _ => None,
        }
    }

    fn probe(&self, name: &str) -> Option<Result<bool, Refusal>> {
        let empty = EvaluationContext::default();
        let answer = at_once(self.0.get_bool_value(name, Some(&empty), None))?;
        Some(answer.map_err(|error| Refusal::of(&error)))
    }
}

enum Refusal {
    NotFound,
    OtherType,
    Other,
}

impl Refusal {
    fn of(error: &EvaluationError) -> Self {
        match error.code {
            EvaluationErrorCode::FlagNotFound => Self::NotFound,
            EvaluationErrorCode::TypeMismatch => Self::OtherType,
            _ => Self::Other,
        }
    }
}

/// `None` if the flag has another type.
fn typed<T>(
    answer: EvaluationResult<EvaluationDetails<T>>,
    kind: PayloadKind,
    text: impl FnOnce(T) -> String,
) -> Option<EvaluationResult<Variant>> {
    match answer {
        Err(error) if matches!(Refusal::of(&error), Refusal::OtherType) => None,
        answer => Some(answer.map(|details| Variant {
            enabled: true,
            name: details.variant,
            payload: Some(text(details.value)),
            payload_kind: Some(kind),
        })),
    }
}

/// The result of a future that completes without waiting. `unconstrained`, because Tokio's cooperative budget can make a
/// ready future pending, which would look like a provider that has to wait.
fn at_once<T>(evaluation: impl Future<Output = T>) -> Option<T> {
    unconstrained(evaluation).now_or_never()
}

fn context(subject: &Subject) -> EvaluationContext {
    let mut context = EvaluationContext {
        targeting_key: subject.user_id().or(subject.session_id()).map(str::to_owned),
        ..EvaluationContext::default()
    };
    let own = [
        ("userId", subject.user_id()),
        ("sessionId", subject.session_id()),
        ("remoteAddress", subject.address()),
    ];
    let own = own.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let properties = subject.properties().iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in own.chain(properties) {
        context.add_custom_field(name, value);
    }
    context
}

fn json(value: Value) -> serde_json::Value {
    match value {
        Value::Bool(value) => value.into(),
        Value::Int(value) => value.into(),
        Value::Float(value) => value.into(),
        Value::String(value) => value.into(),
        Value::Array(values) => values.into_iter().map(json).collect(),
        Value::Struct(value) => value.fields.into_iter().map(|(name, value)| (name, json(value))).collect(),
    }
}
