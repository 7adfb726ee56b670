//! Valid files with wrong bytes in them: every one opens or is refused, and nothing panics.
#![allow(missing_docs)]

mod support;
#[path = "support/vhd.rs"]
mod vhd;

use std::sync::Arc;

use support::{Image, MIB, MemFile, Random, chain, new_file, options};
use vhdx::{
    CreateOptions, DifferencingOptions, ParentPaths, ReadAt, VhdFile, VhdxFile, VirtualDisk, WritableVhdx,
    create_differencing_in,
};

/// A parent, and a child with a dirty log that wraps, partial blocks and anchored-looking leftovers.
fn pair() -> (Image, Image) {
    let parent = new_file(&options(CreateOptions::dynamic(9 * MIB), MIB));
    let mut disk = WritableVhdx::from_file(parent.clone(), None).unwrap();
    disk.write_all_at(&vec![3; 5 << 20], 512).unwrap();
    disk.close().unwrap();
    let child = MemFile::new();
    let paths = ParentPaths { relative_path: Some(r".\p.vhdx".into()), absolute_win32_path: Some(r"C:\p.vhdx".into()) };
    let of = VhdxFile::open(Arc::new(parent.image())).unwrap();
    create_differencing_in(&*child, &of, &paths, &DifferencingOptions::default()).unwrap();
    let mut disk = WritableVhdx::from_file(child.clone(), None).unwrap();
    for round in 0..40 {
        disk.write_all_at(&[round; 1024], u64::from(round) * 100 * 1024).unwrap();
        disk.flush().unwrap();
    }
    disk.zero_range(2 * MIB..4 * MIB).unwrap();
    disk.flush().unwrap();
    drop(disk);
    (child.image(), parent.image())
}

/// Offsets where a change matters: everything but payload.
fn interesting(random: &mut Random) -> u64 {
    let (start, len) = match random.below(8) {
        0 => (64 << 10, 128),
        1 => (128 << 10, 128),
        2 => (192 << 10, 128),
        3 => (2 * MIB, 300),
        4 => (2 * MIB + 65536, 600),
        5 => (3 * MIB, 64),
        6 => (3 * MIB + 8 * 2048, 8),
        _ => (MIB, 40 * 4 * 4096),
    };
    start + random.below(len)
}

/// Puts right the checksum of the structure that holds an offset, so that its fields are looked at.
fn mend(image: &mut Image, at: u64) {
    for (start, len) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65536), (256 << 10, 65536)] {
        if (start..start + len).contains(&at) {
            let mut bytes = image.bytes(start..start + len);
            bytes[4..8].fill(0);
            let crc = crc32c::crc32c(&bytes).to_le_bytes();
            image.write(&crc, start + 4);
        }
    }
}

fn use_it(child: &Image, parent: &Image) -> bool {
    let Ok(disk) = chain([child.clone(), parent.clone()]) else { return false };
    let size = disk.geometry().size_bytes;
    let mut buf = vec![0; 64 << 10];
    for at in [0, 100 << 10, MIB, 2 * MIB + 512, size / 2, size.saturating_sub(buf.len() as u64)] {
        let _ = disk.read_exact_at(&mut buf, at);
    }
    for extent in disk.extents(0..size.min(1 << 36)) {
        if extent.is_err() {
            break;
        }
    }
    let file = MemFile::with(child.clone());
    let Ok(mut disk) = WritableVhdx::from_file(file.clone(), None) else { return true };
    let _ = disk.write_all_at(&buf, 64 << 10);
    let _ = disk.zero_range(0..size.min(8 * MIB));
    if disk.close().is_ok() {
        VhdxFile::open(Arc::new(file.image())).expect("what was written opens again");
    }
    true
}

#[test]
fn changed_bytes() {
    let (child, parent) = pair();
    assert!(use_it(&child, &parent));
    let mut random = Random(11);
    let (mut opened, rounds) = (0, 3000);
    for _ in 0..rounds {
        let mut image = child.clone();
        for _ in 0..=random.below(3) {
            let at = interesting(&mut random);
            let value = match random.below(4) {
                0 => vec![random.next() as u8],
                1 => vec![0xff; 1 + random.below(8) as usize],
                2 => vec![0; 1 + random.below(8) as usize],
                _ => vec![1 << random.below(8)],
            };
            image.write(&value, at);
            mend(&mut image, at);
        }
        opened += u32::from(use_it(&image, &parent));
    }
    assert!(opened > rounds / 20, "only {opened} of {rounds} got past the checks");
    assert!(opened < rounds, "nothing was refused");
}

#[test]
fn cut_off_anywhere() {
    let (child, parent) = pair();
    for len in (0..child.len()).step_by(333_331).chain([1, 511, 65536, MIB - 1, MIB, 3 * MIB]) {
        let mut image = child.clone();
        image.set_len(len);
        assert!(!use_it(&image, &parent), "the first {len} bytes");
    }
}

