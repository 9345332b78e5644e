//! The open client specification of Unleash, through the library's API.

#![expect(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::{fs, path::Path};

use cutover::flags::{Flag, Flags, PayloadKind, Subject, UnleashOptions};
use cutover_testkit::{if_installed, specification};
use serde_json::{Value, json};

#[tokio::test]
async fn decisions_follow_the_open_client_specification() {
    let Some(folder) = if_installed(specification()).unwrap() else {
        return;
    };
    let files: Vec<String> = serde_json::from_value(read(&folder, "index.json")).unwrap();
    let mut failures = Vec::new();
    let mut cases = 0;
    for file in files {
        let specification = read(&folder, &file);
        for kind in ["tests", "variantTests"] {
            for case in specification[kind].as_array().into_iter().flatten() {
                cases += 1;
                let app = case["context"]["appName"].as_str().unwrap_or("specification");
                let flags = flags(&specification["state"], app);
                let name: &'static str = case["toggleName"].as_str().unwrap().to_owned().leak();
                let subject = subject(&case["context"]);
                let answer = match kind {
                    "tests" => json!(flags.decide(&Flag::new(name, false), &subject)),
                    _ => variant(&flags, name, &subject),
                };
                if answer != case["expectedResult"] {
                    failures.push(format!("{file}: {}: {answer}", case["description"]));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {cases}:\n{}", failures.len(), failures.join("\n"));
    // The number of cases in version 6.1.0, so that a file that was not read is noticed.
    assert_eq!(cases, 279);
}

fn read(folder: &Path, file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join(file)).unwrap()).unwrap()
}

/// No server listens at this address, so the bootstrap state applies.
fn flags(state: &Value, app: &str) -> Flags {
    let options = UnleashOptions::new("http://127.0.0.1:1", "token", app, "one");
    Flags::unleash(UnleashOptions { bootstrap: Some(state.to_string().into()), ..options }).unwrap()
}

fn subject(context: &Value) -> Subject {
    let mut subject = Subject::new();
    for (field, value) in context.as_object().unwrap() {
        subject = match (field.as_str(), value) {
            ("userId", Value::String(text)) => subject.user(text),
            ("sessionId", Value::String(text)) => subject.session(text),
            ("remoteAddress", Value::String(text)) => match text.parse() {
                Ok(address) => subject.remote_address(address),
                Err(_) => subject,
            },
            ("properties", Value::Object(properties)) => {
                properties.iter().fold(subject, |subject, (name, value)| {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    subject.property(name, text)
                })
            }
            (field, Value::String(text)) => subject.property(field, text),
            (field, value) => panic!("{field}: {value}"),
        };
    }
    subject
}

fn variant(flags: &Flags, name: &'static str, subject: &Subject) -> Value {
    let enabled = flags.decide(&Flag::new(name, false), subject);
    let chosen = flags.variant(name, subject);
    let Some((name, variant)) = chosen.and_then(|variant| Some((variant.name.clone()?, variant))) else {
        return json!({ "name": "disabled", "enabled": false, "feature_enabled": enabled });
    };
    let mut answer = json!({ "name": name, "enabled": variant.enabled, "feature_enabled": enabled });
    if let Some(payload) = variant.payload {
        let kind = match variant.payload_kind {
            Some(PayloadKind::String) => "string",
            Some(PayloadKind::Json) => "json",
            Some(PayloadKind::Number) => "number",
            Some(PayloadKind::Csv) => "csv",
            other => panic!("{other:?}"),
        };
        answer["payload"] = json!({ "type": kind, "value": payload });
    }
    answer
}
