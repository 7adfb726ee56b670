//! Random sessions against a plain `Vec<u8>`.
#![allow(missing_docs)]

mod support;

use std::sync::Arc;

use support::{Image, MIB, MemFile, Random, chain, new_file, options, read_all};
use vhdx::{
    CreateOptions, DifferencingOptions, ExtentKind, Merge, ParentPaths, VhdxFile, VirtualDisk, WritableVhdx,
    create_differencing_in,
};

/// The disk as it should be, and the files that hold it, leaf first.
struct Bench {
    model: Vec<u8>,
    files: Vec<Arc<MemFile>>,
    disk: Option<WritableVhdx>,
    random: Random,
}

impl Bench {
    fn new(options: &CreateOptions, seed: u64) -> Self {
        let model = vec![0; options.geometry.size_bytes as usize];
        let mut bench = Bench { model, files: vec![new_file(options)], disk: None, random: Random(seed) };
        bench.open();
        bench
    }

    fn images(&self) -> Vec<Image> {
        self.files.iter().map(|file| file.image()).collect()
    }

    fn open(&mut self) {
        let parent: Option<Arc<dyn VirtualDisk>> = match self.files.len() {
            1 => None,
            _ => Some(Arc::new(chain(self.images().split_off(1)).unwrap())),
        };
        self.disk = Some(WritableVhdx::from_file(self.files[0].clone(), parent).unwrap());
    }

    fn disk(&mut self) -> &mut WritableVhdx {
        self.disk.as_mut().unwrap()
    }

    fn close(&mut self) {
        self.disk.take().unwrap().close().unwrap();
    }

    fn range(&mut self) -> std::ops::Range<usize> {
        let size = self.model.len() as u64;
        let start = self.random.below(size);
        let len = match self.random.below(6) {
            0 => self.random.below(512) + 1,
            1 => self.random.below(3 * MIB) + 1,
            _ => (self.random.below(16) + 1) * 4096,
        };
        let start = if self.random.below(3) == 0 { start } else { start - start % 4096 };
        start as usize..(start + len).min(size) as usize
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=11 => {
                let range = self.range();
                let data: Vec<u8> = (0..range.len()).map(|i| (i as u64 ^ self.random.0) as u8 | 1).collect();
                self.disk().write_all_at(&data, range.start as u64).unwrap();
                self.model[range].copy_from_slice(&data);
            }
            12..=14 => {
                let range = self.range();
                self.disk().zero_range(range.start as u64..range.end as u64).unwrap();
                self.model[range].fill(0);
            }
            15..=16 => self.disk().flush().unwrap(),
            17 => {
                self.close();
                self.open();
            }
            18 => {
                // Dropped after a flush: the log is dirty, and read-only and writable replay must agree.
                self.disk().flush().unwrap();
                self.disk = None;
                let disk = chain(self.images()).unwrap();
                assert!(read_all(&disk) == self.model, "replayed in memory");
                self.open();
            }
            _ => {
                let range = self.range();
                let mut data = vec![0; range.len()];
                self.disk().read_exact_at(&mut data, range.start as u64).unwrap();
                assert!(data == self.model[range.clone()], "read of {range:?}");
            }
        }
    }

    fn check(&mut self) {
        assert!(read_all(self.disk()) == self.model);
        let mut at = 0;
        let mut last = None;
        for extent in self.disk.as_ref().unwrap().extents(0..self.model.len() as u64) {
            let extent = extent.unwrap();
            assert_eq!(extent.range.start, at, "extents leave no gaps");
            assert_ne!(last, Some(extent.kind), "neighbours of one kind are joined");
            if extent.kind == ExtentKind::Zero {
                let bytes = &self.model[extent.range.start as usize..extent.range.end as usize];
                assert!(bytes.iter().all(|&b| b == 0), "{:?} is not zero", extent.range);
            }
            (at, last) = (extent.range.end, Some(extent.kind));
        }
        assert_eq!(at, self.model.len() as u64);
    }

    /// Freezes the leaf and goes on in a child of it.
    fn fork(&mut self, block_bytes: u32) {
        self.close();
        let parent = VhdxFile::open(Arc::new(self.files[0].image())).unwrap();
        let child = MemFile::new();
        let options = DifferencingOptions { block_bytes: Some(block_bytes), size_bytes: None };
        create_differencing_in(&*child, &parent, &ParentPaths::default(), &options).unwrap();
        self.files.insert(0, child);
        self.open();
    }

    /// Folds the leaf into its parent.
    fn merge(&mut self) {
        self.close();
        let open = |file: &Arc<MemFile>| WritableVhdx::from_file(file.clone(), None).unwrap();
        let mut merge = Merge::new(open(&self.files[0]), open(&self.files[1])).unwrap();
        let mut steps = 0;
        while !merge.step(MIB).unwrap().finished {
            steps += 1;
            assert!(steps < 10_000);
        }
        drop(merge);
        for image in self.images().into_iter().take(2) {
            assert!(!VhdxFile::open(Arc::new(image)).unwrap().info().log_dirty, "a finished merge leaves clean logs");
        }
        assert!(read_all(&chain(self.images()).unwrap()) == self.model, "the child still reads the same");
        self.files.remove(0);
        self.open();
    }
}

