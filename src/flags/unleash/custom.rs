//! Custom strategies: functions of the application that Unleash's engine asks for.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use unleash_api_client::{Context, Evaluate};
use unleash_yggdrasil::{EngineState, KNOWN_STRATEGIES};

use crate::flags::names::{Name, NameMap};
use crate::flags::subject::Subject;

/// A custom strategy: from the parameters of a flag's strategy, the function that decides about one subject.
///
/// It is called for every flag that uses the strategy, when the flags change. The function that it returns is called for
/// every decision, so it must not block.
#[derive(Clone)]
pub struct CustomStrategy(Arc<Compile>);

type Compile = dyn Fn(Option<HashMap<String, String>>) -> Evaluate + Send + Sync;

impl CustomStrategy {
    /// A strategy from a function. The types are those of `unleash-api-client`, so that its strategies can be used as
    /// they are.
    ///
    /// ```
    /// use cutover::flags::CustomStrategy;
    /// use cutover::flags::unleash_api_client::Context;
    ///
    /// // Subjects whose property `plan` is the strategy's parameter `plan`.
    /// let by_plan = CustomStrategy::new(|parameters| {
    ///     let plan = parameters.and_then(|mut parameters| parameters.remove("plan"));
    ///     Box::new(move |subject: &Context| subject.properties.get("plan") == plan.as_ref())
    /// });
    /// ```
    pub fn new(
        strategy: impl Fn(Option<HashMap<String, String>>) -> Evaluate + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(strategy))
    }

    pub(super) fn evaluate(&self, parameters: Option<HashMap<String, String>>) -> Evaluate {
        (self.0)(parameters)
    }
}

impl fmt::Debug for CustomStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomStrategy")
    }
}

/// The custom strategies that an application registered, by name.
pub(super) type Registered = HashMap<String, CustomStrategy>;

/// The custom strategies of every flag that has any.
///
/// The engine numbers all custom strategies of a flag, registered or not, from 1 in the order of the flag's strategies. A
/// strategy that is not registered keeps its number, and has no result, which the engine takes for `false`.
pub(super) struct CustomStrategies(NameMap<Vec<Option<Evaluate>>>);

impl CustomStrategies {
    /// Compiles the strategies of the engine's state, and names those that are not registered.
    pub(super) fn compile(engine: &EngineState, registered: &Registered) -> Self {
        let mut missing = HashSet::new();
        let mut of_flags = Vec::new();
        for feature in engine.get_state().features {
            let strategies = feature.strategies.unwrap_or_default().into_iter();
            let custom = strategies.filter(|strategy| !KNOWN_STRATEGIES.contains(&&*strategy.name));
            let custom: Vec<_> = custom
                .map(|strategy| {
                    let compiled =
                        registered.get(&strategy.name).map(|custom| custom.evaluate(strategy.parameters));
                    if compiled.is_none() && missing.insert(strategy.name.clone()) {
                        tracing::warn!(
                            flag = feature.name,
                            strategy = strategy.name,
                            "custom strategy is not registered, so it is false; add it to `UnleashOptions::strategies`"
                        );
                    }
                    compiled
                })
                .collect();
            if !custom.is_empty() {
                of_flags.push((feature.name, custom));
            }
        }
        Self(of_flags.into_iter().collect())
    }

    /// The results for one flag, by the engine's names; `None` if the flag has no custom strategy.
    pub(super) fn results(
        &self,
        name: &Name<'_>,
        subject: &Subject,
        app_name: &str,
    ) -> Option<HashMap<String, bool>> {
        let strategies = self.0.get(name)?;
        let context = context(subject, app_name);
        let result = |(index, strategy): (usize, &Option<Evaluate>)| {
            let on = strategy.as_ref()?(&context);
            Some((format!("customStrategy{}", index + 1), on))
        };
        Some(strategies.iter().enumerate().filter_map(result).collect())
    }
}

pub(super) fn context(subject: &Subject, app_name: &str) -> Context {
    let field = |name: &str| subject.get(name).map(str::to_owned);
    Context {
        user_id: subject.user_id().map(str::to_owned),
        session_id: subject.session_id().map(str::to_owned),
        remote_address: subject
            .address()
            .and_then(|address| address.parse().ok())
            .map(unleash_api_client::context::IPAddress),
        properties: subject.properties().clone(),
        app_name: field("appName").unwrap_or_else(|| app_name.to_owned()),
        environment: field("environment").unwrap_or_default(),
        current_time: subject.get("currentTime").and_then(|time| time.parse().ok()),
    }
}
