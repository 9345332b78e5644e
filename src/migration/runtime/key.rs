use std::hash::{Hash, Hasher};

use crate::migration::phase::{Percent, Phase, ReadSource, Side};

/// The key of a read. It decides which side the read goes to while reads are split.
///
/// The same key goes to the same side on every instance, in every build and on every platform. A larger percentage only
/// adds keys to the new side. The hash is FNV-1a (64 bits) over what the key's [`Hash`] writes, with integers in
/// little-endian order, mixed with the migration's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(Option<u64>);

impl Key {
    /// The key of a read without a single key, such as a list. It goes to the old side until the percentage is 100.
    pub const NONE: Key = Key(None);

    /// The key for this value.
    #[inline]
    pub fn of<K: Hash + ?Sized>(value: &K) -> Self {
        let mut hasher = Fnv::new();
        value.hash(&mut hasher);
        Self(Some(hasher.finish()))
    }

    /// The hash as a seed, so that two migrations do not ramp the same keys.
    pub(crate) fn seed(self) -> u64 {
        mix(self.0.unwrap_or_default())
    }

    /// The side from which a phase reads this key.
    #[inline]
    pub(crate) fn side(self, phase: Phase, ramp: Percent, seed: u64) -> Side {
        Self::side_by(|| self, phase, ramp, seed)
    }

    /// The side from which a phase reads the key that `key` computes. It is computed only while reads are split.
    #[inline]
    pub(crate) fn side_by(key: impl FnOnce() -> Self, phase: Phase, ramp: Percent, seed: u64) -> Side {
        match phase.reads() {
            ReadSource::From(side) => side,
            ReadSource::Split => {
                let bucket = key().0.map_or(99, |hash| mix(hash ^ seed) % 100);
                if bucket < u64::from(ramp.get()) { Side::New } else { Side::Old }
            }
        }
    }
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo; RFC 9923). Unlike with most hashers, the hash of an integer does not depend on the
/// platform.
struct Fnv(u64);

impl Fnv {
    #[inline]
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    #[inline]
    fn write_u16(&mut self, n: u16) {
        self.write(&n.to_le_bytes());
    }

    #[inline]
    fn write_u32(&mut self, n: u32) {
        self.write(&n.to_le_bytes());
    }

    #[inline]
    fn write_u64(&mut self, n: u64) {
        self.write(&n.to_le_bytes());
    }

    #[inline]
    fn write_u128(&mut self, n: u128) {
        self.write(&n.to_le_bytes());
    }

    #[inline]
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Spreads every bit over all others (the finalizer of MurmurHash3), because the low bits of FNV are too regular for a
/// remainder.
#[inline]
fn mix(mut n: u64) -> u64 {
    n = (n ^ n >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    n = (n ^ n >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    n ^ n >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn percent(n: u8) -> Percent {
        match Percent::new(n) {
            Some(percent) => percent,
            None => Percent::ALL,
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        let mut hasher = Fnv::new();
        hasher.write(b"foobar");
        assert_eq!(hasher.finish(), 0x85944171f73967e8);
    }

    #[test]
    fn the_hash_of_a_key_never_changes() {
        // Another hash would move keys to the other side in the middle of a ramp.
        assert_eq!(Key::of(&42_i64), Key::of(&42_u64));
        assert_eq!(Key::of(&42_i64), Key::of(&42_usize));
        assert_eq!(Key::of("a"), Key::of(&String::from("a")));
        assert_eq!(Key::of("a"), Key::of(&"a"));
        assert_eq!((Key::of(&42_i64).0, Key::of("u1").0), (Some(KEY_42), Some(KEY_U1)));
    }

    const KEY_42: u64 = fnv(&42_u64.to_le_bytes());
    const KEY_U1: u64 = fnv(b"u1\xff");

    const fn fnv(bytes: &[u8]) -> u64 {
        let (mut hash, mut at) = (0xcbf2_9ce4_8422_2325_u64, 0);
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            at += 1;
        }
        hash
    }

    #[test]
    fn only_ramp_splits() {
        for phase in Phase::ALL {
            for ramp in [0, 1, 50, 100] {
                let sides = (0..1000_i64).map(|id| Key::of(&id).side(phase, percent(ramp), 7));
                let new = sides.filter(|side| *side == Side::New).count();
                match (phase, ramp) {
                    (Phase::Ramp, 1 | 50) => {
                        let expected = usize::from(ramp) * 10;
                        assert!(new.abs_diff(expected) < 60, "{ramp} %: {new} of 1000");
                    }
                    (Phase::Ramp, 0) => assert_eq!(new, 0),
                    (Phase::Ramp, _) => assert_eq!(new, 1000),
                    (phase, _) => {
                        assert_eq!(new == 1000, phase.reads() == ReadSource::From(Side::New), "{phase}");
                        assert!(new == 0 || new == 1000);
                    }
                }
                let none = Key::NONE.side(phase, percent(ramp), 7);
                let expected = phase > Phase::Ramp || (phase == Phase::Ramp && ramp == 100);
                assert_eq!(none == Side::New, expected, "{phase} {ramp}");
            }
        }
    }

    #[test]
    fn a_key_is_computed_only_while_reads_are_split() {
        for phase in Phase::ALL {
            let mut computed = 0;
            let key = || {
                computed += 1;
                Key::of(&1_i64)
            };
            Key::side_by(key, phase, percent(50), 7);
            assert_eq!(computed, i32::from(phase == Phase::Ramp), "{phase}");
        }
    }

    #[test]
    fn a_larger_percentage_only_adds_keys() {
        for id in 0..500_i64 {
            let sides = (0..=100).map(|ramp| Key::of(&id).side(Phase::Ramp, percent(ramp), 1) == Side::New);
            let sides: Vec<bool> = sides.collect();
            assert!(sides.is_sorted(), "{id}");
        }
    }

    #[test]
    fn two_migrations_do_not_ramp_the_same_keys() {
        let new = |seed| {
            (0..1000_i64).map(move |id| Key::of(&id).side(Phase::Ramp, percent(50), seed) == Side::New)
        };
        let agree = new(1).zip(new(2)).filter(|(one, two)| one == two).count();
        assert!((400..600).contains(&agree), "{agree}");
    }
}
