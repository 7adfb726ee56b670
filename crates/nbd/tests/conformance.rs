//! What any client may rely on, asked over a real socket.
#![cfg(unix)]

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nbd::{ListenError, ServerOptions};
use support::*;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;
const SIZE: u64 = 8 * MIB;

#[test]
fn every_request_gets_the_answer_of_the_table() {
    for (read_only, structured) in [(false, true), (false, false), (true, true), (true, false)] {
        let serving = Serving::new(MemoryDisk::new(SIZE), read_only);
        let mut client = serving.client(structured);
        let flags = if read_only { 0x050F } else { 0x0D6D } | if structured { 0x80 } else { 0 };
        assert_eq!((client.size_bytes, client.flags), (SIZE, flags));
        let last = SIZE - 512;
        let write = if read_only { EPERM } else { 0 };
        let grow = if read_only { EPERM } else { ENOSPC };
        let trim = if read_only { EPERM } else { EINVAL };
        let status = if structured { 0 } else { EINVAL };
        for (case, kind, flags, offset, len, expected) in [
            ("read", READ, 0, 0, 512, 0),
            ("last sector", READ, 0, last, 512, 0),
            ("past the end", READ, 0, last, 1024, EINVAL),
            ("far past the end", READ, 0, 1 << 62, 512, EINVAL),
            ("unaligned", READ, 0, 1, 100, EINVAL),
            ("nothing", READ, 0, 0, 0, 0),
            ("FUA on a read", READ, FUA, 0, 512, 0),
            ("NO_HOLE on a read", READ, NO_HOLE, 0, 512, EINVAL),
            ("DF", READ, DF, 0, 65536, 0),
            ("too long", READ, 0, 0, (32 << 20) + 512, EINVAL),
            ("write", WRITE, 0, 0, 512, write),
            ("write with FUA", WRITE, FUA, 8192, 4096, write),
            ("write past the end", WRITE, 0, last, 1024, grow),
            ("write with an unknown flag", WRITE, 0x8000, 0, 512, EINVAL),
            ("write of nothing", WRITE, 0, 0, 0, write),
            ("flush", FLUSH, 0, 0, 0, 0),
            ("flush with a range", FLUSH, 0, 0, 512, EINVAL),
            ("flush with an unknown flag", FLUSH, 0x8000, 0, 0, EINVAL),
            ("trim", TRIM, 0, 0, SIZE as u32, write),
            ("trim past the end", TRIM, 0, last, 1024, trim),
            ("zero", ZERO, 0, 4096, 4096, write),
            ("zero of nothing", ZERO, FUA, 4096, 0, write),
            ("zero without holes", ZERO, NO_HOLE | FUA, 8192, 4096, write),
            ("fast zero", ZERO, FAST_ZERO, 8192, 4096, write),
            ("zero past the end", ZERO, 0, last, 1024, grow),
            ("prefetch", CACHE, 0, 0, SIZE as u32, 0),
            ("status", STATUS, 0, 0, SIZE as u32, status),
            ("one status", STATUS, REQ_ONE, 0, 4096, status),
            ("status past the end", STATUS, 0, last, 4096, EINVAL),
            ("unknown type", 99, 0, 0, 512, EINVAL),
        ] {
            let payload = if kind == WRITE { vec![7; len as usize] } else { Vec::new() };
            let reply = client.ask(kind, flags, offset, len, &payload);
            let context = format!("{case}, read-only {read_only}, structured {structured}");
            assert_eq!(reply.errno, expected, "{context}: {}", reply.message);
            assert_eq!(expected != 0 && structured, !reply.message.is_empty(), "{context}: a reason where it fits");
            let must_be_structured = structured && (expected != 0 || matches!(kind, READ | STATUS));
            assert_eq!(reply.structured, must_be_structured, "{context}");
        }
        client.send(DISC, 0, 0, 0, &[]);
        assert!(client.is_closed());
    }
}

