//! Reading frozen disks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use hyperv::seam::{ChangedPage, ChangedRange, TrackingState, VirtDiskError, VirtDiskHandle, VirtDiskInfo};
use hyperv::{ChangesErrorKind, ControllerKind, DiskSlot, ErrorKind, FrozenDisk, FrozenReader};
use vhdx::{Extent, ExtentKind, ReadError, VirtualDisk};

use crate::script::*;

const PATH: &str = r"C:\VMs\web\d.vhdx";

/// A disk in memory that is as strict about sectors as the driver.
struct Disk {
    bytes: Vec<u8>,
    physical_sector_bytes: u32,
    reads: Arc<Mutex<Vec<(u64, usize)>>>,
}

impl Disk {
    fn error(operation: &'static str, code: u32) -> VirtDiskError {
        VirtDiskError { operation, path: PATH.into(), code }
    }
}

impl VirtDiskHandle for Disk {
    fn info(&self) -> Result<VirtDiskInfo, VirtDiskError> {
        Ok(VirtDiskInfo {
            size_bytes: self.bytes.len() as u64,
            logical_sector_bytes: 512,
            physical_sector_bytes: self.physical_sector_bytes,
            virtual_disk_id: DISK.parse().unwrap(),
        })
    }

    fn tracking_state(&self) -> Result<TrackingState, VirtDiskError> {
        Ok(TrackingState { enabled: true, newer_changes: false, most_recent_id: "rctX:9".into() })
    }

    fn changed_ranges(&self, id: &str, offset: u64, len: u64, _: usize) -> Result<ChangedPage, VirtDiskError> {
        match id {
            "rctX:1" => Ok(ChangedPage {
                ranges: vec![ChangedRange { offset_bytes: offset, len_bytes: 512 }],
                processed_bytes: len,
            }),
            _ => Err(Self::error("QueryChangesVirtualDisk", 0xC03A_0030)),
        }
    }

    fn read(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), VirtDiskError> {
        let unit = u64::from(self.physical_sector_bytes);
        let end = offset_bytes + buf.len() as u64;
        let is_aligned =
            offset_bytes.is_multiple_of(unit) && (end.is_multiple_of(unit) || end == self.bytes.len() as u64);
        if !is_aligned || end > self.bytes.len() as u64 {
            return Err(Self::error("ReadFile", 27));
        }
        self.reads.lock().unwrap().push((offset_bytes, buf.len()));
        buf.copy_from_slice(&self.bytes[offset_bytes as usize..end as usize]);
        Ok(())
    }
}

fn frozen() -> FrozenDisk {
    FrozenDisk {
        slot: DiskSlot { controller: ControllerKind::Scsi, controller_number: 0, location: 0 },
        sasd_instance_id: "x".into(),
        path: PATH.into(),
        chain: vec![PATH.into()],
        virtual_disk_id: DISK.parse().unwrap(),
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 % 251) as u8).collect()
}

type Reads = Arc<Mutex<Vec<(u64, usize)>>>;

fn open(script: &Arc<Script>, bytes: Vec<u8>, physical_sector_bytes: u32) -> (FrozenReader, Reads) {
    let reads = Reads::default();
    let for_disk = reads.clone();
    let open = move || {
        let disk = Disk { bytes: bytes.clone(), physical_sector_bytes, reads: for_disk.clone() };
        Ok(Box::new(disk) as Box<dyn VirtDiskHandle>)
    };
    script.virt_disks.lock().unwrap().insert(PATH.into(), Box::new(open));
    (script.host().open_frozen(&frozen()).unwrap(), reads)
}

