//! Points that the executable wrote, seen by stock Kopia: in a folder and on S3.
//!
//! Needs stock Kopia (`E3_TEST_KOPIA`, or `kopia` in the PATH) and qemu-img; the S3 half also an S3 server. What is
//! missing is said in one line.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use hyperv_sim::{DiskSource, GuestWrites, LabHost, LabOptions, Spread, VmOptions};
use sha2::{Digest, Sha256};
use vhdx::VirtualDisk;

const PASSWORD: &str = "stock-password";

/// A program from the environment or the PATH.
fn peer(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

struct Peers {
    kopia: PathBuf,
    qemu_img: PathBuf,
}

fn peers(test: &str) -> Option<Peers> {
    let Some(kopia) = peer("E3_TEST_KOPIA", "kopia") else {
        eprintln!("SKIPPED {test}: stock Kopia is not installed");
        return None;
    };
    let Some(qemu_img) = peer("E3_TEST_QEMU_IMG", "qemu-img") else {
        eprintln!("SKIPPED {test}: qemu-img is not installed");
        return None;
    };
    Some(Peers { kopia, qemu_img })
}

/// A repository's address for both programs, and the keys it takes.
struct Store {
    url: String,
    connect: Vec<String>,
    environment: Vec<(String, String)>,
}

struct Story<'a> {
    dir: &'a Path,
    store: &'a Store,
    peers: &'a Peers,
    lab: Arc<LabHost>,
}

#[test]
fn stock_reads_and_shares_a_folder() {
    let Some(peers) = peers("stock_reads_and_shares_a_folder") else { return };
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("repo");
    let store = Store {
        url: repo.display().to_string(),
        connect: vec!["filesystem".into(), format!("--path={}", repo.display())],
        environment: Vec::new(),
    };
    story(dir.path(), &store, &peers);
}

#[test]
fn stock_reads_and_shares_s3() {
    let Some(peers) = peers("stock_reads_and_shares_s3") else { return };
    let dir = tempfile::tempdir().unwrap();
    let server_dir = dir.path().join("s3");
    std::fs::create_dir(&server_dir).unwrap();
    let Some(server) = bucket::test_support::SeaweedFs::start_or_skip("stock_reads_and_shares_s3", &server_dir) else {
        return;
    };
    server.create_bucket("points", false).unwrap();
    let credentials = server.credentials();
    let (key, secret) = (credentials.access_key_id.clone(), credentials.secret_access_key.clone());
    let endpoint = server.endpoint();
    let host = endpoint.trim_start_matches("http://").to_owned();
    let store = Store {
        url: format!("s3://points/vms/?endpoint={endpoint}&region=us-east-1&path_style=true"),
        connect: ["s3", "--bucket=points", "--prefix=vms/", "--disable-tls", "--region=us-east-1"]
            .map(str::to_owned)
            .into_iter()
            .chain([
                format!("--endpoint={host}"),
                format!("--access-key={key}"),
                format!("--secret-access-key={secret}"),
            ])
            .collect(),
        environment: vec![("AWS_ACCESS_KEY_ID".into(), key), ("AWS_SECRET_ACCESS_KEY".into(), secret)],
    };
    story(dir.path(), &store, &peers);
}

fn story(dir: &Path, store: &Store, peers: &Peers) {
    let options = LabOptions { job_ms: 5, merge_ms: 5, ..LabOptions::real_time() };
    let lab = LabHost::create_with(dir.join("lab"), options).unwrap();
    lab.add_vm("Web \"1\" <&>", &[DiskSource::Empty { size_bytes: 96 << 20 }], VmOptions::default()).unwrap();
    let story = Story { dir, store, peers, lab };
    story.ours(&["repo", "create"]);
    story.kopia(
        &[&["repository", "connect"], &store.connect.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat(),
    );
    story.write(1, 20);
    let mut frozen = vec![story.back_up()];
    story.write(2, 3);
    frozen.push(story.back_up());
    story.check_all(&frozen);

    // Stock writes a snapshot of its own, and maintains: nothing of ours may go.
    let files = dir.join("files");
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join("a.txt"), b"stock's own").unwrap();
    story.kopia(&["snapshot", "create", files.to_str().unwrap()]);
    story.kopia(&["maintenance", "set", "--owner=me"]);
    story.kopia(&["maintenance", "run", "--full", "--safety=none"]);
    story.kopia(&["maintenance", "run", "--full", "--safety=none"]);
    story.check_all(&frozen);

    // And we go on beside it.
    story.write(3, 2);
    frozen.push(story.back_up());
    story.kopia(&["snapshot", "create", files.to_str().unwrap()]);
    story.check_all(&frozen);
    let listed = story.ours(&["snapshot", "list", "--json"]);
    let own = listed.matches(files.to_str().unwrap()).count();
    assert!(own >= 2, "our list shows stock's snapshots: {listed}");
}

