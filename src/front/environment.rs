use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::Problem;

/// Every variable that is read, here or by [`release`](crate::release). Any other name that begins with `CUTOVER_` is
/// refused.
const KNOWN: [&str; 17] = [
    "ADMIN_ADDR",
    "CUTOVER_DRAIN_SECRET",
    "CUTOVER_GRACE_SECONDS",
    "CUTOVER_INSTANCE",
    "CUTOVER_POOL_SIZE",
    "CUTOVER_PREFLIGHT",
    "CUTOVER_PROPAGATION_SECONDS",
    "CUTOVER_REVISION",
    "CUTOVER_UNNAMED_STATEMENTS",
    "CUTOVER_VERSION",
    "DATABASE_URL",
    "LISTEN_ADDR",
    "REDIS_URL",
    "UNLEASH_DIRECT_INTERVAL_SECONDS",
    "UNLEASH_INTERVAL_SECONDS",
    "UNLEASH_TOKEN",
    "UNLEASH_URL",
];

/// Names that differ by at most this many edits count as a spelling mistake.
const MAX_EDITS: usize = 2;
/// Variables that do not count for the fingerprint.
const NOT_IN_FINGERPRINT: [&str; 3] = ["CUTOVER_DRAIN_SECRET", "CUTOVER_PREFLIGHT", "UNLEASH_TOKEN"];

