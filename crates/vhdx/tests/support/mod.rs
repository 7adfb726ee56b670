//! Files in memory that remember how they came about, random numbers, and small builders.
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use vhdx::{CreateOptions, Layer, LayerFile, OpenError, OpenedDisk, ReadAt, VhdxFile, VirtualDisk, WriteAt, create_in};

pub const MIB: u64 = 1 << 20;
pub const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

/// A sparse file's bytes; cheap to copy.
#[derive(Clone, Default)]
pub struct Image {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
}

impl Image {
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut image = Image { len: bytes.len() as u64, ..Image::default() };
        image.write(bytes, 0);
        image
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn write(&mut self, data: &[u8], offset: u64) {
        let end = offset + data.len() as u64;
        self.len = self.len.max(end);
        for page_at in (offset - offset % PAGE..end).step_by(PAGE as usize) {
            let (from, to) = (offset.max(page_at), end.min(page_at + PAGE));
            let part = &data[(from - offset) as usize..(to - offset) as usize];
            if part.iter().all(|&b| b == 0) && !self.pages.contains_key(&page_at) {
                continue;
            }
            let page = self.pages.entry(page_at).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[(from - page_at) as usize..(to - page_at) as usize].copy_from_slice(part);
        }
    }

    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            let cut = len - len % PAGE;
            self.pages.split_off(&len.next_multiple_of(PAGE));
            if let Some(page) = self.pages.get_mut(&cut) {
                Arc::make_mut(page)[(len - cut) as usize..].fill(0);
            }
        }
        self.len = len;
    }

    pub fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write(data, offset) => self.write(data, *offset),
            Op::SetLen(len) => self.set_len(*len),
            Op::Flush => {}
        }
    }
}

impl ReadAt for Image {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.fill(0);
        for (&page_at, page) in self.pages.range(offset - offset % PAGE..end) {
            let (from, to) = (offset.max(page_at), end.min(page_at + PAGE));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - page_at) as usize..(to - page_at) as usize]);
        }
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.len)
    }
}

/// Something that was done to a file.
#[derive(Clone)]
pub enum Op {
    Write(Vec<u8>, u64),
    SetLen(u64),
    Flush,
}

/// A file in memory that records what is done to it.
#[derive(Default)]
pub struct MemFile {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    image: Image,
    ops: Option<Vec<Op>>,
    fail_after: Option<usize>,
}

impl MemFile {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn with(image: Image) -> Arc<Self> {
        let file = MemFile::default();
        file.lock().image = image;
        Arc::new(file)
    }

    pub fn image(&self) -> Image {
        self.lock().image.clone()
    }

    pub fn record(&self) {
        self.lock().ops = Some(Vec::new());
    }

    pub fn op_count(&self) -> usize {
        self.lock().ops.as_ref().map_or(0, Vec::len)
    }

    pub fn take_ops(&self) -> Vec<Op> {
        self.lock().ops.take().unwrap_or_default()
    }

    /// Everything after this many more operations fails.
    pub fn fail_after(&self, ops: usize) {
        self.lock().fail_after = Some(ops);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn act(&self, op: Op) -> io::Result<()> {
        let mut state = self.lock();
        if let Some(left) = &mut state.fail_after {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the disk is gone"))?;
        }
        state.image.apply(&op);
        if let Some(ops) = &mut state.ops {
            ops.push(op);
        }
        Ok(())
    }
}

impl ReadAt for MemFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.lock().image.read_exact_at(buf, offset)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.lock().image.len)
    }
}

impl WriteAt for MemFile {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.act(Op::Write(data.to_vec(), offset))
    }

    fn flush(&self) -> io::Result<()> {
        self.act(Op::Flush)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.act(Op::SetLen(len))
    }
}

/// What a file may look like when the power went after the first `count` operations: with none, all, some or parts of
/// what was not flushed.
pub fn images_after_power_loss(durable: &Image, pending: &[Op], random: &mut Random) -> Vec<Image> {
    let mut images = vec![durable.clone()];
    if pending.is_empty() {
        return images;
    }
    let mut all = durable.clone();
    pending.iter().for_each(|op| all.apply(op));
    images.push(all);
    // The last one torn, the others done.
    let (last, others) = pending.split_last().unwrap();
    let mut torn = durable.clone();
    others.iter().for_each(|op| torn.apply(op));
    if let Op::Write(data, offset) = last {
        let sectors = (data.len() as u64).div_ceil(SECTOR);
        // What the two headers change lies in one sector each; they must stand even that being torn.
        let of_header = (64 << 10..192 << 10).contains(offset);
        let end = if of_header { random.below(80) } else { random.below(sectors) * SECTOR } as usize;
        torn.write(&data[..end], *offset);
        images.push(torn);
    }
    // The last one alone: it overtook the others.
    let mut alone = durable.clone();
    alone.apply(last);
    images.push(alone);
    // Every sector of every one by itself; lengths too.
    {
        let mut mixed = durable.clone();
        for op in pending {
            match op {
                Op::Write(data, offset) => {
                    for (part, at) in data.chunks(SECTOR as usize).zip((*offset..).step_by(SECTOR as usize)) {
                        if random.below(2) == 0 {
                            mixed.write(part, at);
                        }
                    }
                }
                other if random.below(2) == 0 => mixed.apply(other),
                _ => {}
            }
        }
        images.push(mixed);
    }
    images
}

/// Splits a recording at its cuts: for each, what is durable by then, and what is not.
pub fn each_cut<'a>(start: &Image, ops: &'a [Op], mut visit: impl FnMut(usize, &Image, &'a [Op])) {
    let mut durable = start.clone();
    let mut flushed = 0;
    for count in 0..=ops.len() {
        if count > 0 && matches!(ops[count - 1], Op::Flush) {
            ops[flushed..count].iter().for_each(|op| durable.apply(op));
            flushed = count;
        }
        visit(count, &durable, &ops[flushed..count]);
    }
}

/// A small generator with a seed, so that failures repeat (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

pub fn new_file(options: &CreateOptions) -> Arc<MemFile> {
    let file = MemFile::new();
    create_in(&*file, options).unwrap();
    file
}

pub fn options(mut base: CreateOptions, block_bytes: u64) -> CreateOptions {
    base.block_bytes = block_bytes as u32;
    base
}

/// Opens files as a chain, leaf first.
pub fn chain<F: ReadAt + 'static>(files: impl IntoIterator<Item = F>) -> Result<OpenedDisk, OpenError> {
    let mut layers = Vec::new();
    for (index, file) in files.into_iter().enumerate() {
        let file = LayerFile::Vhdx(Box::new(VhdxFile::open(Arc::new(file))?));
        layers.push(Layer { path: PathBuf::from(format!("layer {index}")), file });
    }
    OpenedDisk::from_layers(layers)
}

pub fn read_all(disk: &dyn VirtualDisk) -> Vec<u8> {
    // Not zero: what is read must be written to the buffer, zeroes too.
    let mut bytes = vec![0xaa; disk.geometry().size_bytes as usize];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}
