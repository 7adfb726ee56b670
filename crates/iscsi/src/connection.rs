//! One initiator's connection after its login: threads that take turns at reading.
//!
//! Whoever holds the reading end takes PDUs and hands them to the session. When that makes a command ready and another
//! thread is free to read on, the reader lets go and carries the command out itself; when all others are busy it reads
//! on, so that pings, aborts and data are always taken (spec B.9). Who has carried a command out takes the next that is
//! ready, and else waits for its turn to read.
//!
//! Lock order: the reading end, then the session; the session, the writing end and the small counts are never held
//! together.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crate::login::Parameters;
use crate::pdu::{Digests, Pdu, write_pdu};
use crate::scsi::Nexus;
use crate::server::{Shared, Socket};
use crate::session::{Action, Answer, Job, Replies, Session, StatSn};
use crate::target::Target;
use crate::wire::{Header, MAX_DATA_SEGMENT_BYTES, at};

/// A thread's buffer that became larger than this for one command is given back after it.
const KEPT_BUFFER_BYTES: usize = 1 << 20;
/// Commands in progress have this long when their initiator logs out.
const LOGOUT_GRACE: Duration = Duration::from_secs(2);

/// A session and the way to its initiator.
pub(crate) struct Handle {
    pub(crate) nexus: Nexus,
    /// None for a session that lists targets.
    pub(crate) target: Option<Arc<Target>>,
    parameters: Parameters,
    session: Mutex<Session>,
    pub(crate) writer: Writer,
    socket: TcpStream,
}

impl Handle {
    /// `stat_sn` is the number of the next status.
    pub(crate) fn new(session: Session, socket: TcpStream, stat_sn: u32) -> io::Result<Self> {
        let (expected, max) = session.window();
        let parameters = session.settings.parameters.clone();
        let digests = Digests { header: parameters.header_digest, data: parameters.data_digest };
        let writer = Writer {
            out: Mutex::new(Out { socket: socket.try_clone()?, stat_sn }),
            window: AtomicU64::new(pack(expected, max)),
            digests,
            broken: AtomicBool::new(false),
        };
        Ok(Self {
            nexus: session.settings.nexus.clone(),
            target: session.target().cloned(),
            parameters,
            session: Mutex::new(session),
            writer,
            socket,
        })
    }

    /// Does something with the session, and makes known how its window is then.
    pub(crate) fn with_session<T>(&self, change: impl FnOnce(&mut Session) -> T) -> T {
        let mut session = lock(&self.session);
        let result = change(&mut session);
        let (expected, max) = session.window();
        // Under the lock: the window must not seem to close again.
        self.writer.window.store(pack(expected, max), Ordering::SeqCst);
        result
    }

    /// Gives up what the session holds of units. May be called again, as long as the session is on the list.
    pub(crate) fn detach(&self) {
        let units = self.target.iter().flat_map(|target| target.units.values());
        units.for_each(|unit| unit.detach(&self.nexus));
    }

    /// Ends the connection; threads that read or write find out.
    pub(crate) fn hang_up(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Sends, and hangs up when that is not possible.
    pub(crate) fn send(&self, answer: Answer) {
        if self.writer.send(answer.header, &answer.data, answer.stat_sn).is_err() {
            self.hang_up();
        }
    }

    /// Sends on a thread of its own: for whoever must not wait for this initiator.
    pub(crate) fn send_apart(self: &Arc<Self>, answers: Vec<Answer>) {
        if answers.is_empty() {
            return;
        }
        let handle = self.clone();
        let name = thread::Builder::new().name("iscsi notice".into());
        let began = name.spawn(move || answers.into_iter().for_each(|answer| handle.send(answer)));
        if began.is_err() {
            // Better no connection than one on which something is missing.
            self.hang_up();
        }
    }
}

fn pack(expected: u32, max: u32) -> u64 {
    u64::from(expected) << 32 | u64::from(max)
}

/// The writing end.
pub(crate) struct Writer {
    out: Mutex<Out>,
    /// Numbers of the next command and the last allowed.
    window: AtomicU64,
    digests: Digests,
    /// A PDU could not be sent: nobody listens any more.
    broken: AtomicBool,
}

struct Out {
    socket: TcpStream,
    stat_sn: u32,
}

impl Replies for Writer {
    fn send(&self, mut header: Header, data: &[u8], stat_sn: StatSn) -> io::Result<()> {
        let mut out = lock(&self.out);
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if stat_sn != StatSn::Absent {
            header.set_u32(at::STAT_SN, out.stat_sn);
        }
        if stat_sn == StatSn::Advance {
            out.stat_sn = out.stat_sn.wrapping_add(1);
        }
        let window = self.window.load(Ordering::SeqCst);
        header.set_u32(at::EXP_CMD_SN, (window >> 32) as u32);
        header.set_u32(at::MAX_CMD_SN, window as u32);
        let sent = write_pdu(&mut out.socket, header, data, self.digests).and_then(|()| out.socket.flush());
        // Set before the lock is let go: after a part of a PDU no other may follow.
        self.broken.fetch_or(sent.is_err(), Ordering::SeqCst);
        sent
    }
}

/// Serves a session until its initiator leaves, is cut off, or its connection breaks. Every command that was begun is
/// finished on return.
pub(crate) fn serve(shared: &Shared, handle: &Arc<Handle>, reader: BufReader<Socket>, max_threads: usize) {
    let connection = Connection {
        shared,
        handle,
        reader: Mutex::new(Some(reader)),
        max_threads: max_threads.max(1),
        crew: Mutex::new(Crew { threads: 1, waiting: 1 }),
        running: Mutex::new(0),
        answered: Condvar::new(),
    };
    thread::scope(|scope| connection.take_turns(scope));
}

struct Connection<'a> {
    shared: &'a Shared,
    handle: &'a Arc<Handle>,
    /// None when nothing more will be read.
    reader: Mutex<Option<BufReader<Socket>>>,
    max_threads: usize,
    crew: Mutex<Crew>,
    /// Threads that take, carry out or answer a command.
    running: Mutex<usize>,
    /// Signalled when there is one fewer.
    answered: Condvar,
}

