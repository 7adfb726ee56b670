//! The executable killed at every call it makes to the host and to the store, in a full and in an incremental run.
//!
//! After each kill: the earlier point still restores byte for byte; the next run succeeds, leaves nothing of ours on
//! the host but one reference point, and its point is what the guest had.
//!
//! By default a sample of the calls are kill points; `cargo xtask test --long` takes every call, before and after it took
//! effect, and prints the counts.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::Arc;

use backup::{Cancel, Silent, TargetFormat, list_points, restore_disk};
use hyperv_sim::{DiskSource, GuestWrites, LabHost, LabOptions, Spread, VmOptions};
use kopia_repo::{ClientOptions, Repository, Storage, StorageKind};
use sha2::{Digest, Sha256};

const PASSWORD: &str = "kill-password";
const VM: &str = "DC01";

/// A lab host with one VM of two disks and a repository, in a folder.
struct Rig {
    dir: PathBuf,
}

impl Rig {
    fn create(dir: &Path) -> Self {
        let rig = Self { dir: dir.to_owned() };
        let options = LabOptions { job_ms: 5, merge_ms: 5, merge_retry_ms: 10, ..LabOptions::real_time() };
        let lab = LabHost::create_with(rig.lab_dir(), options).unwrap();
        let disks = [DiskSource::Empty { size_bytes: 24 << 20 }, DiskSource::Empty { size_bytes: (6 << 20) + 512 }];
        lab.add_vm(VM, &disks, VmOptions::default()).unwrap();
        drop(lab);
        rig.guest_write(1, 5);
        assert!(rig.agent(&["repo", "create"], &[]).status.success());
        rig
    }

    /// The same host and repository elsewhere.
    fn copy_to(&self, dir: &Path) -> Self {
        copy_folder(&self.dir, dir);
        Self { dir: dir.to_owned() }
    }

    fn lab_dir(&self) -> PathBuf {
        self.dir.join("lab")
    }

    fn lab(&self) -> Arc<LabHost> {
        LabHost::open(self.lab_dir()).unwrap()
    }

    fn guest_write(&self, seed: u64, mib: u32) {
        self.lab().guest_write_only(VM, GuestWrites { seed, mib, spread: Spread::Scattered }).unwrap();
    }

    /// SHA-256 of each disk as the guest sees it.
    fn guest(&self) -> Vec<[u8; 32]> {
        let lab = self.lab();
        (0..2).map(|disk| lab.disk_sha256(VM, disk).unwrap()).collect()
    }

    fn agent(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_e3-backup-agent"))
            .args(arguments)
            .env_clear()
            .env("HOME", &self.dir)
            .env("E3_REPOSITORY", self.dir.join("repo"))
            .env("E3_HOST", format!("lab:{}", self.lab_dir().display()))
            .env("E3_PASSWORD", PASSWORD)
            .envs(environment.iter().copied())
            .output()
            .unwrap()
    }

