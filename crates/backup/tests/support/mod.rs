//! A lab host, a repository in memory, and comparisons that do not use the code under test.
#![allow(dead_code)] // each test file uses its part

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup::{
    BackupContext, BackupError, BackupOptions, Cancel, Event, FullReason, HostState, Observer, Point, PointDisk,
    ReadMode, Silent, TargetFormat, VmReport, back_up_vm, list_points, new_run_id, restore_disk,
};
use bucket::{Faulty, Memory};
use hyperv::Host;
use hyperv::seam::Seam;
use hyperv_sim::{ClockKind, DiskSource, GuestWrites, LabHost, LabOptions, Spread, VmOptions};
use kopia_repo::{ClientOptions, CreateOptions, Repository, Storage, StorageKind};
use vhdx::VirtualDisk;

pub const PASSWORD: &str = "lab-password";

/// One host, one VM, one repository.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub lab: Arc<LabHost>,
    pub bucket: Arc<Faulty<Memory>>,
    pub repo: Arc<Repository>,
    pub options: BackupOptions,
}

pub fn quick_lab() -> LabOptions {
    LabOptions { job_ms: 1, merge_ms: 1, merge_retry_ms: 5, ..LabOptions::real_time() }
}

impl Rig {
    pub fn new(disks: &[DiskSource]) -> Self {
        Self::with(quick_lab(), disks)
    }

    /// The same on a host with these options.
    pub fn with(options: LabOptions, disks: &[DiskSource]) -> Self {
        let rig = Self::without_vm(options);
        rig.lab.add_vm("DC01", disks, VmOptions::default()).unwrap();
        rig
    }

    pub fn without_vm(options: LabOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let is_real_time = options.clock == ClockKind::System;
        let lab = LabHost::create_with(dir.path().join("host"), options).unwrap();
        let bucket = Arc::new(Faulty::new(Memory::new()));
        let storage = Storage { bucket: bucket.clone(), kind: StorageKind::ObjectStore };
        let client = ClientOptions::new("tester", "testhost");
        let repo = Repository::create(&storage, PASSWORD, &CreateOptions::new("e3"), client).unwrap();
        let mut options = BackupOptions::new("test");
        if is_real_time {
            // The pauses of a night would be waited for.
            (options.busy_pause, options.guest_pause) = (Duration::from_millis(20), Duration::from_millis(20));
        }
        Self { dir, lab, bucket, repo, options }
    }

    pub fn back_up(&self) -> Result<VmReport, BackupError> {
        self.back_up_through(self.lab.seam())
    }

    pub fn back_up_through(&self, seam: Seam) -> Result<VmReport, BackupError> {
        self.back_up_as("DC01", seam, &Cancel::default())
    }

    /// A VM by name or id; whoever holds `cancel` may stop it.
    pub fn back_up_as(&self, selector: &str, seam: Seam, cancel: &Cancel) -> Result<VmReport, BackupError> {
        self.back_up_observed(selector, seam, cancel, &Silent)
    }

    /// `act` is called at the beginning of every phase, with its name.
    pub fn back_up_and(&self, act: impl Fn(&str) + Send + Sync) -> Result<VmReport, BackupError> {
        self.back_up_observed("DC01", self.lab.seam(), &Cancel::default(), &AtPhases(act))
    }

    fn back_up_observed(
        &self,
        selector: &str,
        seam: Seam,
        cancel: &Cancel,
        observer: &dyn Observer,
    ) -> Result<VmReport, BackupError> {
        let host = Host::new(seam);
        let vm = host
            .find_vm(selector)
            .map_err(|source| BackupError::Host { attempt: "find the VM".into(), source: Box::new(source) })?;
        let state = HostState::open(&self.dir.path().join("state")).unwrap();
        let context = BackupContext {
            host: &host,
            host_name: "LABHOST",
            repo: &self.repo,
            state: &state,
            options: &self.options,
            observer,
            cancel,
        };
        back_up_vm(&context, &vm, &new_run_id())
    }

    pub fn guest_write(&self, seed: u64, mib: u32) {
        self.lab.guest_write_only("DC01", GuestWrites { seed, mib, spread: Spread::Scattered }).unwrap();
    }

    /// The guest's disk, byte for byte, as its files say.
    pub fn guest_disk(&self, disk: usize) -> Vec<u8> {
        read_all(&self.lab.open_guest_disk("DC01", disk).unwrap())
    }

