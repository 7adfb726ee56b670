//! Listening, logging in, and the sessions there are.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::DeviceError;
use crate::connection::{self, Handle, lock};
use crate::error::{ListenError, TargetError};
use crate::login::{Established, Host, Login, LoginStatus, Purpose, Step};
use crate::pdu::{Digests, Pdu, write_pdu};
use crate::scsi::{MAX_TRANSFER_BYTES, Nexus, Unit};
use crate::session::{Answer, Pending, SILENCE, Scope, Session, Settings};
use crate::target::{Target, TargetOptions, Targets};
use crate::wire::{Header, MAX_LOGIN_SEGMENT_BYTES, at};

/// Pause after an attempt to accept a connection that failed, for want of file handles for instance.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a new session waits for the commands of the one whose place it takes.
const REPLACE_WAIT: Duration = Duration::from_secs(10);
/// How long a server that ends waits for commands whose connection it has closed.
const LAST_COMMANDS_WAIT: Duration = Duration::from_secs(5);

/// Bounds of what initiators can use up.
///
/// One connection holds at most `payload_bytes_per_connection` of data that it was asked for, 16 MiB of data that came
/// with commands, and 1 MiB for each of its threads; before its login, 64 KiB.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Connections at once; more are closed without a word.
    pub max_connections: usize,
    /// Commands of one connection that are carried out at once, each by a thread; one more is always left to read.
    pub commands_per_connection: usize,
    /// Data that one initiator is asked for at once; at least 32 MiB, the longest command's.
    pub payload_bytes_per_connection: u64,
    /// For the whole login of a connection.
    pub login_timeout: Duration,
    /// An initiator that takes nothing of its answers for this long is cut off.
    pub reply_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 32,
            commands_per_connection: 8,
            payload_bytes_per_connection: 32 << 20,
            login_timeout: Duration::from_secs(15),
            reply_timeout: Duration::from_secs(60),
        }
    }
}

/// A server with its listeners and sessions. Dropping it is a [`shutdown`](Self::shutdown) without its answer.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<(JoinHandle<()>, SocketAddr)>,
}

/// What all connections share. Lock order: `sessions`, then `targets`.
pub(crate) struct Shared {
    /// Replaced as a whole; sessions keep what they began with.
    targets: Mutex<Arc<Targets>>,
    options: ServerOptions,
    /// An address that other machines can reach is listened on.
    exposed: AtomicBool,
    draining: AtomicBool,
    sessions: Mutex<Sessions>,
    /// Signalled when a connection or a session has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Sessions {
    next_connection: u64,
    connections: HashMap<u64, TcpStream>,
    next_handle: u16,
    /// By the handle that we gave to each (TSIH).
    open: HashMap<u16, Arc<Handle>>,
}

impl Server {
    /// Listens nowhere yet.
    pub fn start(targets: Targets, options: ServerOptions) -> Self {
        let shared = Shared {
            targets: Mutex::new(Arc::new(targets)),
            options,
            exposed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            sessions: Mutex::default(),
            ended: Condvar::new(),
        };
        Self { shared: Arc::new(shared), listeners: Vec::new() }
    }

