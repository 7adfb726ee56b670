//! Finding parents, on a real file system.
#![allow(missing_docs)]

mod support;
#[path = "support/vhd.rs"]
mod vhd;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::{MIB, read_all};
use vhd::{BLOCK, Vhd};
use vhdx::{
    CreateOptions, DifferencingOptions, DiskKind, ExtentKind, FileExtentKind, FileFormat, Guid, OpenError,
    OpenErrorKind, OpenOptions, ParentSearch, VirtualDisk, WritableVhdx, create, create_differencing, open_disk,
};

fn small(path: &Path) {
    let mut options = CreateOptions::dynamic(4 * MIB);
    options.block_bytes = 1 << 20;
    create(path, &options).unwrap();
}

fn child(path: &Path, parent: &Path) {
    create_differencing(path, parent, &DifferencingOptions::default()).unwrap();
}

fn write(path: &Path, data: &[u8], offset: u64) {
    let mut disk = WritableVhdx::open(path, &OpenOptions::default()).unwrap();
    disk.write_all_at(data, offset).unwrap();
    disk.close().unwrap();
}

fn kind(result: Result<vhdx::OpenedDisk, OpenError>) -> OpenErrorKind {
    result.map(|_| ()).unwrap_err().kind()
}

#[test]
fn a_chain_beside_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    small(&path("base.vhdx"));
    write(&path("base.vhdx"), &[1; 4096], 0);
    child(&path("a.avhdx"), &path("base.vhdx"));
    write(&path("a.avhdx"), &[2; 512], 512);
    child(&path("b.avhdx"), &path("a.avhdx"));
    write(&path("b.avhdx"), &[3; 100], 1000);

    let disk = open_disk(&path("b.avhdx"), &OpenOptions::default()).unwrap();
    let mut expected = vec![1; 4096];
    expected[512..1024].fill(2);
    expected[1000..1100].fill(3);
    expected.resize(4 * MIB as usize, 0);
    assert!(read_all(&disk) == expected);
    let info = disk.info();
    assert_eq!(info.len(), 3);
    assert_eq!(info[0].1.kind, DiskKind::Differencing);
    assert_eq!(info[0].1.parent.as_ref().unwrap().relative_path.as_deref(), Some(r".\a.avhdx"));
    assert_eq!(info[0].1.virtual_disk_id, info[2].1.virtual_disk_id);
    let kinds: Vec<_> = disk.layers()[0].file.file_extents(0..2048).unwrap().into_iter().map(|e| e.kind).collect();
    assert!(matches!(kinds[..], [FileExtentKind::Parent, FileExtentKind::Data { .. }, FileExtentKind::Parent]));

    // The parent was written behind the child's back.
    drop(disk);
    write(&path("a.avhdx"), &[9], 0);
    let mismatch = open_disk(&path("b.avhdx"), &OpenOptions::default());
    assert!(matches!(mismatch, Err(OpenError::ParentMismatch { .. })));
    std::fs::remove_file(path("a.avhdx")).unwrap();
    assert_eq!(kind(open_disk(&path("b.avhdx"), &OpenOptions::default())), OpenErrorKind::Missing);
}

#[test]
fn only_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    small(&path);
    let first = WritableVhdx::open(&path, &OpenOptions::default()).unwrap();
    let second = WritableVhdx::open(&path, &OpenOptions::default()).map(|_| ());
    assert_eq!(second.unwrap_err().kind(), OpenErrorKind::Busy);
    drop(first);
    WritableVhdx::open(&path, &OpenOptions::default()).unwrap();
}

