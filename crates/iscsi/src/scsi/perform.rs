//! Carrying commands out. Reads that stream are left to the caller; everything else is done here, in one go.

use std::ops::Range;
use std::sync::PoisonError;

use crate::scsi::command::{Against, Blocks};
use crate::scsi::inquiry::{MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS, Subject};
use crate::scsi::persistent::Order;
use crate::scsi::{Command, Nexus, Sense, Unit, attention, opcodes, status};
use crate::{DeviceError, DeviceErrorKind, ExtentKind, Zeroing};

/// Bytes of the medium looked at or written at once by commands that go over many blocks.
const PIECE_BYTES: u64 = 1 << 20;
/// Extents that are asked of a device at once.
const EXTENTS_AT_ONCE: usize = 64;
/// Questions to a device for one answer, so that a disk in many pieces does not keep a thread for long.
const MAX_STATUS_QUESTIONS: usize = 64;
/// Descriptors of one answer to GET LBA STATUS, at most.
const MAX_STATUS_DESCRIPTORS: usize = 256;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    /// Good, with data for the initiator, clipped to what it has room for.
    Data(Vec<u8>),
    /// A status without sense data.
    Status(u8),
    Check(Sense),
}

impl From<Sense> for Outcome {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// Why a transfer of blocks ended early.
fn failed(error: &DeviceError, otherwise: Sense) -> Outcome {
    match error.kind() {
        DeviceErrorKind::Io => otherwise.into(),
        DeviceErrorKind::NoSpace => Sense::SPACE_ALLOCATION_FAILED.into(),
        DeviceErrorKind::ReadOnly => Sense::WRITE_PROTECTED.into(),
        DeviceErrorKind::Unavailable => Outcome::Status(status::BUSY),
    }
}

/// Why a read did; `block` is its first.
pub(crate) fn read_failed(error: &DeviceError, block: u64) -> Outcome {
    failed(error, Sense::unrecovered_read(block))
}

fn write_failed(error: DeviceError) -> Outcome {
    failed(&error, Sense::WRITE_ERROR)
}

fn clipped(mut data: Vec<u8>, allocation: u32) -> Outcome {
    data.truncate(allocation as usize);
    Outcome::Data(data)
}

impl Unit {
    /// Carries out a command that was admitted, but for [`Command::Read`] and what concerns the whole target. `data` is
    /// what the initiator sent for it, of the `announced_bytes`; of writes it may be less than they want.
    pub(crate) fn perform(&self, command: &Command, data: &[u8], announced_bytes: u32, nexus: &Nexus) -> Outcome {
        if command.changes_medium() && (self.options.read_only || self.state().mode.write_protected) {
            return Sense::WRITE_PROTECTED.into();
        }
        if let Err(sense) = command.check_announced(announced_bytes, &self.facts) {
            return sense.into();
        }
        self.answer(command, data, nexus).unwrap_or_else(|refusal| refusal)
    }