/// How a preflight is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The environment at the start, which of its variables were read, and the problems found.
pub(super) struct Environment {
    variables: BTreeMap<String, OsString>,
    /// The variables that were read, set or not.
    read: BTreeSet<&'static str>,
    /// Those of them that are set, with their values.
    values: BTreeMap<String, String>,
    /// The preflight that the command line requests.
    argument: Option<Output>,
    pub(super) problems: Vec<Problem>,
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
            read: BTreeSet::new(),
            values: BTreeMap::new(),
            argument: None,
            problems: Vec::new(),
        }
    }

    pub(super) fn problem(&mut self, name: &'static str, problem: impl Into<String>) {
        self.problems.push(Problem::new(name, problem));
    }

    #[cfg(test)]
    pub(super) fn of<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::new(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.into())))
    }

    /// The text of a variable. An empty one is a problem: it is a template that was not filled in.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.read.insert(name);
        match self.variables.get(name)?.to_str() {
            Some("") => self.problem(name, "is empty; give it a value or leave it out"),
            Some(text) => {
                self.values.insert(name.to_owned(), text.to_owned());
                return Some(text.to_owned());
            }
            None => self.problem(name, "is not valid UTF-8"),
        }
        None
    }

    /// The value of a variable. `kind` and `example` describe a valid value.
    pub(super) fn value<T: FromStr>(&mut self, name: &'static str, kind: &str, example: &str) -> Option<T> {
        let text = self.text(name)?;
        let value = text.parse().ok();
        if value.is_none() {
            let text = shown(&text);
            self.problem(name, format!("{text} is not {kind}; use for example {example}"));
        }
        value
    }

    /// Whether a variable is `true`. It is not when it is not set.
    pub(super) fn switch(&mut self, name: &'static str) -> bool {
        self.value(name, "true or false", "true").unwrap_or(false)
    }

    pub(super) fn seconds(&mut self, name: &'static str) -> Option<Duration> {
        self.value(name, "a whole number of seconds", "30").map(Duration::from_secs)
    }

    /// The preflight that is requested instead of a start. An unknown value counts as a request, because the caller waits
    /// for the process to end.
    pub(super) fn preflight(&mut self) -> Option<Output> {
        match self.text("CUTOVER_PREFLIGHT").as_deref() {
            None => self.argument,
            Some("0" | "false") => None,
            Some("1" | "true" | "text") => Some(Output::Text),
            Some("json") => Some(Output::Json),
            Some(other) => {
                let other = shown(other);
                self.problem("CUTOVER_PREFLIGHT", format!("{other} is not valid; use 1, json or 0"));
                Some(Output::Text)
            }
        }
    }

    /// Refuses misspelled names, whose setting would silently keep its default. Call it after all variables were read: a
    /// variable that is not read may belong to another program.
    pub(super) fn refuse_unknown(&mut self) {
        let unknown = |name: &&String| !KNOWN.contains(&name.as_str()) && !is_service_link(name);
        for name in self.variables.keys().filter(unknown) {
            let nearest = KNOWN.iter().map(|known| (strsim::damerau_levenshtein(known, name), *known)).min();
            let meant = nearest.filter(|(distance, known)| {
                let is_unset = !self.variables.contains_key(*known);
                *distance <= MAX_EDITS && is_unset && (is_ours(name) || self.read.contains(known))
            });
            let hint = match meant {
                Some((_, known)) => format!("did you mean {known}?"),
                None if is_ours(name) => {
                    let known: Vec<_> = KNOWN.into_iter().filter(|known| is_ours(known)).collect();
                    format!("the known ones are {}", known.join(", "))
                }
                None => continue,
            };
            self.problems.push(Problem::new(name.clone(), format!("unknown variable; {hint}")));
        }
    }

    /// A number for the configuration, equal on all pods that have the same variables and declarations in code.
    ///
    /// Version, build and instance do not count. It contains no secret, so that it can't be used to guess passwords.
    pub(super) fn fingerprint(&self, declared: &str) -> String {
        let mut hash = Sha256::new();
        for (name, value) in &self.values {
            if !NOT_IN_FINGERPRINT.contains(&name.as_str()) {
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

/// A value that cannot be used. An address may hold a password, in whichever variable it is.
pub(super) fn shown(value: &str) -> String {
    if value.contains("://") { "an address".to_owned() } else { format!("{value:?}") }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("CUTOVER_")
}

/// Kubernetes names variables after its Services. A Service called `cutover` or `cutover-demo` must not prevent a start.
fn is_service_link(name: &str) -> bool {
    let of_a_port = |(_, rest): (&str, &str)| rest.starts_with(|first: char| first.is_ascii_digit());
    ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|end| name.ends_with(end))
        || name.contains("_SERVICE_PORT_")
        || name.split_once("_PORT_").is_some_and(of_a_port)
}

/// An address without user, password and parameters that contain secrets.
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
        Environment::of(pairs.iter().copied())
    }

    #[test]
    fn bad_values_and_misspelled_names_are_reported_together() {
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
        environment.value::<std::net::SocketAddr>("LISTEN_ADDR", "an address", "[::]:8080");
        environment.text("ADMIN_ADDR");
        environment.text("DATABASE_URL");
        environment.seconds("CUTOVER_GRACE_SECONDS");
        assert_eq!(environment.preflight(), Some(Output::Text));
        environment.refuse_unknown();
        let text: Vec<_> = environment.problems.iter().map(ToString::to_string).collect();
        let text = text.join("\n");
        assert_eq!(environment.problems.len(), 7, "{text}");
        for part in [
            "LISTEN_ADDR: \"everywhere\" is not an address; use for example [::]:8080",
            "ADMIN_ADDR: is empty",
            "CUTOVER_GRACE_SECONDS: \"30s\" is not a whole number of seconds",
            "CUTOVER_PREFLIGHT: \"yes\" is not valid; use 1, json or 0",
            "CUTOVER_VERSIN: unknown variable; did you mean CUTOVER_VERSION?",
            "CUTOVER_FLEETS: unknown variable; the known ones are CUTOVER_DRAIN_SECRET,",
            "DATABASE_ULR: unknown variable; did you mean DATABASE_URL?",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn variables_of_other_programs_are_ignored() {
        let mut environment = environment(&[
            ("CUTOVER_PORT", "tcp://10.0.0.1:80"),
            ("CUTOVER_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("CUTOVER_SERVICE_HOST", "10.0.0.1"),
            ("CUTOVER_DEMO_SERVICE_HOST", "10.0.0.1"),
            ("CUTOVER_DEMO_SERVICE_PORT_HTTP", "80"),
            ("CUTOVER_DEMO_PORT", "tcp://10.0.0.1:80"),
            ("CUTOVER_DEMO_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("UNLEASH_PORT", "tcp://10.0.0.1:4242"),
            // A service with its own pool has its own names.
            ("DATABASE_URI", "postgres://a"),
            ("REDIS_URL", "redis://a"),
            // A service may have two of them.
            ("REDIS_URL2", "redis://b"),
        ]);
        environment.refuse_unknown();
        assert_eq!(environment.problems, []);
    }

    #[test]
    fn a_fingerprint_distinguishes_configurations_without_secrets() {
        let of = |pairs: &[(&'static str, &str)], declared: &str| {
            let mut environment = environment(pairs);
            for (name, _) in pairs {
                environment.text(name);
            }
            environment.fingerprint(declared)
        };
        let one = of(&[("DATABASE_URL", "postgres://u:one@db/x"), ("UNLEASH_TOKEN", "a")], "flags");
        assert_eq!(one, of(&[("DATABASE_URL", "postgres://db/x"), ("CUTOVER_DRAIN_SECRET", "s")], "flags"));
        assert_eq!(one, of(&[("DATABASE_URL", "postgres://v:two@db/x"), ("UNLEASH_TOKEN", "b")], "flags"));
        let parameters = "postgres://db/x?user=w&password=three&sslpassword=four";
        assert_eq!(one, of(&[("DATABASE_URL", parameters)], "flags"));
        assert_ne!(one, of(&[("DATABASE_URL", "postgres://db/x?sslmode=require")], "flags"));
        assert_ne!(one, of(&[("DATABASE_URL", "postgres://u:one@other/x")], "flags"));
        assert_ne!(one, of(&[("DATABASE_URL", "postgres://u:one@db/x")], "other flags"));
        assert_eq!(one.len(), 12);
    }
}
