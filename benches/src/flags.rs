use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use cutover::flags::{Decisions, Flag, Flags, Subject, UnleashOptions};
use cutover_testkit::{Unleash, if_installed};
use futures_util::FutureExt;
use futures_util::future::{join_all, try_join_all};
use open_feature::provider::{FeatureProvider, ProviderMetadata, ResolutionDetails};
use open_feature::{
    EvaluationContext, EvaluationError, EvaluationErrorCode, EvaluationResult, OpenFeature, StructValue,
};
use serde_json::json;
use unleash_api_client::ClientBuilder;
use unleash_api_client::client::FeatureKey;
use unleash_api_client::context::Context;
use unleash_api_client::http::{Request, Response, Transport};
use unleash_yggdrasil::state::EnrichedContext;
use unleash_yggdrasil::{EngineState, UpdateMessage};

use super::table::Table;
use super::timing::{compare, quantile, repeat};
use super::world::{self, LIMIT};

const SIMPLE: Flag = Flag::new("simple", false);
const ROLLOUT: Flag = Flag::new("rollout", false);
const USER: &str = "user-4711";

/// The client is asked by name, but requires a key type.
#[derive(Clone, Copy, Debug)]
enum ByName {}

impl FeatureKey for ByName {
    fn name(self) -> &'static str {
        match self {}
    }
}

/// Never used: the client gets its flags with `memoize`.
struct Nowhere;

#[open_feature::async_trait]
impl Transport for Nowhere {
    async fn execute(&self, _: Request) -> Result<Response, anyhow::Error> {
        Err(anyhow!("no server"))
    }
}

/// An OpenFeature provider whose flags are all on.
struct AllOn(ProviderMetadata);

fn unknown<T>() -> EvaluationResult<ResolutionDetails<T>> {
    Err(EvaluationError { code: EvaluationErrorCode::FlagNotFound, message: None })
}

#[open_feature::async_trait]
impl FeatureProvider for AllOn {
    fn metadata(&self) -> &ProviderMetadata {
        &self.0
    }