#[test]
fn an_existing_file_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    std::fs::write(&path, b"mine").unwrap();
    assert!(create(&path, &CreateOptions::dynamic(MIB)).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn parents_in_other_folders_need_permission() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["base", "vm", "elsewhere"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    small(&path("base/b.vhdx"));
    child(&path("vm/c.vhdx"), &path("base/b.vhdx"));
    assert_eq!(kind(open_disk(&path("vm/c.vhdx"), &OpenOptions::default())), OpenErrorKind::Missing);
    let roots = |roots: Vec<PathBuf>| OpenOptions { parents: ParentSearch::Roots(roots), ..OpenOptions::default() };
    open_disk(&path("vm/c.vhdx"), &roots(vec![path("base")])).unwrap();
    open_disk(&path("vm/c.vhdx"), &roots(vec![folder.path().to_owned()])).unwrap();
    assert_eq!(kind(open_disk(&path("vm/c.vhdx"), &roots(vec![path("elsewhere")]))), OpenErrorKind::Missing);

    // The caller knows better.
    std::fs::rename(path("base/b.vhdx"), path("elsewhere/x")).unwrap();
    let (x, wanted) = (path("elsewhere/x"), path("vm/c.vhdx"));
    let find = move |request: &vhdx::ParentRequest<'_>| {
        assert_eq!(request.child, wanted);
        assert_eq!(request.locator.relative_path.as_deref(), Some(r"..\base\b.vhdx"));
        vec![PathBuf::from("/does/not/exist"), x.clone()]
    };
    let options = OpenOptions { parents: ParentSearch::Custom(Arc::new(find)), ..OpenOptions::default() };
    open_disk(&path("vm/c.vhdx"), &options).unwrap();
}

#[cfg(unix)]
#[test]
fn a_link_does_not_lead_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("vm")).unwrap();
    small(&path("secret.vhdx"));
    small(&path("vm/base.vhdx"));
    child(&path("vm/c.vhdx"), &path("vm/base.vhdx"));
    std::fs::rename(path("vm/base.vhdx"), path("base.vhdx")).unwrap();
    std::os::unix::fs::symlink(path("base.vhdx"), path("vm/base.vhdx")).unwrap();
    assert_eq!(kind(open_disk(&path("vm/c.vhdx"), &OpenOptions::default())), OpenErrorKind::Missing);
}

#[test]
fn names_differ_in_case_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    small(&path("Base.VHDX"));
    child(&path("c.vhdx"), &path("Base.VHDX"));
    std::fs::rename(path("Base.VHDX"), path("bASE.vhdx")).unwrap();
    open_disk(&path("c.vhdx"), &OpenOptions::default()).unwrap();
}

#[test]
fn long_chains_and_circles() {
    let folder = tempfile::tempdir().unwrap();
    let path = |n: usize| folder.path().join(format!("{n}.vhdx"));
    small(&path(1));
    for n in 2..=257 {
        child(&path(n), &path(n - 1));
    }
    assert_eq!(open_disk(&path(256), &OpenOptions::default()).unwrap().layers().len(), 256);
    assert!(matches!(open_disk(&path(257), &OpenOptions::default()).map(|_| ()), Err(OpenError::ChainTooDeep)));

    // 2 becomes its own parent, then 3 becomes the parent of 2.
    let set_parent = |n: usize, parent: usize| {
        let mut disk = WritableVhdx::open_without_parent(&path(n)).unwrap();
        let mut locator = disk.info().parent.unwrap();
        locator.parent_linkage =
            vhdx::VhdxFile::open(Arc::new(std::fs::File::open(path(parent)).unwrap())).unwrap().info().data_write_guid;
        locator.relative_path = Some(format!(r".\{parent}.vhdx"));
        disk.set_parent_locator(&locator).unwrap();
        disk.close().unwrap();
    };
    for parent in [2, 3, 4] {
        set_parent(2, parent);
        let result = open_disk(&path(4), &OpenOptions::default()).map(|_| ());
        assert!(matches!(result, Err(OpenError::ChainCycle { .. })), "{parent}: {result:?}");
    }
}