    fn answer(&self, command: &Command, data: &[u8], nexus: &Nexus) -> Result<Outcome, Outcome> {
        Ok(match *command {
            Command::Nothing | Command::Read(_) | Command::ReportLuns { .. } => Outcome::Good,
            Command::RequestSense { descriptors, allocation } => {
                let news = self.state().attentions.take(nexus).unwrap_or(Sense::NONE);
                clipped(news.encode(descriptors), allocation)
            }
            Command::Inquiry { page, allocation } => {
                let subject = Subject { facts: &self.facts, options: &self.options, target: &self.target };
                clipped(subject.inquire(page)?, allocation)
            }
            Command::ReadCapacity10 => {
                let last = u32::try_from(self.facts.blocks - 1).unwrap_or(u32::MAX);
                Outcome::Data([last.to_be_bytes(), self.facts.block_bytes.to_be_bytes()].concat())
            }
            Command::ReadCapacity16 { allocation } => clipped(self.capacity(), allocation),
            Command::GetLbaStatus { first, allocation } => clipped(self.lba_status(first, allocation)?, allocation),

            Command::Write { blocks, flush } => self.write(blocks, data, flush)?,
            Command::OrWrite { blocks, flush } => self.or_write(blocks, data, flush)?,
            Command::CompareAndWrite { blocks, flush } => self.compare_and_write(blocks, data, flush)?,
            Command::WriteSame { blocks, unmap, with_data } => self.write_same(blocks, unmap, with_data, data)?,
            Command::Unmap { len } => self.unmap(data, len)?,
            Command::Verify { blocks, against } => self.verify(blocks, against, data)?,
            Command::Prefetch(blocks) => {
                self.device.prefetch(self.bytes(blocks));
                Outcome::Good
            }
            Command::SynchronizeCache => {
                self.device.flush().map_err(write_failed)?;
                Outcome::Good
            }

            Command::ModeSense { question, allocation } => {
                let mode = self.state().mode;
                clipped(mode.sense(question, &self.facts, self.options.read_only)?, allocation)
            }
            Command::ModeSelect { long, len } => {
                if data.len() < len as usize {
                    return Err(Sense::PARAMETER_LIST_LENGTH.into());
                }
                let mut state = self.state();
                let mode = state.mode.select(data, long, &self.facts)?;
                if std::mem::replace(&mut state.mode, mode) != mode {
                    state.attentions.tell_others(nexus, attention::MODE_CHANGED);
                }
                Outcome::Good
            }
            Command::Reserve => self.state().reserve(nexus),
            Command::Release => self.state().release(nexus),
            Command::PersistentIn { action, allocation } => clipped(self.state().persistent.report(action), allocation),
            Command::PersistentOut { action, scope, kind } => {
                let outcome = {
                    let state = &mut *self.state();
                    state.persistent.change(Order { action, scope, kind }, data, nexus, &mut state.attentions)
                };
                // Writes that were admitted before are done when the answer goes out: who was shut out writes no more.
                drop(self.whole.write().unwrap_or_else(PoisonError::into_inner));
                outcome
            }
            Command::ReportOpcodes { question, allocation } => {
                clipped(opcodes::report(question, self.facts.thin)?, allocation)
            }
            Command::ReportTaskManagement { extended, allocation } => {
                // ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET.
                let mut data = vec![0xD8, 0, 0, 0];
                if extended {
                    data[3] = 12;
                    data.resize(16, 0);
                }
                clipped(data, allocation)
            }
        })
    }

    pub(crate) fn bytes(&self, blocks: Blocks) -> Range<u64> {
        let block_bytes = u64::from(self.facts.block_bytes);
        blocks.first * block_bytes..(blocks.first + u64::from(blocks.count)) * block_bytes
    }

    fn capacity(&self) -> Vec<u8> {
        let mut data = vec![0; 32];
        data[..8].copy_from_slice(&(self.facts.blocks - 1).to_be_bytes());
        data[8..12].copy_from_slice(&self.facts.block_bytes.to_be_bytes());
        // Logical blocks per physical one, as a power of two.
        data[13] = (self.options.block_size.physical_bytes() / self.facts.block_bytes).trailing_zeros() as u8;
        // Thin, and what was given back reads as zeroes.
        data[14] = if self.facts.thin { 0xC0 } else { 0 };
        data
    }