    /// All of the guest's disks.
    pub fn guest_disks(&self, vm: &str) -> Vec<Vec<u8>> {
        let disks = 0..self.lab.disk_count(vm).unwrap();
        disks.map(|disk| read_all(&self.lab.open_guest_disk(vm, disk).unwrap())).collect()
    }

    /// A point's disks are what the guest had.
    pub fn assert_restores(&self, label: &str, point: &Point, expected: &[Vec<u8>]) {
        let description = point.describe(&self.repo).unwrap();
        assert_eq!(description.disks.len(), expected.len(), "{label}: disks of the point");
        for (disk, expected) in expected.iter().enumerate() {
            assert_same(&format!("{label}, disk {disk}"), expected, &self.restore_raw(point, disk));
        }
    }

    /// Until neither a job nor a merge is left.
    pub fn wait_for_rest(&self, vm: &str) {
        for _ in 0..2000 {
            if self.lab.is_at_rest(vm).unwrap() {
                return;
            }
            self.lab.clock().sleep(std::time::Duration::from_millis(20));
        }
        panic!("jobs or merges of {vm} do not end");
    }

    pub fn points(&self) -> Vec<Point> {
        list_points(&self.repo, None).unwrap()
    }

    pub fn restore_raw(&self, point: &Point, disk: usize) -> Vec<u8> {
        let target = self.dir.path().join("restored.raw");
        self.restore(point, disk, TargetFormat::Raw, &target);
        std::fs::read(target).unwrap()
    }

    pub fn restore(&self, point: &Point, disk: usize, format: TargetFormat, target: &Path) {
        let description = point.describe(&self.repo).unwrap();
        let object = point.open_disk(&self.repo, &description.disks[disk]).unwrap();
        restore_disk(&object, target, format, true, "test", &Silent, &Cancel::default()).unwrap();
    }

    /// Nothing of ours but one reference point, and every disk one file deep.
    pub fn assert_host_is_clean(&self, label: &str) {
        self.assert_vm_is_clean(label, "DC01");
    }

    pub fn assert_vm_is_clean(&self, label: &str, vm: &str) {
        let (_, recovery) = self.lab.checkpoints(vm).unwrap();
        assert!(recovery.is_empty(), "{label}: recovery checkpoints {recovery:?}");
        let points = self.lab.reference_points(vm).unwrap();
        assert!(points.len() <= 1, "{label}: reference points {points:?}");
        for disk in 0..self.lab.disk_count(vm).unwrap() {
            let chain = self.lab.disk_chain(vm, disk).unwrap();
            assert_eq!(chain.len(), 1, "{label}: disk {disk} is {chain:?}");
        }
        let strays = self.lab.stray_files().unwrap();
        assert!(strays.is_empty(), "{label}: stray files {strays:?}");
    }
}

struct AtPhases<F>(F);

impl<F: Fn(&str) + Send + Sync> Observer for AtPhases<F> {
    fn event(&self, event: Event<'_>) {
        if let Event::Phase { phase, .. } = event {
            (self.0)(phase);
        }
    }
}

/// Why each disk was read in full; `None` where changes were read.
pub fn full_reasons(report: &VmReport) -> Vec<Option<FullReason>> {
    let reason = |disk: &PointDisk| match disk.read {
        ReadMode::Full { reason } => Some(reason),
        ReadMode::Incremental { .. } => None,
    };
    report.description.disks.iter().map(reason).collect()
}

pub fn read_all(disk: &dyn VirtualDisk) -> Vec<u8> {
    let mut bytes = vec![0; disk.geometry().size_bytes as usize];
    for (number, chunk) in bytes.chunks_mut(1 << 20).enumerate() {
        disk.read_exact_at(chunk, (number << 20) as u64).unwrap();
    }
    bytes
}

/// Segments of `segment_bytes` in which two disks differ.
pub fn differing_segments(before: &[u8], after: &[u8], segment_bytes: usize) -> usize {
    before.chunks(segment_bytes).zip(after.chunks(segment_bytes)).filter(|(a, b)| a != b).count()
}

pub fn assert_same(label: &str, expected: &[u8], got: &[u8]) {
    assert_eq!(expected.len(), got.len(), "{label}: length");
    if let Some(at) = expected.iter().zip(got).position(|(a, b)| a != b) {
        panic!("{label}: first difference at {at:#x}");
    }
}
