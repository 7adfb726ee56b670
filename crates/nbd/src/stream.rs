//! A socket of either kind.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A connection to a client.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// The same call on whichever socket it is.
macro_rules! on_socket {
    ($stream:expr, $socket:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($socket) => $call,
            #[cfg(unix)]
            Stream::Unix($socket) => $call,
        }
    };
}

impl Stream {
    /// Another handle to the same socket.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(socket) => socket.try_clone().map(Self::Tcp),
            #[cfg(unix)]
            Self::Unix(socket) => socket.try_clone().map(Self::Unix),
        }
    }

    /// Whether only this machine reaches it, and the permissions of a folder say who.
    pub(crate) fn is_unix(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    /// Answers leave at once, whatever their size.
    pub(crate) fn set_no_delay(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nodelay(true),
            #[cfg(unix)]
            Self::Unix(_) => Ok(()),
        }
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        on_socket!(self, socket => socket.set_read_timeout(timeout))
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        on_socket!(self, socket => socket.set_write_timeout(timeout))
    }

    /// Ends one or both directions. That the peer did so before is no error.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        let _ = on_socket!(self, socket => socket.shutdown(how));
    }
}

/// What a client owes, and until when; nothing at first. Shared by who reads and who asks for something.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deadline(Arc<Mutex<Option<Owed>>>);

#[derive(Clone, Copy, Debug)]
struct Owed {
    until: Instant,
    longest_pause: Duration,
}

impl Deadline {
    /// From now on all has to be there in time, whatever the client sends meanwhile, and no pause may be longer.
    pub(crate) fn set(&self, until: Instant, longest_pause: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Owed { until, longest_pause });
    }

    /// It owes nothing.
    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How long the next byte may take; `None` for ever.
    fn wait(&self) -> io::Result<Option<Duration>> {
        let Some(owed) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) else { return Ok(None) };
        match owed.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left.min(owed.longest_pause))),
        }
    }
}

/// The receiving side of a socket: a read fails when what is owed does not come in time.
#[derive(Debug)]
pub(crate) struct Receiver {
    socket: Stream,
    deadline: Deadline,
    is_timed: bool,
}

impl Receiver {
    pub(crate) fn new(socket: Stream, deadline: Deadline) -> Self {
        Self { socket, deadline, is_timed: false }
    }
}

impl Read for Receiver {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wait = self.deadline.wait()?;
        if wait.is_some() || self.is_timed {
            self.socket.set_read_timeout(wait)?;
            self.is_timed = wait.is_some();
        }
        self.socket.read(buf)
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        on_socket!(self, socket => socket.read(buf))
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        on_socket!(self, socket => socket.write(buf))
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        on_socket!(self, socket => socket.write_vectored(bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        on_socket!(self, socket => socket.flush())
    }
}