    /// Runs of blocks that are stored or not, from `first` on. A block that is stored in part is stored.
    fn lba_status(&self, first: u64, allocation: u32) -> Result<Vec<u8>, Outcome> {
        let room = (allocation as usize).saturating_sub(8) / 16;
        let max = room.clamp(1, MAX_STATUS_DESCRIPTORS);
        let block_bytes = u64::from(self.facts.block_bytes);
        let size_bytes = self.facts.blocks * block_bytes;
        let mut runs: Vec<(u64, u64, bool)> = Vec::new();
        let mut block = first;
        'asking: for _ in 0..MAX_STATUS_QUESTIONS {
            if block == self.facts.blocks {
                break;
            }
            let start = block * block_bytes;
            let extents = self.device.extents(start..size_bytes, EXTENTS_AT_ONCE);
            let extents = extents.map_err(|error| read_failed(&error, block))?;
            let mut at = start;
            for extent in extents {
                let end = at.saturating_add(extent.len_bytes).min(size_bytes);
                // A zero extent counts for the blocks it covers, data for all that it touches.
                let end_block = match extent.kind {
                    ExtentKind::Zero if end / block_bytes > block => end / block_bytes,
                    _ => end.div_ceil(block_bytes),
                };
                let zero = extent.kind == ExtentKind::Zero && at <= block * block_bytes && end / block_bytes > block;
                if end_block > block {
                    let count = runs.len();
                    match runs.last_mut() {
                        Some((_, run_end, kind)) if *kind == zero => *run_end = end_block,
                        _ if count == max => break 'asking,
                        _ => runs.push((block, end_block, zero)),
                    }
                    block = end_block;
                }
                at = end;
            }
        }
        // Their field has 32 bits.
        let runs = runs.into_iter().map(|(start, end, zero)| (start, (end - start).min(u32::MAX.into()) as u32, zero));
        let mut data = vec![0; 8];
        for (start, count, zero) in runs {
            data.extend(start.to_be_bytes());
            data.extend(count.to_be_bytes());
            data.extend([u8::from(zero), 0, 0, 0]);
            if count == u32::MAX {
                break;
            }
        }
        let len = data.len() as u32 - 4;
        data[..4].copy_from_slice(&len.to_be_bytes());
        Ok(data)
    }

    /// Writes the whole blocks that came.
    fn write(&self, blocks: Blocks, data: &[u8], flush: bool) -> Result<Outcome, Outcome> {
        let data = &data[..data.len() - data.len() % self.facts.block_bytes as usize];
        let _shared = self.whole.read().unwrap_or_else(PoisonError::into_inner);
        if !data.is_empty() {
            self.device.write_at(data, self.bytes(blocks).start).map_err(write_failed)?;
        }
        self.finish_write(flush)
    }

    fn finish_write(&self, flush: bool) -> Result<Outcome, Outcome> {
        if flush {
            self.device.flush().map_err(write_failed)?;
        }
        Ok(Outcome::Good)
    }

    fn or_write(&self, blocks: Blocks, data: &[u8], flush: bool) -> Result<Outcome, Outcome> {
        let data = &data[..data.len() - data.len() % self.facts.block_bytes as usize];
        let start = self.bytes(blocks).start;
        let _alone = self.whole.write().unwrap_or_else(PoisonError::into_inner);
        for (index, piece) in data.chunks(PIECE_BYTES as usize).enumerate() {
            let at = start + index as u64 * PIECE_BYTES;
            let mut merged = self.read(at, piece.len())?;
            merged.iter_mut().zip(piece).for_each(|(old, new)| *old |= new);
            self.device.write_at(&merged, at).map_err(write_failed)?;
        }
        self.finish_write(flush)
    }

    fn compare_and_write(&self, blocks: Blocks, data: &[u8], flush: bool) -> Result<Outcome, Outcome> {
        let range = self.bytes(blocks);
        let (expected, new) = data.split_at(data.len() / 2);
        if expected.len() as u64 != range.end - range.start {
            return Err(Sense::invalid_field(13).into());
        }
        let _alone = self.whole.write().unwrap_or_else(PoisonError::into_inner);
        let found = self.read(range.start, expected.len())?;
        if let Some(at) = first_difference(&found, expected) {
            return Err(Sense::miscompare(at as u64).into());
        }
        if !new.is_empty() {
            self.device.write_at(new, range.start).map_err(write_failed)?;
        }
        self.finish_write(flush)
    }

