//! An iSCSI initiator, as much of one as the host needs: it logs in with CHAP over TCP, finds units and reads them.
//!
//! It is real on the wire (RFC 7143), so that what a VM reads from a volume of the program under test has gone through the
//! program's own target. One connection, one command at a time, no writes.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Mutex;
use std::time::Duration;

use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

/// The host's name among initiators.
const NAME: &str = "iqn.1991-05.com.microsoft:labhost";
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Bytes that one command reads at most.
const READ_BYTES: usize = 256 << 10;
/// An answer with more data than this is no answer to us.
const MOST_DATA: usize = 1 << 20;
const NO_TAG: u32 = u32::MAX;

/// Where a target is and how to log in to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Login {
    pub(crate) address: String,
    pub(crate) port: u16,
    /// `None` to list targets.
    pub(crate) target: Option<String>,
    /// User and secret.
    pub(crate) chap: Option<(String, String)>,
}

/// Why there is no session.
#[derive(Debug)]
pub(crate) enum LoginError {
    /// Nobody listens, or the connection broke.
    Connection(io::Error),
    /// Status class and detail of the target (RFC 7143 11.13.5).
    Refused(u8, u8),
}

impl From<io::Error> for LoginError {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

impl Login {
    /// Whether anybody listens there now.
    pub(crate) fn answers(&self) -> bool {
        self.connect().is_ok()
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut found = (self.address.as_str(), self.port).to_socket_addrs()?;
        let address = found.next().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        TcpStream::connect_timeout(&address, CONNECT_WITHIN)
    }
}

/// A connection in full feature phase.
pub(crate) struct Link {
    socket: TcpStream,
    cmd_sn: u32,
    stat_sn: u32,
    tag: u32,
}

struct Pdu {
    header: [u8; 48],
    data: Vec<u8>,
}

/// What a unit says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnitFacts {
    /// VPD page 80.
    pub(crate) serial: String,
    /// The NAA designator of VPD page 83, in hexadecimal digits.
    pub(crate) unique_id: String,
    pub(crate) block_bytes: u32,
    pub(crate) size_bytes: u64,
}

impl Link {
    pub(crate) fn log_in(login: &Login) -> Result<Self, LoginError> {
        let socket = login.connect()?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        socket.set_nodelay(true)?;
        let mut link = Self { socket, cmd_sn: 1, stat_sn: 0, tag: 1 };
        let random: [u8; 5] = random::bytes();
        let session = [0x80, random[0], random[1], random[2], random[3], random[4]];
        let kind = if login.target.is_some() { "Normal" } else { "Discovery" };
        let mut who = vec![("InitiatorName", NAME.to_owned()), ("SessionType", kind.to_owned())];
        who.extend(login.target.iter().map(|target| ("TargetName", target.clone())));
        match &login.chap {
            None => {
                who.push(("AuthMethod", "None".into()));
                link.login_step(session, 0x81, &who)?;
            }
            Some((user, secret)) => {
                who.push(("AuthMethod", "CHAP".into()));
                link.login_step(session, 0x00, &who)?;
                let challenge = link.login_step(session, 0x00, &[("CHAP_A", "5".into())])?;
                let response = chap_response(&challenge, secret)?;
                link.login_step(session, 0x81, &[("CHAP_N", user.clone()), ("CHAP_R", response)])?;
            }
        }
        let numbers = [
            ("HeaderDigest", "None".to_owned()),
            ("DataDigest", "None".to_owned()),
            ("MaxRecvDataSegmentLength", READ_BYTES.to_string()),
            ("MaxBurstLength", READ_BYTES.to_string()),
        ];
        link.login_step(session, 0x87, &numbers)?;
        Ok(link)
    }

    fn login_step(
        &mut self,
        session: [u8; 6],
        flags: u8,
        keys: &[(&str, String)],
    ) -> Result<Vec<(String, String)>, LoginError> {
        let text: Vec<u8> = keys.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect();
        let mut header = [0; 48];
        (header[0], header[1]) = (0x43, flags);
        header[8..14].copy_from_slice(&session);
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(header, &text)?;
        let answer = self.receive()?;
        if answer.header[0] & 0x3F != 0x23 {
            return Err(io::Error::other("the target does not answer a login").into());
        }
        match (answer.header[36], answer.header[37]) {
            (0, _) => {}
            (class, detail) => return Err(LoginError::Refused(class, detail)),
        }
        self.stat_sn = number(&answer.header, 24);
        // A step that shall lead on has led on.
        if flags & 0x80 != 0 && answer.header[1] & 0x80 == 0 {
            return Err(io::Error::other("the target does not go on with the login").into());
        }
        Ok(pairs(&answer.data))
    }

