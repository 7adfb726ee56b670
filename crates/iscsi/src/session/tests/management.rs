//! Everything but data: numbers, aborts, pings, text, leaving.

use super::*;
use crate::scsi::Command;

/// A write of one block that waits for its data.
fn waiting_write(bench: &mut Bench) -> (u32, Answer) {
    let header = bench.command(flag::WRITE, 512, &cdb10(0x2A, 0, 1));
    let tag = header.tag();
    (tag, bench.exchange(header, &[]).remove(0))
}

fn manage(bench: &mut Bench, function: u8, tag: u32, ref_cmd_sn: u32) -> Header {
    bench
        .request(opcode::TASK_MANAGEMENT, flag::FINAL | function)
        .with_u32(at::REFERENCED_TAG, tag)
        .with_u32(at::REF_CMD_SN, ref_cmd_sn)
}

fn response(sent: &[Answer]) -> u8 {
    let answers: Vec<_> =
        sent.iter().filter(|answer| answer.header.opcode() == opcode::TASK_MANAGEMENT_RESPONSE).collect();
    assert_eq!(answers.len(), 1, "{sent:?}");
    answers[0].header.0[at::RESPONSE]
}

#[test]
fn requests_outside_the_window_are_not_even_refused() {
    let mut bench = Bench::new(&Terms::default());
    let (expected, max) = bench.session.window();
    for number in [expected.wrapping_sub(1), max.wrapping_add(1), expected.wrapping_add(1)] {
        for kind in [opcode::NOP_OUT, opcode::SCSI_COMMAND, opcode::TASK_MANAGEMENT, opcode::TEXT, opcode::LOGOUT] {
            let header = Header::new(kind, flag::FINAL, 99).with_u32(at::CMD_SN, number);
            assert!(bench.hand(header, &[]).is_empty(), "{kind:#x} with number {number:#x}");
        }
    }
    assert_eq!(bench.session.window(), (expected, max));
    // An immediate one has a number, too, but is not counted.
    let header = Header::new(opcode::NOP_OUT | 0x40, flag::FINAL, 99).with_u32(at::CMD_SN, max.wrapping_add(9));
    assert_eq!(opcodes(&bench.exchange(header, b"ping")), [opcode::NOP_IN]);
    let header = bench.command(0, 0, &[0; 6]);
    assert_eq!(verdict(&bench.exchange(header, &[])), (status::GOOD, 0, 0, 0, 0));
    assert_eq!(bench.session.window(), (expected.wrapping_add(1), max.wrapping_add(1)));
}

#[test]
fn the_window_shuts_and_opens_with_commands_in_progress() {
    let mut bench = Bench::new(&Terms::default());
    let (expected, max) = bench.session.window();
    let allowed = max.wrapping_sub(expected) + 1;
    assert_eq!(allowed, 128);
    let (first, r2t) = waiting_write(&mut bench);
    for _ in 1..allowed {
        waiting_write(&mut bench);
    }
    let refused = bench.command(flag::WRITE, 512, &cdb10(0x2A, 0, 1));
    assert!(bench.hand(refused, &[]).is_empty(), "one more than allowed");
    bench.cmd_sn = bench.cmd_sn.wrapping_sub(1);
    bench.exchange(data_out(first, &r2t, 0, 0, true), &[1; 512]);
    let (expected, max) = bench.session.window();
    assert_eq!(max, expected, "one has ended, one may come");
    waiting_write(&mut bench);
}

