//! Flag names with a hash that is computed at compile time for constant flags, and a map keyed by them.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// A flag's name and its hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a> {
    pub(super) text: &'a str,
    hash: u64,
}

impl<'a> Name<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { text, hash: checksum(text.as_bytes()) }
    }
}

/// FNV-1a (draft-eastlake-fnv), because it is short and can run at compile time.
pub(super) const fn checksum(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

impl PartialEq for Name<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}

/// Passes the hash of a [`Name`] through.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PassThrough(u64);

impl Hasher for PassThrough {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Values by flag name. A lookup does not allocate.
#[derive(Clone, Debug)]
pub(super) struct NameMap<V>(HashMap<u64, (Box<str>, V), BuildHasherDefault<PassThrough>>);

impl<V> Default for NameMap<V> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<V> NameMap<V> {
    pub(super) fn get(&self, name: &Name<'_>) -> Option<&V> {
        self.0.get(&name.hash).filter(|(text, _)| **text == *name.text).map(|(_, value)| value)
    }

    pub(super) fn insert(&mut self, name: &str, value: V) {
        self.0.insert(Name::new(name).hash, (name.into(), value));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.0.values().map(|(name, value)| (&**name, value))
    }
}

impl<N: AsRef<str>, V> FromIterator<(N, V)> for NameMap<V> {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (name, value) in entries {
            map.insert(name.as_ref(), value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_by_text_and_not_by_hash_alone() {
        let map: NameMap<u8> = [("one", 1), ("two", 2)].into_iter().collect();
        const ONE: Name<'static> = Name::new("one");
        assert_eq!(map.get(&ONE), Some(&1));
        assert_eq!(map.get(&Name::new("three")), None);
        let forged = Name { text: "three", hash: ONE.hash };
        assert_eq!(map.get(&forged), None);
        assert_eq!(map.iter().count(), 2);
    }
}
