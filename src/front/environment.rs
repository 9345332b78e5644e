use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// Every variable that is read, here or by [`release`](crate::release). What begins with `CUTOVER_` and is none of
/// them is refused.
const KNOWN: [&str; 13] = [
    "ADMIN_ADDR",
    "CUTOVER_GRACE_SECONDS",
    "CUTOVER_INSTANCE",
    "CUTOVER_POOL_SIZE",
    "CUTOVER_PREFLIGHT",
    "CUTOVER_PROPAGATION_SECONDS",
    "CUTOVER_REVISION",
    "CUTOVER_VERSION",
    "DATABASE_URL",
    "LISTEN_ADDR",
    "REDIS_URL",
    "UNLEASH_TOKEN",
    "UNLEASH_URL",
];

/// More than one mistake in a name makes it another one.
const TYPING_ERRORS: usize = 2;

/// How a preflight is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The environment as it was at the start, what of it was asked for, and what is wrong with it.
pub(super) struct Environment {
    variables: BTreeMap<String, OsString>,
    /// What somebody wanted to know, whether or not it is set.
    wanted: BTreeSet<&'static str>,
    asked: BTreeMap<String, String>,
    /// What was asked for on the command line.
    argument: Option<Output>,
    pub(super) problems: Vec<String>,
}

impl Environment {
    pub(super) fn of_the_process() -> Self {
        let named = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        let argument = std::env::args_os().find_map(|argument| match argument.to_str()? {
            "--preflight" => Some(Output::Text),
            "--preflight=json" => Some(Output::Json),
            _ => None,
        });
        Self { argument, ..Self::new(std::env::vars_os().filter_map(named)) }
    }

    fn new(variables: impl IntoIterator<Item = (String, OsString)>) -> Self {
        Self {
            variables: variables.into_iter().collect(),
            wanted: BTreeSet::new(),
            asked: BTreeMap::new(),
            argument: None,
            problems: Vec::new(),
        }
    }

    /// A variable's text. One that is set but empty is a template that was not filled in.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.wanted.insert(name);
        match self.variables.get(name)?.to_str() {
            Some("") => self.problems.push(format!("{name}: is empty; give it a value or leave it out")),
            Some(text) => {
                self.asked.insert(name.to_owned(), text.to_owned());
                return Some(text.to_owned());
            }
            None => self.problems.push(format!("{name}: is not valid UTF-8")),
        }
        None
    }

    /// A variable's value; `kind` and `example` say what would be right.
    pub(super) fn value<T: FromStr>(&mut self, name: &'static str, kind: &str, example: &str) -> Option<T> {
        let text = self.text(name)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.problems.push(format!("{name}: {text:?} is no {kind}; use one like {example}"));
        }
        value
    }

    pub(super) fn seconds(&mut self, name: &'static str) -> Option<Duration> {
        self.value(name, "whole number of seconds", "30").map(Duration::from_secs)
    }

    /// Whether a preflight is asked for instead of a start. One that was asked for in an unknown way is a preflight
    /// all the same: somebody waits for it to end.
    pub(super) fn preflight(&mut self) -> Option<Output> {
        match self.text("CUTOVER_PREFLIGHT").as_deref() {
            None => self.argument,
            Some("0" | "false") => None,
            Some("1" | "true" | "text") => Some(Output::Text),
            Some("json") => Some(Output::Json),
            Some(other) => {
                self.problems.push(format!("CUTOVER_PREFLIGHT: {other:?} is none of 1, json and 0"));
                Some(Output::Text)
            }
        }
    }

    /// Names that look like ours and are not: what they were to set stays as it was, without a word. To be called when
    /// everything has been asked for: what is nobody's here may be somebody else's.
    pub(super) fn refuse_unknown(&mut self) {
        let unknown = |name: &&String| !KNOWN.contains(&name.as_str()) && !is_service_link(name);
        for name in self.variables.keys().filter(unknown) {
            let nearest = KNOWN.iter().map(|known| (strsim::damerau_levenshtein(known, name), *known)).min();
            let meant = nearest.filter(|(distance, known)| {
                let is_missed = !self.variables.contains_key(*known);
                *distance <= TYPING_ERRORS && is_missed && (is_ours(name) || self.wanted.contains(known))
            });
            match meant {
                Some((_, known)) => {
                    self.problems.push(format!("{name}: nobody reads it; is {known} meant?"));
                }
                None if is_ours(name) => {
                    let known: Vec<_> = KNOWN.into_iter().filter(|known| is_ours(known)).collect();
                    self.problems.push(format!("{name}: nobody reads it; there are {}", known.join(", ")));
                }
                None => {}
            }
        }
    }

    /// The same on all pods that are configured alike: variables, and what else is declared in code.
    ///
    /// Which version, build and instance it is doesn't count, and no secret is in it, so that nobody can try
    /// passwords on it.
    pub(super) fn fingerprint(&self, declared: &str) -> String {
        let mut hash = Sha256::new();
        for (name, value) in &self.asked {
            if name != "UNLEASH_TOKEN" && name != "CUTOVER_PREFLIGHT" {
                hash.update(format!("{name}={}\n", without_secrets(value)));
            }
        }
        hash.update(declared);
        hash.finalize().iter().take(6).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("CUTOVER_")
}

