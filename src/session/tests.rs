//! Merging, without a Redis.

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tower_sessions_core::session_store::Error;

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

/// What a request gets to see of a record.
fn load(envelope: &Envelope) -> (Data, Base) {
    let copy = Envelope::decode(&envelope.encode().unwrap()).unwrap();
    let mut data = copy.into_data().unwrap();
    let base = Base::take(&mut data).unwrap();
    (data, base)
}

#[test]
fn every_pair_of_changes() {
    // One key that both requests loaded as `was`; what each made of it; what is left, if that is
    // settled.
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
        for refuse in [true, false] {
            let mut record = Envelope::new(made(was), later());
            let (_, base_1) = load(&record);
            let (_, base_2) = load(&record);
            record.update(made(first), Some(&base_1), later(), refuse).unwrap();
            let outcome = record.update(made(second), Some(&base_2), later(), refuse);
            let case = format!("{was:?} {first:?} {second:?} {refuse}");
            let left = match (&left, refuse) {
                (Err(Conflict), true) => {
                    assert_eq!(outcome, Err(Conflict), "{case}");
                    first
                }
                (Err(Conflict), false) => second,
                (Ok(left), _) => {
                    assert_eq!(outcome, Ok(()), "{case}");
                    *left
                }
            };
            assert_eq!(record.data, made(left), "{case}");
        }
    }
}

#[test]
fn a_request_that_saves_twice_is_not_in_its_own_way() {
    let mut record = stored(json!({"k": 1}));
    let (_, base) = load(&record);
    let (_, other) = load(&record);
    let (_, third) = load(&record);
    let save = |record: &mut Envelope, base: &Base, value: Value| {
        record.update(data(value), Some(base), later(), true)
    };
    save(&mut record, &base, json!({"k": 2, "lock": true})).unwrap();
    save(&mut record, &other, json!({"k": 1, "l": 1})).unwrap();
    save(&mut record, &base, json!({"k": 3, "lock": true})).unwrap();
    // Changed back to what it was when it was loaded: a change like any other.
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
fn a_cleared_session_is_cleared() {
    let mut record = stored(json!({"k": 1, "l": 2}));
    record.update(data(json!({"m": 1})), None, later(), true).unwrap();
    assert_eq!(record.data, data(json!({"m": 1})));
}

#[test]
fn what_a_newer_build_added_stays() {
    let newer = br#"{"v":1,"rev":4,"recent":[{"by":"x","keys":["k"]}],"expires":4102444800000,"region":{"a":1},"data":{"k":1,"new":[2]}}"#;
    let mut record = Envelope::decode(newer).unwrap();
    let (mut loaded, base) = load(&record);
    loaded.insert("k".into(), json!(2));
    record.update(loaded, Some(&base), later(), true).unwrap();
    let written: Value = serde_json::from_slice(&record.encode().unwrap()).unwrap();
    assert_eq!(written["region"], json!({"a": 1}));
    assert_eq!(written["data"], json!({"k": 2, "new": [2]}));
    assert_eq!(written["rev"], 5);
}

#[test]
fn what_is_not_understood_is_refused_without_quoting_it() {
    for (bytes, part) in [
        (&br#"{"v":2,"sealed":"s3cret"}"#[..], "format 2"),
        (br#"{"data":{"k":"s3cret"}}"#, "not a session record"),
        (br#"{"v":1,"rev":"s3cret"}"#, "not a session record"),
        (b"s3cret", "not a session record"),
        (b"", "not a session record"),
    ] {
        let Err(Error::Decode(text)) = Envelope::decode(bytes) else {
            panic!("accepted");
        };
        assert!(text.contains(part) && !text.contains("s3cret"), "{text}");
    }
}