/// Claims to be large without being it.
struct Claims(u64);

impl ReadAt for Claims {
    fn read_exact_at(&self, buf: &mut [u8], _: u64) -> std::io::Result<()> {
        buf.fill(0xff);
        Ok(())
    }

    fn len_bytes(&self) -> std::io::Result<u64> {
        Ok(self.0)
    }
}

#[test]
fn absurd_lengths() {
    for len in [0, 1, 512, MIB, 1 << 47, 1 << 62, u64::MAX] {
        assert!(VhdxFile::open(Arc::new(Claims(len))).is_err(), "{len}");
        assert!(VhdFile::open(Arc::new(Claims(len))).is_err(), "{len}");
    }
}

#[test]
fn fields_that_decide_about_safety() {
    let (child, parent) = pair();
    let clean = {
        let file = MemFile::with(child);
        drop(WritableVhdx::from_file(file.clone(), None).unwrap());
        file.image()
    };
    assert!(use_it(&clean, &parent));
    let bat = 3 * MIB;
    let first = u64::from_le_bytes(clean.bytes(bat..bat + 8).try_into().unwrap());
    let cases: [(&str, u64, Vec<u8>); 16] = [
        ("a version of 2", (128 << 10) + 66, vec![2]),
        ("a log over the headers", (128 << 10) + 72, vec![0; 8]),
        ("a log past the end", (128 << 10) + 72, (1u64 << 40).to_le_bytes().to_vec()),
        ("a region over the log", (192 << 10) + 32, MIB.to_le_bytes().to_vec()),
        ("a region of no length", (192 << 10) + 40, vec![0; 4]),
        ("a required unknown region", (192 << 10) + 16, vec![9; 16]),
        ("no metadata signature", 2 * MIB, vec![0]),
        ("too many metadata entries", 2 * MIB + 10, vec![0xff, 0xff]),
        ("an item in the table", 2 * MIB + 32 + 16, vec![0; 4]),
        ("an item outside the region", 2 * MIB + 32 + 16, vec![0, 0, 0xff, 0]),
        ("a block size of 3 MiB", 2 * MIB + 65536, (3u32 << 20).to_le_bytes().to_vec()),
        ("no disk size", 2 * MIB + 65536 + 8, vec![0; 8]),
        ("sectors of 513 bytes", 2 * MIB + 65536 + 17, vec![2, 1]),
        ("a block in state 5", bat, (first - (first & 7) + 5).to_le_bytes().to_vec()),
        ("a block over the BAT", bat, (bat | 6).to_le_bytes().to_vec()),
        ("two blocks in one place", bat + 8, first.to_le_bytes().to_vec()),
    ];
    for (what, at, bytes) in cases {
        let mut image = clean.clone();
        // Both headers and both tables, whichever counts.
        for at in if at < MIB { vec![at - (64 << 10), at, at + (64 << 10)] } else { vec![at] } {
            let inside = at < MIB && (64 << 10..320 << 10).contains(&at);
            if inside || at >= MIB {
                image.write(&bytes, at);
                mend(&mut image, at);
            }
        }
        assert!(VhdxFile::open(Arc::new(image)).is_err(), "{what}");
    }
}

#[test]
fn changed_vhd_bytes() {
    let blocks = vec![(0, vec![Some(1), None, Some(2)]), (2, vec![Some(3); 1024])];
    let child = vhd::Vhd { kind: 4, size: 3 << 19, id: 5, parent: Some((6, r".\x.vhd")), blocks };
    let good = child.bytes(&[]);
    VhdFile::open(Arc::new(good.clone())).unwrap();
    let mut random = Random(17);
    let (mut opened, rounds) = (0, 5000);
    for _ in 0..rounds {
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            let at = match random.below(4) {
                0 => good.len() as u64 - 512 + random.below(100),
                1 => 512 + random.below(700),
                2 => 1536 + random.below(16),
                _ => random.below(5000),
            };
            bytes[at as usize] = random.next() as u8;
        }
        for (start, field) in [(bytes.len() - 512, 64), (0, 64), (512, 36)] {
            let len = if field == 64 { 512 } else { 1024 };
            bytes[start + field..start + field + 4].fill(0);
            let sum = !bytes[start..start + len].iter().map(|&b| u32::from(b)).sum::<u32>();
            bytes[start + field..start + field + 4].copy_from_slice(&sum.to_be_bytes());
        }
        if let Ok(file) = VhdFile::open(Arc::new(bytes)) {
            opened += 1;
            let _ = file.file_extents(0..file.geometry().size_bytes.min(1 << 32));
        }
    }
    assert!(opened > rounds / 20 && opened < rounds, "{opened} of {rounds} opened");
}
