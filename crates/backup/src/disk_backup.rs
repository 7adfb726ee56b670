//! One frozen disk into the repository: in full, or as the changes on top of a base.
//!
//! Both end as a complete object. A full lists the blocks that have a nonzero byte, ascending. An incremental takes
//! the base's entries, reads only the segments that changed, keeps every block in its slot and appends blocks that
//! became nonzero; pieces of the index stream without a change are taken over as they are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyperv::seam::Clock;
use kopia_repo::format::index_stream::IndirectEntry;
use kopia_repo::grouped::{ENTRIES_PER_PIECE, GroupedObject, GroupedWriter};
use kopia_repo::{CompressionId, ContentId, ObjectId, WriteSession};
use sha2::{Digest, Sha256};
use vhdx::stream::{SlotMap, SlotRule, StreamHead, StreamIds};
use vhdx::{ExtentKind, Guid, VirtualDisk};

use crate::disk_object::DiskObject;
use crate::layout::Layout;
use crate::pipeline::{Done, Job, Pipeline, SourceCounters, Store, jobs_of};
use crate::resources::Buffers;
use crate::source_guard::SourceGuard;
use crate::{BackupError, Cancel};

/// A disk that was stored, not yet named by any point.
#[derive(Clone, Debug)]
pub(crate) struct StoredDisk {
    /// The stream.
    pub(crate) object: ObjectId,
    /// Length of the stream.
    pub(crate) len_bytes: u64,
    pub(crate) layout: Layout,
    /// Blocks that have a slot.
    pub(crate) slots: u32,
    /// Identity of the disk's content.
    pub(crate) data_write: Guid,
    /// Bytes that the source was asked for.
    pub(crate) read_bytes: u64,
    /// Bytes of segments whose content differs from the base's; for a full, of all nonzero segments.
    pub(crate) changed_bytes: u64,
}

/// What a disk backup works with.
pub(crate) struct DiskBackup<'a> {
    pub(crate) disk: &'a dyn VirtualDisk,
    pub(crate) label: &'a str,
    pub(crate) virtual_disk_id: Guid,
    pub(crate) session: &'a WriteSession,
    pub(crate) compression: Option<CompressionId>,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) cancel: &'a Cancel,
    pub(crate) guard: &'a SourceGuard<'a>,
    pub(crate) buffers: &'a Buffers,
    /// Told of every finished job, in bytes of the source; an error stops the disk.
    pub(crate) progress: &'a (dyn Fn(u64) -> Result<(), BackupError> + Sync),
}

