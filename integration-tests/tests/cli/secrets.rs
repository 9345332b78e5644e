//! No secret is in what the command line prints, wherever it was given and whatever servers answer.

use std::process::Command;

use cutover_testkit::program;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Answers as Postgres, Unleash or a gateway before Prometheus, with an error that holds what the client has sent.
async fn quote(mut stream: TcpStream) {
    let mut asked_for_password = false;
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
        let received = &bytes[..length];
        let text = String::from_utf8_lossy(received).replace('\0', " ");
        let answer = if text.contains(" HTTP/1.1") {
            let body = serde_json::json!({"status": "error", "error": text}).to_string();
            format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
        } else if length == 8 {
            b"N".to_vec()
        } else if !asked_for_password {
            asked_for_password = true;
            b"R\0\0\0\x08\0\0\0\x03".to_vec()
        } else {
            let fields = format!("SFATAL\0VFATAL\0C28P01\0Mlogin failed: {text}\0\0");
            let size = u32::try_from(fields.len() + 4).unwrap();
            [b"E".as_slice(), &size.to_be_bytes(), fields.as_bytes()].concat()
        };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// What a command prints, with each `AT` replaced by the server's address.
async fn printed(at: &str, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let filled = |text: &&str| text.replace("AT", at);
    let mut command = Command::new(program().unwrap());
    command.args(arguments.iter().map(filled)).env_remove("DATABASE_URL").env("USER", "ann");
    command.envs(variables.iter().map(|(name, value)| (*name, filled(value))));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
}

/// Arguments, environment, and a part of what is printed.
type Case = (Vec<&'static str>, Vec<(&'static str, &'static str)>, &'static str);

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_printed_whatever_servers_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(quote(stream));
        }
    });
    let url = "postgres://me:hunter%2Fzebra@AT/app";
    let canary = ["canary", "--prometheus", "http://AT"];
    let with = |more: &[&'static str]| [&canary[..], more].concat();
    let cases: Vec<Case> = vec![
        (vec!["status"], vec![("DATABASE_URL", url)], "login failed"),
        (vec!["status", "--json"], vec![("DATABASE_URL", url)], "login failed"),
        (
            vec!["--ledger", "eu=postgres://me:hunter%2Fzebra@AT/app", "explain", "--json"],
            vec![],
            "login failed",
        ),
        (vec!["status", url], vec![("DATABASE_URL", url)], ""),
        (vec![url, "status"], vec![], "unrecognized"),
        (vec!["--help"], vec![("DATABASE_URL", url), ("CUTOVER_LEDGERS", url)], "Usage"),
        (
            vec!["preflight", "--help"],
            vec![("UNLEASH_URL", "http://me:hunterzebra@AT"), ("REDIS_URL", url)],
            "Usage",
        ),
        (
            vec![
                "preflight",
                "--flag",
                "a",
                "--unleash-url",
                "http://AT",
                "--redis-url",
                "redis://:hunterzebra@AT",
            ],
            vec![("DATABASE_URL", url), ("UNLEASH_TOKEN", "hunter-zebra")],
            "unleash",
        ),
        (with(&[]), vec![("PROMETHEUS_TOKEN", "hunter-zebra")], "refused"),
        (with(&["--json"]), vec![("PROMETHEUS_TOKEN", "hunter-zebra")], "refused"),
        (with(&["--prometheus-header", "x-api-key: hunterzebra"]), vec![], "refused"),
        (vec!["canary", "--prometheus", "http://me:hunter%2Fzebra@AT"], vec![], "refused"),
        (vec!["canary", "--prometheus", "me:hunterzebra@AT"], vec![], "--prometheus"),
        (with(&["--prometheus-pasword", "x", "--label", "a"]), vec![], "--prometheus-password"),
        (with(&["http://me:hunterzebra@AT"]), vec![], "unexpected argument"),
    ];
    for (arguments, variables, part) in cases {
        let text = printed(&at, &arguments, &variables).await;
        let lower = text.to_lowercase();
        let halves = ["hunter", "zebra", "ahvudgvy", "h1bnrlc", "odw50zx"];
        assert!(!halves.iter().any(|half| lower.contains(half)), "{arguments:?} {variables:?}\n{text}");
        assert!(text.contains(part) && !text.contains("panicked"), "{arguments:?}: {text}");
    }
}
