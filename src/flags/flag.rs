//! What code declares, and what it gets back.

use super::names::Name;
use super::problem::SwitchProblem;

/// A flag, declared in code with a default.
///
/// The default applies if the flag's source was never reached, and if the source does not have the flag. Choose a value
/// that is safe in both cases, such as the old code path.
///
/// A `Flag<bool>` is on or off ([`Flags::decide`](super::Flags::decide)). A flag of another type
/// takes its value from the payload of the flag's variant ([`Flags::value`](super::Flags::value)). The type implements
/// [`FromStr`](std::str::FromStr): `String`, numbers, [`Json`](super::Json), [`Csv`](super::Csv).
///
/// ```
/// use cutover::flags::{Flag, FixedFlag, Flags, Subject};
///
/// const NEW_FLOW: Flag = Flag::new("payment-new-flow", false);
/// const PAGE_SIZE: Flag<u32> = Flag::new("page-size", 50);
///
/// let flags = Flags::fixed([
///     ("payment-new-flow", FixedFlag::ON),
///     ("page-size", FixedFlag::payload("20")),
/// ]);
/// let subject = Subject::new().user("u1");
/// assert!(flags.decide(&NEW_FLOW, &subject));
/// assert_eq!(flags.value(&PAGE_SIZE, &subject), 20);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Flag<T = bool> {
    pub(super) name: Name<'static>,
    pub(super) default: T,
}

impl<T> Flag<T> {
    /// Declares a flag. `name` is its name in the source.
    pub const fn new(name: &'static str, default: T) -> Self {
        Self { name: Name::new(name), default }
    }

    /// The flag's name.
    pub const fn name(&self) -> &'static str {
        self.name.text
    }

    /// The declared default.
    pub const fn default_value(&self) -> &T {
        &self.default
    }
}

/// The answer of a flag for one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Variant {
    /// Whether the flag is on for the subject.
    pub enabled: bool,
    /// The name of the chosen variant; `None` if the flag is off or has no variants.
    pub name: Option<String>,
    /// The variant's payload.
    pub payload: Option<String>,
    /// The type that the source declares for the payload, if any.
    pub payload_kind: Option<PayloadKind>,
}

/// The declared type of a payload. The source does not validate it; parsing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PayloadKind {
    /// Text.
    String,
    /// A JSON value.
    Json,
    /// A number.
    Number,
    /// Values with commas between them.
    Csv,
}

#[cfg(feature = "unleash")]
impl PayloadKind {
    /// From Unleash's name of the type.
    pub(super) fn named(kind: &str) -> Option<Self> {
        match kind {
            "string" => Some(Self::String),
            "json" => Some(Self::Json),
            "number" => Some(Self::Number),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }
}

impl Variant {
    pub(super) fn plain(enabled: bool) -> Self {
        Self { enabled, name: None, payload: None, payload_kind: None }
    }
}

/// The state of a flag that steers a whole fleet, such as the desired phase of a migration.
///
/// Unlike a decision for a request, it can be unknown: an unreachable flag server, an archived flag or a gradual
/// rollout must not count as a person who turned the flag off.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Switch {
    /// The source has no single current answer; keep the current state.
    Unknown(SwitchProblem),
    /// The flag exists and is turned off.
    Off,
    /// The flag is on, with the payload of its variant if it has one.
    On(Option<String>),
}
