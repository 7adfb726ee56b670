//! One client: threads that take turns at reading.
//!
//! Whoever holds the reading end takes one request, lets go, carries it out, and answers it; meanwhile another thread
//! reads. So requests run side by side without being handed from thread to thread, and when all threads are busy or the
//! memory for payloads is used up, nobody reads, and the client's socket fills.
//!
//! Each connection has a little memory that no other can take from it. Only what does not fit there comes out of what all
//! share, so that those who stall while they hold that keep others from long requests at the most.
//!
//! Lock order: the reading end, then a budget: the connection's own, its part of all, all. The writing end is held alone, for one chunk.

use std::io::{self, BufRead, IoSlice, Read as _, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

use crate::Agreement;
use crate::budget::{Budget, Share};
use crate::perform::{Answering, Replies};
use crate::request::{Command, Terms, Verdict, judge};
use crate::wire::{Errno, MAX_DISCARDED_PAYLOAD_BYTES, REQUEST_LEN, Request};

/// A thread's buffer that became larger than this for one request is given back after it: no budget counts what is kept.
const KEPT_BUFFER_BYTES: usize = 64 << 10;

/// What a connection may use.
pub(crate) struct Limits<'a> {
    /// Requests carried out at once.
    pub(crate) threads: usize,
    /// Payload that only this connection uses.
    pub(crate) own_payload: &'a Budget,
    /// What is all of it.
    pub(crate) own_bytes: u64,
    /// More for this connection.
    pub(crate) payload: &'a Budget,
    /// What that comes out of: payload of all connections.
    pub(crate) all_payload: &'a Budget,
    /// Called with its length before a payload is read that the client has announced, and with 0 after it: how long that
    /// may take is the caller's to say.
    pub(crate) hurry: &'a (dyn Fn(u32) + Sync),
    /// Once it is set, requests are refused.
    pub(crate) draining: &'a AtomicBool,
    /// Called when a reply could not be sent; ends the read that another thread may be in.
    pub(crate) hang_up: &'a (dyn Fn() + Sync),
}

/// Serves requests until the client leaves, its connection breaks, or it sends what is no request. Every request that
/// was begun is finished on return.
pub(crate) fn transmit<R: BufRead + Send, W: Write + Send>(
    reader: R,
    writer: W,
    agreement: &Agreement,
    limits: &Limits<'_>,
) {
    let connection = Connection {
        agreement,
        terms: Terms::from(agreement),
        limits,
        reader: Mutex::new(Some(reader)),
        writer: Writer { socket: Mutex::new(writer), broken: AtomicBool::new(false) },
        threads: AtomicUsize::new(1),
        waiting: AtomicUsize::new(0),
    };
    thread::scope(|scope| connection.take_turns(scope));
}

struct Connection<'a, R, W> {
    agreement: &'a Agreement,
    terms: Terms,
    limits: &'a Limits<'a>,
    /// None when nothing more will be read.
    reader: Mutex<Option<R>>,
    writer: Writer<W>,
    /// Threads there are.
    threads: AtomicUsize,
    /// Threads that want to read or are reading.
    waiting: AtomicUsize,
}

/// A request that was read completely.
struct Job<'a> {
    cookie: u64,
    work: Result<Command, (Errno, &'static str)>,
    /// Bytes of the buffer that are in use.
    payload_bytes: usize,
    _held: Held<'a>,
}

/// Memory for one payload.
enum Held<'a> {
    Own { _share: Share<'a> },
    Shared { _shares: [Share<'a>; 2] },
}

impl Limits<'_> {
    /// Waits for memory.
    fn take(&self, bytes: u64) -> Held<'_> {
        if let Some(share) = self.own_payload.try_take(bytes) {
            return Held::Own { _share: share };
        }
        if let Some(share) = self.payload.try_take(bytes)
            && let Some(of_all) = self.all_payload.try_take(bytes)
        {
            return Held::Shared { _shares: [share, of_all] };
        }
        match bytes <= self.own_bytes {
            true => Held::Own { _share: self.own_payload.take(bytes) },
            false => Held::Shared { _shares: [self.payload, self.all_payload].map(|budget| budget.take(bytes)) },
        }
    }
}

