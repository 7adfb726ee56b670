//! Listening, and the life of connections.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
#[cfg(unix)]
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::budget::Budget;
use crate::connection::{Limits, transmit};
use crate::stream::{Deadline, Receiver, Stream};
use crate::tls::Outgoing;
use crate::wire::MAX_PAYLOAD_BYTES;
use crate::{Agreement, DeviceError, Exports, Negotiation, Security, Step, Tls};

/// Pause after an attempt to accept a connection that failed, for want of file handles for instance.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A payload that is announced has to come at least so fast, once the time for a reply has passed.
const LEAST_BYTES_PER_SECOND: u32 = 128 << 10;

/// Bounds of what clients can use up.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Connections at once; more are closed without a word. When all are there, the oldest that has not agreed on an
    /// export makes room for the next.
    pub max_connections: usize,
    /// Requests of one connection that are carried out at once, each by a thread.
    pub requests_per_connection: usize,
    /// Payload in memory that each connection has for itself, whatever others do.
    pub own_payload_bytes: u64,
    /// More payload in memory for one connection; at least 32 MiB, the longest request.
    pub payload_bytes_per_connection: u64,
    /// What that comes out of, for all of them; at least 32 MiB.
    pub payload_bytes: u64,
    /// For the whole handshake of a connection.
    pub handshake_timeout: Duration,
    /// Of it, for that of TLS.
    pub tls_timeout: Duration,
    /// A client that takes nothing of its replies for this long is cut off, and so is one that sends nothing of a payload
    /// that it has announced. One that sends little is, when the payload takes longer than this and a second for each
    /// 128 KiB.
    pub reply_timeout: Duration,
    /// Who is told of clients that the handshake of TLS sent away.
    pub on_refused: OnRefused,
}

type TellRefused = dyn Fn(&io::Error) + Send + Sync;

/// Is told why a client was sent away. Anyone who reaches the server may cause it, as often as they like.
#[derive(Clone, Default)]
pub struct OnRefused(Option<Arc<TellRefused>>);

impl OnRefused {
    /// Calls `tell` each time.
    pub fn new(tell: impl Fn(&io::Error) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    fn tell(&self, error: &io::Error) {
        if let Some(tell) = &self.0 {
            tell(error);
        }
    }
}

impl std::fmt::Debug for OnRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OnRefused").field(&self.0.is_some()).finish()
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 64,
            requests_per_connection: 16,
            own_payload_bytes: 2 << 20,
            payload_bytes_per_connection: 64 << 20,
            payload_bytes: 128 << 20,
            handshake_timeout: Duration::from_secs(30),
            tls_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(60),
            on_refused: OnRefused::default(),
        }
    }
}

/// A server with its listeners and connections. Dropping it is a [`shutdown`](Self::shutdown) without its answer.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
}

struct Shared {
    exports: Exports,
    options: ServerOptions,
    tls: Option<Tls>,
    payload: Budget,
    draining: AtomicBool,
    connections: Mutex<Connections>,
    /// Signalled when a connection has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, Open>,
}

struct Open {
    stream: Stream,
    /// On an export: nobody who only connects has its place.
    has_agreed: bool,
}

struct Listener {
    thread: JoinHandle<()>,
    address: Address,
}

enum Address {
    Tcp(SocketAddr),
    #[cfg(unix)]
    Unix(PathBuf),
}

impl Server {
    /// Listens nowhere yet, and has no TLS.
    pub fn start(exports: Exports, options: ServerOptions) -> Self {
        Self::start_with_tls(exports, options, None)
    }

    /// Listens nowhere yet. With `tls` every address is served over TLS only; clients of a Unix socket may start it.
    pub fn start_with_tls(exports: Exports, options: ServerOptions, tls: Option<Tls>) -> Self {
        let longest = u64::from(MAX_PAYLOAD_BYTES);
        let shared = Shared {
            exports,
            payload: Budget::new(options.payload_bytes.max(longest)),
            options,
            tls,
            draining: AtomicBool::new(false),
            connections: Mutex::default(),
            ended: Condvar::new(),
        };
        Self { shared: Arc::new(shared), listeners: Vec::new() }
    }

