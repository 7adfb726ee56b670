//! The server over sockets: threads, several initiators, and those that misbehave.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use iscsi::{ListenError, Server, ServerOptions, TargetError, TargetOptions, Targets};
use support::client::*;
use support::held::Held;
use support::*;

fn serve(device: Arc<Held>) -> Serving {
    Serving::new(device, THICK_512N, None, 0)
}

const DIGESTS: [(&str, &str); 2] = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")];

#[test]
fn digests_guard_headers_and_data() {
    let serving = Serving::memory(MIB, THICK_512N);
    let mut client = Client::ready(serving.address, "guest", &DIGESTS);
    client.write(3, &[7; 1024]);
    assert_eq!(client.receive().verdict(), (0, 0, 0));
    client.read(3, 2);
    let received = client.receive();
    assert_eq!((received.verdict(), &received.data[..]), ((0, 0, 0), &[7; 1024][..]));

    // Wrong data fails its command, and the connection goes on.
    let mut header = client.command_header(0x20, 512, &cdb10(0x2A, 3, 1));
    header[5..8].copy_from_slice(&[0, 2, 0]);
    let mut bytes = client.framed(header, &[9; 512]);
    bytes[48 + 4 + 100] ^= 1;
    client.socket.write_all(&bytes).unwrap();
    assert_eq!(client.receive().verdict(), (2, 0x0B, 0x4705));
    // The same of a ping.
    let mut header = client.request(0x00, 0);
    header[7] = 4;
    let mut bytes = client.framed(header, b"ping");
    bytes[48 + 4] ^= 1;
    client.socket.write_all(&bytes).unwrap();
    let reject = client.receive();
    assert_eq!((reject.opcode(), reject.header[2]), (0x3F, 2));
    client.read(3, 1);
    assert_eq!(client.receive().data, [7; 512]);

    // A wrong header ends it.
    let header = client.request(0x00, 0);
    let mut bytes = client.framed(header, &[]);
    bytes[20] ^= 1;
    client.socket.write_all(&bytes).unwrap();
    assert!(client.is_closed());
}

#[test]
fn a_segment_longer_than_agreed_ends_the_connection() {
    let serving = Serving::memory(MIB, THICK_512N);
    let mut client = Client::ready(serving.address, "guest", &[]);
    let mut header = client.request(0x00, 0);
    header[5..8].copy_from_slice(&[4, 0, 1]);
    client.socket.write_all(&header).unwrap();
    assert!(client.is_closed());
    // Before the login it is shorter.
    let mut socket = TcpStream::connect(serving.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut header = [0; 48];
    (header[0], header[1]) = (0x43, 0x87);
    header[5..8].copy_from_slice(&[0, 0x20, 1]);
    socket.write_all(&header).unwrap();
    assert_eq!(socket.read(&mut [0; 1]).unwrap_or(0), 0);
}

/// However many commands wait for the device, pings are answered, and nothing is lost.
#[test]
fn pings_are_answered_while_the_disk_stalls() {
    let disk = Held::new(4 * MIB);
    let serving = serve(disk.clone());
    let mut client = Client::ready(serving.address, "guest", &[]);
    disk.hold(true);
    let mut reads: BTreeSet<u32> = (0..40).map(|first| client.read(first, 1)).collect();
    disk.wait_for(8);
    for _ in 0..3 {
        let ping = client.ping();
        let answer = client.receive();
        assert_eq!((answer.opcode(), answer.tag(), &answer.data[..]), (0x20, ping, &b"ping"[..]));
    }
    assert_eq!(disk.waiting.load(Ordering::SeqCst), 8, "as many as there may be at once");
    disk.hold(false);
    while !reads.is_empty() {
        let answer = client.receive();
        assert_eq!(answer.verdict(), (0, 0, 0));
        assert!(reads.remove(&answer.tag()), "each once");
    }
}

/// A reset by one initiator ends what another has running; its answer waits for that.
#[test]
fn a_reset_reaches_every_session_and_waits_for_the_disk() {
    let disk = Held::new(MIB);
    let serving = serve(disk.clone());
    let mut alice = Client::ready(serving.address, "alice", &[]);
    let mut bob = Client::ready(serving.address, "bob", &[]);
    disk.hold(true);
    bob.read(0, 1);
    disk.wait_for(1);
    // Waits for its data, and will for ever.
    bob.command(0x20, 512, &cdb10(0x2A, 0, 1), &[]);
    assert_eq!(bob.receive().opcode(), 0x31);
    let reset = alice.manage(5);
    let ping = alice.ping();
    assert_eq!(alice.receive().tag(), ping, "the reset is not done");
    disk.hold(false);
    let done = alice.receive();
    assert_eq!((done.opcode(), done.tag(), done.header[2]), (0x22, reset, 0));
    for client in [&mut alice, &mut bob] {
        let tag = client.command(0, 0, &[0; 6], &[]);
        let news = client.receive();
        assert_eq!(
            (news.tag(), news.verdict()),
            (tag, (2, 6, 0x2903)),
            "and nothing of the commands that were stopped"
        );
    }
}

#[test]
fn a_cold_reset_closes_every_connection() {
    let serving = Serving::memory(MIB, THICK_512N);
    let mut alice = Client::ready(serving.address, "alice", &[]);
    let mut bob = Client::ready(serving.address, "bob", &[]);
    let reset = alice.manage(7);
    let done = alice.receive();
    assert_eq!((done.tag(), done.header[2]), (reset, 0));
    assert!(alice.is_closed() && bob.is_closed());
    Client::ready(serving.address, "alice", &[]);
}

/// A client that was killed comes back: its former session ends, and with it what that had reserved and had running.
#[test]
fn a_new_session_takes_the_place_of_the_former() {
    let disk = Held::new(MIB);
    let serving = serve(disk.clone());
    let mut former = Client::ready(serving.address, "guest", &[]);
    former.command(0, 0, &[0x16, 0, 0, 0, 0, 0], &[]);
    assert_eq!(former.receive().verdict(), (0, 0, 0));
    let mut other = Client::ready(serving.address, "other", &[]);
    other.read(0, 1);
    assert_eq!(other.receive().verdict(), (0x18, 0, 0), "it is reserved");
    disk.hold(true);
    former.write(0, &[1; 512]);
    disk.wait_for(1);
    former.write(0, &[2; 512]);
    let release = {
        let disk = disk.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            disk.hold(false);
        })
    };
    let begun = Instant::now();
    let mut new = Client::ready(serving.address, "guest", &[]);
    assert!(begun.elapsed() >= Duration::from_millis(250), "the former's write was waited for");
    release.join().unwrap();
    new.write(0, &[3; 512]);
    assert_eq!(new.receive().verdict(), (0, 0, 0));
    assert!(former.is_closed());
    other.read(0, 1);
    let read = other.receive();
    assert_eq!((read.verdict(), read.data[0]), ((0, 0, 0), 3), "no longer reserved, and nothing old came after");
}

