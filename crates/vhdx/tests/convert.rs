//! Conversions, and what other programs make of our files.
#![allow(missing_docs)]

mod support;

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use support::{MIB, Random, read_all};
use vhdx::convert::{ConvertError, ConvertOptions, ConvertTarget, to_path};
use vhdx::stream::{StreamIds, parse_head};
use vhdx::{
    CreateOptions, DiskGeometry, Extent, ExtentKind, Extents, Guid, OpenOptions, ReadError, VirtualDisk, WritableVhdx,
    create, open_disk,
};

/// A disk with data here and there, and nonsense in what its extents call zero.
struct Scattered {
    bytes: Vec<u8>,
    data: Vec<Range<u64>>,
    broken_at: Option<u64>,
}

impl Scattered {
    fn new(size: u64, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut bytes = vec![0; size as usize];
        let mut data = Vec::new();
        let mut at = 0;
        while at < size {
            let end = (at + (random.below(700) + 1) * 4096).min(size);
            if random.below(2) == 0 {
                // Some data extents hold zeroes.
                let value = random.below(3) as u8;
                bytes[at as usize..end as usize].fill(value);
                data.push(at..end);
            }
            at = end;
        }
        Scattered { bytes, data, broken_at: None }
    }
}

impl VirtualDisk for Scattered {
    fn geometry(&self) -> DiskGeometry {
        DiskGeometry { size_bytes: self.bytes.len() as u64, logical_sector_bytes: 512, physical_sector_bytes: 4096 }
    }

    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), ReadError> {
        let range = offset_bytes..offset_bytes + buf.len() as u64;
        if self.broken_at.is_some_and(|at| range.contains(&at)) {
            let source = std::io::Error::other("unreadable");
            return Err(ReadError::Io { offset_bytes, file_offset_bytes: 0, len_bytes: buf.len() as u64, source });
        }
        buf.copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
        Ok(())
    }

    fn extents(&self, _: Range<u64>) -> Extents<'_> {
        Box::new(self.data.iter().map(|range| Ok(Extent { range: range.clone(), kind: ExtentKind::Data })))
    }
}

fn vhdx(block_bytes: u32) -> ConvertTarget {
    ConvertTarget::Vhdx { block_bytes, ids: StreamIds::random(Guid::random()) }
}

#[test]
fn both_targets_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, size) in [(1, 33 * MIB + 1536), (2, 4 * MIB), (3, 20 * MIB + 4096)] {
        let disk = Scattered::new(size, seed);
        for (name, target) in [("raw", ConvertTarget::Raw), ("1", vhdx(1 << 20)), ("4", vhdx(4 << 20))] {
            for threads in [0, 1, 7] {
                let path = folder.path().join(format!("{seed}.{name}.{threads}"));
                let seen = Mutex::new(Vec::new());
                let progress = |p: vhdx::convert::ConvertProgress| seen.lock().unwrap().push(p.done_bytes);
                let options = ConvertOptions { threads, progress: Some(&progress), cancel: None };
                to_path(&disk, &path, &target, &options).unwrap();
                assert_eq!(seen.lock().unwrap().last(), Some(&size));
                let raw = OpenOptions { allow_raw: true, ..OpenOptions::default() };
                assert!(read_all(&open_disk(&path, &raw).unwrap()) == disk.bytes, "{name}, {threads} threads");
                let ConvertTarget::Vhdx { block_bytes, ids } = target else { continue };
                let head = parse_head(&std::fs::File::open(&path).unwrap()).unwrap();
                let nonzero = disk.bytes.chunks(block_bytes as usize).enumerate();
                let nonzero = nonzero.filter(|(_, block)| block.iter().any(|&b| b != 0)).map(|(index, _)| index as u32);
                assert_eq!(head.slots().blocks(), nonzero.collect::<Vec<_>>(), "{name}, {threads} threads");
                assert_eq!(*head.ids(), ids);
            }
        }
    }
}

#[test]
fn the_same_disk_gives_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Scattered::new(17 * MIB, 9);
    let target = vhdx(2 << 20);
    let files = [1, 5].map(|threads| {
        let path = folder.path().join(threads.to_string());
        to_path(&disk, &path, &target, &ConvertOptions { threads, ..ConvertOptions::default() }).unwrap();
        std::fs::read(path).unwrap()
    });
    assert!(files[0] == files[1]);
}

