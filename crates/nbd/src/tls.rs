//! TLS under a connection (spec A.9).
//!
//! One thread reads and several write at the same time. What arrives is taken from the socket without any lock, so that
//! a client that does not fetch its replies can still send; what leaves is sealed and sent under one lock, in the order
//! in which it was sealed.
//!
//! Lock order: the socket's sending side, then the session.

use std::io::{self, IoSlice, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::stream::{Receiver, Stream};

/// Ciphertext that is taken from a socket at once: one record and a little.
const ARRIVING_BYTES: usize = 18 << 10;

/// How a server proves itself, and whom it lets in.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    knows_clients: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("knows_clients", &self.knows_clients).finish_non_exhaustive()
    }
}

impl Tls {
    /// All three in PEM: the server's certificate with those between it and its authority, its key, and the
    /// authorities of clients. With authorities a client without a certificate of theirs is sent away; without, anyone
    /// is let in.
    pub fn new(certificates: &[u8], key: &[u8], clients: Option<&[u8]>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(TlsError::Refused)?;
        let builder = match clients {
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates_of(pem).ok_or(TlsError::Authorities)? {
                    roots.add(authority).map_err(|_| TlsError::Authorities)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|_| TlsError::Authorities)?)
            }
            None => builder.with_no_client_auth(),
        };
        let certificates = certificates_of(certificates).ok_or(TlsError::Certificates)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Key)?;
        let config = builder.with_single_cert(certificates, key).map_err(TlsError::Refused)?;
        Ok(Self { config: Arc::new(config), knows_clients: clients.is_some() })
    }

    /// Whether clients have to prove who they are.
    pub fn knows_clients(&self) -> bool {
        self.knows_clients
    }

    /// Shakes hands; nothing of what the client says before counts. Both are the same connection's.
    pub(crate) fn accept(&self, receiver: Receiver, socket: &Stream) -> io::Result<(Incoming, Arc<Secured>)> {
        let session = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        let secured = Arc::new(Secured {
            session: Mutex::new(session),
            sending: Mutex::new(Sending { socket: socket.try_clone()?, sealed: Vec::new() }),
        });
        let mut incoming = Incoming {
            secured: secured.clone(),
            socket: receiver,
            arrived: vec![0; ARRIVING_BYTES].into(),
            start: 0,
            end: 0,
        };
        while secured.session().is_handshaking() {
            if incoming.start == incoming.end && !incoming.arrive()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            incoming.unseal()?;
        }
        Ok((incoming, secured))
    }
}

fn certificates_of(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    (!certificates.is_empty()).then_some(certificates)
}

/// The session of a connection, and its way out.
pub(crate) struct Secured {
    session: Mutex<ServerConnection>,
    sending: Mutex<Sending>,
}

struct Sending {
    socket: Stream,
    /// Empty between two calls.
    sealed: Vec<u8>,
}

impl Secured {
    /// Tells the client that nothing follows: without it, clients take the end for an attack (spec A.9).
    pub(crate) fn close(&self) {
        let mut sending = lock(&self.sending);
        self.session().send_close_notify();
        // A client that has left already does not mind.
        let _ = self.send(&mut sending);
    }

    fn session(&self) -> MutexGuard<'_, ServerConnection> {
        lock(&self.session)
    }

    /// Sends what was sealed.
    fn send(&self, sending: &mut Sending) -> io::Result<()> {
        {
            let mut session = self.session();
            while session.wants_write() {
                session.write_tls(&mut sending.sealed)?;
            }
        }
        let sent = sending.socket.write_all(&sending.sealed);
        sending.sealed.clear();
        sent
    }
}

/// What a client sends, opened.
pub(crate) struct Incoming {
    secured: Arc<Secured>,
    socket: Receiver,
    arrived: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Incoming {
    /// Waits for ciphertext; `false` at its end.
    fn arrive(&mut self) -> io::Result<bool> {
        (self.start, self.end) = (0, self.socket.read(&mut self.arrived)?);
        Ok(self.end > 0)
    }

    /// Gives ciphertext to the session, and answers what is the session's own affair.
    fn unseal(&mut self) -> io::Result<()> {
        let mut session = self.secured.session();
        let mut rest = &self.arrived[self.start..self.end];
        // What waits to be sent already is another thread's, which may have to wait for the client.
        let waits = session.wants_write();
        self.start += session.read_tls(&mut rest)?;
        let opened = session.process_new_packets();
        let has_answer = !waits && session.wants_write();
        drop(session);
        if has_answer {
            // Also what is wrong with the client's bytes.
            self.secured.send(&mut lock(&self.secured.sending))?;
        }
        opened.map(drop).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl Read for Incoming {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.secured.session().reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The socket's end without a word before it: a client that left.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if self.start == self.end && !self.arrive()? {
                return Ok(0);
            }
            self.unseal()?;
        }
    }
}

/// What a client is sent, sealed.
pub(crate) struct Outgoing(pub(crate) Arc<Secured>);

impl Write for Outgoing {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut sending = lock(&self.0.sending);
        // The session takes no more than its buffer has room for, 64 KiB.
        let taken = self.0.session().writer().write_vectored(bufs)?;
        self.0.send(&mut sending).map(|()| taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What these locks guard is whole after every step, also of a thread that panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// There is no certificate in what was given as the server's.
    #[error("the server's certificate is not a certificate in PEM")]
    Certificates,
    /// There is no private key in what was given as one.
    #[error("the server's key is not a private key in PEM")]
    Key,
    /// There is no certificate in what was given as the clients' authorities.
    #[error("the authorities of clients are not certificates in PEM")]
    Authorities,
    /// They are of no use: the key is another certificate's, for instance.
    #[error("the certificates or the key cannot be used")]
    Refused(#[source] rustls::Error),
}