impl Story<'_> {
    fn write(&self, seed: u64, mib: u32) {
        let vm = "Web \"1\" <&>";
        self.lab.guest_write_only(vm, GuestWrites { seed, mib, spread: Spread::Scattered }).unwrap();
    }

    /// Backs up; returns the guest's raw disk, as a file to compare with.
    fn back_up(&self) -> PathBuf {
        let disk = self.lab.open_guest_disk("Web \"1\" <&>", 0).unwrap();
        let mut bytes = vec![0; disk.geometry().size_bytes as usize];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        let number = std::fs::read_dir(self.dir).unwrap().count();
        let path = self.dir.join(format!("guest-{number}.raw"));
        std::fs::write(&path, bytes).unwrap();
        self.ours(&["backup", "--all"]);
        path
    }

    /// Every point: listed by stock with its tags, verified by stock byte by byte, restored by stock to a file that
    /// QEMU finds identical to the frozen disk, and restored by us to the same.
    fn check_all(&self, frozen: &[PathBuf]) {
        let json = self.kopia(&["snapshot", "list", "--all", "--json", "--max-results=100"]);
        let snapshots: serde_json::Value = serde_json::from_str(&json).unwrap();
        let mut points: Vec<&serde_json::Value> =
            snapshots.as_array().unwrap().iter().filter(|one| one["source"]["userName"] == "hyperv").collect();
        points.sort_by_key(|one| one["startTime"].as_str().unwrap().to_owned());
        assert_eq!(points.len(), frozen.len(), "stock lists every point: {json}");
        self.kopia(&["snapshot", "verify", "--verify-files-percent=100"]);
        for (nth, (point, raw)) in points.iter().zip(frozen).enumerate() {
            for tag in ["tag:point-id", "tag:vm-id", "tag:vm-name", "tag:run-id", "tag:consistency"] {
                assert!(point["tags"][tag].is_string(), "point {nth} has {tag}: {point}");
            }
            let target = self.dir.join("stock-restore");
            let _ = std::fs::remove_dir_all(&target);
            self.kopia(&["restore", point["id"].as_str().unwrap(), target.to_str().unwrap()]);
            let disk = std::fs::read_dir(target.join("disks")).unwrap().next().unwrap().unwrap().path();
            let compared = Command::new(&self.peers.qemu_img)
                .args(["compare", "-f", "vhdx", "-F", "raw", disk.to_str().unwrap(), raw.to_str().unwrap()])
                .output()
                .unwrap();
            assert!(compared.status.success(), "point {nth}: {}", String::from_utf8_lossy(&compared.stdout));

            let ours = self.dir.join("our-restore.vhdx");
            let id = point["tags"]["tag:point-id"].as_str().unwrap();
            self.ours(&["restore", "disk", id, "--to", ours.to_str().unwrap(), "--overwrite"]);
            let hash = |path: &Path| -> [u8; 32] { Sha256::digest(std::fs::read(path).unwrap()).into() };
            assert_eq!(hash(&disk), hash(&ours), "point {nth}: stock and we restore the same file");
            self.ours(&["verify", id, "--level", "full"]);
        }
    }

    fn ours(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_e3-backup-agent"))
            .args(arguments)
            .env("HOME", self.dir)
            .env("E3_REPOSITORY", &self.store.url)
            .env("E3_HOST", format!("lab:{}", self.lab.folder().display()))
            .env("E3_PASSWORD", PASSWORD)
            .envs(self.store.environment.iter().cloned())
            .output()
            .unwrap();
        succeeded("e3-backup-agent", arguments, &output)
    }

    fn kopia(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.peers.kopia)
            .arg(format!("--config-file={}", self.dir.join("kopia.config").display()))
            .args(arguments)
            .env("KOPIA_PASSWORD", PASSWORD)
            .env("KOPIA_CHECK_FOR_UPDATES", "false")
            .env("KOPIA_CACHE_DIRECTORY", self.dir.join("kopia-cache"))
            .env("KOPIA_LOG_DIR", self.dir.join("kopia-log"))
            .env("HOME", self.dir)
            .output()
            .unwrap();
        succeeded("kopia", arguments, &output)
    }
}

fn succeeded(program: &str, arguments: &[&str], output: &Output) -> String {
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}