#[test]
fn a_random_life_agrees_with_the_model() {
    for structured in [true, false] {
        let disk = MemoryDisk::new(SIZE);
        let serving = Serving::new(disk.clone(), false);
        let mut clients = [serving.client(structured), serving.client(structured)];
        let mut model = vec![0; SIZE as usize];
        let mut random = Random(5);
        for round in 0..400 {
            // A write on one connection is seen on the other: that is what CAN_MULTI_CONN says.
            let client = &mut clients[random.below(2) as usize];
            let longest = if random.below(8) == 0 { 4000 } else { 64 };
            let len = 512 * (1 + random.below(longest));
            let offset = 512 * random.below((SIZE - len) / 512 + 1);
            let range = offset as usize..(offset + len) as usize;
            let flags = if random.below(4) == 0 { FUA } else { 0 };
            match random.below(5) {
                0 | 1 => {
                    let data = random.bytes(len as usize);
                    client.write(flags, offset, &data);
                    model[range].copy_from_slice(&data);
                }
                2 => {
                    let kind = if random.below(2) == 0 { TRIM } else { ZERO };
                    assert_eq!(client.ask(kind, flags, offset, len as u32, &[]).errno, 0);
                    model[range].fill(0);
                }
                _ => {
                    let flags = if structured && random.below(3) == 0 { DF } else { 0 };
                    let reply = client.ask(READ, flags, offset, len as u32, &[]);
                    assert!(flags != DF || reply.pieces.len() == 1, "round {round}: DF means one piece");
                    assert!(reply.content(offset, len as u32) == model[range], "round {round}: read");
                }
            }
        }
        assert!(disk.content() == model);
    }
}

#[test]
fn block_status_is_true_and_merged() {
    let disk = MemoryDisk::new(SIZE);
    let serving = Serving::new(disk, false);
    let mut client = serving.client(true);
    client.write(0, MIB, &vec![1; 3 * MIB as usize]);
    let whole = client.ask(STATUS, 0, 0, SIZE as u32, &[]).status;
    assert_eq!(whole, [(MIB as u32, 3), (3 * MIB as u32, 0), (4 * MIB as u32, 3)]);
    for (offset, len, expected) in
        [(0, 512, (512, 3)), (0, 2 * MIB, (MIB, 3)), (2 * MIB, 512, (512, 0)), (2 * MIB, 6 * MIB, (2 * MIB, 0))]
    {
        let one = client.ask(STATUS, REQ_ONE, offset, len as u32, &[]).status;
        assert_eq!(one, [(expected.0 as u32, expected.1)], "{len} bytes at {offset}");
    }
    assert_eq!(client.ask(TRIM, 0, MIB, MIB as u32, &[]).errno, 0);
    assert_eq!(client.ask(ZERO, NO_HOLE, 2 * MIB, MIB as u32, &[]).errno, 0);
    let whole = client.ask(STATUS, 0, 0, SIZE as u32, &[]).status;
    assert_eq!(whole, [(2 * MIB as u32, 3), (2 * MIB as u32, 0), (4 * MIB as u32, 3)], "NO_HOLE keeps the space");
}

#[test]
fn holes_are_named_and_not_sent() {
    let serving = Serving::new(MemoryDisk::new(SIZE), false);
    let mut client = serving.client(true);
    client.write(0, 0, &[1; 4096]);
    client.write(0, MIB - 4096, &[2; 4096]);
    let reply = client.ask(READ, 0, 0, MIB as u32, &[]);
    let kinds: Vec<_> = reply.pieces.iter().map(|(at, piece)| (*at, piece.as_ref().map(Vec::len))).collect();
    let hole = (MIB - 8192) as u32;
    assert_eq!(kinds, [(0, Ok(4096)), (4096, Err(&hole)), (MIB - 4096, Ok(4096))]);
}

#[test]
fn errors_concern_their_request_only() {
    let disk = MemoryDisk::new(SIZE);
    let serving = Serving::new(disk.clone(), false);
    let mut client = serving.client(true);
    client.write(0, 0, &[1; 4096]);
    client.write(0, MIB, &[2; 4096]);
    disk.bad_sector.store(MIB / 512 + 1, Ordering::SeqCst);
    let reply = client.ask(READ, 0, 0, 2 * MIB as u32, &[]);
    assert_eq!((reply.errno, reply.error_offset), (EIO, Some(MIB)));
    assert!(reply.message.contains("sector 2049"), "{}", reply.message);
    assert_eq!(reply.pieces[0], (0, Ok(vec![1; 4096])), "what could be read came first");
    let mut simple = serving.client(false);
    assert_eq!(simple.ask(READ, 0, MIB, 4096, &[]), Reply { cookie: 1, errno: EIO, ..Reply::default() });
    disk.fill_up();
    assert_eq!(client.ask(WRITE, 0, 4 * MIB, 512, &[3; 512]).errno, ENOSPC);
    for client in [&mut client, &mut simple] {
        client.write(0, 0, &[4; 512]);
        assert_eq!(client.read(0, 0, 512), [4; 512]);
    }
}