    /// Names of the targets, of a session that lists them.
    pub(crate) fn targets(&mut self) -> io::Result<Vec<String>> {
        let mut header = self.request(0x04);
        header[20..24].copy_from_slice(&NO_TAG.to_be_bytes());
        self.send(header, b"SendTargets=All\0")?;
        loop {
            let answer = self.receive()?;
            if answer.header[0] & 0x3F == 0x24 {
                let found = pairs(&answer.data).into_iter();
                return Ok(found.filter(|(key, _)| key == "TargetName").map(|(_, name)| name).collect());
            }
        }
    }

    /// Numbers of the units (REPORT LUNS).
    pub(crate) fn units(&mut self) -> io::Result<Vec<u8>> {
        let list = self.command(0, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0], 4096)?;
        let entries = list.get(8..).unwrap_or_default().chunks_exact(8);
        Ok(entries.map(|entry| entry[1]).collect())
    }

    /// INQUIRY and READ CAPACITY(16).
    pub(crate) fn facts(&mut self, unit: u8) -> io::Result<UnitFacts> {
        let short = || io::Error::other("the target's answer is too short");
        let serial = self.command(unit, &[0x12, 1, 0x80, 0, 255, 0], 255)?;
        let serial = String::from_utf8_lossy(serial.get(4..).ok_or_else(short)?).trim().to_owned();
        let page = self.command(unit, &[0x12, 1, 0x83, 0, 255, 0], 255)?;
        let mut rest = page.get(4..).ok_or_else(short)?;
        let mut unique_id = String::new();
        while rest.len() >= 4 {
            let (head, content) = rest.split_at(4);
            let content = content.get(..usize::from(head[3])).ok_or_else(short)?;
            if head[1] & 0x3F == 0x03 {
                unique_id = content.iter().map(|byte| format!("{byte:02X}")).collect();
            }
            rest = &rest[4 + content.len()..];
        }
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x9E, 0x10, 32);
        let capacity = self.command(unit, &cdb, 32)?;
        let last = u64::from_be_bytes(capacity.get(..8).ok_or_else(short)?.try_into().expect("8 bytes"));
        let block_bytes = u32::from_be_bytes(capacity.get(8..12).ok_or_else(short)?.try_into().expect("4 bytes"));
        if !matches!(block_bytes, 512 | 4096) {
            return Err(io::Error::other("blocks of an odd size"));
        }
        let size_bytes = last.saturating_add(1).saturating_mul(block_bytes.into());
        Ok(UnitFacts { serial, unique_id, block_bytes, size_bytes })
    }

    /// Reads whole blocks.
    fn read(&mut self, unit: u8, block_bytes: u32, first: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut at = first;
        for piece in buf.chunks_mut(READ_BYTES) {
            let blocks = (piece.len() / block_bytes as usize) as u32;
            let mut cdb = [0; 16];
            cdb[0] = 0x88;
            cdb[2..10].copy_from_slice(&at.to_be_bytes());
            cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
            let data = self.command(unit, &cdb, piece.len())?;
            if data.len() != piece.len() {
                return Err(io::Error::other(format!("{} bytes for a read of {}", data.len(), piece.len())));
            }
            piece.copy_from_slice(&data);
            at += u64::from(blocks);
        }
        Ok(())
    }

    /// A command that answers with data; once more after a unit attention, which every new session begins with.
    fn command(&mut self, unit: u8, cdb: &[u8], expected: usize) -> io::Result<Vec<u8>> {
        for _ in 0..8 {
            let (status, data) = self.one_command(unit, cdb, expected)?;
            match status {
                0 => return Ok(data),
                // Unit attention, or busy for a moment.
                2 if data.get(4).is_some_and(|key| key & 0x0F == 6) => {}
                8 => std::thread::sleep(Duration::from_millis(50)),
                _ => {
                    let key = data.get(4).copied().unwrap_or_default() & 0x0F;
                    return Err(io::Error::other(format!("the target answers with status {status}, sense key {key}")));
                }
            }
        }
        Err(io::Error::from(io::ErrorKind::TimedOut))
    }

    /// Status, and the data, or with a status of 2 the sense (with its length before it).
    fn one_command(&mut self, unit: u8, cdb: &[u8], expected: usize) -> io::Result<(u8, Vec<u8>)> {
        let mut header = self.request(0x01);
        header[1] = 0xC0;
        header[9] = unit;
        header[20..24].copy_from_slice(&(expected as u32).to_be_bytes());
        header[32..32 + cdb.len()].copy_from_slice(cdb);
        let tag = number(&header, 16);
        self.send(header, &[])?;
        let mut data = Vec::new();
        loop {
            let answer = self.receive()?;
            if number(&answer.header, 16) != tag {
                continue;
            }
            let has_status = match answer.header[0] & 0x3F {
                0x25 => {
                    // In order (RFC 7143 11.7.4), as our target sends it; anything else is noticed here.
                    if number(&answer.header, 40) as usize != data.len() || data.len() + answer.data.len() > expected {
                        return Err(io::Error::other("data that was not asked for"));
                    }
                    data.extend(&answer.data);
                    answer.header[1] & 1 == 1
                }
                0x21 => {
                    if answer.header[3] != 0 {
                        data = answer.data;
                    }
                    true
                }
                other => return Err(io::Error::other(format!("an answer of kind {other:#x}"))),
            };
            if has_status {
                self.stat_sn = number(&answer.header, 24);
                return Ok((answer.header[3], data));
            }
        }
    }

    fn request(&mut self, opcode: u8) -> [u8; 48] {
        self.tag += 1;
        let mut header = [0; 48];
        (header[0], header[1]) = (opcode, 0x80);
        header[16..20].copy_from_slice(&self.tag.to_be_bytes());
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header[28..32].copy_from_slice(&self.stat_sn.wrapping_add(1).to_be_bytes());
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        header
    }

    fn send(&mut self, mut header: [u8; 48], data: &[u8]) -> io::Result<()> {
        header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut bytes = header.to_vec();
        bytes.extend(data);
        bytes.resize(48 + data.len().next_multiple_of(4), 0);
        self.socket.write_all(&bytes)
    }

    fn receive(&mut self) -> io::Result<Pdu> {
        let mut header = [0; 48];
        self.socket.read_exact(&mut header)?;
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        if len > MOST_DATA {
            return Err(io::Error::other(format!("an answer of {len} bytes")));
        }
        let mut data = vec![0; len.next_multiple_of(4)];
        self.socket.read_exact(&mut data)?;
        data.truncate(len);
        Ok(Pdu { header, data })
    }
}

