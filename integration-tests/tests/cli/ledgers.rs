//! Commands on several ledgers, and the live picture.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use cutover_testkit::program;
use reqwest::StatusCode;
use serde_json::Value;

use crate::console::{Console, csrf};
use crate::{Outcome, PASSWORD, STATE, database, done, execute, refused, run};

/// No server listens there.
const AWAY: &str = "ap=postgres://postgres:s3cretive@127.0.0.1:1/away";

async fn ledger(name: &str) -> Result<(String, String), Box<dyn std::error::Error>> {
    let url = database().await?;
    done(&url, &["install"], &[]).await;
    execute(&url, STATE).await?;
    Ok((format!("{name}={url}"), url))
}

#[tokio::test]
async fn several_ledgers_are_shown_together_and_moved_in_order() -> Outcome {
    let ((eu, eu_url), (us, us_url)) = (ledger("eu").await?, ledger("us").await?);
    let with = |arguments: &[&'static str]| {
        let ledgers = ["--ledger", &eu, "--ledger", AWAY, "--ledger", &us].map(str::to_owned);
        ledgers.into_iter().chain(arguments.iter().map(ToString::to_string)).collect::<Vec<_>>()
    };
    let said = |arguments: Vec<String>| async move {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        // The variable is not used.
        run("postgres://nobody@127.0.0.1:1/none", &arguments).await
    };
    // One that is away does not hide the others.
    let status = said(with(&["status", "status"])).await;
    assert_eq!(status.code, 3, "{}{}", status.out, status.err);
    for part in ["ledger eu\nshop/status  expand", "ledger ap\n", "ledger us\nshop/status  expand"] {
        assert!(status.out.contains(part), "{part:?} not in {}", status.out);
    }
    assert!(status.err.contains("cutover: ledger ap: "), "{}", status.err);
    let json = said(with(&["history", "status", "--json"])).await;
    let values: Vec<Value> =
        serde_json::Deserializer::from_str(&json.out).into_iter().collect::<Result<_, _>>()?;
    let names: Vec<&str> = values.iter().filter_map(|value| value["ledger"].as_str()).collect();
    assert_eq!(names, ["eu", "ap", "us"]);
    assert!(values[0]["result"].is_array() && values[1]["error"].is_string(), "{}", json.out);

    // A change stops at the first that fails.
    let moved = said(with(&["set-phase", "status", "verify"])).await;
    assert_eq!(moved.code, 3, "{}{}", moved.out, moved.err);
    assert!(moved.err.contains("stopped; the command did not run on ledger us"), "{}", moved.err);
    done(&eu_url, &["status", "status"], &["desired   verify"]).await;
    done(&us_url, &["status", "status"], &["desired   backfill"]).await;
    // One first, then the rest.
    let one = said(with(&["--only", "us", "set-phase", "status", "verify"])).await;
    assert_eq!(one.code, 0, "{}{}", one.out, one.err);
    done(&us_url, &["status", "status"], &["desired   verify"]).await;

    for (arguments, part) in [
        (&["--ledger", AWAY, "--only", "eu", "status"][..], "there is no ledger \"eu\", only ap"),
        (&["--ledger", AWAY, "--ledger", AWAY, "status"], "two ledgers have the name \"ap\""),
        (&["--ledger", "postgres://u:s3cretive@host/x", "status"], "write NAME=URL"),
        (&["--ledger", "eu=mysql://u:s3cretive@host/x", "status"], "the URL of \"eu\" cannot be used"),
        (&["--ledger", AWAY, "--ledger", &eu, "preflight", "--fleet", "shop"], "choose it with --only"),
    ] {
        refused("", arguments, 2, &[part]).await;
    }
    Ok(())
}

#[tokio::test]
async fn the_console_shows_and_changes_several_ledgers() -> Outcome {
    let ((eu, eu_url), (us, us_url)) = (ledger("eu").await?, ledger("us").await?);
    let console = Console::start("", &["--ledger", &eu, "--ledger", &us, "--ledger", AWAY]);
    let page = console.page("/").await;
    for part in
        ["Ledger eu", "Ledger us", "This ledger cannot be reached", "/ledgers/us/migrations/shop/status"]
    {
        assert!(page.contains(part), "{part:?} not in {page}");
    }
    assert!(!page.contains(PASSWORD), "{page}");
    let path = "/ledgers/eu/migrations/shop/status";
    let page = console.page(path).await;
    let fields = |phase, scope| {
        [
            ("csrf", csrf(&page)),
            ("action", "set-phase"),
            ("phase", phase),
            ("where", scope),
            ("actor", "ann"),
            ("reason", "eu was first"),
            ("confirm", "shop/status"),
        ]
    };
    let action = format!("{path}/action");
    let response = console.send(&action, &fields("verify", "this"), &[]).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    done(&eu_url, &["status", "status"], &["desired   verify"]).await;
    done(&us_url, &["status", "status"], &["desired   backfill"]).await;
    let response = console.send(&action, &fields("verify", "others"), &[]).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = response.text().await?;
    assert!(text.contains("Ledger ap: ") && text.contains("It was done on ledger us."), "{text}");
    done(&us_url, &["status", "status"], &["desired   verify"]).await;
    let unknown = console.get("/ledgers/asia/migrations/shop/status").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    Ok(())
}

/// Skipped where there is no program `script`, which gives the process a terminal.
#[tokio::test]
async fn a_watch_draws_on_a_terminal_until_a_key_ends_it() -> Outcome {
    let (_, url) = ledger("eu").await?;
    let line = format!("stty cols 100 rows 40; {} status --watch", program()?.display());
    let started = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("DATABASE_URL", &url)
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        println!("skipped: `script` is not installed");
        return Ok(());
    };
    let mut keyboard = child.stdin.take();
    let mut screen = child.stdout.take().ok_or("piped")?;
    let shown = tokio::task::spawn_blocking(move || {
        let (mut shown, mut part) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = screen.read(&mut part) {
            shown.extend_from_slice(&part[..read]);
            if String::from_utf8_lossy(&shown).contains("scroll") {
                // `script` waits for the end of its input.
                let _ = keyboard.take().map(|mut keyboard| keyboard.write_all(b"q"));
            }
        }
        String::from_utf8_lossy(&shown).into_owned()
    });
    let shown = tokio::time::timeout(std::time::Duration::from_secs(120), shown).await;
    if shown.is_err() {
        // Its end also ends the thread that reads.
        child.kill()?;
    }
    let shown = shown??;
    for part in ["shop/status", "[expand]", "[############....", "rows/s", "\x1b[?1049l"] {
        assert!(shown.contains(part), "{part:?} not in {shown:?}");
    }
    assert!(child.wait()?.success());
    Ok(())
}
