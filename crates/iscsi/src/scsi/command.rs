//! Command descriptor blocks, decoded and checked against what a unit is. Pure: nothing of a unit's state is asked.

use crate::scsi::Sense;
use crate::scsi::opcodes::Question;

/// Longest transfer of one command.
pub(crate) const MAX_TRANSFER_BYTES: u32 = 32 << 20;

/// Length of the one parameter list that PERSISTENT RESERVE OUT has here.
pub(crate) const PERSISTENT_LIST_LEN: usize = 24;

/// What of a unit never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) block_bytes: u32,
    pub(crate) blocks: u64,
    /// Space can be given back.
    pub(crate) thin: bool,
}

impl Facts {
    pub(crate) fn max_transfer_blocks(&self) -> u32 {
        MAX_TRANSFER_BYTES / self.block_bytes
    }
}

/// Logical blocks in a row, all of which exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) first: u64,
    pub(crate) count: u32,
}

/// What VERIFY compares the medium with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Against {
    /// Nothing: only the range is checked.
    Nothing,
    /// As many blocks of data.
    Data,
    /// One block of data, with each.
    OneBlock,
}

/// MODE SENSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ModeQuestion {
    /// The form with 10 bytes, whose answer has another header.
    pub(crate) long: bool,
    pub(crate) page: u8,
    pub(crate) subpage: u8,
    pub(crate) changeable: bool,
    pub(crate) with_descriptor: bool,
}

/// A command that can be carried out on units with these [`Facts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Succeeds where the unit can be talked to at all: TEST UNIT READY, START STOP UNIT, PREVENT ALLOW.
    Nothing,
    RequestSense {
        descriptors: bool,
        allocation: u32,
    },
    Inquiry {
        page: Option<u8>,
        allocation: u32,
    },
    ReportLuns {
        select: u8,
        allocation: u32,
    },
    ReadCapacity10,
    ReadCapacity16 {
        allocation: u32,
    },
    GetLbaStatus {
        first: u64,
        allocation: u32,
    },
    Read(Blocks),
    Write {
        blocks: Blocks,
        flush: bool,
    },
    OrWrite {
        blocks: Blocks,
        flush: bool,
    },
    CompareAndWrite {
        blocks: Blocks,
        flush: bool,
    },
    WriteSame {
        blocks: Blocks,
        unmap: bool,
        with_data: bool,
    },
    Unmap {
        len: u32,
    },
    Verify {
        blocks: Blocks,
        against: Against,
    },
    Prefetch(Blocks),
    SynchronizeCache,
    ModeSense {
        question: ModeQuestion,
        allocation: u32,
    },
    ModeSelect {
        long: bool,
        len: u32,
    },
    Reserve,
    Release,
    PersistentIn {
        action: u8,
        allocation: u32,
    },
    PersistentOut {
        action: u8,
        scope: u8,
        kind: u8,
    },
    ReportOpcodes {
        question: Question,
        allocation: u32,
    },
    ReportTaskManagement {
        extended: bool,
        allocation: u32,
    },
}

