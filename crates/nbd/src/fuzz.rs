//! Requests as hostile clients send them, against a model of the transmission phase (spec A.4, A.5).

use std::io::{BufReader, Cursor, Write};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crate::budget::Budget;
use crate::connection::{Limits, transmit};
use crate::{Agreement, Device, DeviceError, DeviceErrorKind, Export, Exports, Extent, ExtentKind, Zeroing};

const SIZE: u64 = 64 << 10;
/// Reads and writes that touch this sector fail.
const BAD: Range<u64> = 40 * 512..41 * 512;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;

struct Disk(Mutex<Vec<u8>>);

impl Disk {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((0..SIZE).map(first_byte).collect())))
    }
}

fn first_byte(at: u64) -> u8 {
    (at / 512) as u8 | 1
}

fn is_bad(range: &Range<u64>) -> bool {
    range.start < BAD.end && BAD.start < range.end
}

impl Device for Disk {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let end = offset_bytes + buf.len() as u64;
        assert!(
            end <= SIZE && offset_bytes.is_multiple_of(512) && buf.len().is_multiple_of(512),
            "what is asked of devices was checked"
        );
        if is_bad(&(offset_bytes..end)) {
            return Err(DeviceError::new(DeviceErrorKind::Io, "bad"));
        }
        buf.copy_from_slice(&self.0.lock().unwrap()[offset_bytes as usize..end as usize]);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let end = offset_bytes + data.len() as u64;
        assert!(
            end <= SIZE && offset_bytes.is_multiple_of(512) && data.len().is_multiple_of(512),
            "what is asked of devices was checked"
        );
        if is_bad(&(offset_bytes..end)) {
            return Err(DeviceError::new(DeviceErrorKind::NoSpace, "bad"));
        }
        self.0.lock().unwrap()[offset_bytes as usize..end as usize].copy_from_slice(data);
        Ok(())
    }

    fn zero(&self, range: Range<u64>, _: Zeroing) -> Result<(), DeviceError> {
        self.0.lock().unwrap()[range.start as usize..range.end as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn extents(&self, range: Range<u64>, _: usize) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent { len_bytes: range.end - range.start, kind: ExtentKind::Data }])
    }
}

/// What one request comes to: its cookie, its error, and the bytes of a READ.
type Told = (u64, u32, Vec<u8>);

/// Spec A.4 a second time, in another way. Gives what is told, and what the disk holds afterwards.
fn model(structured: bool, read_only: bool, mut input: &[u8]) -> (Vec<Told>, Vec<u8>) {
    let mut told = Vec::new();
    let mut disk: Vec<u8> = (0..SIZE).map(first_byte).collect();
    while let Some((header, rest)) = input.split_at_checked(28) {
        let number = |at: Range<usize>| header[at].iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
        let (magic, flags, kind) = (number(0..4), number(4..6) as u16, number(6..8) as u16);
        let (cookie, offset, len) = (number(8..16), number(16..24), number(24..28));
        let payload = if kind == WRITE { len } else { 0 };
        if magic != 0x2560_9513 || payload > 64 << 20 || kind == DISC {
            break;
        }
        let is_past = offset.checked_add(len).is_none_or(|end| end > SIZE);
        let is_even = offset.is_multiple_of(512) && len.is_multiple_of(512);
        let may = |allowed: u16| flags & !allowed == 0;
        let error = match kind {
            READ if !may(0b101) => 22,
            6 if !may(0b1_0011) => 22,
            7 if !may(0b1001) => 22,
            1 | 3 | 4 | 5 if !may(1) => 22,
            READ | WRITE if len > 32 << 20 => 22,
            7 if !structured || len == 0 => 22,
            3 if offset != 0 || len != 0 => 22,
            1 | 4 | 6 if read_only => 1,
            1 | 6 if is_past => 28,
            READ | 4 | 5 | 7 if is_past => 22,
            READ | 1 | 4 | 5 | 6 | 7 if !is_even => 22,
            0..8 => 0,
            _ => 22,
        };
        let Some((payload, after)) = rest.split_at_checked(payload as usize) else { break };
        input = after;
        let range = offset as usize..(offset.wrapping_add(len)) as usize;
        let touches_bad = error == 0 && is_bad(&(offset..offset + len));
        told.push(match (error, kind) {
            (0, READ) if touches_bad => (cookie, 5, vec![]),
            (0, READ) => (cookie, 0, disk[range].to_vec()),
            (0, WRITE) if touches_bad => (cookie, 28, vec![]),
            (0, WRITE) => {
                disk[range].copy_from_slice(payload);
                (cookie, 0, vec![])
            }
            (0, 4 | 6) => {
                disk[range].fill(0);
                (cookie, 0, vec![])
            }
            (error, _) => (cookie, error, vec![]),
        });
    }
    (told, disk)
}

