//! No part of a secret of the configuration is in a text that leaves the process, whatever is wrong with the configuration or
//! with the servers.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Registry, fmt};

use super::assembly::Assembly;
use super::environment::Environment;
use super::{Cutover, StartError};
use crate::flags::Flag;

const FLAG: Flag = Flag::new("new-flow", false);
/// The halves of each secret, and the first one in base64, at each of the three offsets.
const HALVES: [&str; 5] = ["hunter", "zebra", "ahvudgvy", "h1bnrlc", "odw50zx"];
const ODD: &[char] = &[
    '@', ':', '/', '?', '#', '%', '&', '=', ',', ';', '"', '\'', '\\', '{', '}', '(', ')', '$', '[', ']',
    ' ', '+', '<', '|', '~', 'ä', '€', '\n', '\t',
];

/// What the process has logged, or printed.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Output {
    /// Takes up everything that this library logs, and the warnings of others, on this thread.
    fn logged() -> (Self, DefaultGuard) {
        let output = Self::default();
        let filter = EnvFilter::builder()
            .with_default_directive(LevelFilter::WARN.into())
            .parse_lossy("warn,cutover=trace");
        let lines = fmt::layer().with_ansi(false).with_writer(output.clone());
        let guard = tracing::subscriber::set_default(Registry::default().with(filter).with(lines));
        (output, guard)
    }

    fn add(&mut self, text: impl std::fmt::Display) {
        writeln!(self, "{text}").unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn has_no_secret(&self, case: impl std::fmt::Debug) {
        for line in self.text().lines() {
            let lower = line.to_lowercase();
            let found = HALVES.iter().find(|half| lower.contains(**half));
            assert!(found.is_none(), "{case:?}\nleads to\n{line}");
        }
    }
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A secret with up to five odd characters between two recognizable halves.
fn secret(random: &mut fastrand::Rng) -> String {
    let odd: String = (0..random.usize(0..6)).filter_map(|_| random.choice(ODD.iter())).collect();
    format!("hunter{odd}zebra")
}

/// A secret as it is in a URL: encoded, or not.
fn in_url(random: &mut fastrand::Rng) -> String {
    let secret = secret(random);
    if random.u8(0..4) == 0 { secret } else { encoded(&secret) }
}

/// The variables, with a secret in every place that can have one.
fn variables(random: &mut fastrand::Rng, at: [SocketAddr; 3]) -> Vec<(&'static str, String)> {
    let [postgres, redis, unleash] = at;
    let one = |random: &mut fastrand::Rng, at: SocketAddr, places: &[&str]| {
        let place = random.choice(places.iter()).unwrap();
        let filled = place.replace("SECRET", &in_url(random)).replace("OTHER", &in_url(random));
        filled.replace("AT", &at.to_string())
    };
    let postgres = one(
        random,
        postgres,
        &[
            "postgres://me:SECRET@AT/app",
            "postgresql://me:SECRET@AT/app?sslmode=disable",
            "postgres://AT/app?user=me&password=SECRET",
            "postgres://me:SECRET@AT/app?sslpassword=OTHER",
            "postgres://me:SECRET@AT/app?options[app.token]=OTHER",
            "postgres://me:SECRET@AT/app?options=-c%20app.secret%3DOTHER",
            "postgres://SECRET@AT/app",
            "postgres://me:SECRET@AT,b:5432/app?password=OTHER",
        ],
    );
    let redis = one(
        random,
        redis,
        &[
            "redis://:SECRET@AT",
            "redis://me:SECRET@AT/0",
            "redis://me:SECRET@AT/?protocol=resp3",
            "redis://AT/?password=SECRET",
        ],
    );
    let unleash_url = one(
        random,
        unleash,
        &[
            "http://AT/api",
            "http://AT/api",
            "http://AT/api",
            "http://me:SECRET@AT/api",
            "http://AT/api?token=SECRET",
        ],
    );
    vec![
        ("LISTEN_ADDR", "127.0.0.1:0".into()),
        ("ADMIN_ADDR", "127.0.0.1:0".into()),
        ("DATABASE_URL", postgres),
        ("REDIS_URL", redis),
        ("UNLEASH_URL", unleash_url),
        ("UNLEASH_TOKEN", format!("*:development.{}", secret(random))),
        ("CUTOVER_DRAIN_SECRET", format!("{}-and-more", secret(random))),
    ]
}

fn assembly(variables: &[(&'static str, String)]) -> Assembly {
    let service = Cutover::service("shop").postgres_from_env().redis_from_env().flag(&FLAG);
    Assembly::new(service, Environment::of(variables.iter().map(|(name, value)| (*name, value.as_str()))))
}

const NOWHERE: [SocketAddr; 3] = {
    let address = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
    [address; 3]
};

/// Changes one character of a value, or two, or exchanges two variables.
fn spoiled(random: &mut fastrand::Rng, variables: &mut [(&'static str, String)]) {
    if random.u8(0..8) == 0 {
        let (from, to) = (random.usize(2..5), random.usize(0..5));
        variables[to].1 = variables[from].1.clone();
    }
    for _ in 0..random.usize(0..3) {
        let value = &mut variables[random.usize(2..7)].1;
        let mut characters: Vec<char> = value.chars().collect();
        let at = random.usize(0..=characters.len());
        match random.u8(0..3) {
            0 => characters.insert(at, *random.choice(ODD.iter()).unwrap()),
            1 => characters.truncate(at),
            _ if at < characters.len() => drop(characters.remove(at)),
            _ => {}
        }
        *value = characters.into_iter().collect();
    }
}

/// Each of these tests has so many secrets that the process forgets those of the other.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn a_configuration_that_is_refused_shows_no_secret() {
    let _alone = ALONE.lock().await;
    for seed in 0..1_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut variables = variables(&mut random, NOWHERE);
        spoiled(&mut random, &mut variables);
        let (mut output, _guard) = Output::logged();
        let assembly = assembly(&variables);
        output.add(format!("{:?}", assembly.problems()));
        if let Err(error) = crate::ConfigError::check(assembly.problems().to_vec()) {
            let error = StartError::from(error);
            output.add(format!("{error} {error:?} {error:#?}"));
        }
        output.has_no_secret((seed, &variables));
    }
}

/// How a server misbehaves.
#[derive(Debug, Clone, Copy)]
enum Server {
    Refuses,
    Hangs,
    /// Sends back what it gets.
    Echoes,
    /// Answers in the protocol of the client with an error that holds what the client has sent.
    Quotes,
}

impl Server {
    async fn start(self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        if !matches!(self, Self::Refuses) {
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(self.serve(stream));
                }
            });
        }
        address
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut asked_for_password = false;
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut bytes).await {
            let received = &bytes[..length];
            let answer = match self {
                Self::Refuses | Self::Hangs => continue,
                Self::Echoes => received.to_vec(),
                Self::Quotes => quoting(received, &mut asked_for_password),
            };
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }
}

