//! Which requests are granted: a pure function (spec A.4).

use std::ops::Range;

use crate::wire::{Errno, MAX_PAYLOAD_BYTES, Request, SECTOR_BYTES, command, flag};
use crate::{Agreement, Zeroing};

/// What the connection allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) size_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) structured: bool,
    pub(crate) allocation: bool,
}

/// What is to be done about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Perform(Command),
    Refuse(Errno, &'static str),
    /// The client leaves.
    Disconnect,
}

/// A request that can be carried out: its range lies inside the disk and consists of whole sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Read { range: Range<u64>, in_one_chunk: bool },
    Write { range: Range<u64>, durable: bool },
    Flush,
    Zero { range: Range<u64>, durable: bool, how: Zeroing },
    Prefetch { range: Range<u64> },
    BlockStatus { range: Range<u64>, one_extent: bool },
}

impl From<&Agreement> for Terms {
    fn from(agreement: &Agreement) -> Self {
        Self {
            size_bytes: agreement.export.device.size_bytes(),
            read_only: agreement.export.read_only,
            structured: agreement.structured,
            allocation: agreement.allocation,
        }
    }
}

/// The checks come in the order of spec A.4, so that equal mistakes get equal answers.
pub(crate) fn judge(request: &Request, terms: &Terms) -> Verdict {
    use Verdict::{Perform, Refuse};
    let kind = request.kind;
    let allowed_flags = match kind {
        command::DISC => return Verdict::Disconnect,
        // FUA is accepted everywhere: there are clients that set it anywhere.
        command::READ => flag::FUA | flag::DF,
        command::WRITE | command::FLUSH | command::TRIM | command::CACHE => flag::FUA,
        command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
        command::BLOCK_STATUS => flag::FUA | flag::REQ_ONE,
        _ => return Refuse(Errno::Invalid, "unknown type of request"),
    };
    if request.flags & !allowed_flags != 0 {
        return Refuse(Errno::Invalid, "a flag that this type of request does not have");
    }
    let has_payload = matches!(kind, command::READ | command::WRITE);
    if has_payload && request.len_bytes > MAX_PAYLOAD_BYTES {
        return Refuse(Errno::Invalid, "longer than the largest payload, 32 MiB");
    }
    if kind == command::BLOCK_STATUS && !terms.allocation {
        return Refuse(Errno::Invalid, "no context was selected");
    }
    if kind == command::FLUSH {
        let is_empty = request.offset_bytes == 0 && request.len_bytes == 0;
        return if is_empty { Perform(Command::Flush) } else { Refuse(Errno::Invalid, "FLUSH has no range") };
    }
    if terms.read_only && matches!(kind, command::WRITE | command::TRIM | command::WRITE_ZEROES) {
        return Refuse(Errno::Perm, "the export is read-only");
    }
    let (start, len_bytes) = (request.offset_bytes, u64::from(request.len_bytes));
    let Some(end) = start.checked_add(len_bytes).filter(|&end| end <= terms.size_bytes) else {
        let grows = matches!(kind, command::WRITE | command::WRITE_ZEROES);
        let errno = if grows { Errno::NoSpace } else { Errno::Invalid };
        return Refuse(errno, "the range ends beyond the disk");
    };
    if !start.is_multiple_of(SECTOR_BYTES) || !len_bytes.is_multiple_of(SECTOR_BYTES) {
        return Refuse(Errno::Invalid, "the range does not consist of whole sectors of 512 bytes");
    }
    let range = start..end;
    let durable = request.flags & flag::FUA != 0;
    Perform(match kind {
        command::READ => Command::Read { range, in_one_chunk: request.flags & flag::DF != 0 || !terms.structured },
        command::WRITE => Command::Write { range, durable },
        command::TRIM => Command::Zero { range, durable, how: Zeroing::MayDeallocate },
        command::WRITE_ZEROES => {
            let keeps = request.flags & flag::NO_HOLE != 0;
            let how = if keeps { Zeroing::KeepAllocated } else { Zeroing::MayDeallocate };
            Command::Zero { range, durable, how }
        }
        command::CACHE => Command::Prefetch { range },
        _ if len_bytes == 0 => return Refuse(Errno::Invalid, "BLOCK_STATUS of nothing"),
        _ => Command::BlockStatus { range, one_extent: request.flags & flag::REQ_ONE != 0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 8 << 20;
    const RW: Terms = Terms { size_bytes: SIZE, read_only: false, structured: true, allocation: true };
    const RO: Terms = Terms { read_only: true, ..RW };
    const PLAIN: Terms = Terms { structured: false, allocation: false, ..RW };
    /// As large as a size can be, so that no length saves us from an overflow.
    const HUGE: Terms = Terms { size_bytes: i64::MAX as u64 / 512 * 512, ..RW };

    fn refusal(terms: &Terms, kind: u16, flags: u16, offset_bytes: u64, len_bytes: u32) -> Option<Errno> {
        match judge(&Request { flags, kind, cookie: 0, offset_bytes, len_bytes }, terms) {
            Verdict::Refuse(errno, _) => Some(errno),
            Verdict::Perform(_) | Verdict::Disconnect => None,
        }
    }

    #[test]
    fn requests_are_refused_with_the_errors_of_the_table() {
        use Errno::{Invalid, NoSpace, Perm};
        let last = SIZE - 512;
        for (case, terms, kind, flags, offset, len, expected) in [
            ("read", RW, command::READ, 0, 0, 512, None),
            ("read of nothing", RW, command::READ, 0, 512, 0, None),
            ("read of nothing at the end", RW, command::READ, 0, SIZE, 0, None),
            ("last sector", RW, command::READ, flag::FUA | flag::DF, last, 512, None),
            ("past the end", RW, command::READ, 0, last, 1024, Some(Invalid)),
            ("far past the end", RW, command::READ, 0, 1 << 62, 512, Some(Invalid)),
            ("offset + length overflows", HUGE, command::READ, 0, u64::MAX - 511, 512, Some(Invalid)),
            ("write overflows", HUGE, command::WRITE, 0, u64::MAX - 511, 1024, Some(NoSpace)),
            ("longest read", HUGE, command::READ, 0, 0, 32 << 20, None),
            ("too long", HUGE, command::READ, 0, 0, (32 << 20) + 512, Some(Invalid)),
            ("unaligned offset", RW, command::READ, 0, 1, 512, Some(Invalid)),
            ("unaligned length", RW, command::WRITE, 0, 0, 511, Some(Invalid)),
            ("end before alignment", RW, command::WRITE, 0, SIZE - 1, 512, Some(NoSpace)),
            ("NO_HOLE on read", RW, command::READ, flag::NO_HOLE, 0, 512, Some(Invalid)),
            ("DF on write", RW, command::WRITE, flag::DF, 0, 512, Some(Invalid)),
            ("PAYLOAD_LEN on a compact write", RW, command::WRITE, 1 << 5, 0, 512, Some(Invalid)),
            ("flags before permission", RO, command::WRITE, flag::DF, 0, 512, Some(Invalid)),
            ("write, read-only", RO, command::WRITE, 0, 0, 512, Some(Perm)),
            ("permission before range", RO, command::WRITE, 0, SIZE, 512, Some(Perm)),
            ("trim, read-only", RO, command::TRIM, 0, 0, 512, Some(Perm)),
            ("zero, read-only", RO, command::WRITE_ZEROES, 0, 0, 512, Some(Perm)),
            ("flush, read-only", RO, command::FLUSH, 0, 0, 0, None),
            ("cache, read-only", RO, command::CACHE, 0, 0, 512, None),
            ("flush with a range", RW, command::FLUSH, 0, 0, 512, Some(Invalid)),
            ("flush with an offset", RW, command::FLUSH, 0, 512, 0, Some(Invalid)),
            ("trim of everything", HUGE, command::TRIM, 0, 0, u32::MAX - 511, None),
            ("trim past the end", RW, command::TRIM, 0, last, 1024, Some(Invalid)),
            ("zero past the end", RW, command::WRITE_ZEROES, 0, last, 1024, Some(NoSpace)),
            ("fast zero", RW, command::WRITE_ZEROES, flag::FAST_ZERO | flag::NO_HOLE, 0, 512, None),
            ("status", RW, command::BLOCK_STATUS, flag::REQ_ONE, 0, 512, None),
            ("status of nothing", RW, command::BLOCK_STATUS, 0, 0, 0, Some(Invalid)),
            ("status past the end", RW, command::BLOCK_STATUS, 0, last, 4096, Some(Invalid)),
            ("status without a context", PLAIN, command::BLOCK_STATUS, 0, 0, 512, Some(Invalid)),
            ("unknown type", RW, 8, 0, 0, 512, Some(Invalid)),
            ("unknown type", RW, u16::MAX, 0, 0, 512, Some(Invalid)),
            ("disconnect, whatever else it says", RW, command::DISC, u16::MAX, u64::MAX, u32::MAX, None),
        ] {
            assert_eq!(refusal(&terms, kind, flags, offset, len), expected, "{case}");
        }
    }

    #[test]
    fn flags_reach_the_command() {
        let judged = |terms: &Terms, kind, flags| {
            judge(&Request { flags, kind, cookie: 0, offset_bytes: 512, len_bytes: 1024 }, terms)
        };
        let range = 512..1536;
        for (case, verdict, command) in [
            ("DF", judged(&RW, command::READ, flag::DF), Command::Read { range: range.clone(), in_one_chunk: true }),
            ("no DF", judged(&RW, command::READ, 0), Command::Read { range: range.clone(), in_one_chunk: false }),
            ("simple", judged(&PLAIN, command::READ, 0), Command::Read { range: range.clone(), in_one_chunk: true }),
            ("FUA", judged(&RW, command::WRITE, flag::FUA), Command::Write { range: range.clone(), durable: true }),
            (
                "NO_HOLE",
                judged(&RW, command::WRITE_ZEROES, flag::NO_HOLE),
                Command::Zero { range: range.clone(), durable: false, how: Zeroing::KeepAllocated },
            ),
            (
                "trim with FUA",
                judged(&RW, command::TRIM, flag::FUA),
                Command::Zero { range: range.clone(), durable: true, how: Zeroing::MayDeallocate },
            ),
            (
                "REQ_ONE",
                judged(&RW, command::BLOCK_STATUS, flag::REQ_ONE),
                Command::BlockStatus { range, one_extent: true },
            ),
        ] {
            assert_eq!(verdict, Verdict::Perform(command), "{case}");
        }
    }
}
