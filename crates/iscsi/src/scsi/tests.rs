//! Commands of several initiators to one unit, and CDBs out of nothing.

mod reservations;

use std::sync::Arc;

use super::*;
use crate::scsi::command::{Against, Blocks};
use crate::scsi::opcodes::ENTRIES;
use crate::testing::Random;
use crate::{Device, DeviceError, DeviceErrorKind, Extent, ExtentKind, MemoryDevice, Zeroing};

const FACTS: Facts = Facts { block_bytes: 512, blocks: 1 << 20, thin: true };

fn unit(provisioning: Provisioning, read_only: bool) -> Unit {
    on(Arc::new(MemoryDevice::new(1 << 20, 512)), BlockSize::N512, provisioning, read_only)
}

fn on(device: Arc<dyn Device>, block_size: BlockSize, provisioning: Provisioning, read_only: bool) -> Unit {
    let identity = Identity::new("TEST", "Disk", "1", b"seed");
    let options = UnitOptions { block_size, provisioning, read_only, identity };
    Unit::new(device, options, "iqn.2026-01.test:e3".into()).unwrap()
}

fn nexus(name: &str) -> Nexus {
    Nexus { initiator: format!("iqn.2026-01.test:{name}").into(), isid: [0, 2, 61, 0, 0, 1] }
}

/// A command from arrival to outcome.
fn ask(unit: &Unit, nexus: &Nexus, cdb: &[u8], data: &[u8]) -> Outcome {
    let mut whole = [0; 16];
    whole[..cdb.len()].copy_from_slice(cdb);
    if let Err(refusal) = unit.state().admit(nexus, &whole) {
        return refusal;
    }
    match Command::decode(&whole, &unit.facts) {
        Ok(command) => unit.perform(&command, data, data.len() as u32, nexus),
        Err(sense) => sense.into(),
    }
}

fn sense(outcome: Outcome) -> (u8, u16) {
    match outcome {
        Outcome::Check(sense) => {
            let data = sense.encode(false);
            (data[2], u16::from(data[12]) << 8 | u16::from(data[13]))
        }
        Outcome::Good | Outcome::Data(_) => (0, 0),
        Outcome::Status(status) => (0xFF, status.into()),
    }
}

fn data(outcome: Outcome) -> Vec<u8> {
    match outcome {
        Outcome::Data(data) => data,
        other => panic!("{other:?}"),
    }
}

/// Each random CDB is either unknown by the table of commands, or refused for a reason that it has, or right.
#[test]
fn every_cdb_is_judged_as_the_table_says() {
    let mut random = Random(1);
    let (mut right, mut out_of_range, mut unknown) = (0, 0, 0);
    for thin in [false, true] {
        let facts = Facts { thin, ..FACTS };
        for step in 0..200_000 {
            let mut cdb: [u8; 16] = std::array::from_fn(|_| random.next() as u8);
            if step % 4 > 0 {
                let entry = &ENTRIES[random.below(ENTRIES.len() as u64) as usize];
                for (byte, mask) in cdb.iter_mut().zip(entry.usage) {
                    *byte &= mask;
                }
                cdb[0] = entry.opcode;
                cdb[1] = if entry.service_action.is_some() { entry.usage[1] } else { cdb[1] };
                if step % 3 > 0 {
                    // Addresses on the disk, mostly.
                    cdb[2..8].iter_mut().for_each(|byte| *byte &= 7);
                }
            }
            match judge_cdb(&cdb, &facts) {
                Judged::Right => right += 1,
                Judged::OutOfRange => out_of_range += 1,
                Judged::Unknown => unknown += 1,
                Judged::Refused(_) => {}
            }
        }
    }
    assert!(right > 50_000 && out_of_range > 10_000 && unknown > 10_000, "{right}, {out_of_range}, {unknown}");
}

#[derive(Hash)]
enum Judged {
    Right,
    OutOfRange,
    Unknown,
    Refused(u16),
}