    /// A backup that must succeed.
    fn back_up(&self, label: &str) {
        let output = self.agent(&["backup", VM], &[]);
        assert!(output.status.success(), "{label}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn repo(&self) -> Arc<Repository> {
        let bucket = Arc::new(bucket::Folder::open(self.dir.join("repo")).unwrap());
        let storage = Storage { bucket, kind: StorageKind::Folder };
        Repository::open(&storage, PASSWORD, ClientOptions::new("test", "test")).unwrap()
    }

    /// SHA-256 of the raw disks of the newest point, and the number of points.
    fn newest_point(&self, label: &str) -> (Vec<[u8; 32]>, usize) {
        let repo = self.repo();
        let points = list_points(&repo, None).unwrap();
        let Some(point) = points.last() else { return (Vec::new(), 0) };
        let description = point.describe(&repo).unwrap_or_else(|error| panic!("{label}: {error}"));
        let hashes = description
            .disks
            .iter()
            .map(|disk| {
                let object = point.open_disk(&repo, disk).unwrap_or_else(|error| panic!("{label}: {error}"));
                let target = self.dir.join("restored.raw");
                restore_disk(&object, &target, TargetFormat::Raw, true, "", &Silent, &Cancel::default())
                    .unwrap_or_else(|error| panic!("{label}: {error}"));
                Sha256::digest(std::fs::read(target).unwrap()).into()
            })
            .collect();
        (hashes, points.len())
    }

    fn assert_host_is_clean(&self, label: &str) {
        let lab = self.lab();
        let (_, recovery) = lab.checkpoints(VM).unwrap();
        assert!(recovery.is_empty(), "{label}: recovery checkpoints {recovery:?}");
        let points = lab.reference_points(VM).unwrap();
        assert_eq!(points.len(), 1, "{label}: reference points {points:?}");
        for disk in 0..2 {
            let chain = lab.disk_chain(VM, disk).unwrap();
            assert_eq!(chain.len(), 1, "{label}: disk {disk} is {chain:?}");
        }
        let strays = lab.stray_files().unwrap();
        assert!(strays.is_empty(), "{label}: stray files {strays:?}");
    }

    /// How many calls a backup makes: `[seam, bucket]`.
    fn count_calls(&self, arguments: &[&str]) -> [u64; 2] {
        let file = self.dir.join("calls.json");
        let output = self.agent(arguments, &[("E3_LAB_COUNT_FILE", file.to_str().unwrap())]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let counts: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        [counts["seam"].as_u64().unwrap(), counts["bucket"].as_u64().unwrap()]
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Whether the process ended as one does that cannot end in order.
#[cfg(unix)]
fn was_killed(status: ExitStatus) -> bool {
    status.code().is_none()
}

/// What an abort leaves: `STATUS_STACK_BUFFER_OVERRUN`, the code of every fast failure.
#[cfg(windows)]
fn was_killed(status: ExitStatus) -> bool {
    status.code() == Some(0xC000_0409_u32.cast_signed())
}

/// One kill, and all that must hold afterwards. Whether the process died is returned: threads make the calls, so a run
/// may end before the call with the last number.
fn kill_and_recover(rig: &Rig, arguments: &[&str], at: &str, seed: u64) -> bool {
    let before = rig.newest_point(at);
    let frozen = rig.guest();
    let killed = rig.agent(arguments, &[("E3_LAB_KILL_AT", at)]);
    let died = was_killed(killed.status);
    assert!(died || killed.status.success(), "{at}: {}", String::from_utf8_lossy(&killed.stderr));

    let after = rig.newest_point(at);
    match after.1 - before.1 {
        0 => assert_eq!(after.0, before.0, "{at}: the earlier point"),
        // Killed behind the commit, or not at all: the new point is whole.
        1 => assert_eq!(after.0, frozen, "{at}: the point of the killed run"),
        more => panic!("{at}: {more} new points"),
    }
    rig.guest_write(seed, 1);
    rig.back_up(at);
    rig.assert_host_is_clean(at);
    assert_eq!(rig.newest_point(at).0, rig.guest(), "{at}: the next run's point");
    died
}

/// Where to kill: every `every`-th call of a border, in each of the phases. `E3_TEST_KILL_FROM` (per cent) skips the
/// first ones, to go on with a sweep that was broken off.
fn kill_points(border: &str, count: u64, every: u64, phases: &[&str]) -> Vec<String> {
    let skipped = std::env::var("E3_TEST_KILL_FROM").map_or(0, |text| text.parse::<u64>().expect("per cent"));
    let numbers = (count * skipped / 100..count).step_by(every as usize);
    numbers.flat_map(|number| phases.iter().map(move |phase| format!("{border}:{number}:{phase}"))).collect()
}

/// A first full: each kill starts from a host that was never backed up.
fn sweep_full(border: usize, every: u64, phases: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let fresh = Rig::create(&dir.path().join("fresh"));
    let counted = fresh.copy_to(&dir.path().join("count"));
    let count = counted.count_calls(&["backup", VM])[border];
    let (mut kills, mut died) = (0, 0);
    for at in kill_points(BORDERS[border], count, every, phases) {
        let rig = fresh.copy_to(&dir.path().join("run"));
        kills += 1;
        died += u64::from(kill_and_recover(&rig, &["backup", VM], &at, 7));
        std::fs::remove_dir_all(&rig.dir).unwrap();
    }
    println!("full run: {count} {} calls, {kills} kill points, {died} kills", BORDERS[border]);
    assert!(died * 10 >= kills * 9, "the hook kills");
}

/// Incrementals: each kill builds on the point before, in one place, because a copied disk file is another file to
/// change tracking.
fn sweep_incremental(border: usize, every: u64, phases: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::create(dir.path());
    rig.back_up("first");
    rig.guest_write(2, 1);
    let count = rig.count_calls(&["backup", VM])[border];
    let (mut kills, mut died) = (0, 0);
    for (seed, at) in (100..).zip(kill_points(BORDERS[border], count, every, phases)) {
        rig.guest_write(1000 + seed, 1);
        kills += 1;
        died += u64::from(kill_and_recover(&rig, &["backup", VM], &at, seed));
    }
    println!("incremental run: {count} {} calls, {kills} kill points, {died} kills", BORDERS[border]);
    assert!(died * 10 >= kills * 9, "the hook kills");
}

const BORDERS: [&str; 2] = ["seam", "bucket"];
/// Prime, so that the sample meets every place of a pattern of calls. Starting a process costs ten times as much where
/// CI runs the Windows build.
const SAMPLE: u64 = if cfg!(windows) { 79 } else { 17 };

#[test]
fn scenario_03_full_run_killed_at_a_sample_of_host_calls() {
    sweep_full(0, SAMPLE, &["before"]);
}

#[test]
fn scenario_03_full_run_killed_at_a_sample_of_store_calls() {
    sweep_full(1, SAMPLE, &["before"]);
}

#[test]
fn scenario_03_incremental_run_killed_at_a_sample_of_host_calls() {
    sweep_incremental(0, SAMPLE, &["before"]);
}

#[test]
fn scenario_03_incremental_run_killed_at_a_sample_of_store_calls() {
    sweep_incremental(1, SAMPLE, &["before"]);
}

macro_rules! every_call {
    ($($name:ident: $sweep:ident, $border:expr, $phase:expr;)*) => {$(
        #[test]
        #[ignore = "long: every call"]
        fn $name() {
            $sweep($border, 1, &[$phase]);
        }
    )*};
}

every_call! {
    scenario_03_full_run_killed_before_every_host_call: sweep_full, 0, "before";
    scenario_03_full_run_killed_after_every_host_call: sweep_full, 0, "after";
    scenario_03_full_run_killed_before_every_store_call: sweep_full, 1, "before";
    scenario_03_full_run_killed_after_every_store_call: sweep_full, 1, "after";
    scenario_03_incremental_run_killed_before_every_host_call: sweep_incremental, 0, "before";
    scenario_03_incremental_run_killed_after_every_host_call: sweep_incremental, 0, "after";
    scenario_03_incremental_run_killed_before_every_store_call: sweep_incremental, 1, "before";
    scenario_03_incremental_run_killed_after_every_store_call: sweep_incremental, 1, "after";
}