fn number(header: &[u8; 48], at: usize) -> u32 {
    u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"))
}

fn pairs(text: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(text);
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// RFC 1994 4.1, with the encodings of RFC 7143 12.1.3.
fn chap_response(keys: &[(String, String)], secret: &str) -> io::Result<String> {
    let value = |wanted: &str| keys.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str());
    let wrong = || io::Error::other("the target's challenge is none");
    let identifier: u8 = value("CHAP_I").and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
    let digits = value("CHAP_C").and_then(|text| text.strip_prefix("0x")).ok_or_else(wrong)?;
    let byte = |at: usize| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(wrong);
    let challenge = (0..digits.len()).step_by(2).map(byte).collect::<io::Result<Vec<u8>>>()?;
    let sum = Md5::new().chain_update([identifier]).chain_update(secret).chain_update(challenge).finalize();
    Ok(format!("0x{}", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// A unit that is read through a session: a connection that broke is made again once, as Windows does by itself.
pub(crate) struct RemoteUnit {
    login: Login,
    unit: u8,
    block_bytes: u32,
    link: Mutex<Option<Link>>,
}

impl RemoteUnit {
    pub(crate) fn new(login: Login, unit: u8, block_bytes: u32) -> Self {
        Self { login, unit, block_bytes, link: Mutex::new(None) }
    }

    /// Any range; whole blocks are read.
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let block = u64::from(self.block_bytes);
        let first = offset_bytes / block;
        let beyond = || io::Error::new(io::ErrorKind::InvalidInput, "a read beyond all disks");
        let end = offset_bytes.checked_add(buf.len() as u64).ok_or_else(beyond)?.div_ceil(block);
        let mut blocks = vec![0; ((end - first) * block) as usize];
        let mut link = self.link.lock().expect("no panic while held");
        let was_connected = link.is_some();
        let read = |link: &mut Option<Link>, blocks: &mut [u8]| -> io::Result<()> {
            if link.is_none() {
                *link = Some(Link::log_in(&self.login).map_err(|error| match error {
                    LoginError::Connection(error) => error,
                    LoginError::Refused(class, detail) => {
                        io::Error::other(format!("the login is refused with {class:02}/{detail:02}"))
                    }
                })?);
            }
            let result = link.as_mut().expect("it was just made").read(self.unit, self.block_bytes, first, blocks);
            if result.is_err() {
                *link = None;
            }
            result
        };
        match read(&mut link, &mut blocks) {
            Err(_) if was_connected => read(&mut link, &mut blocks)?,
            result => result?,
        }
        let start = (offset_bytes - first * block) as usize;
        buf.copy_from_slice(&blocks[start..start + buf.len()]);
        Ok(())
    }
}