impl<'a, R: BufRead + Send, W: Write + Send> Connection<'a, R, W> {
    fn take_turns<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let mut buf = Vec::new();
        loop {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let job = self.next_job(&mut buf);
            let others_wait = self.waiting.fetch_sub(1, Ordering::SeqCst) > 1;
            let Some(job) = job else { return };
            if !others_wait {
                self.add_thread(scope);
            }
            let answering = Answering {
                cookie: job.cookie,
                terms: self.terms,
                device: &*self.agreement.export.device,
                replies: &self.writer,
            };
            let sent = match job.work {
                Ok(command) => answering.perform(command, &mut buf[..job.payload_bytes]),
                Err((errno, message)) => answering.refuse(errno, message),
            };
            if sent.is_err() {
                (self.limits.hang_up)();
            }
            if buf.len() > KEPT_BUFFER_BYTES {
                buf = Vec::new();
            }
        }
    }

    /// So that somebody reads while this thread works. Without another thread the next request waits, no more.
    fn add_thread<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let spare = |threads| (threads < self.limits.threads).then_some(threads + 1);
        if self.threads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spare).is_ok() {
            let name = thread::Builder::new().name("nbd request".into());
            if name.spawn_scoped(scope, || self.take_turns(scope)).is_err() {
                self.threads.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// Waits for the turn to read, and for a request. `None` when there are no more.
    fn next_job(&self, buf: &mut Vec<u8>) -> Option<Job<'a>> {
        let mut turn = lock(&self.reader);
        let reader = turn.as_mut()?;
        let job = match self.writer.broken.load(Ordering::SeqCst) {
            true => None,
            false => self.read_job(reader, buf).unwrap_or_default(),
        };
        if job.is_none() {
            *turn = None;
        }
        job
    }

    fn read_job(&self, reader: &mut R, buf: &mut Vec<u8>) -> io::Result<Option<Job<'a>>> {
        let mut header = [0; REQUEST_LEN];
        reader.read_exact(&mut header)?;
        let Some(request) = Request::decode(&header) else { return Ok(None) };
        let sent_bytes = request.payload_bytes();
        if sent_bytes > MAX_DISCARDED_PAYLOAD_BYTES {
            return Ok(None);
        }
        let work = match judge(&request, &self.terms) {
            Verdict::Disconnect => return Ok(None),
            Verdict::Perform(_) if self.limits.draining.load(Ordering::SeqCst) => {
                Err((Errno::Shutdown, "the server is shutting down"))
            }
            Verdict::Perform(command) => Ok(command),
            Verdict::Refuse(errno, message) => Err((errno, message)),
        };
        // A command that was granted is at most as long as the largest payload.
        let payload_bytes = match &work {
            Ok(Command::Read { .. } | Command::Write { .. }) => request.len_bytes,
            _ => 0,
        };
        let held = self.limits.take(payload_bytes.into());
        let payload_bytes = payload_bytes as usize;
        if buf.len() < payload_bytes {
            buf.resize(payload_bytes, 0);
        }
        if sent_bytes > 0 {
            (self.limits.hurry)(sent_bytes);
        }
        match &work {
            Ok(Command::Write { .. }) => reader.read_exact(&mut buf[..payload_bytes])?,
            Ok(_) => {}
            Err(_) => {
                let discarded = io::copy(&mut reader.take(sent_bytes.into()), &mut io::sink())?;
                if discarded < sent_bytes.into() {
                    return Ok(None);
                }
            }
        }
        if sent_bytes > 0 {
            (self.limits.hurry)(0);
        }
        Ok(Some(Job { cookie: request.cookie, work, payload_bytes, _held: held }))
    }
}

struct Writer<W> {
    socket: Mutex<W>,
    /// A reply could not be sent: nobody listens any more.
    broken: AtomicBool,
}

impl<W: Write> Replies for Writer<W> {
    fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut socket = lock(&self.socket);
        let sent = write_both(&mut *socket, head, body);
        // Set before the lock is let go: after a part of a reply no other may follow.
        self.broken.fetch_or(sent.is_err(), Ordering::SeqCst);
        sent
    }
}

/// Both parts, in as few calls as the socket allows.
fn write_both(socket: &mut impl Write, head: &[u8], body: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(head), IoSlice::new(body)];
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match socket.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    socket.flush()
}

/// What these locks guard is whole after every step, also of a thread that panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
