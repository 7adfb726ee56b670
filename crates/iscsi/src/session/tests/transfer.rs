//! Data in both directions.

use super::*;

const SMALL: [(&str, &str); 3] =
    [("MaxRecvDataSegmentLength", "1000"), ("MaxBurstLength", "2500"), ("FirstBurstLength", "700")];

#[test]
fn reads_come_in_segments_and_bursts_with_their_residual() {
    let mut bench = Bench::new(&Terms { keys: &SMALL, size_bytes: 8 << 20, ..Terms::default() });
    let content = Random(1).bytes(8 << 20);
    bench.target.units[&0].device.write_at(&content, 0).unwrap();
    // Blocks, room, what is moved, residual. The longest is read in several pieces.
    for (blocks, room, moved, residual) in [
        (1, 512, 512, (0, 0)),
        (10, 5120, 5120, (0, 0)),
        (10, 5000, 5000, (flag::OVERFLOW, 120)),
        (10, 6000, 5120, (flag::UNDERFLOW, 880)),
        (10, 0, 0, (flag::OVERFLOW, 5120)),
        (0, 0, 0, (0, 0)),
        (0, 100, 0, (flag::UNDERFLOW, 100)),
        (6000, 3_072_000, 3_072_000, (0, 0)),
        (6000, 2_500_001, 2_500_001, (flag::OVERFLOW, 571_999)),
    ] {
        let header = bench.command(flag::READ, room, &cdb10(0x28, 3, blocks));
        let sent = bench.exchange(header, &[]);
        assert_eq!(verdict(&sent), (status::GOOD, 0, 0, residual.0, residual.1), "{blocks} blocks, room for {room}");
        let mut received: Vec<u8> = Vec::new();
        let data_in: Vec<&Answer> = sent.iter().filter(|answer| answer.header.opcode() == opcode::DATA_IN).collect();
        for (sn, answer) in data_in.iter().enumerate() {
            assert!(answer.data.len() <= 1000);
            assert_eq!(answer.header.u32(at::DATA_SN) as usize, sn);
            assert_eq!(answer.header.u32(at::OFFSET) as usize, received.len());
            received.extend(&answer.data);
            let is_last = sn + 1 == data_in.len();
            let ends_burst = received.len().is_multiple_of(2500);
            assert_eq!(answer.header.has(flag::FINAL), is_last || ends_burst, "at {}", received.len());
            assert_eq!(answer.stat_sn == StatSn::Advance, is_last);
        }
        assert!(received == content[1536..1536 + moved], "{blocks} blocks, room for {room}");
        // Without data there is a response of its own, which says how many there were.
        if data_in.is_empty() {
            assert_eq!((opcodes(&sent), sent[0].header.u32(at::DATA_SN)), (vec![opcode::SCSI_RESPONSE], 0));
        }
    }
}

#[test]
fn writes_are_asked_for_burst_by_burst() {
    let mut bench = Bench::new(&Terms { keys: &SMALL, ..Terms::default() });
    let data = Random(2).bytes(10 * 512);
    let header = bench.command(flag::WRITE, 5120, &cdb10(0x2A, 5, 10));
    let tag = header.tag();
    let mut sent = bench.exchange(header, &data[..700]);
    let mut offset = 700;
    for sn in 0.. {
        assert_eq!(opcodes(&sent), [opcode::READY_TO_TRANSFER], "after {offset} bytes");
        let r2t = sent.remove(0);
        assert_eq!(r2t.stat_sn, StatSn::Repeat);
        assert_eq!((r2t.header.u32(at::DATA_SN), r2t.header.u32(at::OFFSET) as usize), (sn, offset));
        let len = r2t.header.u32(at::RESIDUAL) as usize;
        assert_eq!(len, (5120 - offset).min(2500));
        for (part, end) in [(0, false), (1, true)] {
            let range = if end { offset + 100..offset + len } else { offset..offset + 100 };
            sent = bench.exchange(data_out(tag, &r2t, part, range.start as u32, end), &data[range]);
        }
        offset += len;
        if offset == 5120 {
            break;
        }
    }
    assert_eq!(verdict(&sent), (status::GOOD, 0, 0, 0, 0));
    assert!(bench.disk()[2560..2560 + 5120] == data);
}