impl DiskBackup<'_> {
    /// Reads everything that the chain holds.
    pub(crate) fn full(&self, layout: Layout) -> Result<StoredDisk, BackupError> {
        let counters = SourceCounters::default();
        let segment = u64::from(layout.segment_bytes());
        let mut at = 0;
        let data = self.disk.extents(0..layout.geometry().size_bytes()).filter_map(|extent| match extent {
            Ok(extent) if extent.kind == ExtentKind::Zero => None,
            // Two extents may touch the same segment: it is taken once.
            Ok(extent) => Some(Ok(extent.range.start / segment..extent.range.end.div_ceil(segment))),
            Err(source) => Some(Err(self.map_failed(source))),
        });
        let ranges = data.filter_map(move |range| {
            let range = match range {
                Ok(range) => range,
                Err(error) => return Some(Err(error)),
            };
            let range = range.start.max(at)..range.end;
            at = at.max(range.end);
            (!range.is_empty()).then_some(Ok(range))
        });

        let mut builder = FullBuilder::new(self, layout);
        self.pipeline(&layout, &counters).run(jobs_of(&layout, ranges), |done| {
            (self.progress)(u64::from(done.job.parts) * segment)?;
            builder.add(done)
        })?;
        let stored = builder.finish()?;
        Ok(StoredDisk { read_bytes: counters.read_bytes.load(Ordering::Relaxed), ..stored })
    }

    /// Reads the segments that `changed` (virtual bytes, ascending) touches, and takes the rest from `base`.
    pub(crate) fn incremental(&self, base: &DiskObject, changed: &[Range<u64>]) -> Result<StoredDisk, BackupError> {
        let layout = *base.layout();
        let counters = SourceCounters::default();
        let ranges = touched_segments(&layout, changed);
        let segment = u64::from(layout.segment_bytes());
        let mut delta = Delta::default();
        let mut slots = SlotMap::clone(base.slots());
        self.pipeline(&layout, &counters).run(jobs_of(&layout, ranges.iter().cloned().map(Ok)), |done| {
            (self.progress)(u64::from(done.job.parts) * segment)?;
            for (part, content) in (done.job.first_part..).zip(&done.segments) {
                let old = base.virtual_segment(done.job.block, part)?;
                if old == *content {
                    continue;
                }
                delta.changed_segments += 1;
                if slots.slot(done.job.block).is_none() {
                    // The block had no slot: it gets the next one; jobs come in ascending order, so slots do too.
                    slots.append(done.job.block);
                }
                delta.segments.insert((done.job.block, part), *content);
            }
            Ok(())
        })?;
        let stored = self.write_on_top(base, slots, &delta)?;
        Ok(StoredDisk {
            read_bytes: counters.read_bytes.load(Ordering::Relaxed),
            changed_bytes: delta.changed_segments * segment,
            ..stored
        })
    }

    /// Writes the object of `base` with some segments replaced; no source data is read.
    fn write_on_top(&self, base: &DiskObject, slots: SlotMap, delta: &Delta) -> Result<StoredDisk, BackupError> {
        let layout = *base.layout();
        let slots = Arc::new(slots);
        let zero = base.zero_content();
        let mut identity = ContentIdentity::new(&layout, self.virtual_disk_id, zero);
        for &block in &sorted(slots.blocks()) {
            identity.absent_until(block);
            for part in 0..layout.segments_per_block() {
                let content = match delta.segments.get(&(block, part)) {
                    Some(content) => *content,
                    None => base.virtual_segment(block, part)?,
                };
                identity.add(content.unwrap_or(zero));
            }
        }
        let head = identity.finish(slots.clone(), SlotRule::Inherited);

        // A slot that was appended, or a block that became zero in its slot, refers to the zero segment.
        let needs_zero = slots.len() > base.slots().len() || delta.segments.values().any(Option::is_none);
        if needs_zero {
            self.session.write_content(&vec![0; layout.segment_bytes() as usize], None, self.compression)?;
        }
        let mut replaced: BTreeMap<u64, ContentId> = BTreeMap::new();
        for (number, content) in self.write_head(&head, &layout)? {
            replaced.insert(number, content);
        }
        for (&(block, part), content) in &delta.segments {
            let slot = slots.slot(block).expect("every changed block has a slot");
            replaced.insert(layout.payload_segment(slot, part), content.unwrap_or(zero));
        }

        let (old, new) = (base.segments(), layout.segments(slots.len()));
        let piece_count = GroupedWriter::piece_count(new);
        let mut writer = GroupedWriter::new(self.session, piece_count);
        let base_pieces = base.object().pieces();
        for number in 0..piece_count {
            let first = (number * ENTRIES_PER_PIECE) as u64;
            let range = first..(first + ENTRIES_PER_PIECE as u64).min(new);
            let had = base_pieces.get(number).copied();
            // Being the last changes a piece's text, as does every entry in it.
            let same_end = (number + 1 == piece_count) == (number + 1 == base_pieces.len())
                && range.end <= old
                && (range.end == old || number + 1 < piece_count);
            if let Some(piece) = had.filter(|_| same_end && replaced.range(range.clone()).next().is_none()) {
                writer.reuse(number, piece);
                continue;
            }
            let base_entries = if had.is_some() { Some(base.piece(number)?) } else { None };
            let entries: Vec<IndirectEntry> = range
                .map(|segment| {
                    let old_content = base_entries
                        .as_ref()
                        .filter(|_| segment < old)
                        .map(|entries| entries[(segment - first) as usize].object.content);
                    // A new slot's parts that were not read are zero: the block was absent from the base.
                    entry(&layout, segment, replaced.get(&segment).copied().or(old_content).unwrap_or(zero))
                })
                .collect();
            writer.set(number, &entries)?;
        }
        self.stored(writer.finish()?, head, layout)
    }

    /// Reads again what the repository turned out to have lost, and writes the object anew. `lost` are segments of
    /// the stream.
    pub(crate) fn repair(&self, stored: &StoredDisk, lost: &[u64]) -> Result<StoredDisk, BackupError> {
        let repo = self.session.repository();
        let base = DiskObject::open(repo.clone(), stored.object, stored.layout)?;
        let layout = stored.layout;
        let mut segments: Vec<Range<u64>> = Vec::new();
        let mut head_lost = false;
        for &number in lost {
            match layout.slot_of(number) {
                Some((slot, part)) => {
                    let block = base.slots().block(slot).expect("the object has this slot");
                    let at = u64::from(block) * u64::from(layout.segments_per_block()) + u64::from(part);
                    segments.push(at..at + 1);
                }
                None => head_lost = true,
            }
        }
        segments.sort_by_key(|range| range.start);
        let counters = SourceCounters::default();
        // Writing the contents again is all it takes: their names, and so the object, stay the same.
        self.pipeline(&layout, &counters).run(jobs_of(&layout, segments.into_iter().map(Ok)), |_| Ok(()))?;
        self.session.write_content(&vec![0; layout.segment_bytes() as usize], None, self.compression)?;
        if head_lost {
            self.write_head(base.head(), &layout)?;
        }
        let pieces = base.object().pieces();
        let mut writer = GroupedWriter::new(self.session, pieces.len());
        for (number, piece) in pieces.iter().enumerate() {
            // A piece that is only marked as deleted can still be read, and then belongs to nobody's garbage any more.
            match repo.lookup(&piece.content)? {
                Some(entry) if !entry.deleted => writer.reuse(number, *piece),
                _ => writer.set(number, &base.piece(number)?)?,
            }
        }
        writer.finish()?;
        let read_bytes = stored.read_bytes + counters.read_bytes.load(Ordering::Relaxed);
        Ok(StoredDisk { read_bytes, ..stored.clone() })
    }

    /// Writes the segments of the head; known ones cost a hash.
    fn write_head(&self, head: &StreamHead, layout: &Layout) -> Result<Vec<(u64, ContentId)>, BackupError> {
        let mut contents = Vec::new();
        let mut bytes = Vec::new();
        for number in 0..layout.head_segments() {
            let range = layout.segment_range(number);
            bytes.resize((range.end - range.start) as usize, 0);
            head.read_head_at(&mut bytes, range.start);
            contents.push((number, self.session.write_content(&bytes, None, self.compression)?.id));
        }
        Ok(contents)
    }

    fn pipeline<'p>(&'p self, layout: &'p Layout, counters: &'p SourceCounters) -> Pipeline<'p> {
        Pipeline {
            disk: self.disk,
            label: self.label,
            layout,
            store: Store::Contents(self.session, self.compression),
            clock: self.clock,
            cancel: self.cancel,
            counters,
            guard: self.guard,
            buffers: self.buffers,
        }
    }

    fn stored(&self, object: ObjectId, head: StreamHead, layout: Layout) -> Result<StoredDisk, BackupError> {
        Ok(StoredDisk {
            object,
            len_bytes: head.len_bytes(),
            layout,
            slots: head.slots().len(),
            data_write: head.ids().data_write,
            read_bytes: 0,
            changed_bytes: 0,
        })
    }

    fn map_failed(&self, source: vhdx::ReadError) -> BackupError {
        BackupError::SourceMap { disk: self.label.to_owned(), source }
    }
}

