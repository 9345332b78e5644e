//! Keys of the tables, and their odd values.

/// How the rows are identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Identity,
    IdentityAlways,
    Bigint,
    Text,
    TextC,
    Uuid,
    Numeric,
    Bytes,
    Instant,
    /// A region and a number. Rows of a table that is partitioned by region move when their key changes.
    Region,
    /// A padded text and a date.
    Padded,
}

pub(crate) const KEYS: [Key; 11] = [
    Key::Identity,
    Key::IdentityAlways,
    Key::Bigint,
    Key::Text,
    Key::TextC,
    Key::Uuid,
    Key::Numeric,
    Key::Bytes,
    Key::Instant,
    Key::Region,
    Key::Padded,
];

impl Key {
    /// Names and types, without constraints.
    pub(crate) fn columns(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Key::Identity => &[("id", "integer")],
            Key::IdentityAlways | Key::Bigint => &[("id", "bigint")],
            Key::Text => &[("id", "text")],
            Key::TextC => &[("id", "text collate \"C\"")],
            Key::Uuid => &[("id", "uuid")],
            Key::Numeric => &[("id", "numeric")],
            Key::Bytes => &[("id", "bytea")],
            Key::Instant => &[("id", "timestamptz")],
            Key::Region => &[("region", "text"), ("id", "integer")],
            Key::Padded => &[("code", "character(6)"), ("day", "date")],
        }
    }

    /// Whether its column `id` is the number of the key.
    pub(crate) fn is_numbered(self) -> bool {
        matches!(self, Key::Identity | Key::IdentityAlways | Key::Bigint | Key::Region)
    }

    /// The literals of the key with this number.
    pub(crate) fn literals(self, number: usize) -> Vec<String> {
        let texts = match self {
            Key::Identity | Key::IdentityAlways | Key::Bigint => vec![format!("{number}")],
            Key::Text | Key::TextC => vec![match number % 5 {
                0 => format!("Key {number}"),
                1 => format!("key\t{number}"),
                2 => format!("kéy,\"{number}\""),
                3 => format!("{{k{number}}}"),
                _ => format!("it''s \\{number}"),
            }],
            Key::Uuid => vec![format!("00000000-0000-4000-8000-{:012x}", number * 7919 % 65_536)],
            Key::Numeric => vec![format!("{number}.{}", ["5", "50", "500", "25"][number % 4])],
            Key::Bytes => vec![format!("\\x{:04x}00", number * 31)],
            Key::Instant => {
                vec![format!("2024-03-{:02} {:02}:30:00.{number:06}+00", 1 + number % 28, number % 24)]
            }
            Key::Region => vec![["a", "b", "C"][number * 7 % 3].to_owned(), format!("{number}")],
            Key::Padded => vec![format!("{}", number % 40), format!("2024-{:02}-01", 1 + number / 40)],
        };
        let literal = |text: &String| format!("E'{}'", text.replace('\\', "\\\\"));
        texts.iter().zip(self.columns()).map(|(text, (_, ty))| format!("({}::{ty})", literal(text))).collect()
    }

    pub(crate) fn names(self) -> String {
        self.columns().iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}
