//! What happens to a VM between two backups, and what change tracking then says: the truth, too much, nothing, or a lie.

mod support;

use std::sync::Arc;

use hyperv_sim::{AfterApply, AfterMove, Companions, DiskSource, Fault, LabHost, LabOptions, Sequences, VmOptions};
use support::{Client, MIB, changes, host_with, read_all, strings, units};

const MISSING: u32 = 0xC03A_0030;
const UNIT: u64 = 64 << 10;

struct Rig {
    _dir: tempfile::TempDir,
    lab: Arc<LabHost>,
    client: Client,
}

impl Rig {
    fn new(options: LabOptions) -> Self {
        let (dir, lab) = host_with(options, &[8 * MIB]);
        let client = Client::new(&lab);
        Self { _dir: dir, lab, client }
    }

    /// A backup; gives the id of its instant and the content that it read.
    fn backup(&self) -> (String, Vec<u8>) {
        let checkpoint = self.client.checkpoint("web");
        let content = read_all(self.client.open(&self.client.files(&checkpoint)[0]).as_ref());
        let point = self.client.convert(&checkpoint);
        self.client.settle(&self.lab, "web");
        (strings(&point, "ResilientChangeTrackingIdentifiers").remove(0), content)
    }

    /// What a backup would be told now: the answer for an id, and the content.
    fn ask(&self, id: &str) -> (Result<Vec<hyperv::seam::ChangedRange>, u32>, Vec<u8>) {
        let checkpoint = self.client.checkpoint("web");
        let disk = self.client.open(&self.client.files(&checkpoint)[0]);
        let answer = (changes(disk.as_ref(), id, 7), read_all(disk.as_ref()));
        drop(disk);
        self.client.destroy(&checkpoint);
        self.client.settle(&self.lab, "web");
        answer
    }

    /// Whether an incremental copy onto `base` would give the present content; `None` when the query fails.
    fn incremental_is_right(&self, id: &str, base: &[u8]) -> Option<bool> {
        let (ranges, now) = self.ask(id);
        let mut copy = base.to_vec();
        copy.resize(now.len(), 0);
        for range in ranges.ok()? {
            let range = range.offset_bytes as usize..(range.offset_bytes + range.len_bytes) as usize;
            copy[range.clone()].copy_from_slice(&now[range]);
        }
        Some(copy == now)
    }

    fn write(&self, at: u64, value: u8) {
        self.lab.guest_write_at("web", 0, at, &[value; 700]).unwrap();
    }
}

#[test]
fn supersets_cover_and_long_ranges_come_in_pieces() {
    for (granularity_bytes, superset, longest_range_bytes) in
        [(512, false, 0), (32 << 10, false, 0), (UNIT, true, 0), (MIB, true, 4096), (4096, false, 4096)]
    {
        let options = LabOptions { granularity_bytes, superset, longest_range_bytes, ..LabOptions::default() };
        let rig = Rig::new(options);
        let (id, base) = rig.backup();
        rig.write(MIB + 100, 1);
        rig.write(5 * MIB, 2);
        let (ranges, _) = rig.ask(&id);
        let ranges = ranges.unwrap();
        let case = format!("{granularity_bytes}, superset {superset}, longest {longest_range_bytes}");
        assert!(units(&ranges, MIB).is_superset(&[1, 5].into()), "{case}");
        let bytes: u64 = ranges.iter().map(|range| range.len_bytes).sum();
        assert_eq!(bytes > 4 * granularity_bytes.max(1024), superset, "{case}: {bytes}");
        let longest = ranges.iter().map(|range| range.len_bytes).max().unwrap();
        assert!(longest_range_bytes == 0 || longest <= longest_range_bytes, "{case}");
        assert_eq!(rig.incremental_is_right(&id, &base), Some(true), "{case}");
    }
}

#[test]
fn one_lie_is_one_unit() {
    let rig = Rig::new(LabOptions::default());
    let (id, base) = rig.backup();
    rig.lab.guest_write_at("web", 0, MIB, &vec![3; 3 * UNIT as usize]).unwrap();
    let whole = units(&rig.ask(&id).0.unwrap(), UNIT);
    rig.lab.inject(Fault::ChangesOmit { vm: "web".into(), disk: 0, unit: 4 }).unwrap();
    let told = units(&rig.ask(&id).0.unwrap(), UNIT);
    assert_eq!(whole.difference(&told).copied().collect::<Vec<_>>(), [17], "the second of three");
    assert_eq!(rig.incremental_is_right(&id, &base), Some(false));
}