#[test]
fn writes_and_flushes_are_durable_when_they_must_be() {
    let disk = MemoryDisk::new(SIZE);
    let serving = Serving::new(disk.clone(), false);
    let mut client = serving.client(true);
    for (case, kind, flags, len, expected) in [
        ("write", WRITE, 0, 512, 0),
        ("write with FUA", WRITE, FUA, 512, 1),
        ("zero with FUA", ZERO, FUA, 512, 1),
        ("trim", TRIM, 0, 512, 0),
        ("read with FUA", READ, FUA, 512, 0),
        ("flush", FLUSH, 0, 0, 1),
    ] {
        let before = disk.flushes.load(Ordering::SeqCst);
        let payload = if kind == WRITE { vec![1; 512] } else { Vec::new() };
        assert_eq!(client.ask(kind, flags, 0, len, &payload).errno, 0, "{case}");
        assert_eq!(disk.flushes.load(Ordering::SeqCst) - before, expected, "{case}");
    }
}

#[test]
fn requests_run_side_by_side() {
    let disk = MemoryDisk::new(SIZE);
    let serving = Serving::new(disk.clone(), false);
    let mut client = serving.client(true);
    disk.hold_reads(true);
    let reads: Vec<u64> = (0..10).map(|index| client.send(READ, 0, index * 512, 512, &[])).collect();
    let flush = client.ask(FLUSH, 0, 0, 0, &[]);
    assert_eq!(flush.errno, 0, "a flush is not behind reads that wait");
    disk.hold_reads(false);
    let mut answered: Vec<u64> = reads.iter().map(|_| client.receive(512).cookie).collect();
    answered.sort_unstable();
    assert_eq!(answered, reads);
}

#[test]
fn refused_payload_is_skipped_and_absurd_payload_ends_the_connection() {
    let serving = Serving::new(MemoryDisk::new(SIZE), true);
    let mut client = serving.client(true);
    for len in [512, (32 << 20) + 512, 64 << 20] {
        let expected = if len > 32 << 20 { EINVAL } else { EPERM };
        assert_eq!(client.ask(WRITE, 0, 0, len, &vec![0; len as usize]).errno, expected, "{len} bytes");
    }
    client.send(WRITE, 0, 0, (64 << 20) + 1, &[]);
    assert!(client.is_closed());
    let mut client = serving.client(true);
    std::io::Write::write_all(&mut client.socket, &[0; 28]).unwrap();
    assert!(client.is_closed(), "what is no request ends the connection");
}

#[test]
fn a_request_may_come_in_pieces() {
    let serving = Serving::new(MemoryDisk::new(SIZE), false);
    let mut client = serving.client(false);
    let request = [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1][..], &[0; 16], &[0, 0, 2, 0], &[9; 512]].concat();
    for byte in request {
        std::io::Write::write_all(&mut client.socket, &[byte]).unwrap();
    }
    assert_eq!(client.receive(0).errno, 0);
    assert_eq!(client.read(0, 0, 1024), [vec![9; 512], vec![0; 512]].concat());
}

#[test]
fn random_bytes_never_stop_the_server() {
    let disk = MemoryDisk::new(SIZE);
    let serving = Serving::new(disk, false);
    let mut random = Random(77);
    for round in 0..200 {
        let mut client = serving.client(round % 2 == 0);
        for _ in 0..random.below(6) {
            // Half of them with the right magic: those are requests, of whatever kind.
            let mut bytes = random.bytes(28);
            if random.below(2) == 0 {
                bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
                bytes[6] = 0;
                bytes[7] %= 9;
            }
            if std::io::Write::write_all(&mut client.socket, &bytes).is_err() {
                break;
            }
        }
    }
    let mut client = serving.client(true);
    assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]).errno, 0);
}

