//! Every crash point of scripted sessions: whatever was not flushed is kept, lost, torn or mixed, and the file must open
//! with what was flushed, every sector written since being old or new.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use support::{Image, MIB, MemFile, Random, SECTOR, chain, each_cut, images_after_power_loss, new_file, options};
use vhdx::{
    CreateOptions, DifferencingOptions, ExtentKind, Merge, OpenedDisk, ParentPaths, VhdxFile, VirtualDisk,
    WritableVhdx, create_differencing_in,
};

/// The version of each sector that was ever written; 0 is zero.
type Versions = BTreeMap<u64, u64>;

/// What the guest did, and how many operations the file had seen by then.
enum Event {
    /// Sectors get a version, from this operation on at the earliest.
    Write { ops_before: usize, sectors: Range<u64>, version: u64 },
    /// Durable when this many operations are.
    Flushed { ops_after: usize },
}

/// What each sector is at least as new as, and what was written to it since.
type Expected = (Versions, Vec<(Range<u64>, u64)>);

struct Script {
    file: Arc<MemFile>,
    parent: Option<Image>,
    sectors: u64,
    /// Sectors that are written to; few, so that blocks meet several fates.
    places: Vec<u64>,
    base: Versions,
    events: Vec<Event>,
    random: Random,
    version: u64,
}

impl Script {
    fn open(&self) -> WritableVhdx {
        let parent: Option<Arc<dyn VirtualDisk>> = match &self.parent {
            Some(image) => Some(Arc::new(chain([image.clone()]).unwrap())),
            None => None,
        };
        WritableVhdx::from_file(self.file.clone(), parent).unwrap()
    }

    fn write(&mut self, disk: &mut WritableVhdx, sectors: Range<u64>) {
        self.version += 1;
        let version = if self.random.below(4) == 0 { 0 } else { self.version };
        self.write_version(disk, sectors, version);
    }

    /// Version 0 is zero.
    fn write_version(&mut self, disk: &mut WritableVhdx, sectors: Range<u64>, version: u64) {
        self.events.push(Event::Write { ops_before: self.file.op_count(), sectors: sectors.clone(), version });
        let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
        if version == 0 {
            disk.zero_range(bytes).unwrap();
        } else {
            let data: Vec<u8> = (bytes.start / 8..bytes.end / 8).flat_map(|_| version.to_le_bytes()).collect();
            disk.write_all_at(&data, bytes.start).unwrap();
        }
    }

    /// Random writes, zeroings, flushes and reopenings.
    fn run(&mut self, steps: usize) {
        self.file.record();
        let mut disk = self.open();
        for _ in 0..steps {
            match self.random.below(10) {
                0..=6 => {
                    let place = self.places[self.random.below(self.places.len() as u64) as usize];
                    let sectors = match self.random.below(4) {
                        0 => place - place % 2048..place - place % 2048 + 2048,
                        _ => place + self.random.below(64)..place + 64 + self.random.below(200),
                    };
                    self.write(&mut disk, sectors.start..sectors.end.min(self.sectors));
                }
                7..=8 => {
                    disk.flush().unwrap();
                    self.events.push(Event::Flushed { ops_after: self.file.op_count() });
                }
                _ => {
                    disk.close().unwrap();
                    self.events.push(Event::Flushed { ops_after: self.file.op_count() });
                    disk = self.open();
                }
            }
        }
        disk.close().unwrap();
        self.events.push(Event::Flushed { ops_after: self.file.op_count() });
    }

    /// What is durable at a cut, and what else each sector may be.
    fn expected(&self, cut: usize) -> Expected {
        let mut durable = self.base.clone();
        let mut since = Vec::new();
        for event in &self.events {
            match event {
                // Operation number `ops_before` may be part of this write.
                Event::Write { ops_before, sectors, version } if *ops_before < cut => {
                    since.push((sectors.clone(), *version));
                }
                Event::Flushed { ops_after } if *ops_after <= cut => {
                    for (sectors, version) in since.drain(..) {
                        durable.extend(sectors.map(|sector| (sector, version)));
                    }
                }
                _ => {}
            }
        }
        (durable, since)
    }

    fn check(&self, disk: &OpenedDisk, expected: &Expected, case: &str) {
        let (durable, since) = expected;
        let allowed = |sector: u64, version: u64| {
            durable.get(&sector).copied().unwrap_or(0) == version
                || since.iter().any(|(sectors, v)| sectors.contains(&sector) && *v == version)
        };
        for extent in disk.extents(0..self.sectors * SECTOR) {
            let extent = extent.unwrap();
            let sectors = extent.range.start / SECTOR..extent.range.end / SECTOR;
            if extent.kind == ExtentKind::Zero {
                for (&sector, _) in durable.range(sectors) {
                    assert!(allowed(sector, 0), "{case}: sector {sector} is zero");
                }
                continue;
            }
            let mut bytes = vec![0; (extent.range.end - extent.range.start) as usize];
            disk.read_exact_at(&mut bytes, extent.range.start).unwrap();
            for (sector, content) in sectors.zip(bytes.chunks_exact(SECTOR as usize)) {
                let version = u64::from_le_bytes(content[..8].try_into().unwrap());
                let uniform = content[8..] == content[..SECTOR as usize - 8];
                assert!(uniform && allowed(sector, version), "{case}: sector {sector} has version {version}");
            }
        }
    }