/// Segments that the repository no longer has, in a fresh index. `checked` counts every entry looked up.
pub(crate) fn lost_segments(object: &DiskObject, checked: &mut u64) -> Result<Vec<u64>, BackupError> {
    let repo = object.repository();
    let mut lost = Vec::new();
    let mut last: Option<(ContentId, bool)> = None;
    for number in 0..object.object().pieces().len() {
        for (nth, entry) in object.piece(number)?.iter().enumerate() {
            *checked += 1;
            let content = entry.object.content;
            let there = match last {
                Some((id, there)) if id == content => there,
                _ => repo.lookup(&content)?.is_some_and(|entry| !entry.deleted),
            };
            last = Some((content, there));
            if !there {
                lost.push((number * ENTRIES_PER_PIECE + nth) as u64);
            }
        }
    }
    Ok(lost)
}

/// Whether the pieces of an object, themselves contents, are there.
pub(crate) fn lost_pieces(repo: &kopia_repo::Repository, object: &GroupedObject) -> Result<bool, BackupError> {
    let mut ids = vec![object.id().content];
    ids.extend(object.pieces().iter().map(|piece| piece.content));
    for id in ids {
        if repo.lookup(&id)?.is_none_or(|entry| entry.deleted) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ascending segment numbers that virtual byte ranges touch, joined.
pub(crate) fn touched_segments(layout: &Layout, changed: &[Range<u64>]) -> Vec<Range<u64>> {
    let segment = u64::from(layout.segment_bytes());
    let size = layout.geometry().size_bytes();
    let mut touched: Vec<Range<u64>> = Vec::new();
    let mut sorted: Vec<&Range<u64>> = changed.iter().filter(|range| !range.is_empty() && range.start < size).collect();
    sorted.sort_by_key(|range| range.start);
    for range in sorted {
        let range = range.start / segment..range.end.min(size).div_ceil(segment);
        match touched.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => touched.push(range),
        }
    }
    touched
}

/// What changed against a base, by block and part; `None` is zero.
#[derive(Default)]
struct Delta {
    segments: BTreeMap<(u32, u32), Option<ContentId>>,
    changed_segments: u64,
}

fn entry(layout: &Layout, segment: u64, content: ContentId) -> IndirectEntry {
    let range = layout.segment_range(segment);
    IndirectEntry { start: range.start, len: range.end - range.start, object: ObjectId::direct(content) }
}

/// Slots are appended in runs of ascending blocks; a walk in virtual order wants them sorted.
fn sorted(blocks: &[u32]) -> Vec<u32> {
    let mut blocks = blocks.to_vec();
    if !blocks.is_sorted() {
        blocks.sort_unstable();
    }
    blocks
}

/// Builds a full while results come in: index pieces leave memory as soon as they are full. The first pieces hold
/// the head's entries, which are known last, and wait.
struct FullBuilder<'a> {
    backup: &'a DiskBackup<'a>,
    layout: Layout,
    slots: SlotMap,
    identity: ContentIdentity,
    zero: ContentId,
    zero_written: bool,
    /// Entries of the payload not yet in a piece, and the number of the first of them.
    waiting: Vec<ContentId>,
    /// Payload contents of the pieces that hold the head.
    front: Vec<ContentId>,
    pieces: Vec<(usize, kopia_repo::grouped::Piece)>,
    /// The block whose parts are coming in.
    current: Option<(u32, Vec<Option<ContentId>>)>,
    nonzero_segments: u64,
}

