//! Merging, without Redis.

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tower_sessions_core::session_store::Error;

use super::ConflictPolicy::{LastWriteWins, Refuse};
use super::envelope::{Base, Conflict, Data, Envelope};

fn data(value: Value) -> Data {
    serde_json::from_value(value).unwrap()
}

fn later() -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::hours(1)
}

fn stored(value: Value) -> Envelope {
    Envelope::new(data(value), later())
}

/// The data of a loaded record, and its base.
fn load(envelope: &Envelope) -> (Data, Base) {
    let copy = Envelope::decode(&envelope.encode().unwrap()).unwrap();
    let mut data = copy.into_data().unwrap();
    let base = Base::take(&mut data).unwrap();
    (data, base)
}

#[test]
fn every_pair_of_changes_is_merged_or_a_conflict() {
    // One key: its value when both requests loaded it, the value that each request wrote, and the value that must remain.
    let one = Some(1);
    let two = Some(2);
    let three = Some(3);
    for (was, first, second, left) in [
        (one, one, one, Ok(one)),
        (one, two, one, Ok(two)),
        (one, one, two, Ok(two)),
        (one, two, two, Ok(two)),
        (one, two, three, Err(Conflict)),
        (one, None, one, Ok(None)),
        (one, one, None, Ok(None)),
        (one, None, None, Ok(None)),
        (one, None, two, Err(Conflict)),
        (one, two, None, Err(Conflict)),
        (None, one, None, Ok(one)),
        (None, None, one, Ok(one)),
        (None, one, one, Ok(one)),
        (None, one, two, Err(Conflict)),
    ] {
        let made = |value: Option<i32>| match value {
            Some(value) => data(json!({"k": value, "other": 0})),
            None => data(json!({"other": 0})),
        };
        for policy in [Refuse, LastWriteWins] {
            let mut record = Envelope::new(made(was), later());
            let (_, base_1) = load(&record);
            let (_, base_2) = load(&record);
            let conflicts = record.update(made(first), Some(&base_1), later(), policy);
            let outcome = record.update(made(second), Some(&base_2), later(), policy);
            let case = format!("{was:?} {first:?} {second:?} {policy:?}");
            assert_eq!(conflicts, Ok(0), "{case}");
            let (expected, left) = match (&left, policy) {
                (Err(Conflict), Refuse) => (Err(Conflict), first),
                (Err(Conflict), _) => (Ok(1), second),
                (Ok(left), _) => (Ok(0), *left),
            };
            assert_eq!(outcome, expected, "{case}");
            assert_eq!(record.data, made(left), "{case}");
        }
    }
}

#[test]
fn a_request_that_saves_twice_has_no_conflict_with_itself() {
    let mut record = stored(json!({"k": 1}));
    let (_, base) = load(&record);
    let (_, other) = load(&record);
    let (_, third) = load(&record);
    let save = |record: &mut Envelope, base: &Base, value: Value| {
        record.update(data(value), Some(base), later(), Refuse)
    };
    save(&mut record, &base, json!({"k": 2, "lock": true})).unwrap();
    save(&mut record, &other, json!({"k": 1, "l": 1})).unwrap();
    save(&mut record, &base, json!({"k": 3, "lock": true})).unwrap();
    // Back to the value when it was loaded: a change like any other.
    save(&mut record, &base, json!({"k": 1})).unwrap();
    assert_eq!(record.data, data(json!({"k": 1, "l": 1})));

    save(&mut record, &third, json!({"k": 5})).unwrap();
    assert_eq!(save(&mut record, &base, json!({"k": 6})), Err(Conflict));
    for _ in 0..10 {
        let (_, another) = load(&record);
        save(&mut record, &another, json!({"k": fastrand::u8(..), "l": 1})).unwrap();
    }
    assert!(record.encode().unwrap().len() < 400);
}

#[test]
fn a_request_that_clears_replaces_everything() {
    let mut record = stored(json!({"k": 1, "l": 2}));
    record.update(data(json!({"m": 1})), None, later(), Refuse).unwrap();
    assert_eq!(record.data, data(json!({"m": 1})));
}

#[test]
fn fields_of_a_newer_build_stay() {
    let newer = br#"{"v":1,"rev":4,"recent":[{"by":"x","keys":["k"]}],"expires":4102444800000,"region":{"a":1},"data":{"k":1,"new":[2]}}"#;
    let mut record = Envelope::decode(newer).unwrap();
    let (mut loaded, base) = load(&record);
    loaded.insert("k".into(), json!(2));
    record.update(loaded, Some(&base), later(), Refuse).unwrap();
    let written: Value = serde_json::from_slice(&record.encode().unwrap()).unwrap();
    assert_eq!(written["region"], json!({"a": 1}));
    assert_eq!(written["data"], json!({"k": 2, "new": [2]}));
    assert_eq!(written["rev"], 5);
}

#[test]
fn unknown_formats_are_refused_without_quoting_data() {
    for (bytes, part) in [
        (&br#"{"v":2,"sealed":"s3cret"}"#[..], "has format 2"),
        (br#"{"data":{"k":"s3cret"}}"#, "is not a session record"),
        (br#"{"v":1,"rev":"s3cret"}"#, "is not a session record"),
        (b"s3cret", "is not a session record"),
        (b"", "is not a session record"),
    ] {
        let Err(Error::Decode(text)) = Envelope::decode(bytes) else {
            panic!("the record was accepted");
        };
        assert!(text.contains(part) && !text.contains("s3cret"), "{text}");
    }
}