#[test]
fn shutting_down_finishes_what_is_in_flight() {
    let disk = MemoryDisk::new(SIZE);
    let serving = Serving::new(disk.clone(), false);
    let socket = serving.socket();
    let mut client = serving.client(true);
    client.write(0, 0, &[5; 512]);
    disk.hold_reads(true);
    let cookie = client.send(READ, 0, 0, 512, &[]);
    // So that it is in flight, and not still in the socket, when the server begins to end.
    assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]).errno, 0);
    let flushes = disk.flushes.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let Serving { server, dir } = serving;
        let ending = scope.spawn(move || {
            server.shutdown(Duration::from_secs(10)).unwrap();
            drop(dir);
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!ending.is_finished(), "it waits for the read");
        disk.hold_reads(false);
        let reply = client.receive(512);
        assert_eq!((reply.cookie, reply.content(0, 512)), (cookie, vec![5; 512]));
        ending.join().unwrap();
    });
    assert_eq!(disk.flushes.load(Ordering::SeqCst), flushes + 1, "the device was flushed");
    assert!(client.is_closed());
    assert!(!socket.exists());
}

#[test]
fn requests_that_come_too_late_are_told_so() {
    let disk = MemoryDisk::new(SIZE);
    let options = ServerOptions { requests_per_connection: 1, ..ServerOptions::default() };
    let serving = Serving::with(disk.clone(), false, options);
    let mut client = serving.client(true);
    disk.hold_reads(true);
    client.send(READ, 0, 0, 512, &[]);
    std::thread::sleep(Duration::from_millis(50));
    // With one thread, which is busy, this one stays unread until the server ends.
    let late = client.send(WRITE, 0, 0, 512, &[1; 512]);
    std::thread::scope(|scope| {
        let Serving { server, dir: _dir } = serving;
        let ending = scope.spawn(move || server.shutdown(Duration::from_secs(10)));
        std::thread::sleep(Duration::from_millis(100));
        disk.hold_reads(false);
        assert_eq!(client.receive(512).errno, 0);
        let reply = client.receive(0);
        assert_eq!((reply.cookie, reply.errno), (late, ESHUTDOWN));
        ending.join().unwrap().unwrap();
    });
    assert_eq!(disk.content()[0], 0);
}

#[test]
fn grace_has_an_end() {
    let disk = MemoryDisk::new(SIZE);
    let serving = Serving::new(disk.clone(), true);
    let mut client = serving.client(true);
    disk.hold_reads(true);
    client.send(READ, 0, 0, 512, &[]);
    std::thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    let Serving { server, dir: _dir } = serving;
    server.shutdown(Duration::from_millis(200)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(client.is_closed());
    disk.hold_reads(false);
}

#[test]
fn slow_handshakes_and_too_many_connections_are_cut_off() {
    let options =
        ServerOptions { max_connections: 2, handshake_timeout: Duration::from_millis(200), ..ServerOptions::default() };
    let serving = Serving::with(MemoryDisk::new(SIZE), false, options);
    let mut good = serving.client(true);
    let connect = || std::os::unix::net::UnixStream::connect(serving.socket()).unwrap();
    let all_of = |mut stream: std::os::unix::net::UnixStream| {
        let mut seen = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut seen).unwrap();
        seen.len()
    };
    let silent = connect();
    std::thread::sleep(Duration::from_millis(50));
    // Who only connected makes room for who comes after.
    let third = connect();
    assert_eq!(all_of(silent), 18, "the greeting, and nothing more");
    assert_eq!(all_of(third), 18, "until the handshake has taken too long");
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(good.read(0, 0, 512), [0; 512], "after the handshake there is no hurry");
    let mut other = serving.client(true);
    assert_eq!(all_of(connect()), 0, "one too many: both others have agreed");
    assert_eq!((good.read(0, 0, 512), other.read(0, 0, 512)), (vec![0; 512], vec![0; 512]));
}

#[test]
fn only_this_machine_is_served_without_tls() {
    let Serving { mut server, dir: _dir } = Serving::new(MemoryDisk::new(SIZE), true);
    for address in ["0.0.0.0:0", "192.0.2.1:10809", "[::]:0"] {
        let refused = server.listen_tcp(address.parse().unwrap());
        assert!(matches!(refused, Err(ListenError::NeedsTls(_))), "{address}: {refused:?}");
    }
    let address = server.listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut greeting = [0; 18];
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    std::io::Read::read_exact(&mut socket, &mut greeting).unwrap();
    assert_eq!(&greeting[..8], b"NBDMAGIC");
}