impl<'a> FullBuilder<'a> {
    fn new(backup: &'a DiskBackup<'a>, layout: Layout) -> Self {
        let zero = backup.session.repository().content_id(&vec![0; layout.segment_bytes() as usize], None);
        Self {
            backup,
            layout,
            slots: SlotMap::new(layout.geometry().blocks()),
            identity: ContentIdentity::new(&layout, backup.virtual_disk_id, zero),
            zero,
            zero_written: false,
            waiting: Vec::new(),
            front: Vec::new(),
            pieces: Vec::new(),
            current: None,
            nonzero_segments: 0,
        }
    }

    fn add(&mut self, done: Done) -> Result<(), BackupError> {
        let Job { block, first_part, .. } = done.job;
        if self.current.as_ref().is_some_and(|(current, _)| *current != block) {
            self.end_block()?;
        }
        let per_block = self.layout.segments_per_block() as usize;
        let (_, parts) = self.current.get_or_insert_with(|| (block, vec![None; per_block]));
        for (part, content) in (first_part as usize..).zip(done.segments) {
            parts[part] = content;
        }
        Ok(())
    }

    fn end_block(&mut self) -> Result<(), BackupError> {
        let Some((block, parts)) = self.current.take() else { return Ok(()) };
        if parts.iter().all(Option::is_none) {
            return Ok(());
        }
        self.slots.append(block);
        self.identity.absent_until(block);
        for part in parts {
            self.nonzero_segments += u64::from(part.is_some());
            if part.is_none() && !self.zero_written {
                let zeroes = vec![0; self.layout.segment_bytes() as usize];
                self.backup.session.write_content(&zeroes, None, self.backup.compression)?;
                self.zero_written = true;
            }
            let content = part.unwrap_or(self.zero);
            self.identity.add(content);
            if self.front.len() < self.front_entries() {
                self.front.push(content);
            } else {
                self.waiting.push(content);
            }
        }
        // One more than a piece: a full piece may still turn out to be the last, whose text differs.
        while self.waiting.len() > ENTRIES_PER_PIECE {
            self.write_waiting_piece(ENTRIES_PER_PIECE, false)?;
        }
        Ok(())
    }