/// The threads of a connection.
struct Crew {
    threads: usize,
    /// Those that read or will when their turn comes. Never 0, or nothing would be taken any more.
    waiting: usize,
}

impl<'a> Connection<'a> {
    /// Of a thread that counts as waiting.
    fn take_turns<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let mut buf = Vec::new();
        // Asked before its turn, too: when this thread was not waiting yet, a reader that was alone could not let go.
        while self.lets_go_for_a_job(scope) || self.read(scope, &mut buf) {
            self.run_jobs(&mut buf);
            lock(&self.crew).waiting += 1;
        }
    }

    fn run_jobs(&self, buf: &mut Vec<u8>) {
        loop {
            // Before a job is taken: who waits for all to be answered must not find it neither there nor here.
            *lock(&self.running) += 1;
            let job = self.handle.with_session(Session::next_job);
            if let Some(job) = &job {
                self.run(job, buf);
            }
            *lock(&self.running) -= 1;
            self.answered.notify_all();
            if buf.len() > KEPT_BUFFER_BYTES {
                *buf = Vec::new();
            }
            if job.is_none() {
                return;
            }
        }
    }

    /// Reads when its turn comes, until there is a command to let go for. False at the end.
    fn read<'s>(&'s self, scope: &'s Scope<'s, '_>, buf: &mut Vec<u8>) -> bool {
        let mut turn = lock(&self.reader);
        while let Some(reader) = turn.as_mut() {
            if !self.read_one(reader, buf) {
                *turn = None;
                self.handle.with_session(Session::end);
                self.handle.detach();
            } else if self.lets_go_for_a_job(scope) {
                return true;
            }
        }
        false
    }

    /// Whether there is a command, and another thread to wait or read in this one's place. Then this one counts no more.
    fn lets_go_for_a_job<'s>(&'s self, scope: &'s Scope<'s, '_>) -> bool {
        if !lock(&self.handle.session).has_job() {
            return false;
        }
        let mut crew = lock(&self.crew);
        // With one thread in all there is nobody to read meanwhile.
        if crew.waiting > 1 || self.max_threads == 1 {
            crew.waiting -= 1;
            return true;
        }
        if crew.threads == self.max_threads {
            return false;
        }
        // The new one counts as waiting in the place of this.
        let name = thread::Builder::new().name("iscsi command".into());
        let began = name.spawn_scoped(scope, || self.take_turns(scope)).is_ok();
        crew.threads += usize::from(began);
        began
    }

    /// Takes one PDU, or notes that none came. False when there will be no more.
    fn read_one(&self, reader: &mut BufReader<Socket>, buf: &mut Vec<u8>) -> bool {
        if self.handle.writer.broken.load(Ordering::SeqCst) {
            return false;
        }
        // Waiting for the first byte may take as long as it likes to; the rest of a PDU may not.
        match reader.fill_buf() {
            Ok([]) => return false,
            Ok(_) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    let action = self.handle.with_session(|session| session.silence(Instant::now()));
                    return action.is_none_or(|action| self.act(action, buf));
                }
                io::ErrorKind::Interrupted => return true,
                _ => return false,
            },
        }
        let Ok(pdu) = Pdu::read(reader, self.handle.writer.digests, MAX_DATA_SEGMENT_BYTES) else { return false };
        let actions = self.handle.with_session(|session| session.handle(pdu, Instant::now()));
        actions.into_iter().all(|action| self.act(action, buf))
    }

    /// False when the connection ends with it.
    fn act(&self, action: Action, buf: &mut Vec<u8>) -> bool {
        match action {
            Action::Send(answer) => self.handle.send(answer),
            Action::Release(pending) => self.shared.release(self.handle, pending),
            Action::Manage(scope, pending) => self.shared.manage(self.handle, scope, pending),
            Action::Leave(answer) => {
                self.finish_all(buf);
                // Before the answer: what was reserved is free when the initiator has it.
                self.handle.detach();
                self.handle.send(answer);
                return false;
            }
            Action::Close => return false,
        }
        true
    }

    /// Lets commands in progress end and be answered, for a while. Nothing is read meanwhile.
    fn finish_all(&self, buf: &mut Vec<u8>) {
        let deadline = Instant::now() + LOGOUT_GRACE;
        loop {
            self.run_jobs(buf);
            let left = deadline.saturating_duration_since(Instant::now());
            let running = lock(&self.running);
            if *running == 0 || left.is_zero() {
                return;
            }
            // Each that ends may make way for an ordered one.
            drop(self.answered.wait_timeout(running, left));
        }
    }

    fn run(&self, job: &Job, buf: &mut Vec<u8>) {
        let handle = self.handle;
        // Sessions that list targets take no commands.
        let Some(target) = &handle.target else { return };
        let ending = job.run(&handle.nexus, target, &handle.parameters, &handle.writer, buf);
        let changed = ending.as_ref().is_ok_and(|ending| ending.changed);
        let finished = self.handle.with_session(|session| session.finish(job.order, changed, Instant::now()));
        let sent = match ending {
            Ok(ending) if finished.respond => ending.send(&self.handle.writer),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if sent.is_err() {
            self.handle.hang_up();
        }
        finished.answers.into_iter().for_each(|answer| self.handle.send(answer));
        finished.waiting.into_iter().for_each(|pending| self.shared.release(self.handle, pending));
    }
}

/// What these locks guard is whole after every step, also of a thread that panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
