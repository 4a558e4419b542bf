//! A TLS listener in front of a server without TLS. It uses its own certificates and passes the bytes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use url::Url;
use uuid::Uuid;

/// How a client begins a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// With TLS at once, as AMQP and Redis do.
    TlsAtOnce,
    /// With PostgreSQL's request for TLS.
    Postgres,
}

/// Which clients are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// All clients.
    Anyone,
    /// Only clients that present [`TlsFront::identity`].
    Known,
}

/// A listener for the host `localhost`, whose certificate is issued by [`TlsFront::ca`].
pub struct TlsFront {
    port: u16,
    dir: PathBuf,
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

impl TlsFront {
    /// Starts a listener in front of `target`, such as `127.0.0.1:5672`.
    pub async fn start(target: String, speaks: Speaks, clients: Clients) -> TlsFront {
        runtime::telemetry::install_crypto();
        let dir = std::env::temp_dir().join(format!("testkit-tls-{}", Uuid::now_v7().simple()));
        fs::create_dir_all(&dir).expect("a folder can be made");
        let (ours, stranger) = (authority("ours"), authority("a stranger's"));
        fs::write(dir.join("ca.pem"), ours.pem()).expect("a file can be written");
        fs::write(dir.join("stranger.pem"), stranger.pem()).expect("a file can be written");
        write_identity(&dir, &ours);
        let acceptor = TlsAcceptor::from(Arc::new(settings(&ours, clients)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound port").port();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, target) = (acceptor.clone(), target.clone());
                // The test itself observes a client that disconnects or is refused.
                tokio::spawn(async move { pass(client, &acceptor, &target, speaks).await });
            }
        });
        TlsFront { port, dir }
    }

    /// The address `url` through this listener, with these parameters.
    pub fn address_of(&self, url: &str, scheme: &str, parameters: &[(&str, &Path)]) -> SecretString {
        let rest = url.split_once("://").expect("an address").1;
        let mut url = Url::parse(&format!("{scheme}://{rest}")).expect("an address");
        url.set_host(Some("localhost")).expect("a host");
        url.set_port(Some(self.port)).expect("a port");
        for (name, path) in parameters {
            url.query_pairs_mut().append_pair(name, path.to_str().expect("a path in UTF-8"));
        }
        SecretString::from(String::from(url))
    }

    /// The authority that issued the certificate of this listener.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// An authority that issued none of these certificates.
    pub fn stranger(&self) -> PathBuf {
        self.dir.join("stranger.pem")
    }

    /// The certificate and key of a client that this listener accepts.
    pub fn identity(&self) -> (PathBuf, PathBuf) {
        (self.dir.join("client.pem"), self.dir.join("client-key.pem"))
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

fn write_identity(dir: &Path, issuer: &Issuer) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["client".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    fs::write(dir.join("client.pem"), certificate.pem()).expect("a file can be written");
    fs::write(dir.join("client-key.pem"), key.serialize_pem()).expect("a file can be written");
}

fn settings(issuer: &Issuer, clients: Clients) -> ServerConfig {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let settings = ServerConfig::builder();
    let settings = match clients {
        Clients::Anyone => settings.with_no_client_auth(),
        Clients::Known => {
            let mut roots = RootCertStore::empty();
            roots.add(issuer.der().clone()).expect("a root");
            settings.with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build().expect("a verifier"))
        }
    };
    settings.with_single_cert(vec![certificate.der().clone()], key).expect("a certificate and its key")
}

async fn pass(mut client: TcpStream, acceptor: &TlsAcceptor, target: &str, speaks: Speaks) -> std::io::Result<()> {
    if speaks == Speaks::Postgres {
        // SSLRequest: its length and a number, eight bytes. The answer `S` means yes.
        let mut question = [0; 8];
        client.read_exact(&mut question).await?;
        client.write_all(b"S").await?;
    }
    let mut client = acceptor.accept(client).await?;
    let mut server = TcpStream::connect(target).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