/// Replies, in the order in which they came. `reads` are the lengths that simple replies to a READ carry.
fn replies(mut output: &[u8], model: &[Told]) -> Vec<Told> {
    let mut found = Vec::new();
    let mut read = Vec::new();
    while !output.is_empty() {
        let number = |at: Range<usize>| output[at].iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
        if output[..4] == [0x67, 0x44, 0x66, 0x98] {
            let error = number(4..8) as u32;
            let len = if error == 0 { model.get(found.len()).map_or(0, |told| told.2.len()) } else { 0 };
            found.push((number(8..16), error, output[16..16 + len].to_vec()));
            output = &output[16 + len..];
            continue;
        }
        assert_eq!(output[..4], [0x66, 0x8E, 0x33, 0xEF], "a reply begins");
        let (flags, kind, len) = (number(4..6), number(6..8), number(16..20) as usize);
        let cookie = number(8..16);
        let payload = &output[20..20 + len];
        let mut error = 0;
        match kind {
            0 | 5 => {}
            1 => read.extend(&payload[8..]),
            0x8001 | 0x8002 => error = u32::from_be_bytes(payload[..4].try_into().unwrap()),
            other => panic!("chunk of type {other}"),
        }
        if flags & 1 == 1 {
            let read = std::mem::take(&mut read);
            found.push((cookie, error, if error == 0 { read } else { vec![] }));
        }
        output = &output[20 + len..];
    }
    found
}

/// A writer that can be looked at afterwards.
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn judged(input: &[u8]) -> u64 {
    let Some((kind, stream)) = input.split_first() else { return 0 };
    let (structured, read_only) = (kind & 1 != 0, kind & 2 != 0);
    let disk = Disk::new();
    let export = Export { name: String::new(), description: String::new(), device: disk.clone(), read_only };
    let exports = Exports::new([export]).unwrap();
    let export = exports.find("").unwrap().clone();
    let agreement = Agreement { export, structured, allocation: structured };
    let budget = Budget::new(32 << 20);
    let limits = Limits {
        threads: 1,
        own_payload: &Budget::new(4096),
        own_bytes: 4096,
        hurry: &|_| {},
        payload: &budget,
        all_payload: &Budget::new(32 << 20),
        draining: &AtomicBool::new(false),
        hang_up: &|| {},
    };
    let sent = Arc::new(Mutex::new(Vec::new()));
    transmit(BufReader::new(Cursor::new(stream)), Sink(sent.clone()), &agreement, &limits);
    let (told, content) = model(structured, read_only, stream);
    let found = replies(&sent.lock().unwrap(), &told);
    assert_eq!(found.len(), told.len(), "every request has one answer");
    for (found, told) in found.iter().zip(&told) {
        assert!(found == told, "{:?}, not {:?}", (found.0, found.1), (told.0, told.1));
    }
    assert!(*disk.0.lock().unwrap() == content, "the disk is what the requests made of it");
    // Every share was given back.
    drop(budget.take(32 << 20));
    fuzzing::behaviour(told.iter().map(|told| (told.1, told.2.len().min(1024))).collect::<Vec<_>>())
}

/// What QEMU and libnbd send, in four kinds of sessions.
fn conversations() -> Vec<Vec<u8>> {
    let request = |flags: u16, kind: u16, cookie: u64, offset: u64, len: u32| {
        let head = [&[0x25, 0x60, 0x95, 0x13][..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
        [&head[..], &cookie.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()].concat()
    };
    let write = |cookie, offset, len: u32| [request(1, WRITE, cookie, offset, len), vec![0x5A; len as usize]].concat();
    let all = [
        request(0, READ, 1, 0, 512),
        request(0, 7, 2, 0, 4096),
        write(3, 512, 1024),
        request(0, READ, 4, 512, 2048),
        request(2, 6, 5, 4096, 4096),
        request(0, 4, 6, 8192, 512),
        request(0, 5, 7, 0, 4096),
        request(0, 3, 8, 0, 0),
        request(4, READ, 9, 40 * 512, 512),
        write(10, 40 * 512, 512),
        request(0, READ, 11, SIZE - 512, 1024),
        request(0, DISC, 12, 0, 0),
    ];
    (0..4).flat_map(|kind| [all.concat(), all[2..5].concat()].map(|stream| [vec![kind], stream].concat())).collect()
}

#[test]
fn fuzz_requests() {
    let seen = fuzzing::hunt(&conversations(), 1 << 16, judged);
    assert!(seen.behaviours > 50, "{seen:?}");
}

#[test]
#[ignore = "a minute, or what E3_FUZZ_SECONDS says"]
fn fuzz_requests_long() {
    fuzzing::hunt_long(&conversations(), 1 << 17, judged);
}