#[test]
fn any_range_is_read_in_whole_sectors() {
    // The size is a multiple of the logical sector only: the last read ends at the end of the disk.
    let bytes = content(5 * 4096 + 512);
    for physical in [512, 4096] {
        let (reader, reads) = open(&one_vm(), bytes.clone(), physical);
        let len = bytes.len();
        let edges = [0, 1, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 3 * 4096, 5 * 4096, len - 512, len - 1, len];
        for start in edges {
            for end in edges.into_iter().filter(|end| *end >= start) {
                let mut buf = vec![0xAA; end - start];
                reader.read_exact_at(&mut buf, start as u64).unwrap_or_else(|error| panic!("{start}..{end}: {error}"));
                assert_eq!(buf, bytes[start..end], "{start}..{end}, sectors of {physical}");
            }
        }
        reads.lock().unwrap().clear();
        reader.read_exact_at(&mut vec![0; 4 * 4096], 4096).unwrap();
        assert_eq!(*reads.lock().unwrap(), [(4096, 4 * 4096)], "an aligned range is one read");
        for (offset, len) in [(len as u64, 1), (len as u64 - 1, 2), (u64::MAX, 1), (u64::MAX, 2)] {
            let result = reader.read_exact_at(&mut vec![0; len], offset);
            assert!(matches!(result, Err(ReadError::OutOfRange { .. })), "{offset} {len}");
        }
    }
}

#[test]
fn an_unreadable_chain_makes_everything_data() {
    let script = one_vm();
    script.files.lock().unwrap().insert(PATH.into(), VecDeque::from([Ok(b"not a VHDX".to_vec())]));
    let (reader, _) = open(&script, content(8192), 512);
    assert!(reader.allocation_problem().unwrap().contains(PATH));
    let extents: Vec<_> = reader.extents(512..8192).map(Result::unwrap).collect();
    assert_eq!(extents, [Extent { range: 512..8192, kind: ExtentKind::Data }]);
    assert_eq!(reader.extents(100..100).count(), 0);
    assert!(reader.extents(0..8193).next().unwrap().is_err());
}

#[test]
fn changes_and_state_come_from_the_driver() {
    let (reader, _) = open(&one_vm(), content(8192), 512);
    assert_eq!(reader.tracking_state().unwrap().most_recent_id, "rctX:9");
    assert_eq!(reader.changed_ranges("rctX:1").unwrap(), vec![0..512]);
    let error = reader.changed_ranges("rctX:2").unwrap_err();
    assert_eq!(error.kind, ChangesErrorKind::Missing);
    let shown = error.to_string();
    assert!(shown.contains("rctX:2") && shown.contains(PATH) && shown.contains("C03A0030"), "{shown}");
}

#[test]
fn another_disk_under_the_path_is_refused() {
    let script = one_vm();
    open(&script, content(8192), 512);
    let mut other = frozen();
    other.virtual_disk_id = "99999999-0000-1111-2222-333344445555".parse().unwrap();
    let error = script.host().open_frozen(&other).unwrap_err();
    assert!(error.to_string().contains(DISK), "{error}");
}

#[test]
fn a_file_in_use_is_busy() {
    let script = one_vm();
    let open = || Err(Disk::error("OpenVirtualDisk", 0x8007_0020));
    script.virt_disks.lock().unwrap().insert(PATH.into(), Box::new(open));
    let error = script.host().open_frozen(&frozen()).unwrap_err();
    assert_eq!((error.kind(), error.hresults()), (ErrorKind::Busy, vec![0x8007_0020]));
}

#[test]
fn the_facts_of_a_chain_are_those_of_its_files() {
    let script = one_vm();
    let file = |len: usize| VecDeque::from([Ok(vec![0; len])]);
    {
        let mut files = script.files.lock().unwrap();
        files.insert(r"C:\VMs\web\d_1.avhdx".into(), file(10));
        files.insert(PATH.into(), file(20));
        files.insert(format!("{PATH}.rct"), file(3));
    }
    let mut disk = frozen();
    disk.chain.insert(0, r"C:\VMs\web\d_1.avhdx".into());
    let members = script.host().chain_facts(&disk).unwrap();
    let shown: Vec<_> = members
        .iter()
        .map(|member| (member.file_name.as_str(), member.facts.len_bytes, member.rct.is_some(), member.mrt.is_some()))
        .collect();
    assert_eq!(shown, [("d_1.avhdx", 10, false, false), ("d.vhdx", 20, true, false)]);
    script.files.lock().unwrap().remove(PATH);
    assert_eq!(script.host().chain_facts(&disk).unwrap_err().kind(), ErrorKind::NotFound);
}

/// A base and a child with real VHDX structures, and what the guest sees through them.
struct RealChain {
    files: Vec<(String, Vec<u8>)>,
    content: Vec<u8>,
}

