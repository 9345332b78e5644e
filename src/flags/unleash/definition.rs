//! What the definition of a flag says beyond its answer to one subject.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;
use serde_json::Value;
use unleash_yggdrasil::EngineState;

use crate::flags::names::NameMap;

/// What is known about a flag without evaluating it.
#[derive(Clone, Debug)]
pub(super) struct Definition {
    /// Whether the flag is turned on in the token's environment.
    pub(super) enabled: bool,
    pub(super) stale: bool,
    /// Whether each decision is announced as an event.
    pub(super) impression: bool,
    /// Why the flag can give more than one answer at the same time.
    pub(super) ambiguity: Option<String>,
}

/// The definitions of all flags of the engine's state.
pub(super) fn definitions(engine: &EngineState) -> Result<NameMap<Definition>, serde_json::Error> {
    let features: Vec<Feature> = engine
        .get_state()
        .features
        .into_iter()
        .map(|feature| serde_json::from_value(serde_json::to_value(feature)?))
        .collect::<Result<_, _>>()?;
    let mut by_name: HashMap<&str, Vec<&Feature>> = HashMap::new();
    for feature in &features {
        by_name.entry(&feature.name).or_default().push(feature);
    }
    let ambiguity = |same: &[&Feature]| match same {
        [only] => only.ambiguity(),
        _ => Some(format!("the flag server has sent it {} times", same.len())),
    };
    let own: HashMap<&str, Option<String>> =
        by_name.iter().map(|(name, same)| (*name, ambiguity(same))).collect();
    let definition = |feature: &Feature| {
        let parents = feature.dependencies.iter().flatten();
        let of_parents = parents.filter_map(|parent| {
            let ambiguity = own.get(&*parent.feature)?.as_ref()?;
            Some(format!("its parent flag {:?}: {ambiguity}", parent.feature))
        });
        let ambiguity = own.get(&*feature.name).cloned().flatten();
        Definition {
            // If any of those with this name is on, it is not clear that a person turned the flag off.
            enabled: by_name[&*feature.name].iter().any(|same| same.enabled),
            stale: feature.stale == Some(true),
            impression: feature.impression_data == Some(true),
            ambiguity: ambiguity.into_iter().chain(of_parents).next(),
        }
    };
    Ok(features.iter().map(|feature| (feature.name.clone(), definition(feature))).collect())
}

/// The part of a flag of the client API that matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Feature {
    name: String,
    enabled: bool,
    stale: Option<bool>,
    impression_data: Option<bool>,
    strategies: Option<Vec<Strategy>>,
    variants: Option<Vec<Variant>>,
    dependencies: Option<Vec<Dependency>>,
}

#[derive(Deserialize)]
struct Strategy {
    name: String,
    parameters: Option<HashMap<String, String>>,
    variants: Option<Vec<Variant>>,
}

#[derive(Deserialize)]
struct Variant {
    weight: i32,
    payload: Option<Value>,
}

#[derive(Deserialize)]
struct Dependency {
    feature: String,
}

impl Feature {
    fn ambiguity(&self) -> Option<String> {
        let strategies = || self.strategies.iter().flatten();
        let rollout = strategies().find_map(Strategy::partial_rollout);
        let variants = || {
            let of_strategies = strategies().filter_map(|strategy| strategy.variants.as_ref());
            of_strategies.chain(&self.variants).find_map(|variants| several(variants))
        };
        rollout.or_else(variants)
    }
}

impl Strategy {
    /// A rollout to some subjects only. Names of strategies and parameters are Unleash's
    /// (<https://docs.getunleash.io/reference/activation-strategies>).
    fn partial_rollout(&self) -> Option<String> {
        let parameter = |name: &str| self.parameters.as_ref()?.get(name);
        let percent = match &*self.name {
            "flexibleRollout" => parameter("rollout"),
            "gradualRolloutRandom" | "gradualRolloutUserId" | "gradualRolloutSessionId" => {
                parameter("percentage")
            }
            _ => None,
        }?;
        if matches!(percent.trim().parse(), Ok(0_u8 | 100)) {
            return None;
        }
        let stickiness = parameter("stickiness").map(|by| format!(", stickiness {by}")).unwrap_or_default();
        Some(format!("strategy {} has a rollout of {percent} %{stickiness}", self.name))
    }
}

/// Variants that can be chosen and have different payloads.
fn several(variants: &[Variant]) -> Option<String> {
    let chosen = variants.iter().filter(|variant| variant.weight > 0);
    let payloads: BTreeSet<String> =
        chosen.map(|variant| variant.payload.as_ref().map(Value::to_string).unwrap_or_default()).collect();
    (payloads.len() > 1).then(|| format!("it has {} variants with different payloads", payloads.len()))
}
