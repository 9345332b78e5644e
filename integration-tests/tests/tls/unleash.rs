//! A real Unleash behind a gateway that ends TLS, as it is deployed.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cutover::flags::{FetchErrorKind, Flag, Flags, Subject, UnleashOptions};
use cutover_testkit::{
    Folder, KitError, Postgres, PostgresOptions, Unleash, if_installed, program, wait_until,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::certificates;

const FLAG: Flag = Flag::new("payment-new-flow", false);
const LIMIT: Duration = Duration::from_secs(60);

fn provider() -> Arc<CryptoProvider> {
    rustls::crypto::ring::default_provider().into()
}

fn roots(folder: &Path, authority: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join(authority)).unwrap()).unwrap();
    roots
}

/// A certificate and its key.
fn identity(folder: &Path, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let file = |end| folder.join(format!("{name}.{end}"));
    let certificate = CertificateDer::from_pem_file(file("pem")).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_file(file("key")).unwrap())
}

/// Gateways before one Unleash.
struct Gateways {
    unleash: Unleash,
    folder: Folder,
    tasks: JoinSet<()>,
    postgres: Postgres,
}

impl Gateways {
    async fn start() -> Option<Self> {
        let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
        let unleash = if_installed(Unleash::start(&postgres).await).unwrap()?;
        unleash.admin().unwrap().ensure_flag("payment-new-flow").await.unwrap();
        Some(Self { unleash, folder: certificates(), tasks: JoinSet::new(), postgres })
    }

    /// The URL of a gateway with this certificate. One that is `closed` wants a certificate of the client.
    async fn open(&mut self, certificate: &str, closed: bool) -> String {
        let folder = self.folder.path();
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = if closed {
            let accepted = Arc::new(roots(folder, "ca.pem"));
            let verifier = WebPkiClientVerifier::builder_with_provider(accepted, provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let (chain, key) = identity(folder, certificate);
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let upstream = self.unleash.url().trim_start_matches("http://").to_owned();
        self.tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
                tokio::spawn(async move {
                    let mut client = acceptor.accept(stream).await?;
                    let mut server = TcpStream::connect(upstream).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        url
    }

    /// The flags over a gateway, for a client that trusts `authority` and has the certificate `client`.
    fn flags(&self, url: &str, authority: Option<&str>, client: Option<&str>) -> Flags {
        let folder = self.folder.path();
        let config = authority.map(|authority| {
            let builder = ClientConfig::builder_with_provider(provider());
            let builder = builder.with_safe_default_protocol_versions().unwrap();
            let builder = builder.with_root_certificates(roots(folder, authority));
            Arc::new(match client {
                Some(client) => {
                    let (chain, key) = identity(folder, client);
                    builder.with_client_auth_cert(chain, key).unwrap()
                }
                None => builder.with_no_client_auth(),
            })
        });
        Flags::unleash(UnleashOptions {
            tls: config,
            interval: Duration::from_millis(200),
            ..UnleashOptions::new(url, self.unleash.backend_token(), "payments", "payments-1")
        })
        .unwrap()
    }

    /// The flag follows its switch.
    async fn works(&self, url: &str, client: Option<&str>) {
        let flags = self.flags(url, Some("ca.pem"), client);
        let admin = self.unleash.admin().unwrap();
        for on in [true, false] {
            let switched =
                if on { admin.enable(FLAG.name()).await } else { admin.disable(FLAG.name()).await };
            switched.unwrap();
            let followed = async || Ok::<_, KitError>(flags.decide(&FLAG, &Subject::new()) == on);
            wait_until("the flag to follow its switch", LIMIT, followed).await.unwrap();
        }
        flags.close().await;
    }

    async fn refuses(&self, url: &str, authority: Option<&str>, client: Option<&str>, reasons: &[&str]) {
        let flags = self.flags(url, authority, client);
        // A busy machine may miss the time limit of a poll, which is another error.
        let failed = async || match flags.last_fetch_error() {
            Some(error) if error.kind == FetchErrorKind::NotTrusted => Ok(true),
            other => Err(format!("{authority:?} {client:?}: {other:?}")),
        };
        wait_until("an error", LIMIT, failed).await.unwrap();
        let error = flags.last_fetch_error().unwrap();
        let has_reason = reasons.iter().any(|reason| error.message.contains(reason));
        assert!(has_reason, "{authority:?} {client:?}: {error:?}");
        flags.close().await;
    }

    /// What the command says in a process that has this authority in `SSL_CERT_FILE`.
    async fn preflight(&self, url: &str, authority: Option<&str>) -> String {
        let mut command = Command::new(program().unwrap());
        let arguments = ["preflight", "--fleet", "payments", "--flag", FLAG.name(), "--unleash-url", url];
        command.args(arguments).env("DATABASE_URL", self.postgres.admin_url()).env_remove("SSL_CERT_FILE");
        command.env("UNLEASH_TOKEN", self.unleash.backend_token());
        command.envs(authority.map(|name| ("SSL_CERT_FILE", self.folder.path().join(name))));
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reason_not_to_trust_an_unleash_is_named() {
    let Some(mut gateways) = Gateways::start().await else { return };
    let url = gateways.open("good", false).await;
    gateways.works(&url, None).await;
    let not_trusted =
        ["is not trusted; add the authority's certificate to those of the system, name its file in \
                        SSL_CERT_FILE, or set `UnleashOptions::tls`"];
    gateways.refuses(&url, Some("other.pem"), None, &not_trusted).await;
    gateways.refuses(&url, None, None, &not_trusted).await;
    let expired = gateways.open("expired", false).await;
    gateways.refuses(&expired, Some("ca.pem"), None, &["the server's certificate has expired"]).await;
    let elsewhere = gateways.open("elsewhere", false).await;
    let other_name = ["is for another name; use the name in the certificate as the host of the URL"];
    gateways.refuses(&elsewhere, Some("ca.pem"), None, &other_name).await;

    let (refused, advice) = (gateways.preflight(&url, None).await, "name its file in SSL_CERT_FILE");
    assert!(refused.contains(advice) && refused.contains("1 problem"), "{refused}");
    let followed = gateways.preflight(&url, Some("ca.pem")).await;
    assert!(!followed.contains(advice), "{followed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unleash_that_wants_a_client_certificate_gets_it() {
    let Some(mut gateways) = Gateways::start().await else { return };
    let url = gateways.open("good", true).await;
    gateways.works(&url, Some("client")).await;
    let required = ["requires a client certificate; set `UnleashOptions::tls`"];
    gateways.refuses(&url, Some("ca.pem"), None, &required).await;
    let refused = ["does not accept the client certificate; set `UnleashOptions::tls`"];
    gateways.refuses(&url, Some("ca.pem"), Some("foreign"), &refused).await;
}