    /// Listens on an address; port 0 picks one. Gives the address.
    ///
    /// Nothing is encrypted, whoever logs in. An address that other machines can reach is refused unless every target,
    /// and discovery, asks for CHAP.
    pub fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        if !address.ip().is_loopback() {
            // Under the lock, so that no target comes in between.
            let targets = lock(&self.shared.targets);
            if targets.some_need_no_login() {
                return Err(ListenError::NeedsLogin(address));
            }
            self.shared.exposed.store(true, Ordering::SeqCst);
        }
        let failed = |source| ListenError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let shared = self.shared.clone();
        let thread = thread::Builder::new().name("iscsi accept".into());
        let thread = thread.spawn(move || accept_all(&shared, &listener)).map_err(failed)?;
        self.listeners.push((thread, bound));
        Ok(bound)
    }

    /// Offers one more target from now on.
    pub fn add(&self, options: TargetOptions) -> Result<(), TargetError> {
        let mut targets = lock(&self.shared.targets);
        if self.shared.exposed.load(Ordering::SeqCst) && options.authentication.is_none() {
            return Err(TargetError::NeedsLogin(options.name));
        }
        *targets = Arc::new(Targets::clone(&targets).with(options)?);
        Ok(())
    }

    /// Takes a target away: lets nobody in, asks its initiators to log out, closes what is left after `grace`, and
    /// flushes its devices. False when there is none of that name. The error is the first that a flush gave.
    pub fn remove(&self, name: &str, grace: Duration) -> Result<bool, DeviceError> {
        let target = lock(&self.shared.targets).find(name).cloned();
        let Some(target) = target else { return Ok(false) };
        target.closing.store(true, Ordering::SeqCst);
        self.shared.close_sessions(Some(&target), grace);
        let mut targets = lock(&self.shared.targets);
        let mut left = Targets::clone(&targets);
        left.targets.retain(|one| !Arc::ptr_eq(one, &target));
        *targets = Arc::new(left);
        drop(targets);
        flush([&target]).map(|()| true)
    }

    /// Connections that are open now, those that only ask what there is included.
    pub fn connections(&self) -> usize {
        lock(&self.shared.sessions).connections.len()
    }

    /// Ends (spec B.9): lets nobody in, asks every initiator to log out, closes what is left after `grace`, and flushes
    /// every device that takes writes. The error is the first that a flush gave.
    pub fn shutdown(mut self, grace: Duration) -> Result<(), DeviceError> {
        self.end(grace);
        let targets = lock(&self.shared.targets).clone();
        flush(&targets.targets)
    }

    fn end(&mut self, grace: Duration) {
        if self.shared.draining.swap(true, Ordering::SeqCst) {
            // Dropped after it was shut down.
            return;
        }
        for (thread, address) in self.listeners.drain(..) {
            // A connection ends the wait for one. A thread that cannot be woken is left behind: it would not end.
            if TcpStream::connect_timeout(&reachable(address), Duration::from_secs(1)).is_ok() {
                let _ = thread.join();
            }
        }
        self.shared.close_sessions(None, grace);
        // What is left never logged in.
        for socket in lock(&self.shared.sessions).connections.values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.shared.wait_until(LAST_COMMANDS_WAIT, |sessions| sessions.connections.is_empty());
    }
}

fn flush<'a>(targets: impl IntoIterator<Item = &'a Arc<Target>>) -> Result<(), DeviceError> {
    let units = targets.into_iter().flat_map(|target| target.units.values());
    let writable = units.filter(|unit| !unit.options.read_only);
    writable.map(|unit| unit.device.flush()).fold(Ok(()), Result::and)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Duration::from_secs(10));
    }
}

/// Where a listener on every address can be reached from this machine.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match &mut address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => v4.set_ip(std::net::Ipv4Addr::LOCALHOST),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => v6.set_ip(std::net::Ipv6Addr::LOCALHOST),
        _ => {}
    }
    address
}

impl Shared {
    fn handles(&self) -> Vec<Arc<Handle>> {
        lock(&self.sessions).open.values().cloned().collect()
    }

    /// Asks the initiators of a target, or all, to leave, and closes what is left after `grace`.
    fn close_sessions(&self, target: Option<&Arc<Target>>, grace: Duration) {
        let concerned = |handle: &Handle| match (target, &handle.target) {
            (None, _) => true,
            (Some(target), Some(of)) => Arc::ptr_eq(of, target),
            (Some(_), None) => false,
        };
        let seconds = u16::try_from(grace.as_secs()).unwrap_or(u16::MAX);
        for handle in self.handles().into_iter().filter(|handle| concerned(handle)) {
            handle.send_apart(vec![Session::ask_to_leave(seconds)]);
        }
        let all_left = |sessions: &Sessions| !sessions.open.values().any(|handle| concerned(handle));
        if !self.wait_until(grace, all_left) {
            self.handles().iter().filter(|handle| concerned(handle)).for_each(|handle| handle.hang_up());
            self.wait_until(LAST_COMMANDS_WAIT, all_left);
        }
    }