    /// Pieces that hold entries of the head.
    fn front_pieces(&self) -> usize {
        GroupedWriter::piece_count(self.layout.head_segments())
    }

    /// Payload entries that share a piece with the head.
    fn front_entries(&self) -> usize {
        self.front_pieces() * ENTRIES_PER_PIECE - self.layout.head_segments() as usize
    }

    fn write_waiting_piece(&mut self, len: usize, last: bool) -> Result<(), BackupError> {
        let number = self.front_pieces() + self.pieces.len();
        let first = (number * ENTRIES_PER_PIECE) as u64;
        let entries: Vec<IndirectEntry> = (first..)
            .zip(self.waiting.drain(..len))
            .map(|(segment, content)| entry(&self.layout, segment, content))
            .collect();
        let piece = GroupedWriter::write_piece(self.backup.session, number == 0, last, &entries)?;
        self.pieces.push((number, piece));
        Ok(())
    }

    fn finish(mut self) -> Result<StoredDisk, BackupError> {
        self.end_block()?;
        let layout = self.layout;
        while !self.waiting.is_empty() {
            let len = self.waiting.len().min(ENTRIES_PER_PIECE);
            let last = len == self.waiting.len();
            self.write_waiting_piece(len, last)?;
        }
        let slots = Arc::new(self.slots);
        let head = self.identity.finish(slots.clone(), SlotRule::Ascending);
        let front_pieces = GroupedWriter::piece_count(layout.head_segments());
        let head_contents = self.backup.write_head(&head, &layout)?.into_iter().map(|(_, content)| content);
        let front: Vec<IndirectEntry> = (0..)
            .zip(head_contents.chain(self.front))
            .map(|(segment, content)| entry(&layout, segment, content))
            .collect();
        let mut writer = GroupedWriter::new(self.backup.session, front_pieces + self.pieces.len());
        for (number, entries) in front.chunks(ENTRIES_PER_PIECE).enumerate() {
            writer.set(number, entries)?;
        }
        for (number, piece) in self.pieces {
            writer.reuse(number, piece);
        }
        let changed_bytes = self.nonzero_segments * u64::from(layout.segment_bytes());
        Ok(StoredDisk { changed_bytes, ..self.backup.stored(writer.finish()?, head, layout)? })
    }
}

/// DataWriteGuid: everything a guest can see, as the names of the segments in virtual order (DESIGN 4).
struct ContentIdentity {
    layout: Layout,
    virtual_disk_id: Guid,
    hash: Sha256,
    zero: ContentId,
    /// The next block in virtual order.
    next_block: u32,
    parts_of_block: u32,
}

impl ContentIdentity {
    fn new(layout: &Layout, virtual_disk_id: Guid, zero: ContentId) -> Self {
        Self { layout: *layout, virtual_disk_id, hash: Sha256::new(), zero, next_block: 0, parts_of_block: 0 }
    }

    /// Blocks before `block` that were not added are absent: their segments count as zero segments.
    fn absent_until(&mut self, block: u32) {
        let segments = u64::from(block - self.next_block) * u64::from(self.layout.segments_per_block());
        let batch: Vec<u8> = self.zero.hash().repeat(256);
        for _ in 0..segments / 256 {
            self.hash.update(&batch);
        }
        self.hash.update(&batch[..(segments % 256) as usize * self.zero.hash().len()]);
        self.next_block = block;
    }

    /// The next segment in virtual order.
    fn add(&mut self, content: ContentId) {
        self.hash.update(content.hash());
        self.parts_of_block += 1;
        if self.parts_of_block == self.layout.segments_per_block() {
            self.parts_of_block = 0;
            self.next_block += 1;
        }
    }

    fn finish(mut self, slots: Arc<SlotMap>, rule: SlotRule) -> StreamHead {
        let geometry = *self.layout.geometry();
        self.absent_until(geometry.blocks());
        let ids = StreamIds::derive(&geometry, self.virtual_disk_id, &self.hash.finalize(), rule);
        StreamHead::new(geometry, ids, slots)
    }
}