/// What the table of commands says of a CDB, against what was made of it.
fn judge_cdb(cdb: &[u8; 16], facts: &Facts) -> Judged {
    let known: Vec<_> = ENTRIES.iter().filter(|entry| entry.opcode == cdb[0]).collect();
    let has_actions = known.iter().any(|entry| entry.service_action.is_some());
    let action = cdb[1] & 0x1F;
    let entry = known.iter().find(|entry| entry.service_action.is_none_or(|one| one == action));
    let there = entry.is_some_and(|entry| facts.thin || !entry.thin_only);
    match Command::decode(cdb, facts) {
        Ok(command) => {
            assert!(there, "{cdb:02x?} is not in the table, yet {command:?}");
            let blocks = blocks_of(&command);
            assert!(blocks.is_none_or(|one| one.first + u64::from(one.count) <= facts.blocks), "{command:?}");
            assert!(command.data_out_bytes(facts) <= 2 * u64::from(MAX_TRANSFER_BYTES), "{command:?}");
            Judged::Right
        }
        Err(Sense::INVALID_OPCODE) => {
            assert!(!there && !has_actions, "{cdb:02x?} is in the table");
            Judged::Unknown
        }
        Err(Sense::OUT_OF_RANGE) => {
            assert!(there && reaches_beyond(cdb, facts.blocks), "{cdb:02x?} lies on the disk");
            Judged::OutOfRange
        }
        Err(refusal) => {
            let (key, code) = sense(refusal.into());
            assert!(there || has_actions, "{cdb:02x?}");
            assert!(key == 5 && [0x1A00, 0x2400, 0x3900].contains(&code), "{cdb:02x?}: {refusal:?}");
            Judged::Refused(code)
        }
    }
}

fn fuzzed(input: &[u8]) -> u64 {
    let Some((kind, cdbs)) = input.split_first() else { return 0 };
    let facts = Facts { block_bytes: if kind & 1 == 0 { 512 } else { 4096 }, thin: kind & 2 != 0, ..FACTS };
    let judged: Vec<_> = cdbs.as_chunks::<16>().0.iter().map(|cdb| (cdb[0], judge_cdb(cdb, &facts))).collect();
    fuzzing::behaviour(judged.last())
}

/// Each command of the table with ordinary fields.
fn cdbs() -> Vec<Vec<u8>> {
    let cdb = |entry: &crate::scsi::opcodes::Entry| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (entry.opcode, entry.service_action.unwrap_or(0));
        for at in [4, 5, 8, 9, 13] {
            cdb[at] = 1 & entry.usage.get(at).unwrap_or(&0);
        }
        cdb
    };
    (0..4).flat_map(|kind| ENTRIES.iter().map(move |entry| [&[kind][..], &cdb(entry)].concat())).collect()
}

#[test]
fn fuzz_cdbs() {
    let seen = fuzzing::hunt(&cdbs(), 257, fuzzed);
    assert!(seen.behaviours > 100, "{seen:?}");
}

#[test]
#[ignore = "a minute, or what E3_FUZZ_SECONDS says"]
fn fuzz_cdbs_long() {
    fuzzing::hunt_long(&cdbs(), 257, fuzzed);
}

fn blocks_of(command: &Command) -> Option<Blocks> {
    match *command {
        Command::Read(blocks)
        | Command::Prefetch(blocks)
        | Command::Write { blocks, .. }
        | Command::OrWrite { blocks, .. }
        | Command::CompareAndWrite { blocks, .. }
        | Command::WriteSame { blocks, .. }
        | Command::Verify { blocks, .. } => Some(blocks),
        _ => None,
    }
}

/// The range of a CDB by the length of its kind, read in another way than the code does.
fn reaches_beyond(cdb: &[u8; 16], blocks: u64) -> bool {
    let number =
        |range: std::ops::Range<usize>| cdb[range].iter().fold(0_u128, |all, byte| all << 8 | u128::from(*byte));
    let (first, count) = match cdb[0] {
        0x08 | 0x0A => (number(1..4) & 0x1F_FFFF, if cdb[4] == 0 { 256 } else { number(4..5) }),
        0x89 => (number(2..10), number(13..14)),
        // The first descriptor begins at a block that is there.
        0x9E => (number(2..10), 1),
        0x80..=0x9F => (number(2..10), number(10..14)),
        0xA0..=0xBF => (number(2..6), number(6..10)),
        _ => (number(2..6), number(7..9)),
    };
    first + count > u128::from(blocks)
}

