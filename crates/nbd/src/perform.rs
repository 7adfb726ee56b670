//! Carrying out a request that was granted, and answering it (spec A.5).

use std::io;
use std::ops::Range;

use crate::reply::{self, Place};
use crate::request::{Command, Terms};
use crate::wire::{Errno, STATE_HOLE_AND_ZERO};
use crate::{Device, DeviceError, DeviceErrorKind, Extent, ExtentKind};

/// Zeroes in a READ that are worth a chunk of their own.
const MIN_HOLE_BYTES: u64 = 64 << 10;
/// Extents looked at for one READ; what is behind them is read.
const MAX_READ_EXTENTS: usize = 1024;
/// Descriptors in one answer to BLOCK_STATUS.
const MAX_DESCRIPTORS: usize = 4096;
/// Longest descriptor: the largest multiple of 512 in 32 bits.
const MAX_DESCRIPTOR_BYTES: u64 = 0xFFFF_FE00;

/// Where replies go, each in one piece.
pub(crate) trait Replies {
    /// Sends `head` and `body` with nothing between or inside them.
    fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()>;
}

/// One request that is being answered.
pub(crate) struct Answering<'a> {
    pub(crate) cookie: u64,
    pub(crate) terms: Terms,
    pub(crate) device: &'a dyn Device,
    pub(crate) replies: &'a dyn Replies,
}

impl Answering<'_> {
    /// `buf` has room for what is read, or holds what is to be written. The error is the socket's: devices' errors are
    /// told to the client.
    pub(crate) fn perform(&self, command: Command, buf: &mut [u8]) -> io::Result<()> {
        match command {
            Command::Read { range, in_one_chunk } => self.read(range, in_one_chunk, buf),
            Command::Write { range, durable } => {
                self.conclude(self.device.write_at(buf, range.start).and_then(|()| self.flush_if(durable)))
            }
            Command::Zero { range, durable, how } => {
                let zeroed = if range.is_empty() { Ok(()) } else { self.device.zero(range, how) };
                self.conclude(zeroed.and_then(|()| self.flush_if(durable)))
            }
            Command::Flush => self.conclude(self.device.flush()),
            Command::Prefetch { range } => {
                self.device.prefetch(range);
                self.conclude(Ok(()))
            }
            Command::BlockStatus { range, one_extent } => self.block_status(&range, one_extent),
        }
    }

    /// Tells the client that its request failed.
    pub(crate) fn refuse(&self, errno: Errno, message: &str) -> io::Result<()> {
        if self.terms.structured {
            self.replies.send(&reply::error_chunk(self.cookie, errno, message, None), &[])
        } else {
            self.replies.send(&reply::simple(self.cookie, errno as u32), &[])
        }
    }

    fn flush_if(&self, durable: bool) -> Result<(), DeviceError> {
        if durable { self.device.flush() } else { Ok(()) }
    }

    /// Answers a request that gives nothing back.
    fn conclude(&self, result: Result<(), DeviceError>) -> io::Result<()> {
        match result {
            Ok(()) => self.replies.send(&reply::simple(self.cookie, 0), &[]),
            Err(error) => self.refuse(errno(&error), &error.to_string()),
        }
    }

    fn read(&self, range: Range<u64>, in_one_chunk: bool, buf: &mut [u8]) -> io::Result<()> {
        if !self.terms.structured {
            return match self.device.read_at(buf, range.start) {
                Ok(()) => self.replies.send(&reply::simple(self.cookie, 0), buf),
                Err(error) => self.refuse(errno(&error), &error.to_string()),
            };
        }
        if range.is_empty() {
            return self.replies.send(&reply::none_chunk(self.cookie), &[]);
        }
        let len_bytes = range.end - range.start;
        // Without knowledge of holes everything is data; whoever cannot say where they are may still be able to read.
        let extents = match in_one_chunk || len_bytes < MIN_HOLE_BYTES {
            true => Vec::new(),
            false => self.device.extents(range.clone(), MAX_READ_EXTENTS).unwrap_or_default(),
        };
        let runs = runs(&extents, len_bytes);
        let mut start = 0;
        for (index, run) in runs.iter().enumerate() {
            let place = if index + 1 == runs.len() { Place::Last } else { Place::Before };
            let offset_bytes = range.start + start;
            // A READ is at most 32 MiB long.
            let run_bytes = run.len_bytes as u32;
            if run.kind == ExtentKind::Zero {
                self.replies.send(&reply::hole_chunk(self.cookie, place, offset_bytes, run_bytes), &[])?;
            } else {
                // The bytes are here before their chunk begins: afterwards an error could not be told any more.
                let data = &mut buf[start as usize..][..run_bytes as usize];
                if let Err(error) = self.device.read_at(data, offset_bytes) {
                    let (errno, message) = (errno(&error), error.to_string());
                    let chunk = reply::error_chunk(self.cookie, errno, &message, Some(offset_bytes));
                    return self.replies.send(&chunk, &[]);
                }
                self.replies.send(&reply::data_chunk_head(self.cookie, place, offset_bytes, run_bytes), data)?;
            }
            start += run.len_bytes;
        }
        Ok(())
    }

    fn block_status(&self, range: &Range<u64>, one_extent: bool) -> io::Result<()> {
        let max = if one_extent { 1 } else { MAX_DESCRIPTORS };
        match self.device.extents(range.clone(), max) {
            Ok(extents) => {
                let limit = if one_extent { range.end } else { self.terms.size_bytes };
                let descriptors = descriptors(&extents, range, limit, max);
                self.replies.send(&reply::block_status_chunk(self.cookie, &descriptors), &[])
            }
            Err(error) => self.refuse(errno(&error), &error.to_string()),
        }
    }
}