/// Kubernetes names variables after its Services; one that is called `cutover`, or `cutover-demo`, must not break a start.
fn is_service_link(name: &str) -> bool {
    let of_a_port = |(_, rest): (&str, &str)| rest.starts_with(|first: char| first.is_ascii_digit());
    ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|end| name.ends_with(end))
        || name.contains("_SERVICE_PORT_")
        || name.split_once("_PORT_").is_some_and(of_a_port)
}

/// An address without who connects, and without what a parameter gives away.
fn without_secrets(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.to_owned() };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    let is_harmless =
        |pair: &&str| !["user", "pass", "token", "secret"].iter().any(|word| pair.contains(word));
    let query: Vec<&str> = query.split('&').filter(is_harmless).collect();
    format!("{scheme}://{place}?{}", query.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))))
    }

    #[test]
    fn wrong_and_unknown_names_are_refused_together_with_what_would_be_right() {
        let mut environment = environment(&[
            ("LISTEN_ADDR", "everywhere"),
            ("ADMIN_ADDR", ""),
            ("CUTOVER_GRACE_SECONDS", "30s"),
            ("CUTOVER_PREFLIGHT", "yes"),
            ("CUTOVER_VERSIN", "canary"),
            ("CUTOVER_FLEETS", "x"),
            ("DATABASE_ULR", "postgres://"),
            ("PATH", "/bin"),
        ]);
        environment.value::<std::net::SocketAddr>("LISTEN_ADDR", "address", "0.0.0.0:8080");
        environment.text("ADMIN_ADDR");
        environment.text("DATABASE_URL");
        environment.seconds("CUTOVER_GRACE_SECONDS");
        assert_eq!(environment.preflight(), Some(Output::Text));
        environment.refuse_unknown();
        let text = environment.problems.join("\n");
        assert_eq!(environment.problems.len(), 7, "{text}");
        for part in [
            "LISTEN_ADDR: \"everywhere\" is no address; use one like 0.0.0.0:8080",
            "ADMIN_ADDR: is empty",
            "CUTOVER_GRACE_SECONDS: \"30s\" is no whole number of seconds",
            "CUTOVER_PREFLIGHT: \"yes\" is none of 1, json and 0",
            "CUTOVER_VERSIN: nobody reads it; is CUTOVER_VERSION meant?",
            "CUTOVER_FLEETS: nobody reads it; there are CUTOVER_GRACE_SECONDS,",
            "DATABASE_ULR: nobody reads it; is DATABASE_URL meant?",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn what_others_set_is_theirs() {
        let mut environment = environment(&[
            ("CUTOVER_PORT", "tcp://10.0.0.1:80"),
            ("CUTOVER_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("CUTOVER_SERVICE_HOST", "10.0.0.1"),
            ("CUTOVER_DEMO_SERVICE_HOST", "10.0.0.1"),
            ("CUTOVER_DEMO_SERVICE_PORT_HTTP", "80"),
            ("CUTOVER_DEMO_PORT", "tcp://10.0.0.1:80"),
            ("CUTOVER_DEMO_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("UNLEASH_PORT", "tcp://10.0.0.1:4242"),
            // A service that brings its own pool has its own names.
            ("DATABASE_URI", "postgres://a"),
            ("REDIS_URL", "redis://a"),
            // Somebody has two of them.
            ("REDIS_URL2", "redis://b"),
        ]);
        environment.refuse_unknown();
        assert_eq!(environment.problems, [""; 0]);
    }

    #[test]
    fn a_fingerprint_tells_configurations_apart_and_holds_no_secret() {
        let of = |pairs: &[(&'static str, &str)], declared: &str| {
            let mut environment = environment(pairs);
            for (name, _) in pairs {
                environment.text(name);
            }
            environment.fingerprint(declared)
        };
        let one = of(&[("DATABASE_URL", "postgres://u:one@db/x"), ("UNLEASH_TOKEN", "a")], "flags");
        assert_eq!(one, of(&[("DATABASE_URL", "postgres://v:two@db/x"), ("UNLEASH_TOKEN", "b")], "flags"));
        let parameters = "postgres://db/x?user=w&password=three&sslpassword=four";
        assert_eq!(one, of(&[("DATABASE_URL", parameters)], "flags"));
        assert_ne!(one, of(&[("DATABASE_URL", "postgres://db/x?sslmode=require")], "flags"));
        assert_ne!(one, of(&[("DATABASE_URL", "postgres://u:one@other/x")], "flags"));
        assert_ne!(one, of(&[("DATABASE_URL", "postgres://u:one@db/x")], "other flags"));
        assert_eq!(one.len(), 12);
    }
}
