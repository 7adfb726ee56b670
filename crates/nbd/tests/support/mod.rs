//! A disk in memory that can be made to fail, and a client that says exactly what it is told to.
#![allow(dead_code)] // each test file uses its own part

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nbd::{Device, DeviceError, DeviceErrorKind, Export, Exports, Extent, ExtentKind, Server, ServerOptions, Zeroing};

pub const MIB: u64 = 1 << 20;
/// Unit in which a [`MemoryDisk`] knows what is stored.
pub const CELL: u64 = 4096;

/// A sparse disk in memory: a model that cannot be wrong, with faults.
pub struct MemoryDisk {
    size_bytes: u64,
    state: Mutex<Content>,
    /// Reads that touch this sector fail.
    pub bad_sector: AtomicU64,
    /// Calls to `flush`.
    pub flushes: AtomicU64,
    /// Set to hold reads up until it is cleared.
    held: Mutex<bool>,
    released: Condvar,
}

struct Content {
    bytes: Vec<u8>,
    stored: BTreeSet<u64>,
    full: bool,
}

impl MemoryDisk {
    pub fn new(size_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            size_bytes,
            state: Mutex::new(Content { bytes: vec![0; size_bytes as usize], stored: BTreeSet::new(), full: false }),
            bad_sector: AtomicU64::new(u64::MAX),
            flushes: AtomicU64::new(0),
            held: Mutex::new(false),
            released: Condvar::new(),
        })
    }

    pub fn content(&self) -> Vec<u8> {
        self.state.lock().unwrap().bytes.clone()
    }

    /// From now on nothing can be stored that is not stored yet.
    pub fn fill_up(&self) {
        self.state.lock().unwrap().full = true;
    }

    pub fn hold_reads(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.released.notify_all();
    }
}

