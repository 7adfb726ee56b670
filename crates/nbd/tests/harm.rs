//! Clients that stall, flood, ask for too much, and never read: what they cost others, and the server's memory.
#![cfg(target_os = "linux")]

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nbd::{Device, DeviceError, Export, Exports, Extent, ExtentKind, Server, ServerOptions, Zeroing};
use support::*;

const SOCKET: &str = "E3_TEST_HARM_SOCKET";
const SIZE: u64 = 1 << 40;

/// A large disk that takes no memory: every byte is its sector's number, and nothing is kept.
struct Endless;

impl Device for Endless {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        for (sector, bytes) in (offset_bytes / 512..).zip(buf.chunks_mut(512)) {
            bytes.fill(sector as u8);
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    fn zero(&self, _: std::ops::Range<u64>, _: Zeroing) -> Result<(), DeviceError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn extents(&self, range: std::ops::Range<u64>, _: usize) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent { len_bytes: range.end - range.start, kind: ExtentKind::Data }])
    }
}

/// The server, in a process of its own, whose memory is nobody else's.
#[test]
#[ignore = "is the process that the other test starts"]
fn server_process() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let device = std::sync::Arc::new(Endless);
    let export = Export { name: "rp1/disk0".into(), description: "endless".into(), device, read_only: false };
    let options = ServerOptions { reply_timeout: Duration::from_secs(2), ..ServerOptions::default() };
    let mut server = Server::start(Exports::new([export]).unwrap(), options);
    server.listen_unix(&PathBuf::from(socket)).unwrap();
    // Until it is told, or whoever started it is gone.
    let _ = std::io::stdin().read(&mut [0]);
}

struct Process {
    child: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Process {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "server_process", "--ignored", "--nocapture"]).env(SOCKET, &socket);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the server starts");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, socket, _dir: dir }
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket, true)
    }

    /// The most memory that it has had so far (`VmHWM`), in MiB.
    fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(kind: u16, offset: u64, len: u32) -> Vec<u8> {
    let head = [&[0x25, 0x60, 0x95, 0x13, 0, 0][..], &kind.to_be_bytes(), &7_u64.to_be_bytes()].concat();
    [&head[..], &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

/// Reads as a guest does, small and not so small, and gives the longest that one took.
fn read_on(client: &mut Client, rounds: u64) -> Duration {
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let len = [4096, 65_536, 1 << 20][round as usize % 3];
        let begun = Instant::now();
        let bytes = client.read(0, round * 4096, len);
        longest = longest.max(begun.elapsed());
        assert_eq!(bytes[0], (round * 8) as u8);
    }
    longest
}

#[test]
fn who_misbehaves_harms_nobody_and_has_no_more_than_its_share() {
    let process = Process::start();
    let mut good = process.client();
    read_on(&mut good, 30);

    // Many long requests at once, answered, and then nothing: what they took for that is given back.
    let mut idle: Vec<Client> = (0..30).map(|_| process.client()).collect();
    for client in &mut idle {
        for nth in 0..32 {
            client.send(READ, 0, nth << 20, 1 << 20, &[]);
        }
    }
    for client in &mut idle {
        (0..32).for_each(|_| drop(client.receive(1 << 20)));
    }
    // Announce long writes, and send nothing of them: all memory that connections share is theirs.
    let mut stalled: Vec<Client> = (0..8).map(|_| process.client()).collect();
    for client in &mut stalled {
        client.socket.write_all(&request(WRITE, 0, 32 << 20)).unwrap();
    }
    // Ask for all that may be asked for, and read none of it.
    let mut silent: Vec<Client> = (0..6).map(|_| process.client()).collect();
    for client in &mut silent {
        let many = request(READ, 0, 32 << 20).repeat(64);
        client.socket.write_all(&many).unwrap();
    }
    // Send requests as fast as they are taken, and read no answer.
    let mut floods: Vec<Client> = (0..4).map(|_| process.client()).collect();
    for client in &mut floods {
        client.socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let burst = [request(READ, 0, 4096), request(3, 0, 0), request(99, 1, u32::MAX)].concat().repeat(2000);
        // The server stops reading when it cannot answer.
        let _ = client.socket.write_all(&burst);
    }
    // Connect and say nothing, or half of it.
    let half_open: Vec<UnixStream> = (0..12)
        .map(|nth| {
            let mut socket = UnixStream::connect(&process.socket).unwrap();
            socket.write_all(&[0, 0, 0, 3, b'I', b'H'][..nth % 7]).unwrap();
            socket
        })
        .collect();

    let longest = read_on(&mut good, 300);
    assert!(longest < Duration::from_millis(1500), "a read took {longest:?}");
    let mut new = process.client();
    let longest = read_on(&mut new, 30);
    assert!(longest < Duration::from_millis(1500), "a read of one who came later took {longest:?}");

    // Payload: 64 connections with 2 MiB each, and 128 MiB that they share; 64 KiB that each of their 16 threads keeps; the
    // rest is the program.
    let peak_mib = process.peak_mib();
    println!("peak {peak_mib} MiB");
    assert!(peak_mib < 400, "{peak_mib} MiB");

    // Those who hold what is shared are cut off, and then long requests are carried out, too.
    let begun = Instant::now();
    assert_eq!(good.read(0, 512, 32 << 20).len(), 32 << 20);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(stalled.iter_mut().all(Client::is_closed), "who stalls is cut off");
    drop((half_open, idle));
}

/// Whoever reaches the socket may connect; that takes nobody's place.
#[test]
fn who_only_connects_makes_room_for_others() {
    let options = ServerOptions { max_connections: 4, ..ServerOptions::default() };
    let serving = Serving::with(std::sync::Arc::new(Endless), false, options);
    let mut good = serving.client(true);
    let mut strangers: Vec<UnixStream> = (0..9).map(|_| UnixStream::connect(serving.socket()).unwrap()).collect();
    let mut other = serving.client(true);
    for client in [&mut good, &mut other] {
        assert_eq!(client.read(0, 512, 512), [1; 512]);
    }
    let mut is_open = |nth: usize| {
        let socket: &mut UnixStream = &mut strangers[nth];
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.read_exact(&mut [0; 18]).is_ok() && {
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            !matches!(socket.read(&mut [0]), Ok(0))
        }
    };
    assert!(!is_open(0) && is_open(8), "the oldest of them goes first");
    // Those who have agreed do not make room for each other.
    let _more: Vec<Client> = (0..2).map(|_| serving.client(true)).collect();
    let mut late = UnixStream::connect(serving.socket()).unwrap();
    assert_eq!(late.read(&mut [0]).unwrap(), 0, "all places are taken");
    assert_eq!(good.read(0, 512, 512), [1; 512]);
}

/// A little now and then is no payload.
#[test]
fn a_payload_that_trickles_is_cut_off() {
    let options = ServerOptions { reply_timeout: Duration::from_secs(1), ..ServerOptions::default() };
    let serving = Serving::with(std::sync::Arc::new(Endless), false, options);
    let mut client = serving.client(true);
    client.socket.write_all(&request(WRITE, 0, 64 << 10)).unwrap();
    let begun = Instant::now();
    while client.socket.write_all(&[0]).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it goes on and on");
        std::thread::sleep(Duration::from_millis(100));
    }
    // In time nobody is cut off, however long that was.
    let mut client = serving.client(true);
    std::thread::sleep(Duration::from_millis(1200));
    client.write(0, 0, &[0; 4096]);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(client.read(0, 512, 512), [1; 512]);
}