    /// Whether it came true in time.
    fn wait_until(&self, at_most: Duration, is_so: impl Fn(&Sessions) -> bool) -> bool {
        let sessions = lock(&self.sessions);
        let waited = self.ended.wait_timeout_while(sessions, at_most, |sessions| !is_so(sessions));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Enters a connection; `None` when there are too many, or the server ends.
    fn enter(&self, stream: &TcpStream) -> Option<u64> {
        let mut sessions = lock(&self.sessions);
        // Asked under the lock, so that shutting down sees every connection that was entered.
        if self.draining.load(Ordering::SeqCst) || sessions.connections.len() >= self.options.max_connections {
            return None;
        }
        let stream = stream.try_clone().ok()?;
        let number = sessions.next_connection;
        sessions.next_connection += 1;
        sessions.connections.insert(number, stream);
        Some(number)
    }

    /// Carries a task management function out that reaches beyond the session of `by`.
    pub(crate) fn manage(&self, by: &Arc<Handle>, scope: Scope, pending: Arc<Pending>) {
        let Some(target) = &by.target else { return };
        let lun = match scope {
            Scope::ClearTasks(lun) | Scope::Unit(lun) => Some(lun),
            Scope::Target => None,
        };
        for handle in self.sessions_of(target) {
            let answers = handle.with_session(|session| session.abort_tasks(lun, &pending, Instant::now()));
            send(by, &handle, answers);
        }
        let reached = |unit: &Unit| match scope {
            Scope::ClearTasks(_) => unit.tasks_cleared(&by.nexus),
            Scope::Unit(_) | Scope::Target => unit.reset(),
        };
        let of_scope = target.units.iter().filter(|(number, _)| lun.is_none_or(|lun| lun == u16::from(**number)));
        of_scope.for_each(|(_, unit)| reached(unit));
        self.release(by, pending);
    }

    /// Lets go of an answer; it goes out when nobody else holds it. `by` is whose thread this is.
    pub(crate) fn release(&self, by: &Arc<Handle>, pending: Arc<Pending>) {
        let Some(pending) = Arc::into_inner(pending) else { return };
        let handle = lock(&self.sessions).open.get(&pending.session).cloned();
        let Some(handle) = handle else { return };
        send(by, &handle, vec![pending.answer()]);
        if let (true, Some(target)) = (pending.closes_target, &handle.target) {
            self.sessions_of(target).iter().for_each(|handle| handle.hang_up());
        }
    }

    fn sessions_of(&self, target: &Arc<Target>) -> Vec<Arc<Handle>> {
        let mut handles = self.handles();
        handles.retain(|handle| handle.target.as_ref().is_some_and(|of| Arc::ptr_eq(of, target)));
        handles
    }

    /// Makes room for a session of this initiator by ending the one that it had (RFC 7143 6.3.5). False when that did
    /// not end in time: its last commands would mix with the new ones.
    fn end_former(&self, nexus: &Nexus, purpose: &Purpose) -> bool {
        let Purpose::Normal(target) = purpose else { return true };
        let is_former = |handle: &Handle| {
            handle.nexus == *nexus && handle.target.as_ref().is_some_and(|of| Arc::ptr_eq(of, target))
        };
        for handle in self.handles().into_iter().filter(|handle| is_former(handle)) {
            handle.with_session(Session::end);
            handle.hang_up();
        }
        self.wait_until(REPLACE_WAIT, |sessions| !sessions.open.values().any(|handle| is_former(handle)))
    }
}

/// Nobody waits for the connection of another.
fn send(by: &Arc<Handle>, to: &Arc<Handle>, answers: Vec<Answer>) {
    if Arc::ptr_eq(by, to) {
        answers.into_iter().for_each(|answer| to.send(answer));
    } else {
        to.send_apart(answers);
    }
}

/// Takes a connection off the list, however its thread ends.
struct Entry {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let stream = lock(&self.shared.sessions).connections.remove(&self.number);
        if let Some(stream) = stream {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.shared.ended.notify_all();
    }
}

/// Takes a session off the list, and with it what it held of units.
struct SessionEntry<'a> {
    shared: &'a Shared,
    number: u16,
    handle: Arc<Handle>,
}

impl Drop for SessionEntry<'_> {
    fn drop(&mut self) {
        // Before it is off the list: the next session of this initiator begins after that.
        self.handle.detach();
        lock(&self.shared.sessions).open.remove(&self.number);
        self.shared.ended.notify_all();
    }
}

fn accept_all(shared: &Arc<Shared>, listener: &TcpListener) {
    while !shared.draining.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(ACCEPT_RETRY);
            continue;
        };
        let Some(number) = shared.enter(&stream) else { continue };
        let entry = Entry { shared: shared.clone(), number };
        // Without a thread the connection ends: its entry is dropped with the closure.
        let _ = thread::Builder::new().name("iscsi connection".into()).spawn(move || {
            // That a connection broke concerns its initiator only.
            let _ = serve(&entry.shared, stream);
        });
    }
}

/// A socket that is read until a deadline, as long as there is one.
pub(crate) struct Socket {
    stream: TcpStream,
    deadline: Option<Instant>,
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
        }
        self.stream.read(buf)
    }
}

