//! The format of a record, and the merge of concurrent changes.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hasher},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tower_sessions_core::session_store::Error;

use super::options::ConflictPolicy;

/// The format that this build writes. A change that older builds cannot read increments it. An added field does not,
/// because older builds keep fields that they do not know.
const VERSION: u64 = 1;

/// The key of a loaded record that holds its [`Base`]. Never stored.
const BASE: &str = "$cutover";

pub(super) type Data = HashMap<String, Value>;

/// A record as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    v: u64,
    /// Incremented by every write, so that two states of a record never have the same bytes.
    rev: u64,
    /// The last writers, the latest at the end.
    #[serde(default)]
    recent: Vec<Writer>,
    /// Milliseconds since 1970.
    expires: i64,
    pub(super) data: Data,
    /// Fields that a newer build added.
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

/// The changes of one request, which may save more than once.
#[derive(Debug, Serialize, Deserialize)]
struct Writer {
    by: String,
    keys: Vec<String>,
}

/// The number of writers that a record remembers. A request that saves twice recognises its first save unless more
/// than three other requests wrote in between.
const RECENT: usize = 4;

/// The content of a record when a request loaded it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Base {
    by: String,
    keys: HashMap<String, u64>,
}

/// Two requests set one key to different values.
#[derive(Debug, PartialEq)]
pub(super) struct Conflict;

impl Envelope {
    pub(super) fn new(data: Data, expires: OffsetDateTime) -> Self {
        Self { v: VERSION, rev: 1, recent: Vec::new(), expires: millis(expires), data, unknown: Map::new() }
    }

    pub(super) fn decode(stored: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            v: u64,
        }
        let broken = |error: serde_json::Error| {
            // Only the position, because the text of the error may quote the session.
            let at = error.column();
            Error::Decode(format!("the value is not a session record of this store (error in column {at})"))
        };
        let Version { v } = serde_json::from_slice(stored).map_err(broken)?;
        if v != VERSION {
            return Err(Error::Decode(format!(
                "the session record has format {v}, but this build knows only format {VERSION}; \
                 the record is unchanged"
            )));
        }
        serde_json::from_slice(stored).map_err(broken)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|error| Error::Encode(error.to_string()))
    }

    pub(super) fn expires(&self) -> Result<OffsetDateTime, Error> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.expires) * 1_000_000).map_err(|error| {
            Error::Decode(format!("the expiry of the session record is out of range: {error}"))
        })
    }

    /// The data for a request, including its [`Base`].
    pub(super) fn into_data(self) -> Result<Data, Error> {
        let base = Base { by: token(), keys: hashes(&self.data) };
        let mut data = self.data;
        base.put(&mut data)?;
        Ok(data)
    }

    /// Applies what a request changed since `base`, and nothing else. Returns the number of overwritten conflicts.
    ///
    /// A request that cleared the session has no base. Its data replaces everything.
    pub(super) fn update(
        &mut self,
        ours: Data,
        base: Option<&Base>,
        expires: OffsetDateTime,
        on_conflict: ConflictPolicy,
    ) -> Result<u64, Conflict> {
        let conflicts = match base {
            Some(base) => self.merge(ours, base, on_conflict)?,
            None => {
                self.data = ours;
                self.recent.clear();
                0
            }
        };
        self.rev = self.rev.wrapping_add(1);
        self.expires = millis(expires);
        Ok(conflicts)
    }

    fn merge(&mut self, mut ours: Data, base: &Base, on_conflict: ConflictPolicy) -> Result<u64, Conflict> {
        let before = self.recent.iter().find(|writer| writer.by == base.by);
        let before: HashSet<_> = before.into_iter().flat_map(|writer| writer.keys.clone()).collect();
        let loaded = base.keys.keys();
        let keys: HashSet<_> = ours.keys().chain(loaded).chain(&before).cloned().collect();
        let mut changed = before.clone();
        let mut conflicts = 0;
        for key in keys {
            let was = base.keys.get(&key).copied();
            let mine = ours.remove(&key);
            // A key that an earlier save of this request changed may have been changed back since.
            if mine.as_ref().map(hash) == was && !before.contains(&key) {
                continue;
            }
            let theirs = self.data.get(&key);
            let is_conflict = theirs.map(hash) != was
                && theirs != mine.as_ref()
                && self.last_writer(&key) != Some(&base.by);
            if is_conflict {
                if on_conflict == ConflictPolicy::Refuse {
                    return Err(Conflict);
                }
                conflicts += 1;
            }
            match mine {
                Some(value) => self.data.insert(key.clone(), value),
                None => self.data.remove(&key),
            };
            changed.insert(key);
        }
        self.recent.retain(|writer| writer.by != base.by);
        self.recent.push(Writer { by: base.by.clone(), keys: changed.into_iter().collect() });
        let forget = self.recent.len().saturating_sub(RECENT);
        self.recent.drain(..forget);
        Ok(conflicts)
    }

    fn last_writer(&self, key: &String) -> Option<&String> {
        let mut latest_first = self.recent.iter().rev();
        let writer = latest_first.find(|writer| writer.keys.contains(key));
        writer.map(|writer| &writer.by)
    }
}

impl Base {
    /// The base of a record that was just written.
    pub(super) fn of(envelope: &Envelope) -> Self {
        Self { by: token(), keys: hashes(&envelope.data) }
    }

    pub(super) fn put(&self, data: &mut Data) -> Result<(), Error> {
        let base = serde_json::to_value(self).map_err(|error| Error::Encode(error.to_string()))?;
        data.insert(BASE.to_owned(), base);
        Ok(())
    }

    /// Removes the base from the data of a record.
    pub(super) fn take(data: &mut Data) -> Option<Self> {
        serde_json::from_value(data.remove(BASE)?).ok()
    }
}

fn hashes(data: &Data) -> HashMap<String, u64> {
    data.iter().map(|(key, value)| (key.clone(), hash(value))).collect()
}

/// Compared within one process only, so it may differ between builds.
fn hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(value.to_string().as_bytes());
    hasher.finish()
}

fn token() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn millis(time: OffsetDateTime) -> i64 {
    // Every date of `time` fits.
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}