    fn write_same(&self, blocks: Blocks, unmap: bool, with_data: bool, data: &[u8]) -> Result<Outcome, Outcome> {
        if with_data && data.len() != self.facts.block_bytes as usize {
            return Err(Sense::invalid_field(0).into());
        }
        let range = self.bytes(blocks);
        let _shared = self.whole.read().unwrap_or_else(PoisonError::into_inner);
        // Without data the block is one of zeroes.
        if data.iter().all(|byte| *byte == 0) {
            let how = if unmap { Zeroing::MayDeallocate } else { Zeroing::KeepAllocated };
            self.device.zero(range, how).map_err(write_failed)?;
            return Ok(Outcome::Good);
        }
        let piece = data.repeat((range.end - range.start).min(PIECE_BYTES) as usize / data.len());
        for at in range.clone().step_by(PIECE_BYTES as usize) {
            let len = (range.end - at).min(PIECE_BYTES) as usize;
            self.device.write_at(&piece[..len], at).map_err(write_failed)?;
        }
        Ok(Outcome::Good)
    }

    fn unmap(&self, list: &[u8], len: u32) -> Result<Outcome, Outcome> {
        if len == 0 {
            return Ok(Outcome::Good);
        }
        if len < 8 || list.len() < 8 {
            return Err(Sense::PARAMETER_LIST_LENGTH.into());
        }
        // The list says how much of it is descriptors; an incomplete last one does not count (SBC-3 5.28).
        let announced = usize::from(list[2]) << 8 | usize::from(list[3]);
        let descriptors = &list[8..][..announced.min(list.len() - 8)];
        let mut ranges = Vec::new();
        let mut total = 0_u64;
        for descriptor in descriptors.chunks_exact(16) {
            let first = u64::from_be_bytes(std::array::from_fn(|at| descriptor[at]));
            let count = u32::from_be_bytes(std::array::from_fn(|at| descriptor[8 + at]));
            if first.checked_add(count.into()).is_none_or(|end| end > self.facts.blocks) {
                return Err(Sense::OUT_OF_RANGE.into());
            }
            total += u64::from(count);
            ranges.push(Blocks { first, count });
        }
        if total > MAX_UNMAP_BLOCKS || ranges.len() > MAX_UNMAP_DESCRIPTORS {
            return Err(Sense::INVALID_PARAMETER.into());
        }
        let _shared = self.whole.read().unwrap_or_else(PoisonError::into_inner);
        for blocks in ranges.into_iter().filter(|blocks| blocks.count > 0) {
            self.device.zero(self.bytes(blocks), Zeroing::MayDeallocate).map_err(write_failed)?;
        }
        Ok(Outcome::Good)
    }

    fn verify(&self, blocks: Blocks, against: Against, data: &[u8]) -> Result<Outcome, Outcome> {
        let block_bytes = self.facts.block_bytes as usize;
        let range = self.bytes(blocks);
        match against {
            Against::Nothing => {}
            Against::Data => {
                // What came, in whole blocks.
                let data = &data[..data.len() - data.len() % block_bytes];
                for (index, piece) in data.chunks(PIECE_BYTES as usize).enumerate() {
                    let offset = index as u64 * PIECE_BYTES;
                    let found = self.read(range.start + offset, piece.len())?;
                    if let Some(at) = first_difference(&found, piece) {
                        return Err(Sense::miscompare(offset + at as u64).into());
                    }
                }
            }
            Against::OneBlock if data.len() < block_bytes => {}
            Against::OneBlock => {
                for at in range.clone().step_by(PIECE_BYTES as usize) {
                    let found = self.read(at, (range.end - at).min(PIECE_BYTES) as usize)?;
                    for (index, block) in found.chunks(block_bytes).enumerate() {
                        if let Some(byte) = first_difference(block, data) {
                            let offset = at - range.start + (index * block_bytes + byte) as u64;
                            return Err(Sense::miscompare(offset).into());
                        }
                    }
                }
            }
        }
        Ok(Outcome::Good)
    }

    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, Outcome> {
        let mut data = vec![0; len];
        if len > 0 {
            let block = at / u64::from(self.facts.block_bytes);
            let read = self.device.read_at(&mut data, at);
            read.map_err(|error| read_failed(&error, block))?;
        }
        Ok(data)
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b { None } else { a.iter().zip(b).position(|(a, b)| a != b) }
}