#[test]
fn refused_queries_and_lost_devices() {
    let rig = Rig::new(LabOptions { refuse_whole_disk_query: true, ..LabOptions::default() });
    let (id, _) = rig.backup();
    let checkpoint = rig.client.checkpoint("web");
    let disk = rig.client.open(&rig.client.files(&checkpoint)[0]);
    assert_eq!(disk.changed_ranges(&id, 0, 8 * MIB, 10).unwrap_err().code, 87);
    assert!(disk.changed_ranges(&id, 0, 8 * MIB - 512, 10).is_ok());
    rig.lab.inject(Fault::DeviceLost { vm: "web".into(), disk: 0, after_reads: 2, code: 1167 }).unwrap();
    let mut buf = vec![0; 4096];
    let results: Vec<_> = (0..4).map(|_| disk.read(&mut buf, 0).err().map(|e| e.code)).collect();
    assert_eq!(results, [None, None, Some(1167), Some(1167)]);
    assert_eq!(disk.changed_ranges(&id, 0, 4096, 10).unwrap_err().code, 1167);
}

#[test]
fn a_power_cut_widens_what_changed() {
    let rig = Rig::new(LabOptions { granularity_bytes: 512, ..LabOptions::default() });
    let (id, base) = rig.backup();
    rig.write(3 * MIB + 5000, 7);
    rig.lab.unclean_stop("web").unwrap();
    rig.lab.start_vm("web").unwrap();
    let ranges = rig.ask(&id).0.unwrap();
    assert_eq!((ranges[0].offset_bytes, ranges[0].len_bytes, ranges.len()), (3 * MIB, MIB, 1));
    assert_eq!(rig.incremental_is_right(&id, &base), Some(true));
}

#[test]
fn storage_that_is_reverted() {
    // (sequences, companions, in place) and what an incremental onto the newer restore point would be.
    for (sequences, companions, in_place, expected) in [
        (Sequences::NeverReused, Companions::Reverted, true, None),
        (Sequences::ReusedAfterRevert, Companions::Reverted, true, Some(false)),
        (Sequences::NeverReused, Companions::Left, false, Some(false)),
        (Sequences::NeverReused, Companions::Removed, false, None),
    ] {
        let case = format!("{sequences:?}, {companions:?}");
        let rig = Rig::new(LabOptions { sequences, ..LabOptions::default() });
        rig.backup();
        rig.write(MIB, 1);
        rig.lab.stop_vm("web").unwrap();
        let copy = rig.lab.copy_disk("web", 0).unwrap();
        rig.lab.start_vm("web").unwrap();
        rig.write(2 * MIB, 2);
        let (newer, base) = rig.backup();
        rig.lab.stop_vm("web").unwrap();
        let file_id = || rig.client.seam.files.facts(&rig.lab.disk_chain("web", 0).unwrap()[0]).unwrap().file_id;
        let before = file_id();
        rig.lab.revert_disk(&copy, companions, in_place).unwrap();
        assert!(!cfg!(unix) || (file_id() == before) == in_place, "{case}: the file's own identity");
        rig.lab.start_vm("web").unwrap();
        if sequences == Sequences::ReusedAfterRevert {
            rig.write(3 * MIB, 3);
            let (again, _) = rig.backup();
            assert_eq!(again, newer, "{case}: the id is given out a second time");
        }
        assert_eq!(rig.incremental_is_right(&newer, &base), expected, "{case}");
    }
}

#[test]
fn disk_files_that_are_moved() {
    for (after_move, expected) in
        [(AfterMove::Kept, Some(true)), (AfterMove::Lost, None), (AfterMove::KeptButWrong, Some(false))]
    {
        let rig = Rig::new(LabOptions { after_move, ..LabOptions::default() });
        let (id, base) = rig.backup();
        rig.write(MIB, 1);
        let moved = rig.lab.move_disk_files("web", 0, r"C:\it's elsewhere").unwrap();
        assert_eq!(rig.lab.disk_chain("web", 0).unwrap(), [moved]);
        rig.write(2 * MIB, 2);
        assert_eq!(rig.incremental_is_right(&id, &base), expected, "{after_move:?}");
        let (id, base) = rig.backup();
        rig.write(3 * MIB, 3);
        assert_eq!(rig.incremental_is_right(&id, &base), Some(true), "{after_move:?}: and from there on");
        assert_eq!(rig.lab.stray_files().unwrap(), Vec::<String>::new(), "{after_move:?}");
    }
}

