//! TLS: what QEMU's and libnbd's clients make of it, and who is sent away (spec A.9).
#![cfg(unix)]

#[path = "support/pki.rs"]
mod pki;
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd::{Export, Exports, ListenError, OnRefused, Server, ServerOptions, Tls, TlsError};
use pki::Pki;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use support::*;

const SIZE: u64 = 8 * MIB;
/// PEM of something else.
const NO_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

/// A server on a loopback address, and the certificates.
struct Place {
    _server: Server,
    address: SocketAddr,
    pki: Pki,
    dir: tempfile::TempDir,
}

impl Place {
    fn new(clients: bool, options: ServerOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new(&dir.path().join("pki"));
        let export = Export {
            name: "rp1/disk0".into(),
            description: "a test".into(),
            device: MemoryDisk::new(SIZE),
            read_only: false,
        };
        let tls = pki.tls(clients).unwrap();
        let mut server = Server::start_with_tls(Exports::new([export]).unwrap(), options, Some(tls));
        let address = server.listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { _server: server, address, pki, dir }
    }

    /// In the clear, after the greeting.
    fn connect(&self) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.read_exact(&mut [0; 18]).unwrap();
        socket.write_all(&[0, 0, 0, 3]).unwrap();
        socket
    }

    /// After the handshake of TLS, with the certificates in `dir`.
    fn secured(&self, dir: &Path, certificate: bool) -> StreamOwned<ClientConnection, TcpStream> {
        let mut socket = self.connect();
        socket.write_all(&option(5, &[])).unwrap();
        assert_eq!(answer(&mut socket), (5, 1));
        let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&self.pki.read("ca-cert.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots);
        let config = match certificate {
            false => config.with_no_client_auth(),
            true => {
                let own = CertificateDer::from_pem_slice(&read("client-cert.pem")).unwrap();
                let key = PrivateKeyDer::from_pem_slice(&read("client-key.pem")).unwrap();
                config.with_client_auth_cert(vec![own], key).unwrap()
            }
        };
        let name = ServerName::try_from("localhost").unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket)
    }

    fn uri(&self, scheme: &str, more: &str) -> String {
        format!("{scheme}://{}/rp1%2Fdisk0{more}", self.address)
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// Option and type of an answer, without its data.
fn answer(socket: &mut impl std::io::Read) -> (u32, u32) {
    let mut header = [0; 20];
    socket.read_exact(&mut header).unwrap();
    let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    socket.read_exact(&mut vec![0; field(16) as usize]).unwrap();
    (field(8), field(12))
}

/// Whether the other side has ended the connection, by whatever means, without another byte.
fn is_over(socket: &mut impl std::io::Read) -> bool {
    match socket.read(&mut [0; 64]) {
        Ok(read) => read == 0,
        Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Whether a peer is there and knows TLS; else the line that says what was skipped.
fn knows_tls(test: &str) -> bool {
    let nbdinfo = Command::new("nbdinfo").arg("--version").output();
    let qemu = Command::new("qemu-img").args(["info", "--object", "tls-creds-x509,help"]).output();
    match (nbdinfo, qemu) {
        (Ok(_), Ok(qemu)) if said(&qemu).contains("verify-peer") => return true,
        (Ok(_), Ok(_)) => eprintln!("SKIPPED {test}: this qemu-img knows no TLS"),
        _ => eprintln!("SKIPPED {test}: nbdinfo or qemu-img is not installed"),
    }
    false
}

/// Spec E.1, the lines of TLS.
#[test]
fn peers_are_served_over_tls_and_not_without() {
    if !knows_tls("peers_are_served_over_tls_and_not_without") {
        return;
    }
    let place = Place::new(true, ServerOptions::default());
    let other = Pki::new(&place.dir.path().join("other"));
    let strangers = place.dir.path().join("strangers");
    // Knows the server's authority, has another's certificate; and one that has none.
    let nobody = place.dir.path().join("nobody");
    for dir in [&strangers, &nobody] {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::copy(place.pki.dir.join("ca-cert.pem"), dir.join("ca-cert.pem")).unwrap();
    }
    for name in ["client-cert.pem", "client-key.pem"] {
        std::fs::copy(other.dir.join(name), strangers.join(name)).unwrap();
    }
    let nbdinfo = |dir: &Path| {
        let certificates = format!("?tls-certificates={}", dir.display());
        run(Command::new("nbdinfo").arg(place.uri("nbds", &certificates)))
    };
    let qemu = |program: &str, dir: &Path, arguments: &[&str]| {
        let credentials = format!("tls-creds-x509,id=t0,dir={},endpoint=client,verify-peer=on", dir.display());
        let image = format!(
            "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={},export=rp1/disk0,tls-creds=t0",
            place.address.port()
        );
        let mut command = Command::new(program);
        match program {
            "qemu-img" => {
                let image = [&[&image[..]], arguments].concat().join(",");
                command.args(["info", "--object", &credentials, "--image-opts", &image])
            }
            _ => command.args(["--object", &credentials, "--image-opts", &image]).args(arguments),
        };
        run(&mut command)
    };
    let info = nbdinfo(&place.pki.dir);
    assert!(info.status.success() && said(&info).contains("with TLS"), "{}", said(&info));
    let info = qemu("qemu-img", &place.pki.dir, &[]);
    assert!(info.status.success() && said(&info).contains("8 MiB"), "{}", said(&info));
    let io = ["-c", "write -P 0x5a 512 1M", "-c", "aio_read 0 4M", "-c", "aio_read 4M 4M", "-c", "aio_flush"];
    let io = qemu("qemu-io", &place.pki.dir, &[&io[..], &["-c", "flush", "-c", "read -P 0x5a 512 1M"]].concat());
    assert!(io.status.success() && !said(&io).contains("failed"), "{}", said(&io));

    for (case, refused) in [
        ("in the clear", run(Command::new("nbdinfo").arg(place.uri("nbd", "")))),
        ("in the clear, QEMU", run(Command::new("qemu-img").args(["info", "-f", "raw", &place.uri("nbd", "")]))),
        ("a server of another authority", nbdinfo(&other.dir)),
        ("a server of another authority, QEMU", qemu("qemu-img", &other.dir, &[])),
        ("another name, QEMU", qemu("qemu-img", &place.pki.dir, &["tls-hostname=e3.invalid"])),
        ("a client of another authority", nbdinfo(&strangers)),
        ("a client of another authority, QEMU", qemu("qemu-img", &strangers, &[])),
        ("a client without a certificate", nbdinfo(&nobody)),
        ("a client without a certificate, QEMU", qemu("qemu-img", &nobody, &[])),
    ] {
        assert!(!refused.status.success(), "{case}: {}", said(&refused));
    }
    let info = nbdinfo(&place.pki.dir);
    assert!(info.status.success(), "and others are still served: {}", said(&info));
}

#[test]
fn nothing_is_told_or_done_before_the_handshake() {
    let place = Place::new(true, ServerOptions::default());
    let mut socket = place.connect();
    for number in [3, 6, 7, 8, 9, 10, 99] {
        socket.write_all(&option(number, &[])).unwrap();
        assert_eq!(answer(&mut socket), (number, 0x8000_0005), "option {number}");
    }
    socket.write_all(&option(1, b"rp1/disk0")).unwrap();
    assert!(is_over(&mut socket), "the oldest option");

    // The client's words ahead of its TLS: somebody else's, perhaps.
    let mut socket = place.connect();
    socket
        .write_all(&[option(5, &[]), option(7, &[&[0, 0, 0, 9], &b"rp1/disk0"[..], &[0, 0]].concat())].concat())
        .unwrap();
    assert!(is_over(&mut socket), "an option behind STARTTLS, in the clear");

    // The same after the ACK is no TLS.
    let mut socket = place.connect();
    socket.write_all(&option(5, &[])).unwrap();
    assert_eq!(answer(&mut socket), (5, 1));
    socket.write_all(&option(3, &[])).unwrap();
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _ = socket.read_to_end(&mut rest);
    assert!(!rest.windows(9).any(|window| window == b"rp1/disk0"), "{rest:?}");

    let mut client = place.secured(&place.pki.dir, false);
    // TLS 1.3 lets the client find out at its first words.
    let sent = client.write_all(&option(3, &[])).and_then(|()| client.flush());
    assert!(sent.is_err() || is_over(&mut client), "no certificate");
}

#[test]
fn a_client_with_a_certificate_reads_and_writes_and_is_told_the_end() {
    for clients in [true, false] {
        let place = Place::new(clients, ServerOptions::default());
        let mut client = place.secured(&place.pki.dir, clients);
        client.write_all(&option(5, &[])).unwrap();
        assert_eq!(answer(&mut client), (5, 0x8000_0003), "TLS within TLS");
        client.write_all(&option(7, &[&[0, 0, 0, 9], &b"rp1/disk0"[..], &[0, 0]].concat())).unwrap();
        while answer(&mut client) != (7, 1) {}
        let request = |kind: u16, cookie: u64, offset: u64, len: u32| {
            let head = [&[0x25, 0x60, 0x95, 0x13, 0, 0][..], &kind.to_be_bytes(), &cookie.to_be_bytes()].concat();
            [&head[..], &offset.to_be_bytes(), &len.to_be_bytes()].concat()
        };
        let data = Random(7).bytes(3 << 20);
        client.write_all(&[&request(WRITE, 1, 4096, 3 << 20), &data[..]].concat()).unwrap();
        let mut reply = [0; 16];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(reply, [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &1_u64.to_be_bytes()].concat()[..]);
        // Several at once: replies come whole, in any order.
        for cookie in 10..26 {
            client.write_all(&request(READ, cookie, 4096 + (cookie - 10) * 65536, 65536)).unwrap();
        }
        for _ in 10..26 {
            client.read_exact(&mut reply).unwrap();
            let nth = (u64::from_be_bytes(reply[8..].try_into().unwrap()) - 10) as usize;
            let mut read = vec![0; 65536];
            client.read_exact(&mut read).unwrap();
            assert!(read == data[nth * 65536..][..65536], "part {nth}");
        }
        client.write_all(&request(DISC, 99, 0, 0)).unwrap();
        // Without the notice this is an error of rustls, as it is one of QEMU and libnbd.
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "close_notify");
    }
}

/// Nobody waits for a client that does not come to an end with its handshake.
#[test]
fn a_handshake_that_stalls_is_cut_off() {
    let options = ServerOptions { tls_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let place = Place::new(true, options);
    let mut socket = place.connect();
    socket.write_all(&option(5, &[])).unwrap();
    assert_eq!(answer(&mut socket), (5, 1));
    let begun = Instant::now();
    // A record that is announced and never comes.
    socket.write_all(&[22, 3, 1, 0x10, 0]).unwrap();
    assert!(is_over(&mut socket));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// Nor for one that sends a record a byte at a time after it.
#[test]
fn a_handshake_that_trickles_is_cut_off() {
    let options = ServerOptions { handshake_timeout: Duration::from_secs(3), ..ServerOptions::default() };
    let place = Place::new(false, options);
    let mut client = place.secured(&place.pki.dir, false);
    client.write_all(&option(5, &[])).unwrap();
    assert_eq!(answer(&mut client), (5, 0x8000_0003), "the handshake of TLS is over");
    let (mut session, mut socket) = client.into_parts();
    session.writer().write_all(&option(9, &[0; 1000])).unwrap();
    let mut record = Vec::new();
    session.write_tls(&mut record).unwrap();
    let begun = Instant::now();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    for byte in record {
        if socket.write_all(&[byte]).is_err() || is_over(&mut socket) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "it goes on and on");
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("all of it was taken");
}

/// The operator of the server learns why nobody comes in.
#[test]
fn who_is_sent_away_is_told_of() {
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tells = told.clone();
    let on_refused = OnRefused::new(move |error| tells.lock().unwrap().push(error.to_string()));
    let place = Place::new(true, ServerOptions { on_refused, ..ServerOptions::default() });
    let mut nobody = place.secured(&place.pki.dir, false);
    let sent = nobody.write_all(&option(3, &[])).and_then(|()| nobody.flush());
    assert!(sent.is_err() || is_over(&mut nobody), "no certificate");
    let mut welcome = place.secured(&place.pki.dir, true);
    welcome.write_all(&option(2, &[])).unwrap();
    assert_eq!(answer(&mut welcome), (2, 1));
    drop(welcome);
    let told = told.lock().unwrap();
    assert!(told.len() == 1 && told[0].contains("certificate"), "{told:?}");
}

#[test]
fn other_machines_are_served_only_when_they_prove_who_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let other = Pki::new(&dir.path().join("other"));
    for (clients, served) in [(false, false), (true, true)] {
        let tls = Some(pki.tls(clients).unwrap());
        let mut server = Server::start_with_tls(Exports::default(), ServerOptions::default(), tls);
        let listening = server.listen_tcp("0.0.0.0:0".parse().unwrap());
        assert_eq!(listening.is_ok(), served, "{listening:?}");
        assert!(served || matches!(listening, Err(ListenError::NeedsTls(_))));
    }
    let (certificate, key) = (pki.read("server-cert.pem"), pki.read("server-key.pem"));
    for (case, made, kind) in [
        ("no certificate", Tls::new(b"", &key, None), "Certificates"),
        ("a key as certificate", Tls::new(&key, &key, None), "Certificates"),
        ("a certificate as key", Tls::new(&certificate, &certificate, None), "Key"),
        ("an authority that is no certificate", Tls::new(&certificate, &key, Some(NO_CERTIFICATE)), "Authorities"),
        ("no authority", Tls::new(&certificate, &key, Some(b"x")), "Authorities"),
        ("another's key", Tls::new(&certificate, &other.read("server-key.pem"), None), "Refused"),
    ] {
        let kind_of = |error: TlsError| format!("{error:?}").split(['(', ' ']).next().unwrap_or_default().to_owned();
        assert_eq!(made.map_err(kind_of).err().as_deref(), Some(kind), "{case}");
    }
}
