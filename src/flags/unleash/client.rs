//! A client that the application made, as a source of flags.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use unleash_api_client::client::{Client, FeatureKey};

use super::custom::context;
use crate::config::{ConfigError, Problem};
use crate::flags::flag::{PayloadKind, Variant};
use crate::flags::names::Name;
use crate::flags::subject::Subject;

/// A client whose type of features does not matter.
pub(in crate::flags) trait AppClient: Send + Sync {
    /// Whether it has fetched a state.
    fn is_loaded(&self) -> bool;
    fn enabled(&self, name: &Name<'_>, subject: &Subject, default: bool) -> bool;
    fn variant(&self, name: &Name<'_>, subject: &Subject) -> Variant;
}

impl<F: FeatureKey> AppClient for Client<F> {
    fn is_loaded(&self) -> bool {
        self.cached_state().is_some()
    }

    fn enabled(&self, name: &Name<'_>, subject: &Subject, default: bool) -> bool {
        self.is_enabled_str(name.text, Some(&context(subject, "")), default)
    }

    fn variant(&self, name: &Name<'_>, subject: &Subject) -> Variant {
        let context = context(subject, "");
        let variant = self.get_variant_str(name.text, &context);
        if !variant.enabled {
            // The flag is off, or on without variants.
            return Variant::plain(self.is_enabled_str(name.text, Some(&context), false));
        }
        let mut payload = variant.payload;
        let payload_kind = payload.get("type").and_then(|kind| PayloadKind::named(kind));
        Variant { enabled: true, name: Some(variant.name), payload: payload.remove("value"), payload_kind }
    }
}

/// The client as a source.
///
/// # Errors
///
/// [`ConfigError`] for a client that refuses names of flags. It offers no other way to find out.
pub(in crate::flags) fn source<F: FeatureKey>(
    client: Arc<Client<F>>,
) -> Result<Arc<dyn AppClient>, ConfigError> {
    let ask = || client.is_enabled_str("cutover-probe", None, false);
    if catch_unwind(AssertUnwindSafe(ask)).is_err() {
        let problem = "it refuses names of flags; call `enable_string_features()` on its `ClientBuilder`";
        return Err(ConfigError { problems: vec![Problem::new("flags client", problem)] });
    }
    Ok(client)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use unleash_api_client::ClientBuilder;
    use unleash_api_client::http::{Request, Response, Transport};

    use super::*;
    use crate::flags::problem::SwitchProblem;
    use crate::flags::{Flag, Flags, Switch};

    struct NoServer;

    #[async_trait]
    impl Transport for NoServer {
        async fn execute(&self, _: Request) -> Result<Response, anyhow::Error> {
            Err(anyhow::anyhow!("there is no server"))
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Feature {}

    impl FeatureKey for Feature {
        fn name(self) -> &'static str {
            match self {}
        }
    }

    const STATE: &str = r#"{"version":2,"features":[
        {"name":"on","enabled":true,"strategies":[{"name":"default"}]},
        {"name":"off","enabled":false,"strategies":[{"name":"default"}]},
        {"name":"for-alice","enabled":true,
         "strategies":[{"name":"userWithId","parameters":{"userIds":"alice"}}]},
        {"name":"phase","enabled":true,"strategies":[{"name":"default"}],
         "variants":[{"name":"v","weight":1000,"payload":{"type":"number","value":"7"}}]}]}"#;

    fn client(builder: ClientBuilder) -> Arc<Client<Feature>> {
        let client =
            builder.into_client_with_transport("http://unused", "shop", "a", None, Arc::new(NoServer));
        Arc::new(client.expect("a client"))
    }

    #[test]
    fn the_application_s_client_decides() {
        let client = client(ClientBuilder::default().enable_string_features());
        let flags = Flags::from_client(Arc::clone(&client)).expect("a client that takes names");
        let subject = Subject::new();
        let is_on = |name: &'static str, default| flags.decide(&Flag::new(name, default), &subject);
        assert!(!flags.is_ready());
        assert!(is_on("on", true) && !is_on("on", false), "the default before the first fetch");

        client.memoize_update_message(serde_json::from_str(STATE).expect("a state")).expect("loaded");
        assert!(flags.is_ready() && flags.is_fresh());
        assert!(is_on("on", false) && !is_on("off", true));
        assert!(is_on("missing", true) && !is_on("missing", false), "the default of a missing flag");
        assert!(!is_on("for-alice", false));
        assert!(flags.decide(&Flag::new("for-alice", false), &Subject::new().user("alice")));
        assert_eq!(flags.value(&Flag::new("phase", 1), &subject), 7);
        assert_eq!(flags.value(&Flag::new("on", 1), &subject), 1, "no variant");
        assert_eq!(flags.switch("phase"), Switch::Unknown(SwitchProblem::OwnClient));
        assert_eq!(flags.switch("off"), Switch::Unknown(SwitchProblem::OwnClient));
    }

    #[test]
    fn a_client_that_refuses_names_is_refused() {
        let error = Flags::from_client(client(ClientBuilder::default())).expect_err("no names").to_string();
        assert!(error.contains("enable_string_features"), "{error}");
    }
}