#[test]
fn who_takes_no_answers_harms_nobody() {
    let serving = Serving::memory(64 * MIB, THICK_512N);
    let mut silent = Client::ready(serving.address, "silent", &[]);
    for _ in 0..60 {
        silent.read(0, 8192);
    }
    // Resets reach it, too, and wait for nobody.
    let mut busy = Client::ready(serving.address, "busy", &[]);
    let begun = Instant::now();
    for round in 0..200 {
        busy.write(round, &[round as u8; 512]);
        assert_eq!(busy.receive().verdict(), (0, 0, 0));
        busy.read(round, 1);
        assert_eq!(busy.receive().data, [round as u8; 512]);
    }
    busy.log_out();
    assert_eq!(busy.receive().opcode(), 0x26);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// Immediate data is bounded by the window, and data that is asked for by the room there is.
#[test]
fn floods_are_bounded() {
    let disk = Held::new(64 * MIB);
    let serving = serve(disk.clone());
    let keys = [("FirstBurstLength", "262144"), ("MaxBurstLength", "1048576")];
    let mut client = Client::ready(serving.address, "guest", &keys);
    disk.hold(true);
    let data = vec![1; 262_144];
    // 16 MiB in 64 commands; the others are not even looked at.
    for _ in 0..70 {
        client.write(0, &data);
    }
    let mut ping = client.request(0x40, 0);
    ping[24..28].copy_from_slice(&[0; 4]);
    client.send(ping, &[]).unwrap();
    let answer = client.receive();
    assert_eq!(answer.opcode(), 0x20);
    assert_eq!(answer.u32(32).wrapping_add(1), answer.u32(28), "the window is shut");
    disk.hold(false);
    let answered: BTreeSet<u32> = (0..64).map(|_| client.receive().tag()).collect();
    assert_eq!(answered.len(), 64);

    // 40 MiB of data announced, and 32 MiB asked for.
    let mut client = Client::ready(serving.address, "greedy", &[("ImmediateData", "No")]);
    for _ in 0..40 {
        client.command(0x20, 1 << 20, &cdb10(0x2A, 0, 2048), &[]);
    }
    client.ping();
    let mut asked = 0;
    while client.receive().opcode() == 0x31 {
        asked += 1;
    }
    assert_eq!(asked, 32);
}

#[test]
fn a_login_that_takes_too_long_is_cut_off() {
    let target = TargetOptions { name: TARGET.into(), ..Default::default() };
    let options = ServerOptions { login_timeout: Duration::from_millis(400), ..Default::default() };
    let mut server = Server::start(Targets::new([target], None).unwrap(), options);
    let address = server.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let begun = Instant::now();
    let mut socket = TcpStream::connect(address).unwrap();
    // A byte at a time: each is in time, all of them are not.
    while socket.write_all(&[0x43]).is_ok() && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn connections_are_bounded() {
    let target = TargetOptions { name: TARGET.into(), ..Default::default() };
    let options = ServerOptions { max_connections: 2, ..Default::default() };
    let mut server = Server::start(Targets::new([target], None).unwrap(), options);
    let address = server.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut first = Client::log_in(address, "one", &[]);
    let _second = Client::log_in(address, "two", &[]);
    let mut third = TcpStream::connect(address).unwrap();
    third.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(third.read(&mut [0; 1]).unwrap_or(0), 0, "closed");
    first.log_out();
    assert_eq!(first.receive().opcode(), 0x26);
    assert!(first.is_closed());
    // The server takes note of it in its own time.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        match socket.read(&mut [0; 1]) {
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                return;
            }
            _ => {}
        }
    }
    panic!("the place of the first is not free");
}

