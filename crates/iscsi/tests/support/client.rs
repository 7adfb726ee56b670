//! An initiator that says exactly what it is told to.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::TARGET;

pub const NO_TAG: u32 = u32::MAX;

pub struct Client {
    pub socket: TcpStream,
    pub digests: bool,
    pub cmd_sn: u32,
    pub tag: u32,
    /// Status class and detail of the login.
    pub status: u16,
    /// Every StatSN must be the one after the last.
    stat_sn: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub header: [u8; 48],
    pub data: Vec<u8>,
}

impl Received {
    pub fn opcode(&self) -> u8 {
        self.header[0] & 0x3F
    }

    pub fn tag(&self) -> u32 {
        self.u32(16)
    }

    pub fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.header[at..at + 4].try_into().unwrap())
    }

    /// Status, sense key, and code with qualifier, of a SCSI response or the last of Data-In.
    pub fn verdict(&self) -> (u8, u8, u16) {
        let is_response = self.opcode() == 0x21;
        assert!(is_response || (self.opcode() == 0x25 && self.header[1] & 1 == 1), "{:02x?}", self.header);
        let sense = if is_response && self.data.len() >= 20 { &self.data[2..] } else { &[0; 18][..] };
        (self.header[3], sense[2], u16::from(sense[12]) << 8 | u16::from(sense[13]))
    }
}

impl Client {
    /// Logs in, or is refused.
    pub fn log_in(address: SocketAddr, name: &str, keys: &[(&str, &str)]) -> Self {
        Self::log_in_to(address, name, &[&[("TargetName", TARGET)], keys].concat())
    }

    /// With the target's name among the keys.
    pub fn log_in_to(address: SocketAddr, name: &str, keys: &[(&str, &str)]) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Self { socket, digests: false, cmd_sn: 1, tag: 0, status: 0, stat_sn: 0 };
        let name = format!("iqn.2026-01.test:{name}");
        let all = [&[("InitiatorName", name.as_str())], keys].concat();
        let text: Vec<u8> = all.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect();
        let mut header = [0; 48];
        (header[0], header[1]) = (0x43, 0x87);
        header[8..14].copy_from_slice(&[0, 2, 61, 0, 0, 1]);
        header[24..28].copy_from_slice(&client.cmd_sn.to_be_bytes());
        client.send(header, &text).unwrap();
        let answer = client.receive_any().unwrap();
        assert_eq!(answer.opcode(), 0x23);
        client.status = u16::from(answer.header[36]) << 8 | u16::from(answer.header[37]);
        client.stat_sn = answer.u32(24);
        client.digests = keys.contains(&("HeaderDigest", "CRC32C"));
        client
    }

    /// Logs in and hears that the disk is new.
    pub fn ready(address: SocketAddr, name: &str, keys: &[(&str, &str)]) -> Self {
        let mut client = Self::log_in(address, name, keys);
        assert_eq!(client.status, 0);
        client.command(0, 0, &[0; 6], &[]);
        assert_eq!(client.receive().verdict(), (2, 6, 0x2900));
        client
    }

    pub fn send(&mut self, mut header: [u8; 48], data: &[u8]) -> io::Result<()> {
        header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        self.socket.write_all(&self.framed(header, data))
    }

    /// With digests, if they were agreed on.
    pub fn framed(&self, header: [u8; 48], data: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        if self.digests {
            bytes.extend(crc32c::crc32c(&header).to_le_bytes());
        }
        let mut padded = data.to_vec();
        padded.resize(data.len().next_multiple_of(4), 0);
        bytes.extend(&padded);
        if self.digests && !data.is_empty() {
            bytes.extend(crc32c::crc32c(&padded).to_le_bytes());
        }
        bytes
    }

    /// The header of a numbered request with a fresh tag.
    pub fn request(&mut self, opcode: u8, flags: u8) -> [u8; 48] {
        self.tag += 1;
        let mut header = [0; 48];
        (header[0], header[1]) = (opcode, 0x80 | flags);
        header[16..20].copy_from_slice(&self.tag.to_be_bytes());
        header[20..24].copy_from_slice(&NO_TAG.to_be_bytes());
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.cmd_sn += 1;
        header
    }

    /// Sends a command with its immediate data, and gives its tag.
    pub fn command(&mut self, flags: u8, expected: u32, cdb: &[u8], data: &[u8]) -> u32 {
        let header = self.command_header(flags, expected, cdb);
        self.send(header, data).unwrap();
        self.tag
    }

    pub fn command_header(&mut self, flags: u8, expected: u32, cdb: &[u8]) -> [u8; 48] {
        let mut header = self.request(0x01, flags);
        header[20..24].copy_from_slice(&expected.to_be_bytes());
        header[32..32 + cdb.len()].copy_from_slice(cdb);
        header
    }

    pub fn read(&mut self, first: u32, blocks: u16) -> u32 {
        self.command(0x40, u32::from(blocks) * 512, &cdb10(0x28, first, blocks), &[])
    }

    pub fn write(&mut self, first: u32, data: &[u8]) -> u32 {
        let blocks = (data.len() / 512) as u16;
        self.command(0x20, data.len() as u32, &cdb10(0x2A, first, blocks), data)
    }

    pub fn ping(&mut self) -> u32 {
        let header = self.request(0x00, 0);
        self.send(header, b"ping").unwrap();
        self.tag
    }

    /// A task management function on unit 0.
    pub fn manage(&mut self, function: u8) -> u32 {
        let header = self.request(0x02, function);
        self.send(header, &[]).unwrap();
        self.tag
    }

    pub fn log_out(&mut self) {
        let header = self.request(0x06, 0);
        self.send(header, &[]).unwrap();
    }

    /// The next PDU, whose numbers and digests are checked.
    pub fn receive(&mut self) -> Received {
        self.try_receive().unwrap()
    }

    pub fn try_receive(&mut self) -> io::Result<Received> {
        let received = self.receive_any()?;
        let (opcode, flags, tag) = (received.opcode(), received.header[1], received.tag());
        let counts = match opcode {
            0x31 => false,
            0x25 => flags & 1 == 1,
            0x20 => tag != NO_TAG,
            _ => true,
        };
        if counts {
            self.stat_sn = self.stat_sn.wrapping_add(1);
            assert_eq!(received.u32(24), self.stat_sn, "StatSN of opcode {opcode:#x}");
        }
        Ok(received)
    }

    fn receive_any(&mut self) -> io::Result<Received> {
        let mut header = [0; 48];
        self.socket.read_exact(&mut header)?;
        if self.digests {
            assert_eq!(self.sum()?, crc32c::crc32c(&header), "header digest");
        }
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        self.socket.read_exact(&mut data)?;
        if self.digests && len > 0 {
            assert_eq!(self.sum()?, crc32c::crc32c(&data), "data digest");
        }
        data.truncate(len);
        Ok(Received { header, data })
    }

    fn sum(&mut self) -> io::Result<u32> {
        let mut sum = [0; 4];
        self.socket.read_exact(&mut sum)?;
        Ok(u32::from_le_bytes(sum))
    }

    /// Whether the other side has closed, after what it still said.
    pub fn is_closed(&mut self) -> bool {
        loop {
            match self.try_receive() {
                Ok(_) => {}
                Err(error) => {
                    return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                }
            }
        }
    }
}

pub fn cdb10(opcode: u8, first: u32, count: u16) -> [u8; 10] {
    let (first, count) = (first.to_be_bytes(), count.to_be_bytes());
    [opcode, 0, first[0], first[1], first[2], first[3], 0, count[0], count[1], 0]
}