    fn disk(&self, image: &Image) -> OpenedDisk {
        let files = [image.clone()].into_iter().chain(self.parent.clone());
        chain(files).unwrap()
    }

    fn check_every_cut(mut self, start: &Image) {
        let ops = self.file.take_ops();
        let mut random = Random(self.random.next());
        let identity = |image: &Image| VhdxFile::open(Arc::new(image.clone())).unwrap().info().data_write_guid;
        let unchanged = (identity(start), (self.base.clone(), Vec::new()));
        each_cut(start, &ops, |cut, durable, pending| {
            let expected = self.expected(cut);
            for (variant, image) in images_after_power_loss(durable, pending, &mut random).into_iter().enumerate() {
                let case = format!("cut {cut}, variant {variant}");
                self.check(&self.disk(&image), &expected, &case);
                if identity(&image) == unchanged.0 {
                    self.check(&self.disk(&image), &unchanged.1, &format!("{case}, DataWriteGuid unchanged"));
                }
                // The same after a replay in the file.
                let file = MemFile::with(image);
                drop(WritableVhdx::from_file(file.clone(), None).unwrap());
                let replayed = VhdxFile::open(Arc::new(file.image())).unwrap();
                assert!(!replayed.info().log_dirty);
                self.check(&self.disk(&file.image()), &expected, &format!("{case}, replayed"));
            }
        });
    }
}

fn script(options: &CreateOptions, seed: u64) -> Script {
    let sectors = options.geometry.size_bytes / SECTOR;
    let block = u64::from(options.block_bytes) / SECTOR;
    // In the first and the last blocks, so on both sides of a chunk border when there are two chunks.
    let places = vec![0, 100, block, block + 1000, sectors - 1300, sectors - block - 300, sectors - 2 * block];
    Script {
        file: new_file(options),
        parent: None,
        sectors,
        places,
        base: Versions::new(),
        events: Vec::new(),
        random: Random(seed),
        version: 0,
    }
}

/// A closed parent with some content, and a new child of it.
fn child_script(options: &CreateOptions, child_block_bytes: u32, seed: u64) -> Script {
    let mut script = script(options, seed);
    script.run(30);
    script.file.take_ops();
    let base = script.expected(usize::MAX).0;
    let image = script.file.image();
    let parent = VhdxFile::open(Arc::new(image.clone())).unwrap();
    let child = MemFile::new();
    let options = DifferencingOptions { block_bytes: Some(child_block_bytes), size_bytes: None };
    create_differencing_in(&*child, &parent, &ParentPaths::default(), &options).unwrap();
    Script { file: child, parent: Some(image), base, events: Vec::new(), ..script }
}

fn crash(mut script: Script) {
    let start = script.file.image();
    script.run(40);
    script.check_every_cut(&start);
}

#[test]
fn dynamic() {
    for seed in 0..2 {
        crash(script(&options(CreateOptions::dynamic(9 * MIB + 4096), MIB), seed));
        crash(script(&options(CreateOptions::dynamic(9 * MIB + 4096), 2 * MIB), 100 + seed));
    }
}

#[test]
fn fixed() {
    crash(script(&options(CreateOptions::fixed(7 * MIB), MIB), 1));
}

/// A block is freed, and another allocated, without a flush between: the freed space must not be used yet.
#[test]
fn freed_space_waits_for_its_log_entry() {
    let mut script = script(&options(CreateOptions::dynamic(9 * MIB), MIB), 1);
    let start = script.file.image();
    script.file.record();
    let mut disk = script.open();
    script.write_version(&mut disk, 0..2048, 1);
    disk.flush().unwrap();
    script.events.push(Event::Flushed { ops_after: script.file.op_count() });
    script.write_version(&mut disk, 0..2048, 0);
    script.write_version(&mut disk, 2048..4096, 2);
    script.write_version(&mut disk, 4096..4196, 3);
    disk.close().unwrap();
    script.check_every_cut(&start);
}

#[test]
fn differencing_across_a_chunk_border() {
    for seed in 0..2 {
        let options = options(CreateOptions::dynamic((4 << 30) + MIB + 8192), 2 * MIB);
        crash(child_script(&options, 1 << 20, seed));
    }
}

#[test]
fn differencing_on_differing_blocks() {
    for seed in 10..12 {
        crash(child_script(&options(CreateOptions::dynamic(9 * MIB), MIB), 2 << 20, seed));
    }
}

