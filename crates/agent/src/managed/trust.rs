//! How the server's certificate is judged, and TLS 1.3 to it (spec control-api 10.2).
//!
//! Verification cannot be switched off. What it goes by is chosen at the enrolment: public authorities, a certificate
//! of one's own authority, or the SHA-256 of the server's certificate, which then counts whatever name the server is
//! called by. A certificate that is renewed for the key of the one that was chosen is the server's as well: the server
//! named its key when it enrolled this agent (`server_key_pins`).

use std::fmt;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned, version::TLS13,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

/// By what the server's certificate is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// The authorities that browsers trust.
    Public,
    /// The certificates in this PEM text, and nothing else.
    Authority(String),
    /// The one certificate with this SHA-256.
    Certificate(Fingerprint),
    /// The same, or a later certificate for one of the server's keys.
    Server {
        /// Of the certificate.
        fingerprint: Fingerprint,
        /// Base64 of the SHA-256 of public keys (SPKI).
        keys: Vec<String>,
    },
}

impl Trust {
    /// Trust by a certificate reaches as far as the keys that this server named. Authorities renew by themselves, with new
    /// keys: there nothing is added.
    pub fn with_keys(self, keys: Vec<String>) -> Self {
        match self {
            Self::Certificate(fingerprint) if !keys.is_empty() => Self::Server { fingerprint, keys },
            trust => trust,
        }
    }
}

/// SHA-256 of a certificate; written as `e3-server serve` prints it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Reads 64 hexadecimal digits, with or without colons.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no SHA-256 fingerprint: 32 pairs of hexadecimal digits");
        let digits: Vec<u8> = text.trim().bytes().filter(|byte| *byte != b':').collect();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }

    fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

/// Why a connection cannot be set up at all.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The text has no certificate in it.
    #[error("there is no PEM certificate in it")]
    NoCertificate,
    /// The certificates cannot be used.
    #[error("the certificates cannot be used")]
    Tls(#[from] rustls::Error),
}

/// Makes TLS connections for HTTP.
pub struct TlsConnector {
    config: Arc<ClientConfig>,
}

impl TlsConnector {
    /// Connections that trust by `trust`.
    pub fn new(trust: &Trust) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13])?;
        let config = match trust {
            Trust::Public => {
                let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
                builder.with_root_certificates(roots)
            }
            Trust::Authority(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    roots.add(certificate.map_err(|_| TrustError::NoCertificate)?)?;
                }
                if roots.is_empty() {
                    return Err(TrustError::NoCertificate);
                }
                builder.with_root_certificates(roots)
            }
            // "Dangerous" is rustls' word for any judge but its own.
            Trust::Certificate(fingerprint) => {
                let judge = OneServer { fingerprint: *fingerprint, keys: Vec::new(), provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(judge))
            }
            Trust::Server { fingerprint, keys } => {
                let judge = OneServer { fingerprint: *fingerprint, keys: keys.clone(), provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(judge))
            }
        };
        Ok(Self { config: Arc::new(config.with_no_client_auth()) })
    }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsConnector")
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = TlsTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<TlsTransport>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Err(ureq::Error::RequireHttpsOnly(details.uri.to_string()));
        }
        let host = details.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| ureq::Error::HostNotFound)?;
        let mut conn = ClientConnection::new(self.config.clone(), name).map_err(ureq::Error::Rustls)?;
        let mut sock = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        sock.set_timeout(details.timeout);
        conn.complete_io(&mut sock)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(TlsTransport { buffers, stream: StreamOwned { conn, sock } }))
    }
}

/// One TLS connection.
pub struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        Ok(self.stream.write_all(output)?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Takes one certificate, by its hash, and those for certain keys; that the server has the key is proved by the handshake's
/// signature.
#[derive(Debug)]
struct OneServer {
    fingerprint: Fingerprint,
    keys: Vec<String>,
    provider: Arc<CryptoProvider>,
}

impl OneServer {
    fn knows_key_of(&self, certificate: &CertificateDer<'_>) -> bool {
        ParsedCertificate::try_from(certificate).is_ok_and(|certificate| {
            let pin = STANDARD.encode(Sha256::digest(certificate.subject_public_key_info()));
            self.keys.contains(&pin)
        })
    }
}

impl ServerCertVerifier for OneServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Fingerprint::of(end_entity);
        if found == self.fingerprint || self.knows_key_of(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(format!(
            "the server's certificate has the fingerprint {found}, not {}",
            self.fingerprint
        )))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_people_copy_them() {
        let bytes: Vec<String> = (0..32).map(|byte| format!("{byte:02X}")).collect();
        let expected: [u8; 32] = std::array::from_fn(|at| at as u8);
        for text in [bytes.join(":"), bytes.join(""), bytes.join(":").to_lowercase(), format!(" {}\n", bytes.join(":"))]
        {
            assert_eq!(Fingerprint::parse(&text), Ok(Fingerprint(expected)), "{text}");
        }
        assert_eq!(Fingerprint(expected).to_string(), bytes.join(":"));
        for text in ["", "00:01", &bytes.join("").replace("1F", "1G"), &format!("{}00", bytes.join(""))] {
            assert!(Fingerprint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_text_without_certificates_is_no_authority() {
        for text in ["", "hello", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"] {
            assert!(TlsConnector::new(&Trust::Authority(text.into())).is_err(), "{text}");
        }
    }
}
