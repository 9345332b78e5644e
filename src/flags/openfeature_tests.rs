//! Providers that answer, refuse, wait and hang.

use std::{collections::HashMap, sync::Arc, time::Duration};

use open_feature::{
    EvaluationContext, EvaluationContextFieldValue, EvaluationError, EvaluationErrorCode, EvaluationResult,
    OpenFeature, StructValue, Value, async_trait,
    provider::{FeatureProvider, NoOpProvider, ProviderMetadata, ResolutionDetails},
};
use tokio::sync::Semaphore;

use super::*;

const A: Flag = Flag::new("a", false);
const FALLBACK: Flag = Flag::new("a", true);
const LIMIT: Duration = Duration::from_secs(10);

/// Flags in memory, behind a semaphore that each evaluation has to pass.
struct Memory {
    metadata: ProviderMetadata,
    flags: HashMap<&'static str, Value>,
    gate: Arc<Semaphore>,
}

impl Memory {
    fn new(flags: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        Self {
            metadata: ProviderMetadata::new("memory"),
            flags: flags.into_iter().collect(),
            gate: Arc::new(Semaphore::new(1)),
        }
    }

    async fn resolve<T>(
        &self,
        name: &str,
        context: &EvaluationContext,
        read: impl Fn(&Value) -> Option<T>,
    ) -> EvaluationResult<ResolutionDetails<T>> {
        let _passed = self.gate.acquire().await;
        let fail = |code| EvaluationError { code, message: None };
        let value = match name {
            // Returns the context as the value.
            "key" => Value::String(context.targeting_key.clone().unwrap_or_default()),
            "region" => match context.custom_fields.get("region") {
                Some(EvaluationContextFieldValue::String(region)) => Value::String(region.clone()),
                _ => return Err(fail(EvaluationErrorCode::InvalidContext)),
            },
            "broken" => return Err(fail(EvaluationErrorCode::General("out of order".into()))),
            name => self.flags.get(name).cloned().ok_or(fail(EvaluationErrorCode::FlagNotFound))?,
        };
        let value = read(&value).ok_or(fail(EvaluationErrorCode::TypeMismatch))?;
        Ok(ResolutionDetails { variant: Some("v".into()), ..ResolutionDetails::<T>::of(value) })
    }
}

trait Of<T> {
    fn of(value: T) -> Self;
}

impl<T> Of<T> for ResolutionDetails<T> {
    fn of(value: T) -> Self {
        Self { value, variant: None, reason: None, flag_metadata: None }
    }
}

#[async_trait]
impl FeatureProvider for Memory {
    fn metadata(&self) -> &ProviderMetadata {
        &self.metadata
    }