#[test]
fn aborts_wherever_the_task_is() {
    let mut bench = Bench::new(&Terms::default());
    let disk = bench.disk();
    // Waiting for its data: gone without a status, and what still comes is let pass.
    let (tag, r2t) = waiting_write(&mut bench);
    let abort = manage(&mut bench, 1, tag, 0);
    assert_eq!(response(&bench.exchange(abort, &[])), 0);
    assert_eq!(bench.exchange(data_out(tag, &r2t, 0, 0, true), &[1; 512]), []);
    assert!(bench.disk() == disk);

    // Ready: the same.
    let header = bench.command(flag::WRITE, 512, &cdb10(0x2A, 0, 1));
    let tag = header.tag();
    assert!(bench.hand(header, &[1; 512]).is_empty());
    let abort = manage(&mut bench, 1, tag, 0);
    assert_eq!(opcodes(&bench.exchange(abort, &[])), [opcode::TASK_MANAGEMENT_RESPONSE]);
    assert!(bench.disk() == disk);

    // Done, or never seen: there is no such task.
    let (number, unknown) = (bench.cmd_sn.wrapping_sub(1), 0x5555);
    let abort = manage(&mut bench, 1, unknown, number);
    assert_eq!(response(&bench.exchange(abort, &[])), 1);
    // It may still come, by its number: now it may not.
    let number = bench.cmd_sn.wrapping_add(1);
    let abort = manage(&mut bench, 1, unknown, number);
    assert_eq!(response(&bench.exchange(abort, &[])), 0);
    assert_eq!(bench.session.window().0, number.wrapping_add(1));
}

/// The answer to an abort waits until the task has let go of the device.
#[test]
fn aborts_of_what_runs() {
    for (what, function, flags, code, responds, expected) in [
        ("a read", 1, flag::READ, 0x28, false, 0),
        ("a write is done when it is heard of", 1, flag::WRITE, 0x2A, true, 1),
        ("all tasks", 2, flag::WRITE, 0x2A, false, 0),
        ("all tasks of all", 4, flag::WRITE, 0x2A, false, 0),
        ("a reset", 5, flag::READ, 0x28, false, 0),
        ("a reset of all", 6, flag::WRITE, 0x2A, false, 0),
    ] {
        let mut bench = Bench::new(&Terms::default());
        let header = bench.command(flags, 512, &cdb10(code, 0, 1));
        let tag = header.tag();
        let data: &[u8] = if flags == flag::WRITE { &[1; 512] } else { &[] };
        assert!(bench.hand(header, data).is_empty());
        let job = bench.session.next_job().unwrap();
        let abort = manage(&mut bench, function, tag, 0);
        assert_eq!(bench.exchange(abort, &[]), [], "{what}: not yet");
        assert!(job.stopped.load(Ordering::SeqCst), "{what}");
        let sent = bench.run(&job);
        let kinds = opcodes(&sent);
        assert_eq!(kinds.contains(&opcode::SCSI_RESPONSE), responds, "{what}");
        assert_eq!(kinds.last(), Some(&opcode::TASK_MANAGEMENT_RESPONSE), "{what}: after the status");
        assert_eq!(response(&sent), expected, "{what}");
    }
}

#[test]
fn functions_that_are_not_there() {
    for (function, lun, expected) in
        [(3, 0, 5), (8, 0, 4), (9, 0, 5), (2, 1, 2), (4, 1, 2), (5, 1, 2), (5, 0, 0), (6, 1, 0)]
    {
        let mut bench = Bench::new(&Terms::default());
        let request = manage(&mut bench, function, 0, 0).with_lun([0, lun, 0, 0, 0, 0, 0, 0]);
        assert_eq!(response(&bench.exchange(request, &[])), expected, "function {function} on unit {lun}");
    }
}

#[test]
fn ordered_commands_wait_and_are_waited_for() {
    let mut bench = Bench::new(&Terms::default());
    let mut order = Vec::new();
    for ordered in [false, false, true, false] {
        let mut header = bench.command(0, 0, &[0; 6]);
        header.0[at::FLAGS] |= if ordered { 2 } else { 1 };
        order.push(header.tag());
        assert!(bench.hand(header, &[]).is_empty());
    }
    let (first, second) = (bench.session.next_job().unwrap(), bench.session.next_job().unwrap());
    assert_eq!((first.tag, second.tag), (order[0], order[1]));
    assert!(!bench.session.has_job() && bench.session.next_job().is_none(), "the third waits for both");
    bench.run(&second);
    assert!(bench.session.next_job().is_none());
    bench.run(&first);
    let third = bench.session.next_job().unwrap();
    assert_eq!(third.tag, order[2]);
    assert!(bench.session.next_job().is_none(), "the fourth waits for the third");
    bench.run(&third);
    assert_eq!(bench.session.next_job().unwrap().tag, order[3]);
}