fn run(options: &CreateOptions, forks: &[u32]) {
    for seed in 0..3 {
        let mut bench = Bench::new(options, seed);
        for &block_bytes in forks {
            (0..60).for_each(|_| bench.step());
            bench.check();
            bench.fork(block_bytes);
            bench.check();
        }
        for _ in forks {
            (0..60).for_each(|_| bench.step());
            bench.check();
            bench.merge();
            bench.check();
        }
        (0..60).for_each(|_| bench.step());
        bench.check();
        bench.close();
    }
}

const SIZE: u64 = 9 * MIB + 3 * 4096;

#[test]
fn dynamic() {
    run(&options(CreateOptions::dynamic(SIZE), MIB), &[]);
    run(&options(CreateOptions::dynamic(SIZE), 4 * MIB), &[]);
}

#[test]
fn fixed() {
    run(&options(CreateOptions::fixed(SIZE), 2 * MIB), &[]);
}

#[test]
fn chains_of_different_block_sizes() {
    run(&options(CreateOptions::dynamic(SIZE), 2 * MIB), &[1 << 20, 4 << 20]);
    run(&options(CreateOptions::fixed(SIZE), MIB), &[2 << 20]);
}

#[test]
fn sectors_of_4096_bytes() {
    let mut options = options(CreateOptions::dynamic(SIZE), 2 * MIB);
    options.geometry.logical_sector_bytes = 4096;
    run(&options, &[1 << 20, 2 << 20]);
}

#[test]
fn resizing() {
    for (kind, blocks) in [(CreateOptions::dynamic(SIZE), MIB), (CreateOptions::fixed(SIZE), 2 * MIB)] {
        for fork in [false, true] {
            let mut bench = Bench::new(&options(kind.clone(), blocks), 5);
            (0..60).for_each(|_| bench.step());
            if fork {
                bench.fork(2 << 20);
                (0..40).for_each(|_| bench.step());
            }
            for size in [SIZE + 512, 5 * MIB + 1024, 12 * MIB, 3 * MIB, 20 * MIB + 512, 20 * MIB + 1024] {
                bench.disk().resize(size).unwrap();
                bench.model.resize(size as usize, 0);
                bench.check();
                (0..20).for_each(|_| bench.step());
                bench.check();
            }
            if fork {
                bench.merge();
                bench.check();
            }
        }
    }
}

#[test]
fn growing_past_the_block_table_moves_it() {
    // 1 MiB of table holds 131,072 entries: 128 GiB less what the bitmaps take.
    let options = options(CreateOptions::dynamic(64 * MIB), MIB);
    let file = new_file(&options);
    let mut disk = WritableVhdx::from_file(file.clone(), None).unwrap();
    let data = vec![7; 3 << 20];
    disk.write_all_at(&data, 512).unwrap();
    disk.resize(300 << 30).unwrap();
    disk.write_all_at(&data, (300 << 30) - (3 << 20)).unwrap();
    disk.close().unwrap();
    let disk = chain([file.image()]).unwrap();
    for at in [512, (300 << 30) - (3 << 20)] {
        let mut found = vec![0; 3 << 20];
        disk.read_exact_at(&mut found, at).unwrap();
        assert!(found == data, "at {at}");
    }
    let ranges: Vec<_> =
        disk.extents(0..300 << 30).map(|e| e.unwrap()).filter(|e| e.kind == ExtentKind::Data).collect();
    assert_eq!(ranges.len(), 2);
}

#[test]
fn space_is_used_again() {
    let file = new_file(&options(CreateOptions::dynamic(64 * MIB), MIB));
    let mut disk = WritableVhdx::from_file(file.clone(), None).unwrap();
    for round in 0..20u8 {
        disk.write_all_at(&vec![round + 1; 8 << 20], u64::from(round % 8) * 8 * MIB).unwrap();
        disk.flush().unwrap();
        disk.zero_range(0..64 * MIB).unwrap();
        disk.flush().unwrap();
    }
    disk.write_all_at(&[9; 512], 512).unwrap();
    assert_eq!(disk.info().allocated_blocks, 1);
    disk.close().unwrap();
    assert!(file.image().len() <= 16 * MIB, "{} bytes", file.image().len());
    let disk = chain([file.image()]).unwrap();
    let mut expected = vec![0; 64 << 20];
    expected[512..1024].fill(9);
    assert!(read_all(&disk) == expected);
}