    async fn resolve_bool_value(
        &self,
        name: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<bool>> {
        self.resolve(name, context, Value::as_bool).await
    }

    async fn resolve_int_value(
        &self,
        name: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<i64>> {
        self.resolve(name, context, Value::as_i64).await
    }

    async fn resolve_float_value(
        &self,
        name: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<f64>> {
        self.resolve(name, context, Value::as_f64).await
    }

    async fn resolve_string_value(
        &self,
        name: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        self.resolve(name, context, |value| value.as_str().map(str::to_owned)).await
    }

    async fn resolve_struct_value(
        &self,
        name: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        self.resolve(name, context, |value| value.as_struct().cloned()).await
    }
}

async fn flags(provider: impl FeatureProvider) -> Flags {
    let mut api = OpenFeature::default();
    api.set_provider(provider).await;
    Flags::openfeature(api.create_client())
}

#[tokio::test]
async fn a_provider_serves_decisions_values_and_switches() {
    let limits = StructValue { fields: [("orders".to_owned(), Value::Int(20))].into() };
    let flags = flags(Memory::new([
        ("a", Value::Bool(true)),
        ("size", Value::Int(20)),
        ("share", Value::Float(0.5)),
        ("limits", Value::Struct(limits)),
        ("status", Value::String("ramp:25".into())),
    ]))
    .await;
    let nobody = Subject::new();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    assert!(flags.is_ready() && flags.is_fresh());
    assert!(flags.decide(&A, &nobody));
    assert_eq!(flags.value(&Flag::new("size", 50_u32), &nobody), 20);
    assert_eq!(flags.value(&Flag::new("share", 0.1_f64), &nobody), 0.5);
    let limits = flags.value(&Flag::new("limits", Json(serde_json::Value::Null)), &nobody);
    assert_eq!(limits.0, serde_json::json!({ "orders": 20 }));
    assert_eq!(flags.switch("status"), Switch::On(Some("ramp:25".into())));
    assert_eq!(flags.switch("a"), Switch::On(None));
    let variant = flags.variant("status", &nobody).unwrap();
    assert_eq!((variant.name.as_deref(), variant.payload_kind), (Some("v"), Some(PayloadKind::String)));

    let alice = || Subject::new().user("alice").session("s").property("region", "eu");
    let text = |name, subject| flags.value(&Flag::new(name, String::new()), &subject);
    assert_eq!(text("key", alice()), "alice");
    assert_eq!(text("key", Subject::new().session("s")), "s");
    assert_eq!(text("region", alice()), "eu");

    // `gate` works as with any source.
    let request = Decisions::new(flags.clone(), Subject::new());
    let never = || async { panic!("the wrong one") };
    assert_eq!(request.gate(&A, || async { 1 }, never).await, 1);
    assert_eq!(
        flags.coverage(["a", "size", "c"]),
        [FlagProblem { flag: "c".into(), kind: FlagProblemKind::Missing }]
    );
    assert!(matches!(flags.set("a", FixedFlag::OFF), Err(FlagsError::NotFixed)));
}

#[tokio::test]
async fn a_provider_that_fails_gives_the_default_and_no_switch() {
    let registry = prometheus::Registry::new();
    let memory = flags(Memory::new([])).await;
    memory.register(&registry, &crate::release::Release::new("payments", "canary").unwrap()).unwrap();
    assert!(memory.decide(&Flag::new("broken", true), &Subject::new()));
    assert_eq!(memory.value(&Flag::new("region", 7), &Subject::new()), 7);
    assert!(matches!(memory.switch("broken"), Switch::Unknown(SwitchProblem::NotFresh(_))));
    assert_eq!(memory.switch("gone"), Switch::Unknown(SwitchProblem::Missing));
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(text.contains(r#"cutover_flag_defaults_total{flag="broken",version="canary"} 1"#), "{text}");

    let nothing = flags(NoOpProvider::default()).await;
    assert!(!nothing.is_ready() && !nothing.is_fresh());
    assert!(nothing.decide(&FALLBACK, &Subject::new()));
    assert!(matches!(nothing.switch("a"), Switch::Unknown(_)));
}

#[tokio::test(start_paused = true)]
async fn only_resolve_waits_for_a_provider_and_only_for_its_limit() {
    let memory = Memory::new([("a", Value::Bool(false)), ("size", Value::Int(20))]);
    let gate = memory.gate.clone();
    let flags = flags(memory).await;
    let size = Flag::new("size", 50);
    let held = gate.clone().acquire_owned().await.unwrap();
    assert!(!flags.is_ready() && !flags.is_fresh());
    assert!(matches!(flags.switch("a"), Switch::Unknown(SwitchProblem::NotFresh(_))));
    assert!(Decisions::new(flags.clone(), Subject::new()).decide(&FALLBACK));

    // The provider hangs: the default applies until the end of the request.
    let request = Decisions::new(flags.clone(), Subject::new());
    assert!(request.resolve(&FALLBACK, LIMIT).await);
    assert_eq!(request.resolve_value(&size, LIMIT).await, 50);
    drop(held);
    assert!(request.resolve(&FALLBACK, LIMIT).await && request.decide(&FALLBACK));
    assert_eq!(request.resolve_value(&size, LIMIT).await, 50);

    // The provider takes a while.
    let held = gate.clone().acquire_owned().await.unwrap();
    let request = Decisions::new(flags.clone(), Subject::new());
    let later = async {
        tokio::time::sleep(LIMIT / 2).await;
        drop(held);
    };
    let ((on, value), ()) = tokio::join!(
        async { (request.resolve(&FALLBACK, LIMIT).await, request.resolve_value(&size, LIMIT).await) },
        later
    );
    assert!(!on && value == 20);
    let _held = gate.acquire().await.unwrap();
    // Pinned: the provider is not asked again.
    assert!(!request.decide(&FALLBACK) && request.value(&size) == 20);
}

#[tokio::test]
async fn a_task_without_budget_still_gets_the_providers_answer() {
    let flags = flags(Memory::new([("a", Value::Bool(true))])).await;
    let busy = tokio::spawn(async move {
        let semaphore = Semaphore::new(1);
        while tokio::task::coop::has_budget_remaining() {
            drop(semaphore.acquire().await);
        }
        flags.decide(&A, &Subject::new())
    });
    assert!(busy.await.unwrap());
}