    async fn resolve_bool_value(
        &self,
        _: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<bool>> {
        Ok(ResolutionDetails::new(true))
    }

    async fn resolve_int_value(
        &self,
        _: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<i64>> {
        unknown()
    }

    async fn resolve_float_value(
        &self,
        _: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<f64>> {
        unknown()
    }

    async fn resolve_string_value(
        &self,
        _: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        unknown()
    }

    async fn resolve_struct_value(
        &self,
        _: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        unknown()
    }
}

fn state() -> String {
    let strategy = |percent: &str, variants| {
        json!([{
            "name": "flexibleRollout",
            "parameters": { "rollout": percent, "stickiness": "userId", "groupId": "g" },
            "variants": variants,
        }])
    };
    let variants = json!([{
        "name": "v", "weight": 1000, "stickiness": "userId",
        "payload": { "type": "string", "value": "ramp:25" },
    }]);
    let flag = |name, strategies| json!({ "name": name, "type": "release", "enabled": true, "strategies": strategies });
    let features = json!([
        flag("simple", json!([{ "name": "default" }])),
        flag("rollout", strategy("50", json!([]))),
        flag("variant", strategy("100", variants)),
    ]);
    json!({ "version": 2, "features": features }).to_string()
}

/// The cost of a decision, beside Unleash's client and the engine under both.
pub(crate) async fn decisions(quick: bool) -> Result<()> {
    let state = state();
    // Nothing listens there; the flags come from the initial state.
    let options = UnleashOptions::new("http://127.0.0.1:1", "token", "bench", "bench");
    let flags = Flags::unleash(UnleashOptions { bootstrap: Some(state.clone().into()), ..options })?;
    let subject = Subject::new().user(USER);
    let request = Decisions::new(flags.clone(), Subject::new().user(USER));

    let client = std::sync::Arc::new(
        ClientBuilder::default().enable_string_features().into_client_with_transport::<ByName>(
            "http://127.0.0.1:1",
            "bench",
            "bench",
            None,
            std::sync::Arc::new(Nowhere),
        )?,
    );
    client.memoize(serde_json::from_str(&state)?).map_err(|error| anyhow!(error))?;
    let by_client = Flags::from_client(std::sync::Arc::clone(&client))?;
    let context = Context { user_id: Some(USER.into()), ..Context::default() };

    let engine = EngineState::default();
    engine.take_state(UpdateMessage::FullResponse(serde_json::from_str(&state)?));
    let enriched = |name| EnrichedContext {
        user_id: Some(USER),
        session_id: None,
        environment: None,
        app_name: None,
        current_time: None,
        remote_address: None,
        properties: None,
        external_results: None,
        toggle_name: name,
        runtime_hostname: None,
    };

    let mut api = OpenFeature::default();
    api.set_provider(AllOn(ProviderMetadata::new("all on"))).await;
    let open = api.create_client();
    let open_context = EvaluationContext::default().with_targeting_key(USER);
    let open_flags = Flags::openfeature(api.create_client());
    let open_request = Decisions::new(open_flags.clone(), Subject::new().user(USER));

    let works = [
        repeat("simple: Unleash's client", || client.is_enabled_str("simple", Some(&context), false)),
        repeat("simple: cutover, by Unleash's client", || by_client.decide(black_box(&SIMPLE), &subject)),
        repeat("simple: engine without counting", || engine.check_enabled(&enriched("simple"))),
        repeat("simple: cutover, first decision", || flags.decide(black_box(&SIMPLE), &subject)),
        repeat("simple: cutover, again in the same request", || request.decide(black_box(&SIMPLE))),
        repeat("simple: cutover, with new request decisions", || {
            Decisions::new(flags.clone(), Subject::new()).decide(black_box(&SIMPLE))
        }),
        repeat("rollout: Unleash's client", || client.is_enabled_str("rollout", Some(&context), false)),
        repeat("rollout: cutover, by Unleash's client", || by_client.decide(black_box(&ROLLOUT), &subject)),
        repeat("rollout: engine without counting", || engine.check_enabled(&enriched("rollout"))),
        repeat("rollout: cutover, first decision", || flags.decide(black_box(&ROLLOUT), &subject)),
        repeat("rollout: cutover, again in the same request", || request.decide(black_box(&ROLLOUT))),
        repeat("variant: Unleash's client", || client.get_variant_str("variant", &context)),
        repeat("variant: engine without counting", || engine.check_variant(&enriched("variant"))),
        repeat("variant: cutover, first decision", || flags.variant("variant", &subject)),
        repeat("variant: cutover, again in the same request", || request.variant("variant").is_some()),
        repeat("OpenFeature: its client, in memory", || {
            open.get_bool_value("simple", Some(&open_context), None)
                .now_or_never()
                .is_some_and(|on| on.is_ok())
        }),
        repeat("OpenFeature: cutover, first decision", || open_flags.decide(black_box(&SIMPLE), &subject)),
        repeat("OpenFeature: cutover, again", || open_request.decide(black_box(&SIMPLE))),
    ];
    tokio::task::block_in_place(|| compare("Cost of a flag decision", &works, quick)).publish("flags")
}

/// From a toggle in a real Unleash until the last instance decides by it.
pub(crate) async fn kill_switch(quick: bool) -> Result<()> {
    const SWITCH: Flag = Flag::new("kill-switch", false);
    let postgres = world::server(&[]).await?;
    let Some(unleash) = if_installed(Unleash::start(&postgres).await)? else { return Ok(()) };
    let admin = unleash.admin()?;
    admin.ensure_flag(SWITCH.name()).await?;
    admin.set_rollout(SWITCH.name(), 100).await?;
    let toggles = if quick { 4 } else { 10 };
    let subject = Subject::new().user(USER);
    let mut table = Table::new(
        "Time from a toggle in Unleash until the instances decide by it",
        &["first, ms", "last, ms", "last, p90", "last, worst"],
    );
    for instances in [3, 20] {
        let start = async |number: usize| {
            let name = format!("bench-{number}");
            let options = UnleashOptions::new(unleash.url(), unleash.backend_token(), "bench", name);
            let flags = Flags::unleash(options)?;
            tokio::time::timeout(LIMIT, flags.ready()).await?;
            anyhow::Ok(flags)
        };
        let fleet = try_join_all((0..instances).map(start)).await?;
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for toggle in 0..toggles {
            let on = toggle % 2 == 0;
            // At any moment between two polls of the server and of the instances.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..1_000))).await;
            let began = Instant::now();
            let decided = fleet.iter().map(async |flags| {
                let mut changed = flags.changed();
                while flags.decide(&SWITCH, &subject) != on {
                    changed.changed().await?;
                }
                anyhow::Ok(began.elapsed().as_secs_f64() * 1_000.0)
            });
            let toggled = async {
                if on { admin.enable(SWITCH.name()).await } else { admin.disable(SWITCH.name()).await }
            };
            let (toggled, decided) =
                tokio::time::timeout(LIMIT, async { tokio::join!(toggled, join_all(decided)) }).await?;
            toggled?;
            let mut times = decided.into_iter().collect::<Result<Vec<_>>>()?;
            first.push(quantile(&mut times, 0.0));
            last.push(quantile(&mut times, 1.0));
        }
        join_all(fleet.iter().map(Flags::close)).await;
        table.row(
            format!("{instances} instances, {toggles} toggles"),
            vec![
                quantile(&mut first, 0.5),
                quantile(&mut last, 0.5),
                quantile(&mut last, 0.9),
                quantile(&mut last, 1.0),
            ],
        );
    }
    table.publish("killswitch")
}