#[test]
fn writes_move_what_is_wanted_and_announced() {
    // Blocks wanted, bytes announced and sent at once, bytes written, residual.
    for (blocks, announced, written, residual) in [
        (2, 1024, 1024, (0, 0)),
        (1, 1024, 512, (flag::UNDERFLOW, 512)),
        (2, 512, 512, (flag::OVERFLOW, 512)),
        (2, 700, 512, (flag::OVERFLOW, 324)),
        (1, 200, 0, (flag::OVERFLOW, 312)),
        (0, 512, 0, (flag::UNDERFLOW, 512)),
        (1, 0, 0, (flag::OVERFLOW, 512)),
    ] {
        let mut bench = Bench::new(&Terms::default());
        let header = bench.command(flag::WRITE, announced, &cdb10(0x2A, 0, blocks));
        let sent = bench.exchange(header, &vec![7; announced as usize]);
        let case = format!("{blocks} blocks, {announced} bytes");
        assert_eq!(verdict(&sent), (status::GOOD, 0, 0, residual.0, residual.1), "{case}");
        let disk = bench.disk();
        assert_eq!(disk.iter().filter(|byte| **byte == 7).count(), written, "{case}");
    }
}

#[test]
fn data_out_of_place_fails_the_command_and_changes_nothing() {
    struct Case {
        what: &'static str,
        change: fn(Header) -> Header,
        len: usize,
        last: bool,
        sense: (u8, u16),
    }
    let right = Case { what: "right", change: |header| header, len: 1024, last: true, sense: (0, 0) };
    let bad = Case { sense: (0x0B, 0x4B00), ..right };
    for case in [
        Case { what: "number", change: |header| header.with_u32(at::DATA_SN, 1), ..bad },
        Case { what: "offset", change: |header| header.with_u32(at::OFFSET, 512), ..bad },
        Case { what: "transfer tag", change: |header| header.with_u32(at::TTT, 0x77), ..bad },
        Case { what: "nobody asked", change: |header| header.with_u32(at::TTT, NO_TAG), ..bad },
        Case { what: "too much", len: 1025, ..bad },
        Case { what: "too early an end", len: 512, ..bad },
        Case { what: "no end", last: false, ..bad },
        Case { what: "nothing", len: 0, last: false, ..bad },
        right,
    ] {
        let mut bench = Bench::new(&Terms { keys: &[("ImmediateData", "No")], ..Terms::default() });
        let header = bench.command(flag::WRITE, 1024, &cdb10(0x2A, 0, 2));
        let tag = header.tag();
        let r2t = bench.exchange(header, &[]).remove(0);
        let header = (case.change)(data_out(tag, &r2t, 0, 0, case.last));
        let sent = bench.exchange(header, &vec![7; case.len]);
        let (status, key, code, ..) = verdict(&sent);
        let expected = if case.sense.0 == 0 { status::GOOD } else { status::CHECK_CONDITION };
        assert_eq!((status, (key, code)), (expected, case.sense), "{}", case.what);
        assert_eq!(bench.disk()[0] == 7, case.sense.0 == 0, "{}", case.what);
        // What is left of the sequence is let pass, for a while.
        let rest = data_out(tag, &r2t, 1, 512, true);
        if case.last {
            continue;
        }
        assert_eq!(bench.exchange(rest.clone(), &[7; 512]), [], "{}", case.what);
        bench.now += Duration::from_secs(31);
        assert_eq!(opcodes(&bench.exchange(rest, &[7; 512])), [opcode::REJECT], "{}", case.what);
    }
}

