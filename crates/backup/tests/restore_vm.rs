//! Whole VMs restored within one process: stopped at every call, failing at every method, and in place at every write.

mod support;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use backup::{
    BackupError, Cancel, HostState, Point, RestoreContext, RestorePlan, RestoreRequest, RestoredVm, SafetyPoint,
    Silent, open_restores, plan_in_place, plan_restore, restore_in_place, restore_vm,
};
use hyperv::Host;
use hyperv::seam::{FileFacts, HostFile, HostFiles, HostWrites, Seam};
use hyperv_sim::{CallPhase, CountingSeam, DiskSource, Fault, LabOptions};
use support::{Rig, assert_same};
use vhdx::{ReadAt, WriteAt};

fn rig() -> (Rig, Point, Vec<Vec<u8>>) {
    // Nothing here depends on real time, and on a virtual clock waiting costs none.
    let disks = [DiskSource::Empty { size_bytes: 24 << 20 }, DiskSource::Empty { size_bytes: (6 << 20) + 512 }];
    let rig = Rig::with(LabOptions::default(), &disks);
    rig.guest_write(1, 4);
    let frozen = rig.guest_disks("DC01");
    let point = rig.back_up().unwrap().point;
    (rig, point, frozen)
}

/// Work on the rig's host through a seam.
fn on<T>(rig: &Rig, seam: Seam, cancel: &Cancel, work: impl FnOnce(&RestoreContext<'_>) -> T) -> T {
    let host = Host::new(seam);
    let state = HostState::open(&rig.dir.path().join("state")).unwrap();
    work(&RestoreContext { host: &host, repo: &rig.repo, state: &state, observer: &Silent, cancel })
}

fn plan(rig: &Rig, point: &Point, request: &RestoreRequest) -> RestorePlan {
    on(rig, rig.lab.seam(), &Cancel::default(), |context| plan_restore(context, point, request).unwrap())
}

/// Only the original is on the host, and nothing else in its folder.
fn assert_nothing_is_left(rig: &Rig, label: &str) {
    let host = Host::new(rig.lab.seam());
    let names: Vec<String> = host.list_vms().unwrap().into_iter().map(|vm| vm.name).collect();
    assert_eq!(names, ["DC01"], "{label}");
    assert_eq!(host.list_planned_vms().unwrap(), [], "{label}");
    let folders: Vec<_> = std::fs::read_dir(rig.lab.host_file(r"C:\VMs").unwrap()).unwrap().flatten().collect();
    assert_eq!(folders.len(), 1, "{label}: {folders:?}");
    let state = HostState::open(&rig.dir.path().join("state")).unwrap();
    assert_eq!(open_restores(&state).unwrap(), Vec::<String>::new(), "{label}");
}

fn remove(rig: &Rig, restored: &RestoredVm) {
    let host = Host::new(rig.lab.seam());
    host.remove_vm(&restored.vm.path).unwrap();
    let folder = restored.vm.disks[0].path.rsplit_once(r"\Virtual Hard Disks\").unwrap().0.to_owned();
    std::fs::remove_dir_all(rig.lab.host_file(&folder).unwrap()).unwrap();
}

#[test]
fn stopped_at_every_call_it_leaves_nothing_or_a_whole_vm() {
    let (rig, point, frozen) = rig();
    for request in [RestoreRequest::default(), RestoreRequest { from_settings: true, ..RestoreRequest::default() }] {
        let (mut stopped, mut number) = (0, 0);
        loop {
            let label = format!("from settings: {}, call {number}", request.from_settings);
            let cancel = Cancel::default();
            let asked = cancel.clone();
            let (seam, counting) = CountingSeam::wrap(rig.lab.seam(), move |call| {
                if call.number == number && call.phase == CallPhase::Before {
                    asked.cancel();
                }
            });
            let mut plan = plan(&rig, &point, &request);
            // The plan was made with a flag of its own.
            plan.wanted.cancel = cancel.clone();
            match on(&rig, seam, &cancel, |context| restore_vm(context, &plan)) {
                Ok(restored) => {
                    for (number, expected) in frozen.iter().enumerate() {
                        let found = rig.lab.open_guest_disk(restored.vm.id.as_str(), number).unwrap();
                        assert_same(&label, expected, &support::read_all(&found));
                    }
                    remove(&rig, &restored);
                }
                Err(BackupError::Cancelled) => stopped += 1,
                Err(error) => panic!("{label}: {error:?}"),
            }
            assert_nothing_is_left(&rig, &label);
            if counting.calls() <= number {
                break;
            }
            number += 5;
        }
        assert!(stopped > 5, "{stopped} of {number}");
    }
}

#[test]
fn a_method_that_fails_leaves_nothing() {
    let (rig, point, _) = rig();
    for (from_settings, method) in [
        (false, "ImportSystemDefinition"),
        (false, "ModifySystemSettings"),
        (false, "ModifyResourceSettings"),
        (false, "ValidatePlannedSystem"),
        (false, "RealizePlannedSystem"),
        (true, "DefineSystem"),
        (true, "ModifySystemSettings"),
        (true, "AddResourceSettings"),
    ] {
        let plan = plan(&rig, &point, &RestoreRequest { from_settings, ..RestoreRequest::default() });
        for fault in [
            Fault::MethodReturns { method: method.into(), return_value: 32775 },
            Fault::MethodUnreachable { method: method.into(), hresult: 0x8007_06BA },
        ] {
            let label = format!("{from_settings} {fault:?}");
            rig.lab.inject(fault).unwrap();
            let result = on(&rig, rig.lab.seam(), &Cancel::default(), |context| restore_vm(context, &plan));
            rig.lab.clear_faults().unwrap();
            let error = result.expect_err(&label);
            assert!(matches!(error, BackupError::Host { .. }), "{label}: {error:?}");
            assert_nothing_is_left(&rig, &label);
        }
    }
}

#[test]
fn a_repository_that_fails_leaves_nothing() {
    let (rig, point, _) = rig();
    let plan = plan(&rig, &point, &RestoreRequest::default());
    rig.bucket.set_script(|call| match call.operation {
        bucket::Operation::Get | bucket::Operation::GetRange => {
            bucket::Fault::FailBefore(bucket::ErrorKind::Unreachable)
        }
        _ => bucket::Fault::Pass,
    });
    let result = on(&rig, rig.lab.seam(), &Cancel::default(), |context| restore_vm(context, &plan));
    rig.bucket.set_script(|_| bucket::Fault::Pass);
    result.expect_err("the storage does not answer");
    assert_nothing_is_left(&rig, "storage");
}

/// Host files of which a write fails half-way, and every later one: a volume that goes away.
struct Failing {
    inner: Arc<dyn HostFiles>,
    writes_left: Arc<AtomicI64>,
}

struct FailingFile {
    inner: Box<dyn WriteAt>,
    writes_left: Arc<AtomicI64>,
}

impl FailingFile {
    fn lost(&self) -> bool {
        self.writes_left.fetch_sub(1, Ordering::SeqCst) <= 0
    }
}

fn gone() -> io::Error {
    io::Error::other("the volume is gone")
}

impl HostFiles for Failing {
    fn open_read(&self, path: &str) -> io::Result<HostFile> {
        self.inner.open_read(path)
    }

    fn facts(&self, path: &str) -> io::Result<FileFacts> {
        self.inner.facts(path)
    }

    fn free_bytes(&self, path: &str) -> io::Result<u64> {
        self.inner.free_bytes(path)
    }

    fn writes(&self) -> Option<&dyn HostWrites> {
        Some(self)
    }
}

impl Failing {
    fn writable(&self) -> io::Result<&dyn HostWrites> {
        self.inner.writes().ok_or_else(gone)
    }
}

impl HostWrites for Failing {
    fn local_path(&self, path: &str) -> io::Result<PathBuf> {
        self.writable()?.local_path(path)
    }

    fn open_write(&self, path: &str) -> io::Result<Box<dyn WriteAt>> {
        let inner = self.writable()?.open_write(path)?;
        Ok(Box::new(FailingFile { inner, writes_left: self.writes_left.clone() }))
    }

    fn create_folder(&self, path: &str) -> io::Result<()> {
        self.writable()?.create_folder(path)
    }

    fn create_file(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.writable()?.create_file(path, content)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.writable()?.rename(from, to)
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.writable()?.remove_file(path)
    }

    fn remove_empty_folder(&self, path: &str) -> io::Result<bool> {
        self.writable()?.remove_empty_folder(path)
    }
}

impl ReadAt for FailingFile {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.inner.read_exact_at(buf, offset_bytes)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.inner.len_bytes()
    }
}

impl WriteAt for FailingFile {
    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        if self.lost() {
            // Torn: the first half is there.
            self.inner.write_all_at(&data[..data.len() / 2], offset_bytes)?;
            return Err(gone());
        }
        self.inner.write_all_at(data, offset_bytes)
    }

    fn flush(&self) -> io::Result<()> {
        if self.lost() { Err(gone()) } else { self.inner.flush() }
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        if self.lost() { Err(gone()) } else { self.inner.set_len(len_bytes) }
    }
}

