//! What code declares, and what it gets back.

use super::names::Name;

/// A flag, declared in code with the value that counts while nothing else is known.
///
/// The default counts when the flag's source was never reached, and when the source does not have
/// the flag. Choose what is safe in both cases: for a gate, the old path.
///
/// A `Flag<bool>` is on or off ([`Flags::decide`](super::Flags::decide)). A flag of another type
/// takes its value from the payload of the flag's variant
/// ([`Flags::value`](super::Flags::value)); whatever is [`FromStr`](std::str::FromStr) will do:
/// `String`, numbers, [`Json`](super::Json), [`Csv`](super::Csv).
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
    /// Declares a flag. `name` is its name in the source, for Unleash the toggle's.
    pub const fn new(name: &'static str, default: T) -> Self {
        Self { name: Name::new(name), default }
    }

    /// The flag's name.
    pub const fn name(&self) -> &'static str {
        self.name.text
    }

    /// What counts while nothing else is known.
    pub const fn default_value(&self) -> &T {
        &self.default
    }
}

/// What a flag says to one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Whether the flag is on for the subject.
    pub enabled: bool,
    /// Name of the variant that was chosen; `None` when the flag is off or has no variants.
    pub name: Option<String>,
    /// The variant's payload.
    pub payload: Option<String>,
    /// What the source says that the payload is, if it says so.
    pub payload_kind: Option<PayloadKind>,
}

/// What a payload is, by its owner's word. Nobody checks that it is: reading it does.
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
    /// By Unleash's word for it.
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

/// A flag as the switch of a whole fleet, for example the desired phase of a migration.
///
/// Other than for a request, "I don't know" is an answer of its own: a flag server that is away
/// must not look like somebody who switched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// The source was never reached, or not for longer than its state may count: hold.
    Unknown,
    /// The source says that the flag is off, or that there is none of this name.
    Off,
    /// On, with the payload of its variant if it has one.
    On(Option<String>),
}