#[test]
fn commands_that_break_the_terms_are_refused_with_sense() {
    for (what, keys, flags, data, intact, additional, sense) in [
        ("no immediate data", &[("ImmediateData", "No")][..], 0xA0, 512, true, false, (0x0B, 0x0C0C)),
        ("too much immediate data", &SMALL, 0xA0, 1024, true, false, (0x0B, 0x0C0C)),
        ("more than announced", &[], 0xA0, 1536, true, false, (0x0B, 0x0C0C)),
        ("unasked data follows", &[], 0x20, 0, true, false, (0x0B, 0x0C0C)),
        ("data with a read", &[], 0xC0, 512, true, false, (0x0B, 0x0C0C)),
        ("digest", &[], 0xA0, 512, false, false, (0x0B, 0x4705)),
        ("both directions", &[], 0xE0, 0, true, false, (5, 0x2000)),
        ("a longer CDB", &[], 0xA0, 0, true, true, (5, 0x2000)),
    ] {
        let mut bench = Bench::new(&Terms { keys, ..Terms::default() });
        let mut header = bench.command(0, 1024, &cdb10(0x2A, 0, 2));
        header.0[at::FLAGS] = flags;
        let tag = header.tag();
        let pdu = Pdu { header, has_additional: additional, data: vec![7; data], data_intact: intact };
        let actions = bench.session.handle(pdu, bench.now);
        let mut sent = bench.carry_out(actions);
        sent.extend(bench.run_all());
        let (status, key, code, ..) = verdict(&sent);
        assert_eq!((status, (key, code)), (status::CHECK_CONDITION, sense), "{what}");
        assert!(bench.disk().iter().all(|byte| *byte == 0), "{what}");
        // Data that still comes for it is nobody's fault.
        let late = Header::new(opcode::DATA_OUT, flag::FINAL, tag).with_u32(at::TTT, NO_TAG);
        assert_eq!(bench.exchange(late, &[7; 512]), [], "{what}");
    }
}

#[test]
fn data_is_asked_for_when_there_is_room() {
    let mut bench = Bench::new(&Terms {
        size_bytes: 64 << 20,
        keys: &[("ImmediateData", "No")],
        payload_bytes: 3 << 20,
        ..Terms::default()
    });
    // Four writes of 1 MiB: three fit.
    let tags: Vec<u32> = (0..4)
        .map(|index| {
            let header = bench.command(flag::WRITE, 1 << 20, &cdb10(0x2A, index * 2048, 2048));
            let tag = header.tag();
            let asked = bench.exchange(header, &[]).len();
            assert_eq!(asked, usize::from(index < 3), "write {index}");
            tag
        })
        .collect();
    // The second is aborted, and the fourth has its place.
    let abort = bench.request(opcode::TASK_MANAGEMENT, flag::FINAL | 1).with_u32(at::REFERENCED_TAG, tags[1]);
    let sent = bench.exchange(abort, &[]);
    assert_eq!(opcodes(&sent), [opcode::READY_TO_TRANSFER, opcode::TASK_MANAGEMENT_RESPONSE]);
    assert_eq!(sent[0].header.tag(), tags[3]);
}