impl Device for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let held = self.held.lock().unwrap();
        drop(self.released.wait_while(held, |held| *held).unwrap());
        let bad = self.bad_sector.load(Ordering::SeqCst);
        if (offset_bytes..offset_bytes + buf.len() as u64).contains(&bad.saturating_mul(512)) {
            return Err(DeviceError::new(DeviceErrorKind::Io, format!("sector {bad} cannot be read")));
        }
        buf.copy_from_slice(&self.state.lock().unwrap().bytes[offset_bytes as usize..][..buf.len()]);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let mut state = self.state.lock().unwrap();
        let cells = offset_bytes / CELL..(offset_bytes + data.len() as u64).div_ceil(CELL);
        if state.full && cells.clone().any(|cell| !state.stored.contains(&cell)) {
            return Err(DeviceError::new(DeviceErrorKind::NoSpace, "the disk's file system is full"));
        }
        state.stored.extend(cells);
        state.bytes[offset_bytes as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<(), DeviceError> {
        let mut state = self.state.lock().unwrap();
        state.bytes[range.start as usize..range.end as usize].fill(0);
        match how {
            Zeroing::KeepAllocated => state.stored.extend(range.start / CELL..range.end.div_ceil(CELL)),
            Zeroing::MayDeallocate => {
                for cell in range.start.div_ceil(CELL)..range.end / CELL {
                    state.stored.remove(&cell);
                }
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, DeviceError> {
        let state = self.state.lock().unwrap();
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = ((at / CELL + 1) * CELL).min(self.size_bytes);
            let kind = if state.stored.contains(&(at / CELL)) { ExtentKind::Data } else { ExtentKind::Zero };
            let count = extents.len();
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.len_bytes += end - at,
                _ if count == max => break,
                _ => extents.push(Extent { len_bytes: end - at, kind }),
            }
            at = end;
        }
        Ok(extents)
    }
}

/// A server on a socket in a folder of its own.
pub struct Serving {
    pub server: Server,
    pub dir: tempfile::TempDir,
}

impl Serving {
    pub fn new(device: Arc<dyn Device>, read_only: bool) -> Self {
        Self::with(device, read_only, ServerOptions::default())
    }

    pub fn with(device: Arc<dyn Device>, read_only: bool, options: ServerOptions) -> Self {
        let export = Export { name: "rp1/disk0".into(), description: "a test".into(), device, read_only };
        let mut server = Server::start(Exports::new([export]).unwrap(), options);
        let dir = tempfile::tempdir().unwrap();
        server.listen_unix(&dir.path().join("s.sock")).unwrap();
        Self { server, dir }
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("s.sock")
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///rp1%2Fdisk0?socket={}", self.socket().display())
    }

    pub fn client(&self, structured: bool) -> Client {
        Client::connect(&self.socket(), structured)
    }
}

/// A client that has chosen the export.
pub struct Client {
    pub socket: UnixStream,
    pub size_bytes: u64,
    pub flags: u16,
    next_cookie: u64,
}

/// What came back for one request.
#[derive(Debug, PartialEq, Eq, Clone, Default)]
pub struct Reply {
    pub cookie: u64,
    pub errno: u32,
    pub message: String,
    /// Where an error was, if it was said.
    pub error_offset: Option<u64>,
    /// Offset, and data or the length of a hole.
    pub pieces: Vec<(u64, Result<Vec<u8>, u32>)>,
    pub status: Vec<(u32, u32)>,
    pub structured: bool,
}

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZERO: u16 = 6;
pub const STATUS: u16 = 7;
pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;

impl Client {
    /// Structured replies bring `base:allocation` with them.
    pub fn connect(path: &Path, structured: bool) -> Self {
        let mut socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        socket.write_all(&[0, 0, 0, 3]).unwrap();
        let option = |number: u32, data: &[u8]| {
            [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
        };
        if structured {
            socket.write_all(&option(8, &[])).unwrap();
            let context = [&[0, 0, 0, 9], &b"rp1/disk0"[..], &[0, 0, 0, 1, 0, 0, 0, 15], b"base:allocation"].concat();
            socket.write_all(&option(10, &context)).unwrap();
        }
        socket.write_all(&option(7, &[&[0, 0, 0, 9], &b"rp1/disk0"[..], &[0, 0]].concat())).unwrap();
        let (mut size_bytes, mut flags) = (0, 0);
        loop {
            let mut header = [0; 20];
            socket.read_exact(&mut header).unwrap();
            let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            let mut data = vec![0; field(16) as usize];
            socket.read_exact(&mut data).unwrap();
            assert_eq!(field(12) >> 31, 0, "{}", String::from_utf8_lossy(&data));
            if field(12) == 3 && data[..2] == [0, 0] {
                size_bytes = u64::from_be_bytes(data[2..10].try_into().unwrap());
                flags = u16::from_be_bytes(data[10..].try_into().unwrap());
            }
            if (field(8), field(12)) == (7, 1) {
                return Self { socket, size_bytes, flags, next_cookie: 0 };
            }
        }
    }

    /// Sends a request and gives its cookie.
    pub fn send(&mut self, kind: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> u64 {
        self.next_cookie += 1;
        let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(self.next_cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        self.socket.write_all(&bytes).unwrap();
        self.next_cookie
    }

    /// Receives replies until one request is answered. `read_len` is what a simple reply to a READ carries.
    pub fn receive(&mut self, read_len: u32) -> Reply {
        let mut reply = Reply::default();
        loop {
            let magic: [u8; 4] = self.bytes();
            match magic {
                [0x67, 0x44, 0x66, 0x98] => {
                    reply.errno = u32::from_be_bytes(self.bytes());
                    reply.cookie = u64::from_be_bytes(self.bytes());
                    if reply.errno == 0 && read_len > 0 {
                        reply.pieces.push((u64::MAX, Ok(self.vec(read_len as usize))));
                    }
                    return reply;
                }
                [0x66, 0x8E, 0x33, 0xEF] => {
                    reply.structured = true;
                    let flags = u16::from_be_bytes(self.bytes());
                    let kind = u16::from_be_bytes(self.bytes());
                    let cookie = u64::from_be_bytes(self.bytes());
                    assert!(reply.cookie == 0 || reply.cookie == cookie, "chunks of one request at a time");
                    reply.cookie = cookie;
                    let len = u32::from_be_bytes(self.bytes());
                    let payload = self.vec(len as usize);
                    self.take_chunk(&mut reply, kind, &payload);
                    if flags & 1 == 1 {
                        return reply;
                    }
                }
                other => panic!("no reply begins with {other:02x?}"),
            }
        }
    }

    fn take_chunk(&self, reply: &mut Reply, kind: u16, payload: &[u8]) {
        let u32_at = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().unwrap());
        match kind {
            0 => assert!(payload.is_empty()),
            1 => reply.pieces.push((u64_at(0), Ok(payload[8..].to_vec()))),
            2 => reply.pieces.push((u64_at(0), Err(u32_at(8)))),
            5 => {
                assert_eq!(u32_at(0), 1, "the context that was selected");
                reply.status = (4..payload.len()).step_by(8).map(|at| (u32_at(at), u32_at(at + 4))).collect();
            }
            0x8001 | 0x8002 => {
                reply.errno = u32_at(0);
                let len = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
                reply.message = String::from_utf8(payload[6..6 + len].to_vec()).unwrap();
                if kind == 0x8002 {
                    reply.error_offset = Some(u64_at(6 + len));
                }
            }
            other => panic!("chunk of type {other}"),
        }
    }

    /// One request and its answer.
    pub fn ask(&mut self, kind: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Reply {
        let cookie = self.send(kind, flags, offset, len, payload);
        let reply = self.receive(if kind == READ { len } else { 0 });
        assert_eq!(reply.cookie, cookie);
        reply
    }

    /// Reads, whatever pieces it comes in.
    pub fn read(&mut self, flags: u16, offset: u64, len: u32) -> Vec<u8> {
        let reply = self.ask(READ, flags, offset, len, &[]);
        assert_eq!(reply.errno, 0, "{}", reply.message);
        reply.content(offset, len)
    }

    pub fn write(&mut self, flags: u16, offset: u64, data: &[u8]) {
        let reply = self.ask(WRITE, flags, offset, data.len() as u32, data);
        assert_eq!(reply.errno, 0, "{}", reply.message);
    }

    /// Whether the server has closed the connection, with nothing more to read.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.socket.read(&mut [0]), Ok(0))
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn vec(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }
}

impl Reply {
    /// The bytes of a READ; its pieces must be in order, without gaps.
    pub fn content(&self, offset: u64, len: u32) -> Vec<u8> {
        let mut content = Vec::new();
        for (at, piece) in &self.pieces {
            assert!(*at == u64::MAX || *at == offset + content.len() as u64, "pieces in order");
            match piece {
                Ok(data) => content.extend(data),
                Err(hole) => content.resize(content.len() + *hole as usize, 0),
            }
        }
        assert_eq!(content.len(), len as usize);
        content
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}
