//! The commands there are: which bits of their CDBs mean something, and whom a reservation keeps from them.

use crate::scsi::Sense;

/// What a command does to what others may have reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Works under every reservation of others.
    Always,
    /// Tells of the unit or its reservations only: an old reservation excludes it, a persistent one does not.
    Look,
    /// Reads the medium.
    Read,
    /// Changes the medium or the unit.
    Write,
    /// Decides about a conflict by itself.
    OldReservation,
    PersistentReservation,
}

/// One command, or one service action of one.
pub(crate) struct Entry {
    pub(crate) opcode: u8,
    pub(crate) service_action: Option<u8>,
    /// Which bits are evaluated; its length is that of the CDB. Byte 0 and a service action are themselves.
    pub(crate) usage: &'static [u8],
    pub(crate) access: Access,
    /// Only for units that can give space back.
    pub(crate) thin_only: bool,
}

const fn entry(access: Access, usage: &'static [u8]) -> Entry {
    Entry { opcode: usage[0], service_action: None, usage, access, thin_only: false }
}

const fn action(access: Access, usage: &'static [u8]) -> Entry {
    Entry { service_action: Some(usage[1]), ..entry(access, usage) }
}

const fn thin(entry: Entry) -> Entry {
    Entry { thin_only: true, ..entry }
}

use Access::{Always, Look, OldReservation, PersistentReservation, Read, Write};

