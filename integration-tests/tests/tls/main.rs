//! TLS to a real Postgres, Redis and Unleash: which certificates the library accepts, and what it says about others.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as it does, by panicking")]

mod unleash;

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cutover::health::Check;
use cutover::preflight::{Preflight, Severity};
use cutover_testkit::{Folder, Postgres, PostgresOptions, Redis, free_port, wait_until};
use deadpool_redis::redis::{Client, ClientTlsConfig, TlsCertificates};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};

const LIMIT: Duration = Duration::from_secs(60);

fn openssl(folder: &Path, arguments: &str) {
    let done = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A private certificate authority of this name.
fn authority(folder: &Path, name: &str) {
    let key = format!("-nodes -keyout {name}.key -out {name}.pem");
    openssl(folder, &format!("req -x509 -newkey rsa:2048 {key} -subj /CN={name} -days 2"));
}

/// A certificate of `authority` for a subject and an alternative name. A number of days below zero makes an expired one.
fn certificate(folder: &Path, name: &str, authority: &str, (subject, alternative): (&str, &str), days: i32) {
    let key = format!("-nodes -keyout {name}.key -out {name}.csr");
    let names = format!("-subj /CN={subject} -addext subjectAltName={alternative}");
    openssl(folder, &format!("req -newkey rsa:2048 {key} {names}"));
    let signer = format!("-CA {authority}.pem -CAkey {authority}.key -CAcreateserial");
    openssl(
        folder,
        &format!("x509 -req -in {name}.csr {signer} -days {days} -copy_extensions copy -out {name}.pem"),
    );
}

/// Certificates of servers and clients, and the authorities `ca` and `other`, in a new folder.
fn certificates() -> Folder {
    let folder = Folder::new("tls").unwrap();
    authority(folder.path(), "ca");
    authority(folder.path(), "other");
    let certificates: [(&str, (&str, &str), i32); 4] = [
        ("good", ("localhost", "IP:127.0.0.1"), 2),
        ("expired", ("localhost", "IP:127.0.0.1"), -1),
        ("elsewhere", ("elsewhere", "DNS:elsewhere.test"), 2),
        ("client", ("postgres", "DNS:client.test"), 2),
    ];
    for (name, subject, days) in certificates {
        certificate(folder.path(), name, "ca", subject, days);
    }
    certificate(folder.path(), "foreign", "other", ("postgres", "DNS:client.test"), 2);
    folder
}

/// A Postgres whose certificate can be replaced while it runs.
struct Server {
    postgres: Postgres,
    admin: PgPool,
    folder: Folder,
}

impl Server {
    async fn start() -> Self {
        let folder = certificates();
        let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
        let admin = PgPool::connect(&postgres.admin_url()).await.unwrap();
        Self { postgres, admin, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Gives the server this certificate, and `ca` to check clients with.
    async fn present(&self, name: &str) {
        let data: String = sqlx::query_scalar("show data_directory").fetch_one(&self.admin).await.unwrap();
        let owner = std::fs::metadata(&data).unwrap();
        for (from, to) in [
            (format!("{name}.pem"), "server.crt"),
            (format!("{name}.key"), "server.key"),
            ("ca.pem".into(), "ca.crt"),
        ] {
            let to = Path::new(&data).join(to);
            std::fs::copy(self.file(&from), &to).unwrap();
            chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        for setting in ["ssl_ca_file = 'ca.crt'", "ssl = on"] {
            let set = format!("alter system set {setting}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&self.admin).await.unwrap();
        }
        self.reload().await;
    }

    /// Returns when new connections find what has changed.
    async fn reload(&self) {
        let loaded = async || {
            let mut session =
                PgConnection::connect(&format!("{}?sslmode=disable", self.postgres.admin_url())).await?;
            sqlx::query_scalar::<_, String>("select pg_conf_load_time()::text").fetch_one(&mut session).await
        };
        let before = loaded().await.unwrap();
        sqlx::raw_sql("select pg_reload_conf()").execute(&self.admin).await.unwrap();
        let reloaded = async || Ok::<_, sqlx::Error>(loaded().await? != before);
        wait_until("a reload", LIMIT, reloaded).await.unwrap();
    }

    /// What the check says with these parameters of the address; `None` if it passes.
    async fn problem(&self, parameters: &str) -> Option<String> {
        let url = format!("{}?{parameters}", self.postgres.admin_url());
        let options = match cutover::postgres_options(&url) {
            Ok(options) => options,
            Err(problem) => return Some(problem),
        };
        let pool = PgPoolOptions::new().connect_lazy_with(options);
        let report = Preflight::new().check(Check::postgres(&pool).time_limit(LIMIT)).run().await;
        report.of(Severity::Problem).next().and_then(|finding| finding.text.clone())
    }

    async fn refuses(&self, parameters: &str, reason: &str) {
        let problem = self.problem(parameters).await.unwrap_or_default();
        assert!(problem.contains(reason), "{parameters}: {problem}");
    }
}

#[tokio::test]
async fn each_reason_not_to_trust_a_server_is_named() {
    let server = Server::start().await;
    let (ca, other) = (server.file("ca.pem"), server.file("other.pem"));
    let full = format!("sslmode=verify-full&sslrootcert={}", ca.display());
    server.refuses("sslmode=require", "server does not support TLS").await;

    server.present("good").await;
    assert_eq!(server.problem(&full).await, None);
    let wrong = format!("sslmode=verify-full&sslrootcert={}", other.display());
    server.refuses(&wrong, "set sslrootcert to the file of the authority").await;
    server.refuses("sslmode=verify-full", "set sslrootcert to the file of the authority").await;
    let missing = format!("sslmode=verify-full&sslrootcert={}", server.file("missing.pem").display());
    server.refuses(&missing, "missing.pem").await;

    server.present("expired").await;
    server.refuses(&full, "the server's certificate has expired").await;
    server.present("elsewhere").await;
    server.refuses(&full, "the server's certificate is for another name").await;
    assert_eq!(server.problem(&full.replace("verify-full", "verify-ca")).await, None);
    // A rotated certificate needs no restart.
    server.present("good").await;
    assert_eq!(server.problem(&full).await, None);
}

#[tokio::test]
async fn a_client_certificate_is_presented() {
    let server = Server::start().await;
    server.present("good").await;
    let file: String = sqlx::query_scalar("show hba_file").fetch_one(&server.admin).await.unwrap();
    std::fs::write(&file, "hostssl all all all cert\nhost all all all trust\n").unwrap();
    server.reload().await;
    let full = format!("sslmode=verify-full&sslrootcert={}", server.file("ca.pem").display());
    let with = |name: &str| {
        let (certificate, key) = (server.file(&format!("{name}.pem")), server.file(&format!("{name}.key")));
        format!("{full}&sslcert={}&sslkey={}", certificate.display(), key.display())
    };
    assert_eq!(server.problem(&with("client")).await, None);
    server.refuses(&full, "requires a valid client certificate").await;
    // With TLS 1.3 the server checks the certificate after the client has finished, and often resets the connection before the
    // client has read the reason.
    let refused = server.problem(&with("foreign")).await.unwrap();
    assert!(
        ["unknown ca", "UnknownCA", "reset by peer"].iter().any(|reason| refused.contains(reason)),
        "{refused}"
    );
}

/// A Redis whose certificate can be replaced while it runs.
struct SecureRedis {
    redis: Redis,
    port: u16,
    folder: Folder,
}

impl SecureRedis {
    async fn start() -> Self {
        let (folder, port) = (certificates(), free_port().unwrap());
        let file = |name: &str| folder.path().join(name).display().to_string();
        let arguments = [
            "--tls-port".to_owned(),
            port.to_string(),
            "--tls-cert-file".to_owned(),
            file("good.pem"),
            "--tls-key-file".to_owned(),
            file("good.key"),
            "--tls-ca-cert-file".to_owned(),
            file("ca.pem"),
            "--tls-auth-clients".to_owned(),
            "no".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.map(|argument| &*argument.leak()).to_vec();
        let redis = Redis::start_with(arguments.leak()).await.unwrap();
        // Two of the features choose a library each, and then none is the default of the process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { redis, port, folder }
    }

    fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(file)).unwrap()
    }

    async fn set(&self, setting: &str) {
        self.redis.command(&format!("CONFIG SET {setting}")).await.unwrap();
    }

    /// Gives the server this certificate.
    async fn present(&self, name: &str) {
        let file = |end| self.folder.path().join(format!("{name}.{end}")).display().to_string();
        self.set(&format!("tls-cert-file {} tls-key-file {}", file("pem"), file("key"))).await;
    }

    /// What the check says to a client with this authority and certificate; `None` if it passes.
    async fn problem(&self, authority: &str, client: Option<&str>) -> Option<String> {
        let pem = |name: &str| (self.read(&format!("{name}.pem")), self.read(&format!("{name}.key")));
        let client_tls =
            client.map(pem).map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        let certificates = TlsCertificates { client_tls, root_cert: Some(self.read(authority)) };
        let url = format!("rediss://127.0.0.1:{}/", self.port);
        let client = Client::build_with_tls(url, certificates).unwrap();
        let manager = deadpool_redis::Manager::new(client.get_connection_info().clone()).unwrap();
        let pool = deadpool_redis::Pool::builder(manager).build().unwrap();
        let report = Preflight::new().check(Check::redis(&pool).time_limit(LIMIT)).run().await;
        report.of(Severity::Problem).next().and_then(|finding| finding.text.clone())
    }

    async fn refuses(&self, authority: &str, client: Option<&str>, reasons: &[&str]) {
        let problem = self.problem(authority, client).await.unwrap_or_default();
        assert!(reasons.iter().any(|reason| problem.contains(reason)), "{authority} {client:?}: {problem}");
    }
}

#[tokio::test]
async fn each_reason_not_to_trust_a_redis_is_named() {
    let server = SecureRedis::start().await;
    assert_eq!(server.problem("ca.pem", None).await, None);
    server.refuses("other.pem", None, &["add the authority's certificate to those of the system"]).await;
    server.present("expired").await;
    server.refuses("ca.pem", None, &["the server's certificate has expired"]).await;
    server.present("elsewhere").await;
    server.refuses("ca.pem", None, &["the server's certificate is for another name; use the name"]).await;
    server.present("good").await;
    assert_eq!(server.problem("ca.pem", None).await, None);

    server.set("tls-auth-clients yes").await;
    assert_eq!(server.problem("ca.pem", Some("client")).await, None);
    // The server may reset the connection before the client has read the reason.
    server.refuses("ca.pem", None, &["requires a client certificate; pass a pool", "reset by peer"]).await;
    let refused = ["does not accept the client certificate", "reset by peer"];
    server.refuses("ca.pem", Some("foreign"), &refused).await;
}
