//! A point of a VM of a simulated host, in a repository in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup::{
    BackupContext, BackupOptions, Cancel, HostState, Silent, TargetFormat, VmReport, back_up_vm, new_run_id,
    restore_disk,
};
use bucket::{ErrorKind, Faulty, Memory};
use hyperv::Host;
use hyperv_sim::{DiskSource, GuestWrites, LabHost, LabOptions, Spread, VmOptions};
use kopia_repo::{ClientOptions, CreateOptions, Repository, Storage, StorageKind};
use serve::{DiskCache, PointBase, cache_secret};

/// A host with a VM, and a repository that can go away.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub lab: Arc<LabHost>,
    pub bucket: Arc<Faulty<Memory>>,
    pub repo: Arc<Repository>,
}

impl Rig {
    pub fn new(size_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = LabOptions { job_ms: 1, merge_ms: 1, merge_retry_ms: 5, ..LabOptions::real_time() };
        let lab = LabHost::create_with(dir.path().join("host"), options).unwrap();
        lab.add_vm("DC01", &[DiskSource::Empty { size_bytes }], VmOptions::default()).unwrap();
        let bucket = Arc::new(Faulty::new(Memory::new()));
        let storage = Storage { bucket: bucket.clone(), kind: StorageKind::ObjectStore };
        let client = ClientOptions::new("tester", "testhost");
        let repo = Repository::create(&storage, "lab-password", &CreateOptions::new("e3"), client).unwrap();
        Self { dir, lab, bucket, repo }
    }

    pub fn write(&self, seed: u64, mib: u32) {
        self.lab.guest_write_only("DC01", GuestWrites { seed, mib, spread: Spread::Scattered }).unwrap();
    }

    pub fn back_up(&self) -> VmReport {
        let host = Host::new(self.lab.seam());
        let vm = host.find_vm("DC01").unwrap();
        let state = HostState::open(&self.dir.path().join("state")).unwrap();
        let mut options = BackupOptions::new("test");
        (options.busy_pause, options.guest_pause) = (Duration::from_millis(20), Duration::from_millis(20));
        let context = BackupContext {
            host: &host,
            host_name: "LABHOST",
            repo: &self.repo,
            state: &state,
            options: &options,
            observer: &Silent,
            cancel: &Cancel::default(),
        };
        back_up_vm(&context, &vm, &new_run_id()).unwrap()
    }

    /// The point's disk, as a restore makes it.
    pub fn restored(&self, report: &VmReport) -> Vec<u8> {
        let disk = report.point.open_disk(&self.repo, &report.description.disks[0]).unwrap();
        let target = self.dir.path().join("restored.raw");
        restore_disk(&disk, &target, TargetFormat::Raw, true, "disk", &Silent, &Cancel::default()).unwrap();
        std::fs::read(target).unwrap()
    }

    /// The file that the point's disk is stored as, as a restore writes it.
    pub fn restored_file(&self, report: &VmReport) -> Vec<u8> {
        let disk = report.point.open_disk(&self.repo, &report.description.disks[0]).unwrap();
        let target = self.dir.path().join("restored.vhdx");
        restore_disk(&disk, &target, TargetFormat::Vhdx, true, "disk", &Silent, &Cancel::default()).unwrap();
        std::fs::read(target).unwrap()
    }

    pub fn base(&self, report: &VmReport, cache: Option<&Path>) -> Arc<PointBase> {
        Arc::new(self.point_base(report, cache))
    }

    pub fn point_base(&self, report: &VmReport, cache: Option<&Path>) -> PointBase {
        let described = &report.description.disks[0];
        let disk = report.point.open_disk(&self.repo, described).unwrap();
        let open = |folder: &Path| DiskCache::open(folder, 1 << 30, cache_secret(&self.repo)).unwrap();
        let cache = cache.map(|folder| Arc::new(open(folder)));
        PointBase::new(disk, described, cache)
    }

    pub fn break_off(&self, is_gone: bool) {
        self.bucket.set_script(move |_| match is_gone {
            true => bucket::Fault::FailBefore(ErrorKind::Unreachable),
            false => bucket::Fault::Pass,
        });
    }
}