/// One connection from login to end.
fn serve(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    let options = &shared.options;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(options.reply_timeout))?;
    let deadline = Some(Instant::now() + options.login_timeout);
    let mut reader = BufReader::with_capacity(64 << 10, Socket { stream: stream.try_clone()?, deadline });
    let mut writer = LoginWriter { stream: stream.try_clone()?, stat_sn: 1 };
    let Some(login) = log_in(shared, &mut reader, &mut writer)? else { return Ok(()) };
    let Some(entry) = begin_session(shared, &login, &stream, &mut writer)? else { return Ok(()) };
    reader.get_mut().deadline = None;
    stream.set_read_timeout(Some(SILENCE))?;
    connection::serve(shared, &entry.handle, reader, options.commands_per_connection.saturating_add(1));
    Ok(())
}

/// `None` when it came to nothing.
fn log_in(
    shared: &Shared,
    reader: &mut BufReader<Socket>,
    writer: &mut LoginWriter,
) -> io::Result<Option<Box<Established>>> {
    let targets = lock(&shared.targets).clone();
    let has_session = |handle: u16| lock(&shared.sessions).open.contains_key(&handle);
    let draining = shared.draining.load(Ordering::SeqCst);
    let mut login = Login::new(Host { targets: &targets, has_session: &has_session, draining });
    loop {
        let pdu = Pdu::read(reader, Digests::default(), MAX_LOGIN_SEGMENT_BYTES).map_err(io::Error::other)?;
        match login.handle(&pdu.header, &pdu.data) {
            Step::Answer(header, text) => writer.send(header, &text)?,
            Step::Refuse(header) => {
                writer.send(header, &[])?;
                return Ok(None);
            }
            Step::Done(established) => return Ok(Some(established)),
            Step::Close => return Ok(None),
        }
    }
}

/// Enters the session and answers its login.
fn begin_session<'a>(
    shared: &'a Shared,
    login: &Established,
    stream: &TcpStream,
    writer: &mut LoginWriter,
) -> io::Result<Option<SessionEntry<'a>>> {
    let nexus = Nexus { initiator: login.initiator.as_str().into(), isid: login.isid };
    if !shared.end_former(&nexus, &login.purpose) {
        writer.send(login.refused(LoginStatus::ServiceUnavailable), &[])?;
        return Ok(None);
    }
    let portal = stream.local_addr()?.to_string();
    let begun = {
        let mut sessions = lock(&shared.sessions);
        // Asked under the lock, so that who closes sessions sees every one that was entered.
        let draining = shared.draining.load(Ordering::SeqCst)
            || matches!(&login.purpose, Purpose::Normal(target) if target.closing.load(Ordering::SeqCst));
        // 0 stands for a session that is not there yet.
        let free = (1..=u16::MAX).map(|step| sessions.next_handle.wrapping_add(step));
        let free = free.into_iter().find(|handle| *handle != 0 && !sessions.open.contains_key(handle));
        match free {
            Some(number) if !draining => {
                sessions.next_handle = number;
                let settings = Settings {
                    handle: number,
                    nexus: nexus.clone(),
                    cid: login.cid,
                    purpose: login.purpose.clone(),
                    parameters: login.parameters.clone(),
                    first_cmd_sn: login.cmd_sn,
                    targets: lock(&shared.targets).clone(),
                    portal,
                    payload_bytes: shared.options.payload_bytes_per_connection.max(MAX_TRANSFER_BYTES.into()),
                };
                let session = Session::new(settings, Instant::now());
                // The answer to the login has one more number.
                let handle = Arc::new(Handle::new(session, stream.try_clone()?, writer.stat_sn.wrapping_add(1))?);
                sessions.open.insert(number, handle.clone());
                Ok(SessionEntry { shared, number, handle })
            }
            Some(_) => Err(LoginStatus::ServiceUnavailable),
            None => Err(LoginStatus::OutOfResources),
        }
    };
    match begun {
        Ok(entry) => {
            if let Purpose::Normal(target) = &login.purpose {
                target.units.values().for_each(|unit| unit.attach(&nexus));
            }
            writer.send(login.answer.clone().with_u16(at::TSIH, entry.number), &login.text)?;
            Ok(Some(entry))
        }
        Err(status) => {
            writer.send(login.refused(status), &[])?;
            Ok(None)
        }
    }
}

/// The writing end during a login.
struct LoginWriter {
    stream: TcpStream,
    stat_sn: u32,
}

impl LoginWriter {
    fn send(&mut self, header: Header, data: &[u8]) -> io::Result<()> {
        let header = header.with_u32(at::STAT_SN, self.stat_sn);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        write_pdu(&mut self.stream, header, data, Digests::default())
    }
}
