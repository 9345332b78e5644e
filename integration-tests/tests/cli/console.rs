//! `cutover console`, over HTTP and in a browser.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use cutover_testkit::{free_port, wait_until};
use reqwest::header::{COOKIE, HOST, LOCATION, ORIGIN, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};

use super::{Outcome, STATE, command, database, done, execute, refused};

const LIMIT: Duration = Duration::from_secs(60);

/// A console in a process of its own.
pub(crate) struct Console {
    process: Child,
    address: String,
    client: Client,
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Console {
    pub(crate) fn start(url: &str, arguments: &[&str]) -> Self {
        let arguments = [&["console", "--listen", "127.0.0.1:0"][..], arguments].concat();
        let mut process = command(url, &arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("http://")).unwrap();
        let client = Client::builder().redirect(Policy::none()).build().unwrap();
        Self { process, address: address.trim_end_matches('/').to_owned(), client }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client.get(format!("http://{}{path}", self.address)).send().await.unwrap()
    }

    pub(crate) async fn page(&self, path: &str) -> String {
        let response = self.get(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.text().await.unwrap()
    }

    /// Sends the form of a page as the browser does, with these headers.
    pub(crate) async fn send(
        &self,
        path: &str,
        fields: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Response {
        let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let body: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let mut request = self
            .client
            .post(format!("http://{}{path}", self.address))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.join("&"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }
}

/// The token of the form on this page.
pub(crate) fn csrf(page: &str) -> &str {
    page.split("name=\"csrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap()
}

#[tokio::test]
async fn the_console_shows_migrations_and_their_state() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    let console = Console::start(url, &[]);
    let page = console.page("/").await;
    assert!(page.contains("the ledger has no migration"), "{page}");
    execute(url, STATE).await?;
    execute(url, "update cutover.migrations set waits_for = '<script>alert(1)</script>' where id = 2")
        .await?;
    wait_until("the next read", LIMIT, async || {
        Ok::<_, String>(console.page("/").await.contains("shop/status"))
    })
    .await?;
    let page = console.page("/").await;
    assert!(page.contains("other/name") && page.contains("&lt;script&gt;"), "{page}");
    assert!(!page.contains("<script>alert"), "{page}");
    let page = console.page("/migrations/shop/status").await;
    for part in [
        "aria-current=\"step\">expand",
        "backfill (desired)",
        "instance pay-7c9 at epoch 1 (for 41 min)",
        "40 of 100 rows",
        "refused: this build does not know it",
        "expand → backfill",
        "2 for 41 min",
    ] {
        assert!(page.contains(part), "{part:?} not in {page}");
    }
    assert_eq!(console.get("/migrations/shop/nothing").await.status(), StatusCode::NOT_FOUND);
    let response = console.get("/").await;
    let policy = response.headers()["content-security-policy"].to_str()?.to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");

    // A change arrives without a reload.
    let mut events = console.get("/migrations/shop/status/events").await;
    execute(url, "update cutover.migrations set waits_for = 'a lock on table orders' where id = 1").await?;
    let mut seen = String::new();
    tokio::time::timeout(LIMIT, async {
        while !seen.contains("a lock on table orders") {
            seen += &String::from_utf8_lossy(&events.chunk().await.unwrap().unwrap());
        }
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn the_console_changes_a_migration_and_records_who_and_why() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, STATE).await?;
    let console = Console::start(url, &[]);
    let path = "/migrations/shop/status";
    let page = console.page(path).await;
    let csrf = csrf(&page);
    let origin = format!("http://{}", console.address);
    let fields = |action, phase| {
        [
            ("csrf", csrf),
            ("action", action),
            ("phase", phase),
            ("actor", "ann"),
            ("reason", "the copy is done"),
            ("confirm", "shop/status"),
        ]
    };
    let headers = [(ORIGIN.as_str(), origin.as_str())];
    for action in ["set-phase", "pause", "resume", "retry-repairs"] {
        let response = console.send(&format!("{path}/action"), &fields(action, "verify"), &headers).await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER, "{action}: {}", response.text().await?);
        assert_eq!(response.headers()[LOCATION], path);
    }
    let history =
        done(url, &["history", "status"], &["desired phase set to verify", "paused", "resumed"]).await;
    assert_eq!(history.matches("the copy is done").count(), 4, "{history}");

    // Each of these is refused, and the history stays as it is.
    let without =
        |name| fields("pause", "").into_iter().filter(move |(field, _)| *field != name).collect::<Vec<_>>();
    let with = |name, value| without(name).into_iter().chain([(name, value)]).collect::<Vec<_>>();
    for (fields, headers, status, part) in [
        (without("csrf"), &headers[..], 403, "load the page again"),
        (with("csrf", "guess"), &headers, 403, "load the page again"),
        (with("reason", " "), &headers, 422, "a reason"),
        (with("actor", ""), &headers, 422, "your name"),
        (with("confirm", "status"), &headers, 422, "not confirmed"),
        (with("action", "drop"), &headers, 422, "no action"),
        (with("action", "approve"), &headers, 409, "`retire` only"),
        (fields("set-phase", "rampp").to_vec(), &headers, 422, "rampp"),
        (fields("pause", "").to_vec(), &[(ORIGIN.as_str(), "https://evil.example")], 403, "another site"),
        (fields("pause", "").to_vec(), &[(ORIGIN.as_str(), "null")], 403, "another site"),
        (fields("pause", "").to_vec(), &[(HOST.as_str(), "evil.example")], 421, "evil.example"),
    ] {
        let response = console.send(&format!("{path}/action"), &fields, headers).await;
        let (code, text) = (response.status().as_u16(), response.text().await?);
        assert_eq!(code, status, "{part}: {text}");
        assert!(text.contains(part), "{part:?} not in {text}");
    }
    assert_eq!(done(url, &["history", "status"], &[]).await, history);

    let read_only = Console::start(url, &["--read-only"]);
    assert!(!read_only.page(path).await.contains("<form"));
    let response = read_only.send(&format!("{path}/action"), &fields("pause", ""), &[]).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(done(url, &["history", "status"], &[]).await, history);
    Ok(())
}

#[tokio::test]
async fn the_console_asks_for_its_token() -> Outcome {
    let url = &database().await?;
    let used = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = used.local_addr()?.to_string();
    refused(url, &["console"], 3, &["does not exist", "cutover install"]).await;
    done(url, &["install"], &[]).await;
    refused(url, &["console", "--listen", "0.0.0.0:0"], 2, &["reachable", "--token-file"]).await;
    refused(url, &["console", "--token", "short"], 2, &["at least 16"]).await;
    refused(url, &["console", "--listen", &taken], 2, &[&taken, "--listen"]).await;

    let token = "0123456789abcdef0123";
    let console = Console::start(url, &["--token", token]);
    let response = console.get("/").await;
    assert_eq!(
        (response.status(), &response.headers()[LOCATION]),
        (StatusCode::SEE_OTHER, &"/login".parse()?)
    );
    assert_eq!(console.get("/events").await.status(), StatusCode::UNAUTHORIZED);
    let response = console.send("/login", &[("token", token)], &[]).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    let cookie = response.headers()[SET_COOKIE].to_str()?;
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let address = format!("http://{}/", console.address);
    let response = console.client.get(&address).header(COOKIE, cookie).send().await?;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(console.client.get(&address).bearer_auth(token).send().await?.status(), StatusCode::OK);

    // Guesses are limited, also for the right token after them.
    for _ in 0..10 {
        let response = console.send("/login", &[("token", "guess")], &[]).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }
    let response = console.send("/login", &[("token", token)], &[]).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(response.headers().contains_key("retry-after"));
    // Who is logged in stays so.
    let response = console.client.get(&address).header(COOKIE, cookie).send().await?;
    assert_eq!(response.status(), StatusCode::OK);
    Ok(())
}

/// The same page, read-only, on the admin listener of an instance.
#[tokio::test]
async fn an_instance_shows_its_own_migrations() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, STATE).await?;
    let [admin, public] =
        [free_port()?, free_port()?].map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let pool = sqlx::PgPool::connect(url).await?;
    let service = cutover::Cutover::service("other").admin(admin).listen(public).postgres(pool);
    let instance = service.start().await?;
    let client = Client::new();
    let page = async |path: &str| -> Result<(StatusCode, String), reqwest::Error> {
        let response = client.get(format!("http://{admin}{path}")).send().await?;
        Ok((response.status(), response.text().await?))
    };
    let (status, text) = page("/").await?;
    assert_eq!(status, StatusCode::OK, "{text}");
    assert!(text.contains("other/name") && !text.contains("shop/"), "{text}");
    let (status, text) = page("/migrations/other/name").await?;
    assert_eq!(status, StatusCode::OK, "{text}");
    assert!(text.contains("data-polls") && text.contains("Steps ahead"), "{text}");
    for none in ["<form", "<input", "<button"] {
        assert!(!text.contains(none), "{none} in {text}");
    }
    let (status, part) = page("/migrations/other/name/part").await?;
    assert!(status == StatusCode::OK && part.starts_with("<ol") && !part.contains("<html"), "{part}");
    assert_eq!(page("/migrations/shop/status").await?.0, StatusCode::NOT_FOUND);
    assert_eq!(page("/livez").await?.0, StatusCode::OK);
    let posted = client.post(format!("http://{admin}/migrations/other/name")).send().await?;
    assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
    drop(instance);
    Ok(())
}

/// A ledger that the console cannot use: older, newer, or without rights.
#[tokio::test]
async fn a_console_without_a_usable_ledger_says_why() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, "do $$ begin create role onlooker login; exception when duplicate_object then null; end $$")
        .await?;
    let onlooker = url.replace("//postgres:", "//onlooker:");
    refused(&onlooker, &["console"], 3, &["permission denied", "cutover install --grant-to onlooker"]).await;
    execute(url, "update cutover.ledger set version = 8, compatible_from = 7").await?;
    refused(url, &["console"], 3, &["version 8", "newer `cutover`"]).await;
    execute(url, "update cutover.ledger set version = 0, compatible_from = 0").await?;
    refused(url, &["console"], 3, &["cutover install"]).await;
    Ok(())
}