#[test]
fn pings_and_silence() {
    let mut bench = Bench::new(&Terms { keys: &[("MaxRecvDataSegmentLength", "512")], ..Terms::default() });
    let header = bench.request(opcode::NOP_OUT, flag::FINAL);
    let sent = bench.exchange(header.clone(), &[5; 600]);
    assert_eq!((opcodes(&sent), sent[0].data.len()), (vec![opcode::NOP_IN], 512));
    assert_eq!((sent[0].header.tag(), sent[0].header.u32(at::TTT)), (header.tag(), NO_TAG));
    let answer_only = Header::new(opcode::NOP_OUT | 0x40, flag::FINAL, NO_TAG);
    assert_eq!(bench.exchange(answer_only.clone(), &[]), []);

    let start = bench.now;
    let after = |seconds| start + Duration::from_secs(seconds);
    assert!(bench.session.silence(after(19)).is_none());
    let asked = bench.session.silence(after(20));
    let Some(Action::Send(ping)) = asked else { panic!("{asked:?}") };
    assert_eq!((ping.header.opcode(), ping.header.tag(), ping.stat_sn), (opcode::NOP_IN, NO_TAG, StatSn::Repeat));
    assert_ne!(ping.header.u32(at::TTT), NO_TAG, "an answer is wanted");
    assert!(bench.session.silence(after(39)).is_none());
    bench.now = after(39);
    bench.exchange(answer_only, &[]);
    assert!(matches!(bench.session.silence(after(60)), Some(Action::Send(_))), "it lived at 39");
    assert!(matches!(bench.session.silence(after(80)), Some(Action::Close)));
}

#[test]
fn an_initiator_that_pings_but_sends_no_data_is_given_up() {
    let mut bench = Bench::new(&Terms::default());
    waiting_write(&mut bench);
    for _ in 0..59 {
        bench.now += Duration::from_secs(1);
        let ping = bench.request(opcode::NOP_OUT, flag::FINAL);
        assert!(!bench.hand(ping, &[]).iter().any(|action| matches!(action, Action::Close)));
    }
    bench.now += Duration::from_secs(6);
    let ping = bench.request(opcode::NOP_OUT, flag::FINAL);
    assert!(matches!(bench.hand(ping, &[])[..], [Action::Close]));
}

#[test]
fn logging_out() {
    for (reason, cid, response, leaves) in
        [(0, 9, 0, true), (1, 3, 0, true), (1, 9, 1, false), (2, 3, 2, false), (5, 3, 3, false)]
    {
        let mut bench = Bench::new(&Terms::default());
        let header = bench.request(opcode::LOGOUT, flag::FINAL | reason).with_u16(at::CID, cid);
        let actions = bench.hand(header, &[]);
        assert_eq!(matches!(actions[..], [Action::Leave(_)]), leaves, "reason {reason}");
        let sent = bench.carry_out(actions);
        assert_eq!((opcodes(&sent), sent[0].header.0[at::RESPONSE]), (vec![opcode::LOGOUT_RESPONSE], response));
    }
}

#[test]
fn long_text_comes_in_parts() {
    let keys = &[("MaxRecvDataSegmentLength", "512")];
    let mut bench = Bench::new(&Terms { keys, purpose: "discovery", ..Terms::default() });
    let unknown: Vec<String> = (0..80).map(|index| format!("X-key{index}=1\0")).collect();
    let asked = format!("SendTargets=All\0{}", unknown.concat());
    let mut expected = format!("TargetName={NAME}\0TargetAddress=127.0.0.1:3260,1\0");
    (0..80).for_each(|index| expected.push_str(&format!("X-key{index}=NotUnderstood\0")));

    // The request in two parts, the answer in as many as it takes.
    let (one, two) = asked.split_at(300);
    let first = bench.request(opcode::TEXT, flag::CONTINUE).with_u32(at::TTT, NO_TAG);
    let tag = first.tag();
    let sent = bench.exchange(first, one.as_bytes());
    assert_eq!((opcodes(&sent), sent[0].data.len(), sent[0].header.0[at::FLAGS]), (vec![opcode::TEXT_RESPONSE], 0, 0));
    let (mut said, mut next, mut ttt) = (Vec::new(), two, sent[0].header.u32(at::TTT));
    loop {
        bench.tag = tag - 1;
        let request = bench.request(opcode::TEXT, flag::FINAL).with_u32(at::TTT, ttt);
        let sent = bench.exchange(request, next.as_bytes());
        next = "";
        assert!(sent[0].data.len() <= 512);
        said.extend(&sent[0].data);
        ttt = sent[0].header.u32(at::TTT);
        match sent[0].header.0[at::FLAGS] {
            flag::CONTINUE => assert_ne!(ttt, NO_TAG),
            flag::FINAL => break,
            other => panic!("flags {other:#x}"),
        }
    }
    assert_eq!(ttt, NO_TAG);
    assert_eq!(String::from_utf8(said).unwrap(), expected);
}

