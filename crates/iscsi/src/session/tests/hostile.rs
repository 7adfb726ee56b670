//! PDUs that no honest initiator sends.

use std::collections::HashSet;

use super::*;

/// Random PDUs, most of them nearly right. Whatever comes: the disk that takes no writes stays as it is, every command
/// that was taken has at most one status and never two, and what is held for it is bounded.
#[test]
fn nothing_breaks_a_session() {
    let content = Random(5).bytes(1 << 20);
    let (mut statuses, mut rejects, mut asked) = (0, 0, 0);
    for seed in 0..150 {
        let mut random = Random(seed);
        let mut bench = Bench::new(&Terms { read_only: true, payload_bytes: 33 << 20, ..Terms::default() });
        bench.target.units[&0].device.write_at(&content, 0).unwrap();
        let mut open: HashSet<u32> = HashSet::new();
        let mut transfers: Vec<Answer> = Vec::new();
        for _ in 0..200 {
            let (header, data) = any_pdu(&mut bench, &mut random, &transfers);
            let is_command = header.opcode() == opcode::SCSI_COMMAND;
            let (tag, before) = (header.tag(), bench.session.window());
            let intact = random.below(20) > 0;
            let has_additional = random.below(50) == 0;
            let pdu = Pdu { header: header.clone(), has_additional, data, data_intact: intact };
            let actions = bench.session.handle(pdu, bench.now);
            let was_taken = bench.session.window().0 != before.0 || header.is_immediate();
            let sent = bench.carry_out(actions);
            let was_rejected = sent.iter().any(|answer| answer.header.opcode() == opcode::REJECT);
            if is_command && was_taken && !was_rejected {
                assert!(open.insert(tag), "tag {tag:#x} is used twice at once");
            }
            // Or the number it counts with would be ahead for ever.
            bench.cmd_sn = bench.session.window().0;
            let mut all = sent;
            all.extend(bench.run_all());
            for answer in all {
                let tag = answer.header.tag();
                match answer.header.opcode() {
                    opcode::SCSI_RESPONSE => {
                        assert!(open.remove(&tag), "a status for {tag:#x}, which is not open");
                        statuses += 1;
                    }
                    opcode::DATA_IN if answer.header.has(flag::STATUS) => {
                        assert!(open.remove(&tag), "a status for {tag:#x}, which is not open");
                        statuses += 1;
                    }
                    opcode::READY_TO_TRANSFER => {
                        assert!(open.contains(&tag), "data is asked for {tag:#x}, which is not open");
                        asked += 1;
                        transfers.push(answer);
                    }
                    opcode::TASK_MANAGEMENT_RESPONSE => {
                        // Some were stopped: what is still open is what the session knows.
                        open.retain(|tag| bench.session.by_tag.contains_key(tag));
                    }
                    opcode::REJECT => rejects += 1,
                    opcode::DATA_IN | opcode::NOP_IN | opcode::TEXT_RESPONSE | opcode::LOGOUT_RESPONSE => {}
                    other => panic!("opcode {other:#x} was sent"),
                }
            }
            transfers.retain(|r2t| open.contains(&r2t.header.tag()));
            let held: u64 = bench.session.settings.payload_bytes - bench.session.free_payload_bytes;
            assert!(bench.session.tasks.len() <= 128 + MAX_IMMEDIATE_COMMANDS && held <= 33 << 20);
            assert_eq!(bench.session.by_tag.len(), bench.session.tasks.len());
        }
        assert!(bench.disk() == content, "seed {seed}: the disk was written");
        // All that is left waits for data.
        let left: HashSet<u32> = bench.session.by_tag.keys().copied().collect();
        assert_eq!(left, open, "seed {seed}");
        let pending = Arc::new(Pending { session: 7, tag: 1, response: AtomicU8::new(0), closes_target: false });
        bench.session.abort_tasks(None, &pending, bench.now);
        assert_eq!(bench.session.free_payload_bytes, bench.session.settings.payload_bytes, "seed {seed}: room is lost");
    }
    assert!(statuses > 5000 && rejects > 1000 && asked > 200, "{statuses} statuses, {rejects} rejects, {asked} asked");
}

fn any_pdu(bench: &mut Bench, random: &mut Random, transfers: &[Answer]) -> (Header, Vec<u8>) {
    let kind = match random.below(12) {
        0 => opcode::NOP_OUT,
        1 => opcode::TASK_MANAGEMENT,
        2 => opcode::TEXT,
        3 | 4 if !transfers.is_empty() => {
            let r2t = &transfers[random.below(transfers.len() as u64) as usize];
            let (offset, len) = (r2t.header.u32(at::OFFSET), r2t.header.u32(at::RESIDUAL).min(4096));
            let sn = random.below(8) / 7;
            let header = data_out(r2t.header.tag(), r2t, sn as u32, offset, random.below(3) > 0);
            return (header, random.bytes(len as usize));
        }
        5 => random.below(64) as u8,
        _ => opcode::SCSI_COMMAND,
    };
    let mut header = bench.request(kind, flag::FINAL | (random.below(8) as u8) << 4 | random.below(8) as u8);
    if kind == opcode::SCSI_COMMAND {
        let writes = random.below(2) == 0;
        header.0[at::FLAGS] = flag::FINAL | if writes { flag::WRITE } else { flag::READ };
        let entry = random.below(crate::scsi::OPCODES.len() as u64) as usize;
        let usage = crate::scsi::OPCODES[entry].usage;
        let mut cdb: Vec<u8> = usage.iter().map(|mask| random.next() as u8 & mask).collect();
        cdb[0] = usage[0];
        // Small addresses and counts are the likely ones.
        if random.below(4) > 0 {
            let len = cdb.len();
            cdb[2..len - 2].iter_mut().for_each(|byte| *byte &= 3);
            cdb[2..len - 4].fill(0);
        }
        header.0[at::CDB..at::CDB + cdb.len()].copy_from_slice(&cdb);
        header
            .set_u32(at::EXPECTED_LEN, [0, 512, 24, 1024, 4096, 100_000, 1 << 20, u32::MAX][random.below(8) as usize]);
        if kind == opcode::SCSI_COMMAND && random.below(40) == 0 {
            header.set_u32(at::CDB, random.next() as u32);
        }
    } else {
        header.set_u32(at::TTT, [NO_TAG, 0, 1][random.below(3) as usize]);
    }
    if random.below(10) == 0 {
        header.0[0] |= 0x40;
    }
    for _ in 0..random.below(8) / 6 {
        header.0[1 + random.below(47) as usize] = random.next() as u8;
    }
    // Numbers that are far off are let pass without a word, which is tried less often.
    if random.below(8) > 0 {
        header.set_u32(at::CMD_SN, bench.session.window().0);
    }
    let announced = header.u32(at::EXPECTED_LEN) as u64;
    let len = match random.below(3) {
        0 => 0,
        1 => announced.min(4096),
        _ => random.below(1500),
    };
    (header, random.bytes(len as usize))
}