/// A stop is announced; commands in progress end, their data is flushed, and who does not leave is cut off.
#[test]
fn a_stop_lets_commands_end_and_flushes() {
    let disk = Held::new(MIB);
    let serving = serve(disk.clone());
    let address = serving.address;
    let mut polite = Client::ready(address, "polite", &[]);
    let mut deaf = Client::ready(address, "deaf", &[]);
    disk.hold(true);
    polite.write(0, &[5; 512]);
    disk.wait_for(1);
    let stop = std::thread::spawn(move || serving.server.shutdown(Duration::from_secs(2)));
    let notice = polite.receive();
    assert_eq!((notice.opcode(), notice.header[36], notice.header[43]), (0x32, 1, 2), "log out within 2 s");
    assert_eq!(deaf.receive().opcode(), 0x32);
    // Nobody comes in, whether the connection is refused or closed.
    if let Ok(mut late) = TcpStream::connect(address) {
        late.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(late.read(&mut [0; 1]).unwrap_or(0), 0);
    }
    polite.log_out();
    disk.hold(false);
    assert_eq!(polite.receive().verdict(), (0, 0, 0), "the write ends before the answer to the logout");
    assert_eq!(polite.receive().opcode(), 0x26);
    assert!(polite.is_closed());
    stop.join().unwrap().unwrap();
    assert!(deaf.is_closed());
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
}

/// A target is taken away from one initiator while another goes on with its own, and comes back.
#[test]
fn targets_come_and_go() {
    const OTHER: &str = "iqn.2026-01.test:other";
    let serving = Serving::memory(MIB, THICK_512N);
    let disk = Held::new(MIB);
    let other = || TargetOptions {
        name: OTHER.into(),
        units: vec![(0, disk.clone(), options(THICK_512N, b"other"))],
        ..TargetOptions::default()
    };
    let names_other = [("TargetName", OTHER)];
    assert_eq!(Client::log_in_to(serving.address, "guest", &names_other).status, 0x0203);
    serving.server.add(other()).unwrap();
    assert!(matches!(serving.server.add(other()), Err(TargetError::SameName(_))));
    let mut stays = Client::ready(serving.address, "guest", &[]);
    let mut goes = Client::log_in_to(serving.address, "guest", &names_other);
    assert_eq!(goes.status, 0);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| serving.server.remove(OTHER, Duration::from_secs(1)));
        assert_eq!(goes.receive().opcode(), 0x32);
        assert_eq!(Client::log_in_to(serving.address, "guest", &names_other).status, 0x0301, "on its way out");
        assert!(goes.is_closed(), "it did not leave by itself");
        assert!(removal.join().unwrap().unwrap());
    });
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
    assert_eq!(Client::log_in_to(serving.address, "guest", &names_other).status, 0x0203);
    assert!(!serving.server.remove(OTHER, Duration::ZERO).unwrap(), "there is none");
    stays.read(0, 1);
    assert_eq!(stays.receive().verdict(), (0, 0, 0));
    serving.server.add(other()).unwrap();
    assert_eq!(Client::log_in_to(serving.address, "guest", &names_other).status, 0);
}

#[test]
fn other_machines_need_a_login() {
    let everywhere = "0.0.0.0:0".parse().unwrap();
    for (login, discovery, listens) in
        [(false, false, false), (true, false, false), (false, true, false), (true, true, true)]
    {
        let target = TargetOptions {
            name: TARGET.into(),
            authentication: login.then(mutual),
            units: vec![],
            ..Default::default()
        };
        let targets = Targets::new([target], discovery.then(mutual)).unwrap();
        let mut server = Server::start(targets, ServerOptions::default());
        match server.listen(everywhere) {
            Ok(_) => {
                assert!(listens);
                let open = TargetOptions { name: format!("{TARGET}.2"), ..Default::default() };
                assert!(matches!(server.add(open), Err(TargetError::NeedsLogin(_))), "none comes in later");
            }
            Err(ListenError::NeedsLogin(_)) => assert!(!listens),
            Err(other) => panic!("{other}"),
        }
    }
}