#[test]
fn a_checkpoint_is_applied() {
    for (after_apply, expected) in [(AfterApply::OldIdsFail, None), (AfterApply::OldIdsAnswerWrongly, Some(false))] {
        let rig = Rig::new(LabOptions { after_apply, ..LabOptions::default() });
        rig.backup();
        rig.write(MIB, 1);
        let before = rig.lab.disk_sha256("web", 0).unwrap();
        let checkpoint = rig.lab.create_user_checkpoint("web").unwrap();
        rig.write(2 * MIB, 2);
        let (newer, base) = rig.backup();
        rig.write(3 * MIB, 3);
        rig.lab.apply_user_checkpoint("web", &checkpoint).unwrap();
        assert_eq!(rig.lab.disk_sha256("web", 0).unwrap(), before, "{after_apply:?}");
        let vm = rig.client.vm("web");
        assert_eq!(vm.get("EnabledState").as_u64(), Some(3), "{after_apply:?}");
        let applied =
            rig.client.associated(&vm.path.unwrap(), "Msvm_LastAppliedSnapshot", "Msvm_VirtualSystemSettingData");
        assert!(applied[0].get("InstanceID").as_str().unwrap().ends_with(&checkpoint), "{after_apply:?}");
        rig.lab.start_vm("web").unwrap();
        assert_eq!(rig.incremental_is_right(&newer, &base), expected, "{after_apply:?}");

        let (id, base) = rig.backup();
        rig.write(5 * MIB, 5);
        rig.lab.delete_checkpoint("web", &checkpoint).unwrap();
        rig.client.settle(&rig.lab, "web");
        assert_eq!(rig.incremental_is_right(&id, &base), Some(true), "{after_apply:?}: and from there on");
        assert_eq!(rig.lab.disk_chain("web", 0).unwrap().len(), 1, "{after_apply:?}");
        assert_eq!(rig.lab.stray_files().unwrap(), Vec::<String>::new(), "{after_apply:?}");
    }
}

#[test]
fn a_branch_that_was_left_goes_without_a_merge() {
    let rig = Rig::new(LabOptions::default());
    let first = rig.lab.create_user_checkpoint("web").unwrap();
    rig.write(MIB, 1);
    let second = rig.lab.create_user_checkpoint("web").unwrap();
    rig.write(2 * MIB, 2);
    rig.lab.apply_user_checkpoint("web", &first).unwrap();
    rig.lab.start_vm("web").unwrap();
    rig.write(3 * MIB, 3);
    let now = rig.lab.disk_sha256("web", 0).unwrap();
    // The common ancestor first: it has two children, and waits.
    rig.lab.delete_checkpoint("web", &first).unwrap();
    rig.client.seam.clock.sleep(std::time::Duration::from_secs(120));
    assert_eq!(rig.lab.disk_chain("web", 0).unwrap().len(), 2);
    rig.lab.delete_checkpoint("web", &second).unwrap();
    rig.client.settle(&rig.lab, "web");
    assert_eq!(rig.lab.disk_chain("web", 0).unwrap().len(), 1);
    assert_eq!(rig.lab.disk_sha256("web", 0).unwrap(), now);
    assert_eq!(rig.lab.stray_files().unwrap(), Vec::<String>::new());
}

#[test]
fn disks_come_go_move_and_grow() {
    let rig = Rig::new(LabOptions::default());
    let (id, base) = rig.backup();
    rig.write(MIB, 1);
    assert_eq!(rig.lab.add_disk("web", &DiskSource::Empty { size_bytes: MIB }).unwrap(), 1);
    rig.lab.resize_disk("web", 0, 12 * MIB).unwrap();
    rig.write(11 * MIB, 2);
    assert_eq!(rig.lab.move_disk_to("web", 0, 9).unwrap(), 1, "it stands behind the other now");
    rig.lab.move_disk_to("web", 0, 10).unwrap();
    assert_eq!(rig.incremental_is_right(&id, &base), Some(true), "the id goes with the disk, not with its place");
    let point = rig.client.only("SELECT * FROM Msvm_VirtualSystemReferencePoint");
    let slot = strings(&point, "VirtualDiskIdentifiers").remove(0);
    let by_slot =
        format!("SELECT * FROM Msvm_StorageAllocationSettingData WHERE InstanceID = '{}'", slot.replace('\\', r"\\"));
    assert!(rig.client.query(&by_slot).is_empty(), "nothing is at the place that the reference point names");
    assert_eq!(rig.client.destroy_reference_point(&point).get("JobState").as_u64(), Some(7));
    assert_eq!(rig.ask(&id).0, Err(MISSING), "the id went with its reference point");
    let removed = rig.lab.remove_disk("web", 1).unwrap();
    let stray = rig.lab.stray_files().unwrap();
    assert!(stray.len() == 3 && stray.iter().all(|file| file.starts_with(&removed)), "{stray:?}");
    rig.lab.rename_vm("web", "it's [new] 100%").unwrap();
    assert_eq!(rig.lab.disk_count("it's [new] 100%").unwrap(), 1);
}

#[test]
fn lost_tracking_files() {
    let rig = Rig::new(LabOptions::default());
    let (id, _) = rig.backup();
    rig.lab.lose_tracking("web", 0).unwrap();
    let (answer, _) = rig.ask(&id);
    assert!(answer.is_err(), "{answer:?}");
    let dir = tempfile::tempdir().unwrap();
    let other = LabHost::create(dir.path().join("lab")).unwrap();
    other.add_vm("x", &[DiskSource::Empty { size_bytes: MIB }], VmOptions::default()).unwrap();
    assert!(other.lose_tracking("x", 0).is_ok(), "there was nothing to lose");
}