/// One recording of what happens to two files.
#[test]
fn merge_at_every_cut_and_again() {
    for seed in 0..2 {
        let options = options(CreateOptions::dynamic(9 * MIB + 4096), 2 * MIB);
        let mut script = child_script(&options, 1 << 20, seed);
        script.run(40);
        script.file.take_ops();
        let child = script.file.image();
        let parent = script.parent.clone().unwrap();
        // From here on the content never changes.
        script.base = script.expected(usize::MAX).0;
        script.events.clear();

        // All of the child's operations come before all of the parent's.
        let files = [MemFile::with(child.clone()), MemFile::with(parent.clone())];
        files.iter().for_each(|file| file.record());
        let open = |file: &Arc<MemFile>| WritableVhdx::from_file(file.clone(), None).unwrap();
        let mut merge = Merge::new(open(&files[0]), open(&files[1])).unwrap();
        while !merge.step(MIB).unwrap().finished {}
        drop(merge);
        let [child_ops, parent_ops] = files.each_ref().map(|file| file.take_ops());
        let mut random = Random(seed);
        each_cut(&child, &child_ops, |cut, durable, pending| {
            for image in images_after_power_loss(durable, pending, &mut random) {
                check_merge(&mut script, image, parent.clone(), &format!("child cut {cut}"));
            }
        });
        let child = files[0].image();
        each_cut(&parent, &parent_ops, |cut, durable, pending| {
            for image in images_after_power_loss(durable, pending, &mut random) {
                check_merge(&mut script, child.clone(), image, &format!("parent cut {cut}"));
            }
        });
    }
}

/// The chain reads right after a crash, and a merge from new makes the parent so; at its end, and when it is cut too.
fn check_merge(script: &mut Script, child: Image, parent: Image, case: &str) {
    let expected = script.expected(0);
    script.check(&chain([child.clone(), parent.clone()]).unwrap(), &expected, case);
    let files = [MemFile::with(child), MemFile::with(parent)];
    let open = |file: &Arc<MemFile>| WritableVhdx::from_file(file.clone(), None).unwrap();
    if script.random.below(2) == 0 {
        // Gone again somewhere.
        let (child, parent) = (open(&files[0]), open(&files[1]));
        let early = script.random.below(2) == 0;
        files[1].fail_after(script.random.below(if early { 6 } else { 40 }) as usize);
        if let Ok(mut merge) = Merge::new(child, parent) {
            while merge.step(MIB).is_ok_and(|progress| !progress.finished) {}
        }
        files[1].fail_after(usize::MAX);
        let images = files.each_ref().map(|file| file.image());
        script.check(&chain(images).unwrap(), &expected, &format!("{case}, cut again"));
    }
    let mut merge = Merge::new(open(&files[0]), open(&files[1])).unwrap();
    while !merge.step(MIB).unwrap().finished {}
    drop(merge);
    let [child, parent] = files.map(|file| file.image());
    script.check(&chain([parent.clone()]).unwrap(), &expected, &format!("{case}, merged parent"));
    script.check(&chain([child, parent]).unwrap(), &expected, &format!("{case}, merged child"));
}

#[test]
fn resize_at_every_cut() {
    for (start_size, end_size) in [(9 * MIB + 4096, 5 * MIB), (5 * MIB + 4096, 9 * MIB), (127 << 30, 140 << 30)] {
        let file = new_file(&options(CreateOptions::dynamic(start_size), MIB));
        let mut disk = WritableVhdx::from_file(file.clone(), None).unwrap();
        disk.write_all_at(&vec![5; 5 << 20], 0).unwrap();
        disk.close().unwrap();
        let start = file.image();
        file.record();
        let mut disk = WritableVhdx::from_file(file.clone(), None).unwrap();
        disk.resize(end_size).unwrap();
        disk.close().unwrap();
        let mut random = Random(3);
        each_cut(&start, &file.take_ops(), |cut, durable, pending| {
            for image in images_after_power_loss(durable, pending, &mut random) {
                let file = MemFile::with(image);
                let mut disk = WritableVhdx::from_file(file.clone(), None).unwrap();
                let size = disk.geometry().size_bytes;
                assert!(size == start_size || size == end_size, "cut {cut}: {size} bytes");
                disk.resize(start_size.max(end_size)).unwrap();
                disk.write_all_at(&[6; 512], start_size.max(end_size) - 512).unwrap();
                disk.close().unwrap();
                let disk = chain([file.image()]).unwrap();
                let mut bytes = vec![0; 8 << 20];
                let len = bytes.len().min(disk.geometry().size_bytes as usize - 512);
                disk.read_exact_at(&mut bytes[..len], 0).unwrap();
                assert!(bytes[..5 << 20].iter().all(|&b| b == 5), "cut {cut}");
                assert!(bytes[5 << 20..].iter().all(|&b| b == 0), "cut {cut}");
            }
        });
    }
}