#[test]
fn fields_that_are_refused_and_where_they_are() {
    let long = |opcode: u8, flags: u8, count: u32| {
        let count = count.to_be_bytes();
        [opcode, flags, 0, 0, 0, 0, 0, 0, 0, 0, count[0], count[1], count[2], count[3], 0, 0]
    };
    let short = |bytes: &[u8]| std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0));
    for (what, cdb, expected) in [
        ("INQUIRY page without EVPD", short(&[0x12, 0, 0x80, 0, 96, 0]), Err(2)),
        ("INQUIRY other bits", short(&[0x12, 2, 0, 0, 96, 0]), Err(1)),
        ("REPORT LUNS without room", short(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0]), Err(6)),
        ("READ CAPACITY of an address", short(&[0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Err(2)),
        ("9E without an action", short(&[0x9E, 0x11]), Err(1)),
        ("A3 without an action", short(&[0xA3, 0x05]), Err(1)),
        ("protection", long(0x88, 0x20, 1), Err(1)),
        ("protection", long(0x8B, 0x20, 1), Err(1)),
        ("longest", long(0x88, 0, 65_536), Ok(())),
        ("too long", long(0x88, 0, 65_537), Err(10)),
        ("too long", long(0x8A, 0, 65_537), Err(10)),
        ("WRITE SAME of nothing", long(0x93, 0, 0), Err(10)),
        ("WRITE SAME with ANCHOR", long(0x93, 0x18, 1), Err(1)),
        ("WRITE SAME with LBDATA", long(0x93, 0x02, 1), Err(1)),
        ("WRITE SAME(10) has no NDOB", short(&[0x41, 1, 0, 0, 0, 0, 0, 0, 1, 0]), Err(1)),
        ("UNMAP with ANCHOR", short(&[0x42, 1, 0, 0, 0, 0, 0, 0, 24, 0]), Err(1)),
        ("VERIFY, BYTCHK 2", long(0x8F, 0x04, 1), Err(1)),
        ("VERIFY of any length, without data", long(0x8F, 0, 1 << 20), Ok(())),
        ("MODE SELECT without PF", short(&[0x15, 0, 0, 0, 24, 0]), Err(1)),
        ("MODE SELECT to save", short(&[0x15, 0x11, 0, 0, 24, 0]), Err(1)),
        ("SYNCHRONIZE CACHE", short(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Ok(())),
    ] {
        let judged = Command::decode(&cdb, &FACTS).map(drop);
        assert_eq!(judged, expected.map_err(Sense::invalid_field), "{what}");
    }
    let (none, one) = (Command::Verify { blocks: Blocks { first: 0, count: 9 }, against: Against::OneBlock }, 512);
    assert_eq!(none.data_out_bytes(&FACTS), one);
}

#[test]
fn news_comes_once_before_anything_else() {
    let unit = unit(Provisioning::Thick, false);
    let (alice, bob) = (nexus("alice"), nexus("bob"));
    unit.attach(&alice);
    // Inquiries pass, and REQUEST SENSE brings the news.
    assert_eq!(sense(ask(&unit, &alice, &[0x12, 0, 0, 0, 96, 0], &[])), (0, 0));
    let said = data(ask(&unit, &alice, &[0x03, 0, 0, 0, 18, 0], &[]));
    assert_eq!((said[2], said[12]), (6, 0x29));
    assert_eq!(data(ask(&unit, &alice, &[0x03, 0, 0, 0, 18, 0], &[]))[2], 0);
    unit.attach(&bob);
    assert_eq!(sense(ask(&unit, &bob, &[0; 6], &[])), (6, 0x2900));
    assert_eq!(sense(ask(&unit, &bob, &[0; 6], &[])), (0, 0));
    unit.reset();
    unit.reset();
    for who in [&alice, &bob] {
        assert_eq!(sense(ask(&unit, who, &[0; 6], &[])), (6, 0x2903));
        assert_eq!(sense(ask(&unit, who, &[0; 6], &[])), (0, 0), "the same twice is said once");
    }
    // Bob changes the mode: alice is told, and writes fail for both.
    let list = [0, 0, 0, 0, 0x0A, 0x0A, 0, 0x10, 0x08, 0, 0, 0, 0xFF, 0xFF, 0, 0];
    assert_eq!(sense(ask(&unit, &bob, &[0x15, 0x10, 0, 0, 16, 0], &list)), (0, 0));
    assert_eq!(sense(ask(&unit, &alice, &[0; 6], &[])), (6, 0x2A01));
    for who in [&alice, &bob] {
        assert_eq!(sense(ask(&unit, who, &[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[1; 512])), (7, 0x2700));
    }
    unit.tasks_cleared(&bob);
    assert_eq!(sense(ask(&unit, &alice, &[0; 6], &[])), (6, 0x2F00));
    assert_eq!(sense(ask(&unit, &bob, &[0; 6], &[])), (0, 0));
}

#[test]
fn a_read_only_unit_refuses_every_change_after_its_range() {
    let unit = unit(Provisioning::Thin, true);
    let alice = nexus("alice");
    let unmap = [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    for (cdb, data) in [
        (&[0x0A, 0, 0, 0, 1, 0][..], &[0; 512][..]),
        (&[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 512]),
        (&[0x2E, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 512]),
        (&[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 512]),
        (&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &unmap),
        (&[0x8B, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[0; 512]),
        (&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[0; 1024]),
    ] {
        assert_eq!(sense(ask(&unit, &alice, cdb, data)), (7, 0x2700), "{cdb:02x?}");
    }
    assert_eq!(sense(ask(&unit, &alice, &[0x2A, 0, 0xFF, 0, 0, 0, 0, 0, 1, 0], &[0; 512])), (5, 0x2100));
    assert_eq!(data(ask(&unit, &alice, &[0x1A, 0, 0x3F, 0, 255, 0], &[]))[2], 0x90, "MODE SENSE says so");
}

#[test]
fn parameter_lists_of_unmap() {
    let alice = nexus("alice");
    let list = |announced: u16, descriptors: &[(u64, u32)]| {
        let mut list = [&[0; 2], &announced.to_be_bytes()[..], &[0; 4]].concat();
        for (first, count) in descriptors {
            list.extend(first.to_be_bytes());
            list.extend(count.to_be_bytes());
            list.extend([0; 4]);
        }
        list
    };
    for (what, list, expected, zeroed) in [
        ("nothing", vec![], (0, 0), 0),
        ("no header", vec![0; 7], (5, 0x1A00), 0),
        ("no descriptor", list(0, &[]), (0, 0), 0),
        ("one", list(16, &[(3, 2)]), (0, 0), 2),
        ("two", list(32, &[(3, 2), (9, 1)]), (0, 0), 3),
        ("more announced than there is", list(64, &[(3, 2)]), (0, 0), 2),
        ("less announced than there is", list(16, &[(3, 2), (9, 1)]), (0, 0), 2),
        ("none of it if one is out of range", list(32, &[(3, 2), (2047, 2)]), (5, 0x2100), 0),
        ("out of every range", list(16, &[(u64::MAX, 2)]), (5, 0x2100), 0),
        ("too many descriptors", list(257 * 16, &[(0, 0); 257]), (5, 0x2600), 0),
        ("too many blocks", list(513 * 16, &[(0, 2048); 513]), (5, 0x2600), 0),
    ] {
        let unit = unit(Provisioning::Thin, false);
        unit.device.write_at(&vec![1; 1 << 20], 0).unwrap();
        let len = (list.len() as u16).to_be_bytes();
        let outcome = ask(&unit, &alice, &[0x42, 0, 0, 0, 0, 0, 0, len[0], len[1], 0], &list);
        assert_eq!(sense(outcome), expected, "{what}");
        let mut disk = vec![0; 1 << 20];
        unit.device.read_at(&mut disk, 0).unwrap();
        assert_eq!(disk.iter().filter(|byte| **byte == 0).count(), zeroed * 512, "{what}");
    }
}

/// GET LBA STATUS against what was written, block by block.
#[test]
fn the_state_of_every_block() {
    let alice = nexus("alice");
    for (block_size, cell_bytes) in [(BlockSize::N512, 512), (BlockSize::N4096, 4096), (BlockSize::N4096, 512)] {
        let device = Arc::new(MemoryDevice::new(1 << 20, cell_bytes));
        let unit = on(device.clone(), block_size, Provisioning::Thin, false);
        let block_bytes = u64::from(block_size.logical_bytes());
        let mut random = Random(4);
        for _ in 0..100 {
            let at = random.below((1 << 20) / 512) * 512;
            let len = (random.below(20) * 512).min((1 << 20) - at);
            match random.below(2) {
                0 => device.write_at(&vec![1; len as usize], at).unwrap(),
                _ => device.zero(at..at + len, Zeroing::MayDeallocate).unwrap(),
            }
            let first = random.below(unit.facts.blocks);
            let room = 8 + 16 * random.below(5) as u32;
            let mut cdb = [0; 16];
            (cdb[0], cdb[1]) = (0x9E, 0x12);
            cdb[2..10].copy_from_slice(&first.to_be_bytes());
            cdb[10..14].copy_from_slice(&room.to_be_bytes());
            let said = data(ask(&unit, &alice, &cdb, &[]));
            assert!(said.len() <= room as usize);
            let mut next = first;
            for descriptor in said[8..].chunks_exact(16) {
                let start = u64::from_be_bytes(descriptor[..8].try_into().unwrap());
                let count = u64::from(u32::from_be_bytes(descriptor[8..12].try_into().unwrap()));
                assert_eq!(start, next, "in a row, from the block that was asked for");
                assert!(count > 0);
                for block in start..start + count {
                    let extents = device.extents(block * block_bytes..(block + 1) * block_bytes, 99).unwrap();
                    let is_zero = extents.iter().all(|extent| extent.kind == ExtentKind::Zero);
                    assert_eq!(descriptor[12] == 1, is_zero, "block {block} of {block_bytes} bytes");
                }
                next = start + count;
            }
        }
    }
}

/// A device whose every call fails in one way.
struct Failing(DeviceErrorKind);

impl Failing {
    fn fail<T>(&self) -> Result<T, DeviceError> {
        Err(DeviceError::new(self.0, "as told"))
    }
}

impl Device for Failing {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn read_at(&self, _buf: &mut [u8], _offset_bytes: u64) -> Result<(), DeviceError> {
        self.fail()
    }

    fn write_at(&self, _data: &[u8], _offset_bytes: u64) -> Result<(), DeviceError> {
        self.fail()
    }

    fn zero(&self, _range: std::ops::Range<u64>, _how: Zeroing) -> Result<(), DeviceError> {
        self.fail()
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.fail()
    }

    fn extents(&self, _range: std::ops::Range<u64>, _max: usize) -> Result<Vec<Extent>, DeviceError> {
        self.fail()
    }
}

#[test]
fn failures_of_the_device_have_their_sense() {
    for (kind, of_reads, of_writes) in [
        (DeviceErrorKind::Io, (3, 0x1100), (3, 0x0C00)),
        (DeviceErrorKind::NoSpace, (7, 0x2707), (7, 0x2707)),
        (DeviceErrorKind::ReadOnly, (7, 0x2700), (7, 0x2700)),
        (DeviceErrorKind::Unavailable, (0xFF, 0x08), (0xFF, 0x08)),
    ] {
        let unit = on(Arc::new(Failing(kind)), BlockSize::N512, Provisioning::Thin, false);
        let alice = nexus("alice");
        for (cdb, data, expected) in [
            (&[0x2A, 0, 0, 0, 0, 9, 0, 0, 1, 0][..], &[1; 512][..], of_writes),
            (&[0x41, 0, 0, 0, 0, 9, 0, 0, 1, 0], &[1; 512], of_writes),
            (&[0x41, 8, 0, 0, 0, 9, 0, 0, 1, 0], &[0; 512], of_writes),
            (&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], of_writes),
            (&[0x2F, 2, 0, 0, 0, 9, 0, 0, 1, 0], &[1; 512], of_reads),
            (&[0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 24, 0, 0], &[], of_reads),
        ] {
            let outcome = ask(&unit, &alice, cdb, data);
            assert_eq!(sense(outcome.clone()), expected, "{kind:?}, {cdb:02x?}");
            if expected == (3, 0x1100) {
                assert_eq!(outcome, Sense::unrecovered_read(9).into(), "which block");
            }
        }
    }
}

/// Spec B.11, field by field.
#[test]
fn what_the_unit_says_it_is() {
    for (block_size, provisioning, granularity, limit, unmap, thin_byte) in [
        (BlockSize::N512, Provisioning::Thin, 8, 65_536, (1 << 20, 1), 0xE4),
        (BlockSize::E512, Provisioning::Thin, 8, 65_536, (1 << 20, 8), 0xE4),
        (BlockSize::N4096, Provisioning::Thin, 1, 8192, (1 << 20, 1), 0xE4),
        (BlockSize::E512, Provisioning::Thick, 8, 65_536, (0, 0), 0),
    ] {
        let unit = on(Arc::new(MemoryDevice::new(1 << 20, 4096)), block_size, provisioning, false);
        let alice = nexus("alice");
        let page = |code: u8| {
            let said = data(ask(&unit, &alice, &[0x12, 1, code, 1, 0, 0], &[]));
            assert_eq!((said[0], said[1]), (0, code));
            assert_eq!(usize::from(said[2]) << 8 | usize::from(said[3]), said.len() - 4, "page {code:#x}");
            said
        };
        let number = |said: &[u8], at: usize| u32::from_be_bytes(said[at..at + 4].try_into().unwrap());

        let standard = data(ask(&unit, &alice, &[0x12, 0, 0, 1, 0, 0], &[]));
        assert_eq!(standard.len(), 96);
        assert_eq!(&standard[8..36], b"TEST    Disk            1   ");
        assert_eq!(data(ask(&unit, &alice, &[0x12, 0, 0, 0, 5, 0], &[])), standard[..5], "clipped");
        assert_eq!(page(0x00)[4..], [0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2]);
        let serial = page(0x80)[4..].to_vec();
        // `printf seed | sha256sum`: 14 bytes, and the name after them.
        assert_eq!(serial, b"19B25856E1C150CA834CFFC8B59B");
        assert_eq!((page(0x86)[5], page(0x86)[6]), (0x07, 0x01));

        let limits = page(0xB0);
        assert_eq!((limits.len(), limits[4], limits[5], limits[7]), (64, 1, 0xFF, granularity));
        assert_eq!((number(&limits, 8), number(&limits, 40)), (limit, limit));
        assert_eq!((number(&limits, 20), number(&limits, 28)), unmap, "{block_size:?}");
        assert_eq!(page(0xB1)[4..6], [0, 1]);
        assert_eq!(page(0xB2)[5], thin_byte);

        let (mut left, mut kinds) = (&page(0x83)[4..], Vec::new());
        while let [set, kind, _, len, rest @ ..] = left {
            let (content, rest) = rest.split_at(usize::from(*len));
            kinds.push((*set, *kind, content.to_vec()));
            left = rest;
        }
        assert_eq!(left, [0; 0]);
        let text = |text: &str| text.as_bytes().to_vec();
        assert_eq!(
            kinds,
            [
                (0x01, 0x03, unit.options.identity.naa().to_vec()),
                (0x02, 0x01, [&b"TEST    "[..], &serial].concat()),
                (0x51, 0x94, vec![0, 0, 0, 1]),
                (0x51, 0x95, vec![0, 0, 0, 1]),
                (0x53, 0x98, text("iqn.2026-01.test:e3,t,0x0001\0\0\0\0")),
                (0x53, 0xA8, text("iqn.2026-01.test:e3\0")),
            ]
        );
        assert_eq!(unit.options.identity.naa()[0] >> 4, 3);
        let capacity = data(ask(&unit, &alice, &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]));
        let thin = provisioning == Provisioning::Thin;
        assert_eq!((capacity[14], number(&capacity, 8)), (if thin { 0xC0 } else { 0 }, block_size.logical_bytes()));
        assert_eq!(number(&capacity, 4), (1 << 20) / block_size.logical_bytes() - 1);
        assert_eq!(capacity[13], if block_size == BlockSize::E512 { 3 } else { 0 });
    }
}