#[test]
fn in_place_failing_at_every_write_it_is_ended_by_the_next_attempt() {
    let (rig, point, frozen) = rig();
    let host = || Host::new(rig.lab.seam());
    let mut failures = 0;
    for writes in 0.. {
        rig.guest_write(100 + writes, 1);
        rig.lab.stop_vm("DC01").unwrap();
        let files = Failing { inner: rig.lab.seam().files, writes_left: Arc::new(AtomicI64::new(writes as i64)) };
        let seam = Seam { files: Arc::new(files), ..rig.lab.seam() };
        let attempt = |seam: Seam| {
            on(&rig, seam, &Cancel::default(), |context| {
                let plan = plan_in_place(context, &point).unwrap();
                assert!(!plan.is_blocked(), "write {writes}: {:?}", plan.obstacles);
                (plan.resumes.is_some(), restore_in_place(context, &plan, &SafetyPoint::Refused))
            })
        };
        let (_, first) = attempt(seam);
        let is_over = first.is_ok();
        if let Err(error) = first {
            assert!(matches!(error, BackupError::Unfinished { .. }), "write {writes}: {error:?}");
            failures += 1;
            let vm = host().find_vm("DC01").unwrap();
            host().start_vm(&vm).expect_err("a VM with half-written disks does not start");
            let (resumes, second) = attempt(rig.lab.seam());
            assert!(resumes, "write {writes}");
            second.unwrap_or_else(|error| panic!("write {writes}: {error:?}"));
        }
        for (number, expected) in frozen.iter().enumerate() {
            let found = support::read_all(&rig.lab.open_guest_disk("DC01", number).unwrap());
            assert_same(&format!("write {writes}, disk {number}"), expected, &found);
        }
        rig.lab.start_vm("DC01").unwrap();
        if is_over {
            break;
        }
    }
    assert!(failures > 10, "{failures}");
}
