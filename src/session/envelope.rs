//! The format of a record, and how two writers' changes become one.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hasher},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tower_sessions_core::session_store::Error;

/// The format that this build writes. A change that older builds can't live with makes it grow; a
/// mere addition does not, because they keep fields that they don't know.
const VERSION: u64 = 1;

/// Where a loaded record remembers what it was loaded as. Never stored.
const BASE: &str = "$cutover";

pub(super) type Data = HashMap<String, Value>;

/// A record as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    v: u64,
    /// One more with every write, so that no two states of a record are the same bytes.
    rev: u64,
    /// Who wrote last, the latest at the end.
    #[serde(default)]
    recent: Vec<Writer>,
    /// Milliseconds since 1970.
    expires: i64,
    pub(super) data: Data,
    /// What a newer build added.
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

/// The changes of one request, which may save more than once.
#[derive(Debug, Serialize, Deserialize)]
struct Writer {
    by: String,
    keys: Vec<String>,
}

/// So many writers are remembered. A request that saves twice recognises its first save unless
/// more than these came in between.
const RECENT: usize = 4;

/// What a record was like when it was loaded.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Base {
    by: String,
    keys: HashMap<String, u64>,
}

/// Two writers gave one key different values.
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
            // No more than where: the text of the error may quote what is in the session.
            let at = error.column();
            Error::Decode(format!("not a session record of this store (column {at})"))
        };
        let Version { v } = serde_json::from_slice(stored).map_err(broken)?;
        if v != VERSION {
            return Err(Error::Decode(format!(
                "a session record of format {v}, and this build knows format {VERSION}: \
                 it was left as it is"
            )));
        }
        serde_json::from_slice(stored).map_err(broken)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|error| Error::Encode(error.to_string()))
    }

    pub(super) fn expires(&self) -> Result<OffsetDateTime, Error> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.expires) * 1_000_000)
            .map_err(|error| Error::Decode(format!("expiry of a session record: {error}")))
    }

    /// The data for a request, which remembers what it was.
    pub(super) fn into_data(self) -> Result<Data, Error> {
        let base = Base { by: token(), keys: hashes(&self.data) };
        let mut data = self.data;
        base.put(&mut data)?;
        Ok(data)
    }

    /// Takes over what a request made of `base`: its changes, and nothing that it left alone.
    ///
    /// Without a base the request didn't look at what was there (it cleared the session): then what
    /// it has is all there is.
    pub(super) fn update(
        &mut self,
        ours: Data,
        base: Option<&Base>,
        expires: OffsetDateTime,
        refuse_same_key: bool,
    ) -> Result<(), Conflict> {
        match base {
            Some(base) => self.merge(ours, base, refuse_same_key)?,
            None => {
                self.data = ours;
                self.recent.clear();
            }
        }
        self.rev = self.rev.wrapping_add(1);
        self.expires = millis(expires);
        Ok(())
    }

    fn merge(&mut self, mut ours: Data, base: &Base, refuse_same_key: bool) -> Result<(), Conflict> {
        let before = self.recent.iter().find(|writer| writer.by == base.by);
        let before: HashSet<_> = before.into_iter().flat_map(|w| w.keys.clone()).collect();
        let loaded = base.keys.keys();
        let keys: HashSet<_> = ours.keys().chain(loaded).chain(&before).cloned().collect();
        let mut changed = before.clone();
        for key in keys {
            let was = base.keys.get(&key).copied();
            let mine = ours.remove(&key);
            // What was saved before and is now as it was loaded has been changed back.
            if mine.as_ref().map(hash) == was && !before.contains(&key) {
                continue;
            }
            let theirs = self.data.get(&key);
            let both = theirs.map(hash) != was
                && theirs != mine.as_ref()
                && self.last_writer(&key) != Some(&base.by);
            if both && refuse_same_key {
                return Err(Conflict);
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
        Ok(())
    }

    fn last_writer(&self, key: &String) -> Option<&String> {
        let mut latest_first = self.recent.iter().rev();
        let writer = latest_first.find(|writer| writer.keys.contains(key));
        writer.map(|writer| &writer.by)
    }
}

impl Base {
    /// Of a record that was written just now.
    pub(super) fn of(envelope: &Envelope) -> Self {
        Self { by: token(), keys: hashes(&envelope.data) }
    }

    pub(super) fn put(&self, data: &mut Data) -> Result<(), Error> {
        let base = serde_json::to_value(self).map_err(|error| Error::Encode(error.to_string()))?;
        data.insert(BASE.to_owned(), base);
        Ok(())
    }

    /// Takes it out of a record's data.
    pub(super) fn take(data: &mut Data) -> Option<Self> {
        serde_json::from_value(data.remove(BASE)?).ok()
    }
}

fn hashes(data: &Data) -> HashMap<String, u64> {
    data.iter().map(|(key, value)| (key.clone(), hash(value))).collect()
}

/// Compared within one process only, so it need not be the same in the next build.
fn hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(value.to_string().as_bytes());
    hasher.finish()
}

fn token() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn millis(time: OffsetDateTime) -> i64 {
    // A date that `time` can hold fits.
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}