/// Random commands of every kind that moves blocks, with random terms, against a plain array.
#[test]
fn against_a_plain_array() {
    const BLOCKS: u64 = 256;
    let keys: [&'static [(&'static str, &'static str)]; 3] =
        [&[], &SMALL, &[("ImmediateData", "No"), ("MaxBurstLength", "4096")]];
    for (block_size, keys) in [BlockSize::N512, BlockSize::E512, BlockSize::N4096].into_iter().zip(keys) {
        let block = u64::from(block_size.logical_bytes());
        let mut bench = Bench::new(&Terms { size_bytes: BLOCKS * block, block_size, keys, ..Terms::default() });
        let mut model = vec![0_u8; (BLOCKS * block) as usize];
        let mut random = Random(block);
        for step in 0..1500 {
            let first = random.below(BLOCKS + 2);
            let count = random.below(9);
            let fits = first + count <= BLOCKS;
            let range = (first * block) as usize..((first + count) * block) as usize;
            let mut data = random.bytes(range.len());
            let same = random.below(2) == 0;
            let kind = random.below(9);
            let (code, byte1) = match kind {
                0 => (0x88, 0),
                1 => (0x8A, 0x08),
                2 => (0x8E, 0),
                3 => (0x8B, 0),
                4 => (0x89, 0),
                5 => (0x93, if same { 0x08 } else { 0 }),
                6 => (0x8F, 0x02),
                7 => (0x93, 0x01),
                _ => (0x42, 0),
            };
            // What the medium holds makes comparisons succeed now and then.
            if matches!(kind, 4 | 6) && same && fits {
                data = model[range.clone()].to_vec();
            }
            let new = random.bytes(range.len());
            let out = match kind {
                0 | 7 => Vec::new(),
                4 => [data.clone(), new.clone()].concat(),
                5 if same => vec![0; block as usize],
                5 => random.bytes(block as usize),
                8 => {
                    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
                    list.extend(first.to_be_bytes());
                    list.extend((count as u32).to_be_bytes());
                    list.extend([0; 4]);
                    list
                }
                _ => data.clone(),
            };
            let mut cdb = [0; 16];
            (cdb[0], cdb[1]) = (code, byte1);
            match kind {
                8 => cdb[7..9].copy_from_slice(&24_u16.to_be_bytes()),
                _ => {
                    cdb[2..10].copy_from_slice(&first.to_be_bytes());
                    cdb[10..14].copy_from_slice(&(count as u32).to_be_bytes());
                }
            }
            if kind == 4 {
                cdb[10..16].copy_from_slice(&[0, 0, 0, count as u8, 0, 0]);
            }
            let room = if kind == 0 { range.len() as u32 } else { out.len() as u32 };
            let sent =
                converse(&mut bench, &mut random, if kind == 0 { flag::READ } else { flag::WRITE }, room, &cdb, &out);
            let (_, key, code, ..) = verdict(&sent);
            let differs = fits && matches!(kind, 4 | 6) && model[range.clone()] != data[..];
            let expected = match () {
                () if !fits => (5, 0x2100),
                () if count == 0 && matches!(kind, 5 | 7) => (5, 0x2400),
                () if differs => (0x0E, 0x1D00),
                () => (0, 0),
            };
            assert_eq!((key, code), expected, "step {step}, kind {kind}, {first}+{count}");
            if expected != (0, 0) {
                continue;
            }
            let slot = &mut model[range.clone()];
            match kind {
                1 | 2 => slot.copy_from_slice(&data),
                3 => slot.iter_mut().zip(&data).for_each(|(old, new)| *old |= new),
                4 => slot.copy_from_slice(&new),
                5 => slot.chunks_mut(block as usize).for_each(|chunk| chunk.copy_from_slice(&out)),
                7 | 8 => slot.fill(0),
                _ => {}
            }
            if kind == 0 {
                let read: Vec<u8> = sent.iter().flat_map(|answer| answer.data.clone()).collect();
                assert!(read == model[range], "step {step}: read {first}+{count}");
            }
        }
        assert!(bench.disk() == model, "{block_size:?}");
    }
}

/// A command with all the data that it is asked for, some of it sent along.
fn converse(bench: &mut Bench, random: &mut Random, flags: u8, expected: u32, cdb: &[u8], data: &[u8]) -> Vec<Answer> {
    let header = bench.command(flags, expected, cdb);
    let tag = header.tag();
    let most = (bench.session.settings.parameters.max_immediate_bytes() as usize).min(data.len());
    let sent_along = random.below(most as u64 + 1) as usize;
    let mut sent = bench.exchange(header, &data[..sent_along]);
    while let [r2t] = &sent[..]
        && r2t.header.opcode() == opcode::READY_TO_TRANSFER
    {
        let r2t = r2t.clone();
        let (mut at, mut left) = (r2t.header.u32(at::OFFSET), r2t.header.u32(at::RESIDUAL));
        for sn in 0.. {
            let len = (1 + random.below(left.into())) as u32;
            left -= len;
            let part = &data[at as usize..(at + len) as usize];
            sent = bench.exchange(data_out(tag, &r2t, sn, at, left == 0), part);
            at += len;
            if left == 0 {
                break;
            }
        }
    }
    sent
}