#[test]
fn what_does_not_belong_is_rejected() {
    for (what, purpose, kind, flags, ttt, data, reason) in [
        ("SNACK", "normal", 0x10, 0x80, NO_TAG, &b""[..], reject::NOT_SUPPORTED),
        ("no opcode", "normal", 0x1E, 0x80, NO_TAG, b"", reject::NOT_SUPPORTED),
        ("login", "normal", opcode::LOGIN, 0x87, NO_TAG, b"", reject::PROTOCOL_ERROR),
        ("a command to list targets", "discovery", opcode::SCSI_COMMAND, 0x80, NO_TAG, b"", reject::PROTOCOL_ERROR),
        ("management of nothing", "discovery", opcode::TASK_MANAGEMENT, 0x85, NO_TAG, b"", reject::PROTOCOL_ERROR),
        ("data for nothing", "normal", opcode::DATA_OUT, 0x80, 1, b"x", reject::INVALID_FIELD),
        ("text of another exchange", "normal", opcode::TEXT, 0x80, 5, b"", reject::INVALID_FIELD),
        ("text without an end", "normal", opcode::TEXT, 0xC0, NO_TAG, b"", reject::PROTOCOL_ERROR),
        ("no text", "normal", opcode::TEXT, 0x80, NO_TAG, b"junk", reject::PROTOCOL_ERROR),
    ] {
        let mut bench = Bench::new(&Terms { purpose, ..Terms::default() });
        let header = bench.request(kind, flags).with_u32(at::TTT, ttt);
        let sent = bench.exchange(header.clone(), data);
        assert_eq!(opcodes(&sent), [opcode::REJECT], "{what}");
        assert_eq!((sent[0].header.0[at::RESPONSE], &sent[0].data[..]), (reason, &header.0[..]), "{what}");
    }
    // A tag that is in use, and too many at once outside the window.
    let mut bench = Bench::new(&Terms::default());
    let (tag, _) = waiting_write(&mut bench);
    bench.tag = tag - 1;
    let again = bench.command(0, 0, &[0; 6]);
    assert_eq!(bench.exchange(again, &[])[0].header.0[at::RESPONSE], reject::PROTOCOL_ERROR);
    for index in 0..=MAX_IMMEDIATE_COMMANDS {
        let mut header = bench.command(flag::WRITE, 512, &cdb10(0x2A, 0, 1));
        header.0[0] |= 0x40;
        let sent = bench.exchange(header, &[]);
        let expected = if index < MAX_IMMEDIATE_COMMANDS { opcode::READY_TO_TRANSFER } else { opcode::REJECT };
        assert_eq!(opcodes(&sent), [expected], "immediate command {index}");
    }
}

#[test]
fn a_session_that_ends_drops_what_has_not_begun() {
    let mut bench = Bench::new(&Terms::default());
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let header = bench.command(flag::WRITE, 512, &cdb10(0x2A, 0, 1));
        assert!(bench.hand(header, &[1; 512]).is_empty());
        jobs.push(());
    }
    let running = bench.session.next_job().unwrap();
    assert!(matches!(running.command, Ok(Command::Write { .. })));
    bench.session.end();
    assert!(!bench.session.has_job() && running.stopped.load(Ordering::SeqCst));
}