#[test]
fn an_error_while_logging_poisons_the_handle() {
    let file = new_file(&options(CreateOptions::dynamic(8 * MIB), MIB));
    let mut disk = WritableVhdx::from_file(file.clone(), None).unwrap();
    disk.write_all_at(&[1; 4096], 0).unwrap();
    disk.flush().unwrap();
    disk.write_all_at(&[2; 4096], MIB).unwrap();
    file.fail_after(2);
    assert!(disk.flush().is_err());
    file.fail_after(usize::MAX);
    assert!(matches!(disk.flush(), Err(vhdx::WriteError::Poisoned)));
    assert!(matches!(disk.write_all_at(&[3], 0), Err(vhdx::WriteError::Poisoned)));
    let mut byte = [0];
    disk.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [1]);
    drop(disk);
    let mut disk = WritableVhdx::from_file(file, None).unwrap();
    disk.write_all_at(&[3], 0).unwrap();
    disk.close().unwrap();
}

#[test]
fn identities_change_when_they_must() {
    let file = new_file(&CreateOptions::dynamic(8 * MIB));
    let info = |file: &Arc<MemFile>| VhdxFile::open(Arc::new(file.image())).unwrap().info();
    let before = info(&file);
    WritableVhdx::from_file(file.clone(), None).unwrap().close().unwrap();
    assert_eq!(info(&file), before, "opening alone changes nothing");

    let mut disk = WritableVhdx::from_file(file.clone(), None).unwrap();
    disk.write_all_at(&[1], 0).unwrap();
    let during = info(&file);
    disk.write_all_at(&[2], 0).unwrap();
    disk.close().unwrap();
    let after = info(&file);
    assert_ne!(during.file_write_guid, before.file_write_guid);
    assert_ne!(during.data_write_guid, before.data_write_guid, "known before the change");
    assert_eq!((after.file_write_guid, after.data_write_guid), (during.file_write_guid, during.data_write_guid));
    assert_eq!(after.virtual_disk_id, before.virtual_disk_id);

    let parent = VhdxFile::open(Arc::new(file.image())).unwrap();
    let child = MemFile::new();
    create_differencing_in(&*child, &parent, &ParentPaths::default(), &DifferencingOptions::default()).unwrap();
    let before = info(&child);
    assert_eq!(before.virtual_disk_id, after.virtual_disk_id, "the guest sees the same disk");
    let mut locator = before.parent.clone().unwrap();
    assert_eq!(locator.parent_linkage, after.data_write_guid);
    locator.relative_path = Some(r".\elsewhere\".repeat(400));
    let mut disk = WritableVhdx::from_file(child.clone(), None).unwrap();
    disk.set_parent_locator(&locator).unwrap();
    disk.close().unwrap();
    let moved = info(&child);
    assert_eq!(moved.parent, Some(locator));
    assert_eq!(moved.data_write_guid, before.data_write_guid, "the content is the same");
    assert_ne!(moved.file_write_guid, before.file_write_guid);
}

#[test]
fn bits_of_an_earlier_life_do_not_count() {
    let parent = new_file(&options(CreateOptions::dynamic(8 * MIB), MIB));
    let mut disk = WritableVhdx::from_file(parent.clone(), None).unwrap();
    disk.write_all_at(&vec![1; 2 << 20], 0).unwrap();
    disk.close().unwrap();
    let child = MemFile::new();
    let of = VhdxFile::open(Arc::new(parent.image())).unwrap();
    create_differencing_in(&*child, &of, &ParentPaths::default(), &DifferencingOptions::default()).unwrap();
    let mut disk = WritableVhdx::from_file(child.clone(), None).unwrap();
    disk.write_all_at(&[2; 8192], 0).unwrap();
    disk.close().unwrap();
    // Another program made the block transparent, and left its bits as they were.
    let mut image = child.image();
    image.write(&[0; 8], 3 * MIB);
    let child = MemFile::with(image);
    let below = Arc::new(chain([parent.image()]).unwrap());
    let mut disk = WritableVhdx::from_file(child, Some(below)).unwrap();
    let mut expected = vec![1; 2 << 20];
    expected.resize(8 << 20, 0);
    assert!(read_all(&disk) == expected);
    disk.write_all_at(&[3; 512], 1024).unwrap();
    expected[1024..1536].fill(3);
    assert!(read_all(&disk) == expected);
}