impl Command {
    /// Decodes a CDB.
    pub(crate) fn decode(cdb: &[u8; 16], facts: &Facts) -> Result<Self, Sense> {
        let fields = Fields { cdb, facts };
        let flush = cdb[1] & 0x08 != 0;
        Ok(match cdb[0] {
            0x00 | 0x1B | 0x1E => Self::Nothing,
            0x03 => Self::RequestSense { descriptors: cdb[1] & 1 != 0, allocation: cdb[4].into() },
            0x12 => {
                let page = (cdb[1] & 1 != 0).then_some(cdb[2]);
                if cdb[1] & !1 != 0 {
                    return Err(Sense::invalid_field(1));
                }
                if page.is_none() && cdb[2] != 0 {
                    return Err(Sense::invalid_field(2));
                }
                Self::Inquiry { page, allocation: fields.u16(3).into() }
            }
            0xA0 => match fields.u32(6) {
                0..16 => return Err(Sense::invalid_field(6)),
                allocation => Self::ReportLuns { select: cdb[2], allocation },
            },
            0x25 => {
                if cdb[8] & 1 == 0 && fields.u32(2) != 0 {
                    return Err(Sense::invalid_field(2));
                }
                Self::ReadCapacity10
            }
            0x9E => match cdb[1] & 0x1F {
                0x10 => Self::ReadCapacity16 { allocation: fields.u32(10) },
                0x12 if facts.thin => {
                    let first = fields.u64(2);
                    if first >= facts.blocks {
                        return Err(Sense::OUT_OF_RANGE);
                    }
                    Self::GetLbaStatus { first, allocation: fields.u32(10) }
                }
                _ => return Err(Sense::invalid_field(1)),
            },

            0x08 => Self::Read(fields.short_blocks()?),
            0x28 | 0xA8 | 0x88 => Self::Read(fields.transfer()?),
            0x0A => Self::Write { blocks: fields.short_blocks()?, flush: false },
            0x2A | 0xAA | 0x8A => Self::Write { blocks: fields.transfer()?, flush },
            0x2E | 0xAE | 0x8E => Self::Write { blocks: fields.transfer()?, flush: true },
            0x8B => Self::OrWrite { blocks: fields.transfer()?, flush },
            0x89 => fields.compare_and_write(flush)?,
            0x41 | 0x93 => fields.write_same()?,
            0x42 if facts.thin => match cdb[1] & 1 {
                0 => Self::Unmap { len: fields.u16(7).into() },
                _ => return Err(Sense::invalid_field(1)),
            },
            0x2F | 0xAF | 0x8F => fields.verify()?,
            0x34 | 0x90 => Self::Prefetch(fields.blocks()?),
            0x35 | 0x91 => {
                fields.blocks()?;
                Self::SynchronizeCache
            }

            0x1A => Self::ModeSense { question: fields.mode_question(false)?, allocation: cdb[4].into() },
            0x5A => Self::ModeSense { question: fields.mode_question(true)?, allocation: fields.u16(7).into() },
            0x15 | 0x55 => {
                // PF must be set, SP must not.
                if cdb[1] & 0x11 != 0x10 {
                    return Err(Sense::invalid_field(1));
                }
                let long = cdb[0] == 0x55;
                let len = if long { fields.u16(7).into() } else { cdb[4].into() };
                Self::ModeSelect { long, len }
            }
            0x16 | 0x56 => Self::Reserve,
            0x17 | 0x57 => Self::Release,
            0x5E => match cdb[1] & 0x1F {
                action @ 0..=3 => Self::PersistentIn { action, allocation: fields.u16(7).into() },
                _ => return Err(Sense::invalid_field(1)),
            },
            0x5F => match cdb[1] & 0x1F {
                // The field would allow for 4 GiB.
                0..=6 if fields.u32(5) as usize != PERSISTENT_LIST_LEN => return Err(Sense::PARAMETER_LIST_LENGTH),
                action @ 0..=6 => Self::PersistentOut { action, scope: cdb[2] >> 4, kind: cdb[2] & 0xF },
                _ => return Err(Sense::invalid_field(1)),
            },
            0xA3 => match cdb[1] & 0x1F {
                0x0C => Self::ReportOpcodes {
                    question: Question {
                        option: cdb[2] & 7,
                        with_timeouts: cdb[2] & 0x80 != 0,
                        opcode: cdb[3],
                        service_action: fields.u16(4),
                    },
                    allocation: fields.u32(6),
                },
                0x0D => Self::ReportTaskManagement { extended: cdb[2] & 0x80 != 0, allocation: fields.u32(6) },
                _ => return Err(Sense::invalid_field(1)),
            },
            _ => return Err(Sense::INVALID_OPCODE),
        })
    }

    /// Bytes that the initiator is to send for it.
    pub(crate) fn data_out_bytes(&self, facts: &Facts) -> u64 {
        let of_blocks = |blocks: &Blocks| u64::from(blocks.count) * u64::from(facts.block_bytes);
        match self {
            Self::Write { blocks, .. } | Self::OrWrite { blocks, .. } => of_blocks(blocks),
            Self::Verify { blocks, against: Against::Data } => of_blocks(blocks),
            Self::CompareAndWrite { blocks, .. } => 2 * of_blocks(blocks),
            Self::Verify { against: Against::OneBlock, .. } | Self::WriteSame { with_data: true, .. } => {
                facts.block_bytes.into()
            }
            Self::Unmap { len } | Self::ModeSelect { len, .. } => (*len).into(),
            Self::PersistentOut { .. } => PERSISTENT_LIST_LEN as u64,
            _ => 0,
        }
    }

    /// Whether it can be carried out with that much data, no more and no less. Most commands take what comes.
    pub(crate) fn check_announced(&self, announced_bytes: u32, facts: &Facts) -> Result<(), Sense> {
        let field = match self {
            // A count of 256 wraps to 0: then there is data where none belongs.
            Self::CompareAndWrite { .. } => 13,
            Self::WriteSame { .. } => 0,
            _ => return Ok(()),
        };
        let fits = self.data_out_bytes(facts) == u64::from(announced_bytes);
        if fits { Ok(()) } else { Err(Sense::invalid_field(field)) }
    }