/// Ascending by opcode and service action.
pub(crate) const ENTRIES: &[Entry] = &[
    // TEST UNIT READY, REQUEST SENSE
    entry(Look, &[0x00, 0, 0, 0, 0, 0]),
    entry(Always, &[0x03, 0x01, 0, 0, 0xFF, 0]),
    // READ(6), WRITE(6), INQUIRY
    entry(Read, &[0x08, 0x1F, 0xFF, 0xFF, 0xFF, 0]),
    entry(Write, &[0x0A, 0x1F, 0xFF, 0xFF, 0xFF, 0]),
    entry(Always, &[0x12, 0x01, 0xFF, 0xFF, 0xFF, 0]),
    // MODE SELECT(6), RESERVE(6), RELEASE(6), MODE SENSE(6), START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL
    entry(Write, &[0x15, 0x11, 0, 0, 0xFF, 0]),
    entry(OldReservation, &[0x16, 0, 0, 0, 0, 0]),
    entry(OldReservation, &[0x17, 0, 0, 0, 0, 0]),
    entry(Look, &[0x1A, 0x08, 0xFF, 0xFF, 0xFF, 0]),
    entry(Look, &[0x1B, 0x01, 0, 0x0F, 0xF7, 0]),
    entry(Look, &[0x1E, 0, 0, 0, 0x03, 0]),
    // READ CAPACITY(10), READ(10), WRITE(10), WRITE AND VERIFY(10), VERIFY(10)
    entry(Look, &[0x25, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x01, 0]),
    entry(Read, &[0x28, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    entry(Write, &[0x2A, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    entry(Write, &[0x2E, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    entry(Read, &[0x2F, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    // PRE-FETCH(10), SYNCHRONIZE CACHE(10), WRITE SAME(10), UNMAP
    entry(Read, &[0x34, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    entry(Write, &[0x35, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    entry(Write, &[0x41, 0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
    thin(entry(Write, &[0x42, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0])),
    // MODE SELECT(10), RESERVE(10), RELEASE(10), MODE SENSE(10)
    entry(Write, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
    entry(OldReservation, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    entry(OldReservation, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    entry(Look, &[0x5A, 0x08, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0]),
    // PERSISTENT RESERVE IN: READ KEYS, READ RESERVATION, REPORT CAPABILITIES, READ FULL STATUS
    action(PersistentReservation, &[0x5E, 0x00, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
    action(PersistentReservation, &[0x5E, 0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
    action(PersistentReservation, &[0x5E, 0x02, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
    action(PersistentReservation, &[0x5E, 0x03, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
    // PERSISTENT RESERVE OUT: REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT AND ABORT, REGISTER AND IGNORE
    action(PersistentReservation, &[0x5F, 0x00, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    action(PersistentReservation, &[0x5F, 0x01, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    action(PersistentReservation, &[0x5F, 0x02, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    action(PersistentReservation, &[0x5F, 0x03, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    action(PersistentReservation, &[0x5F, 0x04, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    action(PersistentReservation, &[0x5F, 0x05, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    action(PersistentReservation, &[0x5F, 0x06, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    // READ(16), COMPARE AND WRITE, WRITE(16), ORWRITE(16), WRITE AND VERIFY(16), VERIFY(16)
    entry(Read, &[0x88, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    entry(Write, &[0x89, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0, 0]),
    entry(Write, &[0x8A, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    entry(Write, &[0x8B, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    entry(Write, &[0x8E, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    entry(Read, &[0x8F, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    // PRE-FETCH(16), SYNCHRONIZE CACHE(16), WRITE SAME(16)
    entry(Read, &[0x90, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    entry(Write, &[0x91, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    entry(Write, &[0x93, 0x09, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    // READ CAPACITY(16), GET LBA STATUS
    action(Look, &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    thin(action(Read, &[0x9E, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0])),
    // REPORT LUNS, REPORT SUPPORTED OPERATION CODES, REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
    entry(Always, &[0xA0, 0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    action(Look, &[0xA3, 0x0C, 0x87, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    action(Look, &[0xA3, 0x0D, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    // READ(12), WRITE(12), WRITE AND VERIFY(12), VERIFY(12)
    entry(Read, &[0xA8, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    entry(Write, &[0xAA, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    entry(Write, &[0xAE, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
    entry(Read, &[0xAF, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
];

/// What a reservation of others means for a CDB. What is unknown might change anything.
pub(crate) fn access(cdb: &[u8; 16]) -> Access {
    ENTRIES.iter().find(|entry| entry.opcode == cdb[0]).map_or(Write, |entry| entry.access)
}

/// What REPORT SUPPORTED OPERATION CODES asks (SPC-4 6.35).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) option: u8,
    pub(crate) with_timeouts: bool,
    pub(crate) opcode: u8,
    pub(crate) service_action: u16,
}

/// No time is promised for any command.
const TIMEOUTS: [u8; 12] = [0, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(crate) fn report(question: Question, thin: bool) -> Result<Vec<u8>, Sense> {
    let there = || ENTRIES.iter().filter(move |entry| thin || !entry.thin_only);
    if question.option == 0 {
        return Ok(report_all(there(), question.with_timeouts));
    }
    let mut same_opcode = there().filter(|entry| entry.opcode == question.opcode).peekable();
    let has_actions = same_opcode.peek().is_some_and(|entry| entry.service_action.is_some());
    let is_there = same_opcode.peek().is_some();
    let with_action = match question.option {
        // A service action where there are none, or none where there are some, is the question's fault.
        1 if has_actions => return Err(Sense::invalid_field(2)),
        2 if is_there && !has_actions => return Err(Sense::invalid_field(2)),
        1 => false,
        2 => true,
        3 => has_actions,
        _ => return Err(Sense::invalid_field(2)),
    };
    let found =
        same_opcode.find(|entry| !with_action || entry.service_action.map(u16::from) == Some(question.service_action));
    Ok(report_one(found, question.with_timeouts))
}

fn report_all<'a>(entries: impl Iterator<Item = &'a Entry>, with_timeouts: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for entry in entries {
        let flags = u8::from(entry.service_action.is_some()) | u8::from(with_timeouts) << 1;
        data.extend([entry.opcode, 0, 0, entry.service_action.unwrap_or(0), 0, flags, 0, entry.usage.len() as u8]);
        if with_timeouts {
            data.extend(TIMEOUTS);
        }
    }
    let len = data.len() as u32 - 4;
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}

fn report_one(entry: Option<&Entry>, with_timeouts: bool) -> Vec<u8> {
    let Some(entry) = entry else { return vec![0, 1, 0, 0] };
    let mut data = vec![0, 3 | u8::from(with_timeouts) << 7, 0, entry.usage.len() as u8];
    data.extend(entry.usage);
    if with_timeouts {
        data.extend(TIMEOUTS);
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_of_the_lengths_that_opcodes_imply() {
        assert!(ENTRIES.is_sorted_by_key(|entry| (entry.opcode, entry.service_action)));
        for entry in ENTRIES {
            // SPC-4 4.2.5.1: the group code tells the length.
            let len = match entry.opcode >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                _ => 12,
            };
            assert_eq!(entry.usage.len(), len, "opcode {:#x}", entry.opcode);
        }
    }

    #[test]
    fn questions_and_answers() {
        let ask = |option, opcode, service_action| {
            report(Question { option, with_timeouts: false, opcode, service_action }, false)
        };
        for (what, answer, expected) in [
            ("by opcode", ask(1, 0x00, 0), Ok(vec![0, 3, 0, 6, 0, 0, 0, 0, 0, 0])),
            ("not there", ask(1, 0x83, 0), Ok(vec![0, 1, 0, 0])),
            ("thin only", ask(1, 0x42, 0), Ok(vec![0, 1, 0, 0])),
            ("has actions", ask(1, 0x9E, 0), Err(Sense::invalid_field(2))),
            ("has none", ask(2, 0x00, 0), Err(Sense::invalid_field(2))),
            ("no such action", ask(2, 0x9E, 0x11), Ok(vec![0, 1, 0, 0])),
            ("either, plain", ask(3, 0x17, 0), Ok(vec![0, 3, 0, 6, 0x17, 0, 0, 0, 0, 0])),
            ("either, no such action", ask(3, 0x9E, 0x1F), Ok(vec![0, 1, 0, 0])),
            ("option", ask(4, 0, 0), Err(Sense::invalid_field(2))),
        ] {
            assert_eq!(answer, expected, "{what}");
        }
        let by_action = ask(2, 0x9E, 0x10).unwrap();
        assert_eq!((by_action[1], &by_action[3..6]), (3, &[16, 0x9E, 0x10][..]));
        for (thin, with_timeouts, each) in [(false, false, 8), (true, false, 8), (true, true, 20)] {
            let all = report(Question { option: 0, with_timeouts, opcode: 0, service_action: 0 }, thin).unwrap();
            let entries = ENTRIES.iter().filter(|entry| thin || !entry.thin_only).count();
            assert_eq!(all.len(), 4 + entries * each);
            assert_eq!(u32::from_be_bytes(all[..4].try_into().unwrap()) as usize, entries * each);
        }
    }
}