#[tokio::test]
async fn a_role_that_may_only_read_changes_nothing() -> Outcome {
    let url = &database().await?;
    done(url, &["install"], &[]).await;
    execute(url, STATE).await?;
    let grant = "do $$ begin create role reader login; exception when duplicate_object then null; end $$; \
        grant usage on schema cutover to reader; grant select on all tables in schema cutover to reader";
    execute(url, grant).await?;
    let history = done(url, &["history", "status"], &[]).await;
    let console = Console::start(&url.replace("//postgres:", "//reader:"), &[]);
    let page = console.page("/migrations/shop/status").await;
    let fields = [
        ("csrf", csrf(&page)),
        ("action", "pause"),
        ("actor", "ann"),
        ("reason", "x"),
        ("confirm", "shop/status"),
    ];
    let response = console.send("/migrations/shop/status/action", &fields, &[]).await;
    assert!(!response.status().is_success() && !response.status().is_redirection(), "{}", response.status());
    let text = response.text().await?;
    for part in ["permission denied for table migrations", "cutover install --grant-to"] {
        assert!(text.contains(part), "{part:?} not in {text}");
    }
    assert_eq!(done(url, &["history", "status"], &[]).await, history);
    Ok(())
}

/// The ratio that the Web Content Accessibility Guidelines define, from the colours of the style sheet.
#[test]
fn every_text_has_enough_contrast() {
    let style =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../src/console/style.css")).unwrap();
    let luminance = |colour: &str| {
        let digits = colour.trim_start_matches('#');
        let wide: String = match digits.len() {
            3 => digits.chars().flat_map(|digit| [digit, digit]).collect(),
            _ => digits.to_owned(),
        };
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&wide[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(0) + 0.7152 * channel(2) + 0.0722 * channel(4)
    };
    let contrast = |one: &str, other: &str| {
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    };
    for scheme in [0, 1] {
        let root = style.split(":root {").nth(scheme + 1).unwrap().split('}').next().unwrap();
        let colour = |name: &str| {
            let value = root.split(&format!("--{name}:")).nth(1).unwrap();
            value.split(';').next().unwrap().trim().to_owned()
        };
        let [soft, canvas, text] = ["soft", "page", "text"].map(colour);
        for (name, behind) in [
            ("accent", &canvas),
            ("bad", &canvas),
            ("bad", &soft),
            ("good", &canvas),
            ("accent", &soft),
            ("text", &canvas),
        ] {
            let ratio = contrast(&colour(name), behind);
            assert!(ratio >= 4.5, "{name} on {behind}, scheme {scheme}: {ratio:.2}");
        }
        assert!(contrast(&text, &soft) >= 4.5, "scheme {scheme}");
        assert!(contrast(&colour("on-accent"), &colour("accent")) >= 4.5, "scheme {scheme}");
        // Borders of controls need 3.
        assert!(contrast(&colour("line"), &canvas) >= 3.0, "scheme {scheme}");
    }
}