    /// Listens on an address; port 0 picks one. Gives the address.
    ///
    /// Without TLS there is neither secrecy nor a login, and certificates of clients are the only login, so that
    /// without both only loopback addresses are served (spec A.9). There everyone on this machine can connect; a socket
    /// in a private folder is better where clients know it.
    pub fn listen_tcp(&mut self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        let knows_clients = self.shared.tls.as_ref().is_some_and(Tls::knows_clients);
        if !address.ip().is_loopback() && !knows_clients {
            return Err(ListenError::NeedsTls(address));
        }
        let failed = |source| ListenError::Listen { address: address.to_string(), source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        self.listen(Address::Tcp(bound), move || listener.accept().map(|(socket, _)| Stream::Tcp(socket)))?;
        Ok(bound)
    }

    /// Listens on a Unix socket, which must not exist yet and is removed at the end. Who may connect is a matter of
    /// the folder's permissions.
    #[cfg(unix)]
    pub fn listen_unix(&mut self, path: &Path) -> Result<(), ListenError> {
        let failed = |source| ListenError::Listen { address: path.display().to_string(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        self.listen(Address::Unix(path.to_owned()), move || listener.accept().map(|(socket, _)| Stream::Unix(socket)))
    }

    fn listen(
        &mut self,
        address: Address,
        accept: impl Fn() -> io::Result<Stream> + Send + 'static,
    ) -> Result<(), ListenError> {
        let shared = self.shared.clone();
        let shown = address.to_string();
        let thread = thread::Builder::new().name("nbd accept".into()).spawn(move || accept_all(&shared, accept));
        let thread = thread.map_err(|source| ListenError::Listen { address: shown, source })?;
        self.listeners.push(Listener { thread, address });
        Ok(())
    }

    /// Clients that are connected now.
    pub fn connections(&self) -> usize {
        self.shared.connections().open.len()
    }

    /// Ends (spec A.7): accepts nobody, refuses new requests, lets those in flight finish for at most `grace`, closes
    /// every connection, and flushes every writable device. The error is the first that a flush gave.
    pub fn shutdown(mut self, grace: Duration) -> Result<(), DeviceError> {
        self.end(grace);
        let writable = self.shared.exports.iter().filter(|export| !export.read_only);
        writable.map(|export| export.device.flush()).fold(Ok(()), Result::and)
    }

    fn end(&mut self, grace: Duration) {
        if self.shared.draining.swap(true, Ordering::SeqCst) {
            // Dropped after it was shut down.
            return;
        }
        for listener in self.listeners.drain(..) {
            // A thread that cannot be woken is left behind: it would not end.
            if listener.address.wake() {
                let _ = listener.thread.join();
            }
            listener.address.remove();
        }
        let deadline = Instant::now() + grace;
        let mut connections = self.shared.connections();
        // What was sent already is still read, and refused; then the client's side is at its end.
        connections.open.values().for_each(|open| open.stream.shutdown(Shutdown::Read));
        while !connections.open.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                connections.open.values().for_each(|open| open.stream.shutdown(Shutdown::Both));
                return;
            }
            let waited = self.shared.ended.wait_timeout(connections, left);
            connections = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Duration::from_secs(10));
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection; `None` when there are too many, or the server ends.
    fn enter(&self, stream: &Stream) -> Option<u64> {
        let mut connections = self.connections();
        // Asked under the lock, so that shutting down sees every connection that was entered.
        if self.draining.load(Ordering::SeqCst) {
            return None;
        }
        let stream = stream.try_clone().ok()?;
        if connections.open.len() >= self.options.max_connections {
            let strangers = connections.open.iter().filter(|(_, open)| !open.has_agreed);
            let oldest = strangers.map(|(number, _)| *number).min()?;
            if let Some(open) = connections.open.remove(&oldest) {
                open.stream.shutdown(Shutdown::Both);
            }
        }
        let number = connections.next;
        connections.next += 1;
        connections.open.insert(number, Open { stream, has_agreed: false });
        Some(number)
    }

    /// Notes that a connection has agreed on an export; `false` when it had to make room before.
    fn agree(&self, number: u64) -> bool {
        self.connections().open.get_mut(&number).map(|open| open.has_agreed = true).is_some()
    }
}

/// Takes a connection off the list, however its thread ends.
struct Entry {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let open = self.shared.connections().open.remove(&self.number);
        if let Some(open) = open {
            open.stream.shutdown(Shutdown::Both);
        }
        self.shared.ended.notify_all();
    }
}

fn accept_all(shared: &Arc<Shared>, accept: impl Fn() -> io::Result<Stream>) {
    while !shared.draining.load(Ordering::SeqCst) {
        let Ok(stream) = accept() else {
            thread::sleep(ACCEPT_RETRY);
            continue;
        };
        let Some(number) = shared.enter(&stream) else { continue };
        let entry = Entry { shared: shared.clone(), number };
        // Without a thread the connection ends: its entry is dropped with the closure.
        let _ = thread::Builder::new().name("nbd connection".into()).spawn(move || {
            // That a connection broke concerns its client only.
            let _ = serve(&entry, &stream);
        });
    }
}

/// One connection from greeting to end.
fn serve(entry: &Entry, stream: &Stream) -> io::Result<()> {
    let shared = &*entry.shared;
    let options = &shared.options;
    stream.set_no_delay()?;
    stream.set_write_timeout(Some(options.reply_timeout))?;
    let shaken_until = Instant::now() + options.handshake_timeout;
    let deadline = Deadline::default();
    deadline.set(shaken_until, Duration::MAX);
    let security = match (&shared.tls, stream.is_unix()) {
        (None, _) => Security::Plain,
        (Some(_), true) => Security::MayStartTls,
        (Some(_), false) => Security::MustStartTls,
    };
    let mut negotiation = Negotiation::new(&shared.exports, security);
    let mut writer = stream.try_clone()?;
    writer.write_all(&Negotiation::greeting())?;
    let mut reader = BufReader::new(Receiver::new(stream.try_clone()?, deadline.clone()));
    match shake_hands(entry, &mut negotiation, &mut reader, &mut writer)? {
        Shaken::Agreed(agreement) => converse(shared, stream, reader, writer, &agreement, &deadline),
        Shaken::StartTls => {
            let Some(tls) = &shared.tls else { return Ok(()) };
            deadline.set(shaken_until.min(Instant::now() + options.tls_timeout), Duration::MAX);
            let accepted = tls.accept(reader.into_inner(), stream);
            let (incoming, secured) = accepted.inspect_err(|error| {
                // Others have left, or were too slow.
                if error.kind() == io::ErrorKind::InvalidData {
                    options.on_refused.tell(error);
                }
            })?;
            deadline.set(shaken_until, Duration::MAX);
            let mut reader = BufReader::new(incoming);
            let mut writer = Outgoing(secured.clone());
            let served = match shake_hands(entry, &mut negotiation, &mut reader, &mut writer) {
                Ok(Shaken::Agreed(agreement)) => converse(shared, stream, reader, writer, &agreement, &deadline),
                shaken => shaken.map(drop),
            };
            secured.close();
            served
        }
        Shaken::Nothing => Ok(()),
    }
}

/// From the agreement to the end.
fn converse<R: Read + Send, W: Write + Send>(
    shared: &Shared,
    stream: &Stream,
    reader: BufReader<R>,
    writer: W,
    agreement: &Agreement,
    deadline: &Deadline,
) -> io::Result<()> {
    let options = &shared.options;
    deadline.clear();
    let payload = Budget::new(options.payload_bytes_per_connection.max(MAX_PAYLOAD_BYTES.into()));
    let limits = Limits {
        threads: options.requests_per_connection,
        own_payload: &Budget::new(options.own_payload_bytes),
        own_bytes: options.own_payload_bytes,
        hurry: &|announced_bytes| match announced_bytes {
            0 => deadline.clear(),
            bytes => {
                let transfer = Duration::from_secs((bytes / LEAST_BYTES_PER_SECOND).into());
                deadline.set(Instant::now() + options.reply_timeout + transfer, options.reply_timeout);
            }
        },
        payload: &payload,
        all_payload: &shared.payload,
        draining: &shared.draining,
        hang_up: &|| stream.shutdown(Shutdown::Both),
    };
    transmit(reader, writer, agreement, &limits);
    Ok(())
}

/// What came of a handshake.
enum Shaken {
    Agreed(Agreement),
    StartTls,
    Nothing,
}

fn shake_hands(
    entry: &Entry,
    negotiation: &mut Negotiation<'_>,
    reader: &mut BufReader<impl Read>,
    writer: &mut impl Write,
) -> io::Result<Shaken> {
    let mut output = Vec::new();
    loop {
        let input = reader.fill_buf()?;
        if input.is_empty() {
            return Ok(Shaken::Nothing);
        }
        if entry.shared.draining.load(Ordering::SeqCst) {
            negotiation.drain();
        }
        let (taken, step) = negotiation.feed(input, &mut output);
        reader.consume(taken);
        // Whoever sends more before it was told to start may be somebody between us and the client (spec A.9).
        if matches!(step, Step::StartTls) && !reader.buffer().is_empty() {
            return Ok(Shaken::Nothing);
        }
        // Before the client knows: from then on it has its place.
        if matches!(step, Step::Transmit(_)) && !entry.shared.agree(entry.number) {
            return Ok(Shaken::Nothing);
        }
        writer.write_all(&output)?;
        output.clear();
        match step {
            Step::More => {}
            Step::Close => return Ok(Shaken::Nothing),
            Step::StartTls => return Ok(Shaken::StartTls),
            Step::Transmit(agreement) => return Ok(Shaken::Agreed(agreement)),
        }
    }
}

impl Address {
    /// Ends the wait of the thread that accepts here, by a connection. False when that was not possible.
    fn wake(&self) -> bool {
        match self {
            Self::Tcp(address) => TcpStream::connect_timeout(&reachable(*address), Duration::from_secs(1)).is_ok(),
            #[cfg(unix)]
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
        }
    }

    fn remove(&self) {
        match self {
            Self::Tcp(_) => {}
            #[cfg(unix)]
            Self::Unix(path) => {
                // A socket without a listener: harmless if it stays.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Where a listener on every address can be reached from this machine: Windows connects to no unspecified address.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match &mut address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => v4.set_ip(Ipv4Addr::LOCALHOST),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => v6.set_ip(Ipv6Addr::LOCALHOST),
        _ => {}
    }
    address
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            #[cfg(unix)]
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Other machines could reach the address, and there is no TLS whose clients prove who they are.
    #[error(
        "listen on {0}: without TLS and certificates of clients only loopback addresses and Unix sockets are served"
    )]
    NeedsTls(SocketAddr),
    /// The operating system refused.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
}
