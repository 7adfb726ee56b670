//! TLS 1.3, and the certificate that a first start makes (spec control-api 10.2).

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::http::Peer;
use crate::secret::write_private;

/// Handshakes at the same time; more wait in the system's queue.
const MOST_HANDSHAKES: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server shows to who connects.
#[derive(Debug)]
pub struct Identity {
    /// For the listener.
    pub config: Arc<ServerConfig>,
    /// SHA-256 of the certificate, as people compare it.
    pub fingerprint: String,
    /// The certificate.
    pub certificate_pem: String,
    /// `server_key_pins` of an enrolment: base64 of the SHA-256 of the public key.
    pub key_pin: Option<String>,
}

/// The certificate and key in that folder; made at the first start, for those names. Where only the certificate is missing,
/// another one is made for the key: agents that were enrolled by fingerprint know the key, and go on.
pub fn identity(data: &Path, names: &[String]) -> Result<Identity> {
    let (certificate_path, key_path) = (data.join("server.crt"), data.join("server.key"));
    if !certificate_path.exists() {
        if key_path.exists() {
            let certificate = certificate_path.display();
            warn!(%certificate, "the certificate is missing: a self-signed one is made for the key that is there");
        }
        make(&certificate_path, &key_path, names).context("make a certificate")?;
    }
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let (certificate_pem, key_pem) = (read(&certificate_path)?, read(&key_path)?);
    let chain: Vec<CertificateDer> = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
        .collect::<Result<_, _>>()
        .with_context(|| format!("read the certificate in {}", certificate_path.display()))?;
    let Some(first) = chain.first() else { bail!("{} holds no certificate", certificate_path.display()) };
    let digest = Sha256::digest(first.as_ref());
    let fingerprint = digest.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":");
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .with_context(|| format!("read the key in {}", key_path.display()))?;
    // Of keys that are not of the kind that we make there is no pin to offer.
    let key_pin = KeyPair::from_pem(&key_pem).ok();
    let key_pin = key_pin.map(|pair| STANDARD.encode(Sha256::digest(pair.subject_public_key_info())));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("set up TLS 1.3")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("use the certificate with its key")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Identity { config: Arc::new(config), fingerprint, certificate_pem, key_pin })
}

fn make(certificate_path: &Path, key_path: &Path, names: &[String]) -> Result<()> {
    let key = match fs::read_to_string(key_path) {
        Ok(pem) => KeyPair::from_pem(&pem).with_context(|| format!("read the key in {}", key_path.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            write_private(key_path, key.serialize_pem().as_bytes())?;
            key
        }
        Err(error) => return Err(error).with_context(|| format!("read the key in {}", key_path.display())),
    };
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "e3-server");
    params.not_before = date_time_ymd(2024, 1, 1);
    // Clients pin it or trust it by its fingerprint; an end would only lock them out.
    params.not_after = date_time_ymd(2049, 12, 31);
    let certificate = params.self_signed(&key)?;
    write_private(certificate_path, certificate.pem().as_bytes())?;
    Ok(())
}

/// Connections whose handshake is done. A slow one holds up no other.
#[derive(Debug)]
pub struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    local: SocketAddr,
}

impl TlsListener {
    /// Accepts on `listener` in the background.
    pub fn new(listener: TcpListener, config: Arc<ServerConfig>) -> io::Result<TlsListener> {
        let local = listener.local_addr()?;
        let (send, ready) = mpsc::channel(MOST_HANDSHAKES);
        tokio::spawn(accept(listener, TlsAcceptor::from(config), send));
        Ok(TlsListener { ready, local })
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, send: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>) {
    let places = Arc::new(tokio::sync::Semaphore::new(MOST_HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = send.closed() => return,
        };
        let Ok((stream, address)) = accepted else {
            // Out of file handles, most likely: connections end, and then there are some.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (acceptor, send) = (acceptor.clone(), send.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(send.send((stream, address)).await),
                Ok(Err(error)) => debug!(%address, "TLS handshake: {error}"),
                Err(_) => debug!(%address, "TLS handshake took too long"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(ready) => ready,
            // The accepting task ends only with this listener.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        Peer(*stream.remote_addr())
    }
}