#[test]
fn sizes_may_differ_and_sectors_may_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    small(&path("base.vhdx"));
    write(&path("base.vhdx"), &vec![1; 4 << 20], 0);
    for (name, size) in [("large", 7 * MIB + 512), ("small", 2 * MIB + 512)] {
        let options = DifferencingOptions { size_bytes: Some(size), block_bytes: None };
        create_differencing(&path(name), &path("base.vhdx"), &options).unwrap();
        let disk = open_disk(&path(name), &OpenOptions::default()).unwrap();
        let mut expected = vec![1; 4 << 20];
        expected.resize(size as usize, 0);
        assert!(read_all(&disk) == expected, "{name}");
    }
    // A small child that grows does not show more of its parent.
    let mut disk = WritableVhdx::open(&path("small"), &OpenOptions::default()).unwrap();
    disk.resize(6 * MIB).unwrap();
    let mut expected = vec![1; 2 * MIB as usize + 512];
    expected.resize(6 << 20, 0);
    assert!(read_all(&disk) == expected);
    disk.close().unwrap();

    let mut options = CreateOptions::dynamic(4 * MIB);
    options.geometry.logical_sector_bytes = 4096;
    create(&path("4k.vhdx"), &options).unwrap();
    let mut disk = WritableVhdx::open_without_parent(&path("large")).unwrap();
    let mut locator = disk.info().parent.unwrap();
    locator.relative_path = Some(r".\4k.vhdx".into());
    locator.absolute_win32_path = None;
    locator.parent_linkage2 = open_disk(&path("4k.vhdx"), &OpenOptions::default()).unwrap().info()[0].1.data_write_guid;
    disk.set_parent_locator(&locator).unwrap();
    disk.close().unwrap();
    let result = open_disk(&path("large"), &OpenOptions::default()).map(|_| ());
    assert!(matches!(result, Err(OpenError::ParentUnfit { .. })), "{result:?}");
}

#[test]
fn a_dirty_parent_is_replayed_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    small(&path("base.vhdx"));
    child(&path("c.vhdx"), &path("base.vhdx"));
    // Crashes after the child was made; its identity is put right by hand, as a rescue would.
    let mut disk = WritableVhdx::open(&path("base.vhdx"), &OpenOptions::default()).unwrap();
    disk.write_all_at(&[5; 512], 0).unwrap();
    disk.flush().unwrap();
    let id = disk.info().data_write_guid;
    drop(disk);
    let before = std::fs::read(path("base.vhdx")).unwrap();
    let mut disk = WritableVhdx::open_without_parent(&path("c.vhdx")).unwrap();
    let mut locator = disk.info().parent.unwrap();
    locator.parent_linkage = id;
    disk.set_parent_locator(&locator).unwrap();
    disk.close().unwrap();
    let disk = open_disk(&path("c.vhdx"), &OpenOptions::default()).unwrap();
    assert!(disk.info()[1].1.log_dirty);
    assert_eq!(read_all(&disk)[..513], [&[5; 512][..], &[0]].concat());
    assert!(std::fs::read(path("base.vhdx")).unwrap() == before, "nothing was written");
    assert!(create_differencing(&path("d.vhdx"), &path("base.vhdx"), &DifferencingOptions::default()).is_err());
}

#[test]
fn what_is_not_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    std::fs::write(&path, vec![7; 4096]).unwrap();
    assert!(matches!(open_disk(&path, &OpenOptions::default()).map(|_| ()), Err(OpenError::NotADisk)));
    let raw = OpenOptions { allow_raw: true, ..OpenOptions::default() };
    let disk = open_disk(&path, &raw).unwrap();
    assert_eq!((read_all(&disk), disk.info()[0].1.format), (vec![7; 4096], FileFormat::Raw));
    assert!(disk.read_exact_at(&mut [0; 2], 4095).is_err());
    std::fs::write(&path, [7; 100]).unwrap();
    assert_eq!(kind(open_disk(&path, &raw)), OpenErrorKind::Unsupported);
    assert_eq!(kind(open_disk(folder.path(), &raw)), OpenErrorKind::Unsupported);
    assert_eq!(kind(open_disk(&folder.path().join("none"), &raw)), OpenErrorKind::Missing);
}