    /// Whether it may change the medium, and so is refused by a unit that is write-protected.
    pub(crate) fn changes_medium(&self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::OrWrite { .. }
                | Self::CompareAndWrite { .. }
                | Self::WriteSame { .. }
                | Self::Unmap { .. }
        )
    }
}

/// Fields where most commands of one length have them.
struct Fields<'a> {
    cdb: &'a [u8; 16],
    facts: &'a Facts,
}

impl Fields<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.cdb[at], self.cdb[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.cdb[at], self.cdb[at + 1], self.cdb[at + 2], self.cdb[at + 3]])
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }

    /// The commands with six bytes: 21 bits of address, and a count of which 0 stands for 256.
    fn short_blocks(&self) -> Result<Blocks, Sense> {
        let first = u64::from(self.u32(0) & 0x1F_FFFF);
        let count = if self.cdb[4] == 0 { 256 } else { self.cdb[4].into() };
        self.checked(first, count)
    }

    /// First block and count of a command with 10, 12 or 16 bytes.
    fn blocks(&self) -> Result<Blocks, Sense> {
        let (first, count) = match self.cdb[0] >> 5 {
            1 | 2 => (self.u32(2).into(), self.u16(7).into()),
            4 => (self.u64(2), self.u32(10)),
            _ => (self.u32(2).into(), self.u32(6)),
        };
        self.checked(first, count)
    }

    fn checked(&self, first: u64, count: u32) -> Result<Blocks, Sense> {
        match first.checked_add(count.into()) {
            Some(end) if end <= self.facts.blocks => Ok(Blocks { first, count }),
            _ => Err(Sense::OUT_OF_RANGE),
        }
    }

    /// Protection information is not kept.
    fn no_protection(&self) -> Result<(), Sense> {
        if self.cdb[1] & 0xE0 == 0 { Ok(()) } else { Err(Sense::invalid_field(1)) }
    }

    /// Blocks that are transferred.
    fn transfer(&self) -> Result<Blocks, Sense> {
        self.no_protection()?;
        let blocks = self.blocks()?;
        self.not_too_long(blocks)
    }

    fn not_too_long(&self, blocks: Blocks) -> Result<Blocks, Sense> {
        if blocks.count <= self.facts.max_transfer_blocks() {
            return Ok(blocks);
        }
        Err(Sense::invalid_field(match self.cdb[0] >> 5 {
            1 | 2 => 7,
            4 => 10,
            _ => 6,
        }))
    }

    fn compare_and_write(&self, flush: bool) -> Result<Command, Sense> {
        self.no_protection()?;
        let blocks = self.checked(self.u64(2), self.cdb[13].into())?;
        Ok(Command::CompareAndWrite { blocks, flush })
    }

    fn write_same(&self) -> Result<Command, Sense> {
        self.no_protection()?;
        let flags = self.cdb[1];
        let long = self.cdb[0] == 0x93;
        let (unmap, without_data) = (flags & 0x08 != 0, long && flags & 0x01 != 0);
        // ANCHOR, PBDATA and LBDATA are never there; unmapping needs a unit that can.
        if flags & 0x16 != 0 || (unmap && !self.facts.thin) || (!long && flags & 0x01 != 0) {
            return Err(Sense::invalid_field(1));
        }
        let blocks = self.not_too_long(self.blocks()?)?;
        if blocks.count == 0 {
            return Err(Sense::invalid_field(if long { 10 } else { 7 }));
        }
        Ok(Command::WriteSame { blocks, unmap, with_data: !without_data })
    }

    fn verify(&self) -> Result<Command, Sense> {
        self.no_protection()?;
        let blocks = self.blocks()?;
        let against = match self.cdb[1] >> 1 & 3 {
            0 => return Ok(Command::Verify { blocks, against: Against::Nothing }),
            1 => Against::Data,
            3 => Against::OneBlock,
            _ => return Err(Sense::invalid_field(1)),
        };
        Ok(Command::Verify { blocks: self.not_too_long(blocks)?, against })
    }

    fn mode_question(&self, long: bool) -> Result<ModeQuestion, Sense> {
        let changeable = match self.cdb[2] >> 6 {
            0 | 2 => false,
            1 => true,
            _ => return Err(Sense::SAVING_NOT_SUPPORTED),
        };
        let with_descriptor = self.cdb[1] & 0x08 == 0;
        Ok(ModeQuestion { long, page: self.cdb[2] & 0x3F, subpage: self.cdb[3], changeable, with_descriptor })
    }
}