fn errno(error: &DeviceError) -> Errno {
    match error.kind() {
        // NBD has no word for "later": the client is told why, and its own retries decide.
        DeviceErrorKind::Io | DeviceErrorKind::Unavailable => Errno::Io,
        DeviceErrorKind::NoSpace => Errno::NoSpace,
        DeviceErrorKind::ReadOnly => Errno::Perm,
    }
}

/// Cuts a READ of `len_bytes` into what is sent and what is only named: holes too small to be worth it become data, and
/// so does everything the device did not speak of.
fn runs(extents: &[Extent], len_bytes: u64) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    let mut left = len_bytes;
    let unknown = Extent { len_bytes, kind: ExtentKind::Data };
    for extent in joined(extents).into_iter().chain([unknown]) {
        let len_bytes = extent.len_bytes.min(left);
        left -= len_bytes;
        let kind = if len_bytes < MIN_HOLE_BYTES { ExtentKind::Data } else { extent.kind };
        runs.push(Extent { len_bytes, kind });
    }
    joined(&runs)
}

/// Lengths and flags, from the start of `range`; none reaches beyond `limit`.
fn descriptors(extents: &[Extent], range: &Range<u64>, limit: u64, max: usize) -> Vec<(u32, u32)> {
    let mut descriptors = Vec::new();
    let mut at = range.start;
    for extent in joined(extents).into_iter().take(max) {
        let len_bytes = extent.len_bytes.min(limit - at);
        if len_bytes == 0 || at >= range.end {
            break;
        }
        let flags = if extent.kind == ExtentKind::Zero { STATE_HOLE_AND_ZERO } else { 0 };
        // At most `MAX_DESCRIPTOR_BYTES`, which is 32 bits.
        descriptors.push((len_bytes.min(MAX_DESCRIPTOR_BYTES) as u32, flags));
        if len_bytes > MAX_DESCRIPTOR_BYTES {
            // The next one would have to be of the same kind.
            break;
        }
        at += len_bytes;
    }
    if descriptors.is_empty() {
        // The device said nothing; an answer must not be empty.
        descriptors.push(((range.end - range.start).min(MAX_DESCRIPTOR_BYTES) as u32, 0));
    }
    descriptors
}

/// Without empty extents, and neighbours of one kind made one.
fn joined(extents: &[Extent]) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents.iter().filter(|extent| extent.len_bytes > 0) {
        match joined.last_mut() {
            Some(last) if last.kind == extent.kind => {
                last.len_bytes = last.len_bytes.saturating_add(extent.len_bytes);
            }
            _ => joined.push(*extent),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use ExtentKind::{Data, Zero};

    fn extents(list: &[(u64, ExtentKind)]) -> Vec<Extent> {
        list.iter().map(|&(len_bytes, kind)| Extent { len_bytes, kind }).collect()
    }

    #[test]
    fn reads_are_cut_where_a_hole_is_worth_it() {
        const K: u64 = 1 << 10;
        for (case, known, len, expected) in [
            ("nothing known", vec![], 4 * K, vec![(4 * K, Data)]),
            (
                "hole in the middle",
                vec![(K, Data), (64 * K, Zero), (K, Data)],
                66 * K,
                vec![(K, Data), (64 * K, Zero), (K, Data)],
            ),
            ("small hole", vec![(K, Data), (63 * K, Zero), (K, Data)], 65 * K, vec![(65 * K, Data)]),
            ("known beyond the end", vec![(K, Data), (1 << 40, Zero)], 128 * K, vec![(K, Data), (127 * K, Zero)]),
            ("cut hole is small", vec![(K, Data), (1 << 40, Zero)], 2 * K, vec![(2 * K, Data)]),
            ("ends early", vec![(64 * K, Zero)], 128 * K, vec![(64 * K, Zero), (64 * K, Data)]),
            ("joined first", vec![(32 * K, Zero), (0, Data), (32 * K, Zero)], 64 * K, vec![(64 * K, Zero)]),
            ("lengths that overflow", vec![(u64::MAX, Zero), (u64::MAX, Zero)], 64 * K, vec![(64 * K, Zero)]),
        ] {
            assert_eq!(runs(&extents(&known), len), extents(&expected), "{case}");
        }
    }

    #[test]
    fn descriptors_are_true_and_never_empty() {
        const G: u64 = 1 << 30;
        let max = MAX_DESCRIPTOR_BYTES as u32;
        for (case, known, range, limit, at_most, expected) in [
            ("plain", vec![(512, Data), (1024, Zero)], 0..1536, 1 << 40, 9, vec![(512, 0), (1024, 3)]),
            ("one, cut to the request", vec![(9 * G, Zero)], 512..1536, 1536, 1, vec![(1024, 3)]),
            ("last runs past the request", vec![(2048, Zero)], 0..512, 1 << 40, 9, vec![(2048, 3)]),
            ("but not past the disk", vec![(2048, Zero)], 0..512, 1024, 9, vec![(1024, 3)]),
            ("none behind the request", vec![(512, Data), (512, Zero)], 0..512, 1 << 40, 9, vec![(512, 0)]),
            ("too long for 32 bits", vec![(9 * G, Zero), (512, Data)], 0..4 * G, 1 << 40, 9, vec![(max, 3)]),
            ("silent device", vec![], 0..1024, 1 << 40, 9, vec![(1024, 0)]),
            (
                "no more than asked",
                vec![(512, Data), (512, Zero), (512, Data)],
                0..1536,
                1 << 40,
                2,
                vec![(512, 0), (512, 3)],
            ),
        ] {
            assert_eq!(descriptors(&extents(&known), &range, limit, at_most), expected, "{case}");
        }
    }
}