const SIZE: u64 = 3 * BLOCK as u64 - 1024;

fn vhd(kind: u32, id: u128, blocks: Vec<(usize, Vec<Option<u8>>)>) -> Vhd<'static> {
    Vhd { kind, size: SIZE, id, parent: None, blocks }
}

#[test]
fn fixed_vhd() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhd");
    let content: Vec<u8> = (0..SIZE).map(|i| (i / 512) as u8).collect();
    std::fs::write(&path, vhd(2, 1, vec![]).bytes(&content)).unwrap();
    let disk = open_disk(&path, &OpenOptions::default()).unwrap();
    assert!(read_all(&disk) == content);
    let info = disk.info().remove(0).1;
    assert_eq!((info.format, info.kind, info.creator.as_str()), (FileFormat::Vhd, DiskKind::Fixed, "win"));
    assert_eq!(info.data_write_guid, Guid::from_u128(1));
}

#[test]
fn dynamic_and_differencing_vhd() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let base = vhd(3, 7, vec![(2, vec![Some(1); BLOCK / 512]), (0, vec![Some(2), None, Some(3)])]);
    std::fs::write(path("base.vhd"), base.bytes(&[])).unwrap();
    let mut expected = vec![0; SIZE as usize];
    expected[..512].fill(2);
    expected[1024..1536].fill(3);
    expected[2 * BLOCK..].fill(1);
    let disk = open_disk(&path("base.vhd"), &OpenOptions::default()).unwrap();
    assert!(read_all(&disk) == expected);
    let mut data = 0;
    for extent in disk.extents(0..SIZE).map(Result::unwrap).filter(|e| e.kind == ExtentKind::Data) {
        data += extent.range.end - extent.range.start;
    }
    assert_eq!(data, 1024 + SIZE - 2 * BLOCK as u64);

    let mut child = vhd(4, 8, vec![(0, vec![None, Some(4)]), (1, vec![None, None, Some(5)])]);
    child.parent = Some((7, r".\base.vhd"));
    std::fs::write(path("c.vhd"), child.bytes(&[])).unwrap();
    expected[512..1024].fill(4);
    expected[BLOCK + 1024..BLOCK + 1536].fill(5);
    let disk = open_disk(&path("c.vhd"), &OpenOptions::default()).unwrap();
    assert!(read_all(&disk) == expected);
    // Any alignment.
    for (start, end) in [(1, 2), (511, 1025), (1000, 1600), (BLOCK - 1, BLOCK + 1500)] {
        let mut part = vec![0; end - start];
        disk.read_exact_at(&mut part, start as u64).unwrap();
        assert!(part == expected[start..end], "{start}..{end}");
    }
    child.parent = Some((6, r".\base.vhd"));
    std::fs::write(path("c.vhd"), child.bytes(&[])).unwrap();
    assert_eq!(kind(open_disk(&path("c.vhd"), &OpenOptions::default())), OpenErrorKind::ParentMismatch);
}

#[test]
fn a_vhd_without_its_last_footer_and_with_a_short_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhd");
    let mut bytes = vhd(3, 7, vec![(0, vec![Some(1); BLOCK / 512])]).bytes(&[]);
    let len = bytes.len();
    bytes.pop();
    std::fs::write(&path, &bytes).unwrap();
    open_disk(&path, &OpenOptions::default()).unwrap();
    bytes.truncate(len - 512);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(read_all(&open_disk(&path, &OpenOptions::default()).unwrap())[BLOCK - 1], 1);
    bytes.truncate(len - 1024);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(kind(open_disk(&path, &OpenOptions::default())), OpenErrorKind::Corrupt);
}