#[test]
fn an_unreadable_byte_and_a_cancellation_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = Scattered::new(30 * MIB, 4);
    disk.broken_at = Some(disk.data[disk.data.len() / 2].start);
    for target in [ConvertTarget::Raw, vhdx(1 << 20)] {
        let path = folder.path().join("x");
        let result = to_path(&disk, &path, &target, &ConvertOptions::default());
        assert!(matches!(result, Err(ConvertError::Read(_))), "{result:?}");
        let cancel = AtomicBool::new(true);
        let options = ConvertOptions { cancel: Some(&cancel), ..ConvertOptions::default() };
        assert!(matches!(to_path(&disk, &path, &target, &options), Err(ConvertError::Cancelled)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn raw_output_is_sparse() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    create(&path, &CreateOptions::dynamic(64 << 30)).unwrap();
    let mut disk = WritableVhdx::open(&path, &OpenOptions::default()).unwrap();
    disk.write_all_at(&[1; 4096], 60 << 30).unwrap();
    disk.close().unwrap();
    let disk = open_disk(&path, &OpenOptions::default()).unwrap();
    let summary = to_path(&disk, &folder.path().join("raw"), &ConvertTarget::Raw, &ConvertOptions::default()).unwrap();
    assert!(summary.read_bytes <= 32 << 20 && summary.written_bytes <= 128 << 10, "{summary:?}");
    assert_eq!(std::fs::metadata(folder.path().join("raw")).unwrap().len(), 64 << 30);
}

fn qemu_img(test: &str, arguments: &[&str], folder: &Path) -> Option<String> {
    let output = match Command::new("qemu-img").args(arguments).current_dir(folder).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED {test}: qemu-img is not installed");
            return None;
        }
        Err(error) => panic!("run qemu-img: {error}"),
    };
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
    Some(text)
}

#[test]
fn qemu_reads_what_we_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let size = 45 * MIB + 4096;
    let scattered = Scattered::new(size, 12);
    std::fs::write(path("expected"), &scattered.bytes).unwrap();
    to_path(&scattered, &path("canonical.vhdx"), &vhdx(2 << 20), &ConvertOptions::default()).unwrap();
    for (name, options) in [("dynamic.vhdx", CreateOptions::dynamic(size)), ("fixed.vhdx", CreateOptions::fixed(size))]
    {
        create(&path(name), &options).unwrap();
        let mut disk = WritableVhdx::open(&path(name), &OpenOptions::default()).unwrap();
        for range in &scattered.data {
            let data = &scattered.bytes[range.start as usize..range.end as usize];
            disk.write_all_at(data, range.start).unwrap();
        }
        disk.close().unwrap();
        // Crashed after a flush: qemu replays our log.
        std::fs::copy(path(name), path(&format!("dirty-{name}"))).unwrap();
        let dirty = path(&format!("dirty-{name}"));
        let mut disk = WritableVhdx::open(&dirty, &OpenOptions::default()).unwrap();
        disk.write_all_at(&[0x55; 70_000], 7 * MIB + 100).unwrap();
        disk.flush().unwrap();
    }
    let mut dirty = scattered.bytes.clone();
    dirty[7 * MIB as usize + 100..][..70_000].fill(0x55);
    std::fs::write(path("expected-dirty"), dirty).unwrap();
    let test = "qemu_reads_what_we_write";
    for name in ["canonical.vhdx", "dynamic.vhdx", "fixed.vhdx", "dirty-dynamic.vhdx", "dirty-fixed.vhdx"] {
        let expected = if name.starts_with("dirty") { "expected-dirty" } else { "expected" };
        if name.starts_with("dirty") && qemu_img(test, &["check", "-q", "-r", "all", name], folder.path()).is_none() {
            return;
        }
        for arguments in
            [&["check", "-q", "-f", "vhdx", name][..], &["compare", "-q", "-f", "vhdx", "-F", "raw", name, expected]]
        {
            if qemu_img(test, arguments, folder.path()).is_none() {
                return;
            }
        }
        if name.starts_with("dirty") {
            let disk = open_disk(&path(name), &OpenOptions::default()).unwrap();
            assert!(read_all(&disk) == std::fs::read(path(expected)).unwrap(), "{name} after qemu's replay");
        }
    }
}

#[test]
fn we_read_what_qemu_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let scattered = Scattered::new(45 * MIB + 4096, 13);
    std::fs::write(path("source"), &scattered.bytes).unwrap();
    for (format, subformat) in [("vhdx", "dynamic"), ("vhdx", "fixed"), ("vpc", "dynamic"), ("vpc", "fixed")] {
        let name = format!("{subformat}.{format}");
        let mut option = format!("subformat={subformat}");
        if format == "vpc" {
            option.push_str(",force_size=on");
        }
        let arguments = ["convert", "-f", "raw", "-O", format, "-o", &option, "source", &name];
        if qemu_img("we_read_what_qemu_writes", &arguments, folder.path()).is_none() {
            return;
        }
        let disk = open_disk(&path(&name), &OpenOptions::default()).unwrap();
        assert!(read_all(&disk) == scattered.bytes, "{name}");
        drop(disk);
        if format == "vhdx" {
            let mut disk = WritableVhdx::open(&path(&name), &OpenOptions::default()).unwrap();
            disk.write_all_at(&[0x77; 3 << 20], 2 * MIB + 10).unwrap();
            disk.zero_range(20 * MIB..40 * MIB).unwrap();
            disk.close().unwrap();
            let mut expected = scattered.bytes.clone();
            expected[2 * MIB as usize + 10..][..3 << 20].fill(0x77);
            expected[20 << 20..40 << 20].fill(0);
            std::fs::write(path("expected"), expected).unwrap();
            let arguments = ["compare", "-q", "-f", "vhdx", "-F", "raw", &name, "expected"];
            qemu_img("we_read_what_qemu_writes", &arguments, folder.path());
        }
    }
}