fn real_chain() -> RealChain {
    const MIB: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let (base, child) = (folder.path().join("d.vhdx"), folder.path().join("d_1.avhdx"));
    let mut content = vec![0; 8 * MIB];
    let options = vhdx::CreateOptions {
        block_bytes: MIB as u32,
        virtual_disk_id: DISK.parse().unwrap(),
        ..vhdx::CreateOptions::dynamic(content.len() as u64)
    };
    vhdx::create(&base, &options).unwrap();
    let mut put = |path: &std::path::Path, at: usize, len: usize, byte: u8| {
        let mut disk = vhdx::WritableVhdx::open(path, &vhdx::OpenOptions::default()).unwrap();
        content[at..at + len].fill(byte);
        disk.write_all_at(&content[at..at + len], at as u64).unwrap();
        disk.close().unwrap();
    };
    put(&base, MIB, 4096, 1);
    put(&base, 5 * MIB, MIB, 2);
    vhdx::create_differencing(&child, &base, &vhdx::DifferencingOptions::default()).unwrap();
    put(&child, 5 * MIB + 4096, 4096, 3);
    put(&child, 7 * MIB, 4096, 4);
    let files = vec![
        (r"C:\VMs\web\d_1.avhdx".to_owned(), std::fs::read(&child).unwrap()),
        (r"C:\VMs\web\d.vhdx".to_owned(), std::fs::read(&base).unwrap()),
    ];
    RealChain { files, content }
}

fn serve(script: &Arc<Script>, chain: &RealChain) -> FrozenDisk {
    for (path, bytes) in &chain.files {
        script.files.lock().unwrap().insert(path.clone(), VecDeque::from([Ok(bytes.clone())]));
    }
    FrozenDisk { chain: chain.files.iter().map(|(path, _)| path.clone()).collect(), ..frozen() }
}

#[test]
fn the_allocation_of_a_real_chain_is_known() {
    let script = one_vm();
    let chain = real_chain();
    let disk = serve(&script, &chain);
    open(&script, chain.content.clone(), 4096);
    let reader = script.host().open_frozen(&disk).unwrap();
    assert_eq!(reader.allocation_problem(), None);
    assert_eq!(reader.chain().unwrap().layers().len(), 2);
    let size = chain.content.len() as u64;
    let (mut at, mut data_bytes) = (0, 0);
    for extent in reader.extents(0..size) {
        let Extent { range, kind } = extent.unwrap();
        assert_eq!(range.start, at, "without gaps");
        at = range.end;
        let bytes = &chain.content[range.start as usize..range.end as usize];
        match kind {
            ExtentKind::Data => data_bytes += bytes.len(),
            ExtentKind::Zero => assert!(bytes.iter().all(|byte| *byte == 0), "{range:?}"),
        }
        let mut buf = vec![0; bytes.len()];
        reader.read_exact_at(&mut buf, range.start).unwrap();
        assert_eq!(buf, bytes);
    }
    assert_eq!(at, size);
    assert!(data_bytes <= 4 << 20, "{data_bytes} bytes of data: the allocation was not used");
}

#[test]
fn files_that_contradict_the_driver_are_not_used_for_allocation() {
    let chain = real_chain();
    type Case<'a> = (&'a str, &'a dyn Fn(&Arc<Script>, &mut FrozenDisk));
    let cases: [Case<'_>; 3] = [
        ("bytes, the driver", &|script, _| drop(open(script, vec![0; 4 << 20], 512))),
        ("d.vhdx", &|script, _| {
            script.files.lock().unwrap().remove(PATH);
        }),
        ("d_1.avhdx", &|_, disk| drop(disk.chain.pop())),
    ];
    for (problem, spoil) in cases {
        let script = one_vm();
        let mut disk = serve(&script, &chain);
        open(&script, chain.content.clone(), 512);
        spoil(&script, &mut disk);
        disk.path = PATH.into();
        let reader = script.host().open_frozen(&disk).unwrap();
        let found = reader.allocation_problem().unwrap_or_else(|| panic!("{problem}: allocation is used"));
        assert!(found.contains(problem), "{found}");
        let whole = 0..reader.geometry().size_bytes;
        assert_eq!(
            reader.extents(whole.clone()).map(Result::unwrap).collect::<Vec<_>>(),
            [Extent { range: whole, kind: ExtentKind::Data }]
        );
    }
}