/// An answer of Postgres, Redis or a web server to `received`.
fn quoting(received: &[u8], asked_for_password: &mut bool) -> Vec<u8> {
    let text = String::from_utf8_lossy(received).replace(['\0'], " ").replace("\r\n", " ");
    if received.starts_with(b"*") {
        return format!("-ERR unknown command, with args beginning with: {text}\r\n").into_bytes();
    }
    if received.starts_with(b"GET ") || received.starts_with(b"POST ") {
        let length = text.len();
        return format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {length}\r\n\r\n{text}").into_bytes();
    }
    // Whether the server has TLS.
    if received.len() == 8 {
        return b"N".to_vec();
    }
    if !*asked_for_password {
        *asked_for_password = true;
        return b"R\0\0\0\x08\0\0\0\x03".to_vec();
    }
    let fields = format!("SFATAL\0VFATAL\0C28P01\0Mlogin failed: {text}\0D{text}\0H{text}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap();
    [b"E".as_slice(), &length.to_be_bytes(), fields.as_bytes()].concat()
}

async fn page(admin: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text)
}

/// What preflight and the pages of a start show with these servers.
async fn shown(server: Server, seed: u64) -> Output {
    let mut random = fastrand::Rng::with_seed(seed);
    let at = [server.start().await, server.start().await, server.start().await];
    let mut variables = variables(&mut random, at);
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    variables[1].1 = admin.to_string();
    let (mut output, _guard) = Output::logged();
    let report = assembly(&variables).look().await;
    output.add(format!("{report} {report:?} {}", serde_json::to_string(&report).unwrap()));

    let starting = tokio::spawn(assembly(&variables).start());
    let reached = async {
        while !starting.is_finished() && page(admin, "/livez").await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap();
    // The second time, the first probes have ended.
    for pause in [0, 1] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        for path in ["/readyz?verbose", "/healthz?verbose", "/metrics", "/", "/drain"] {
            output.add(page(admin, path).await.unwrap_or_default());
        }
    }
    starting.abort();
    if let Ok(Err(error)) = starting.await {
        output.add(format!("{error} {error:?}"));
    }
    output.has_no_secret((server, seed, &variables));
    output
}

#[test]
fn no_secret_is_shown_whatever_servers_answer() {
    let _alone = ALONE.blocking_lock();
    let cases = [(Server::Refuses, 3), (Server::Hangs, 2), (Server::Echoes, 6), (Server::Quotes, 12)];
    let quoted = std::thread::scope(|scope| {
        let one = |server, seed| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(shown(server, seed))
        };
        let cases = cases.into_iter().flat_map(|(server, seeds)| (0..seeds).map(move |seed| (server, seed)));
        let running: Vec<_> = cases.map(|(server, seed)| scope.spawn(move || one(server, seed))).collect();
        let outputs = running.into_iter().map(|running| running.join().unwrap());
        outputs.map(|output| output.text()).collect::<String>()
    });
    // Otherwise the servers were not asked.
    for part in ["login failed: ", "answered 401 Unauthorized: "] {
        assert!(quoted.contains(part), "{part}");
    }
}
