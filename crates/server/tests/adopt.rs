//! The database is lost, the repository is not: every point of it is read into an empty one, by the server's own command.

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use backup::hold::{Hold, hold_points};
use backup::{BackupContext, BackupOptions, Cancel, HostState, Point, Silent, back_up_vm, list_points, new_run_id};
use hyperv::Host;
use hyperv_sim::{DiskSource, GuestWrites, LabHost, LabOptions, Spread, VmOptions};
use kopia_repo::{ClientOptions, CreateOptions, Repository, SessionOptions, Storage, StorageKind, WriteSession};
use serde_json::{Value, json};
use support::database::Database;
use support::{TestServer, settings};

const PASSWORD: &str = "canary of the repository";

/// A lab host whose VMs are backed up into a folder, as from the command line.
struct Site {
    dir: tempfile::TempDir,
    lab: Arc<LabHost>,
    repo: Arc<Repository>,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().expect("folder");
        let options = LabOptions { job_ms: 1, merge_ms: 1, merge_retry_ms: 5, ..LabOptions::real_time() };
        let lab = LabHost::create_with(dir.path().join("host"), options).expect("host");
        for name in ["DC01", "SQL01"] {
            lab.add_vm(name, &[DiskSource::Empty { size_bytes: 64 << 20 }], VmOptions::default()).expect("VM");
        }
        let store = bucket::Folder::create(dir.path().join("repo")).expect("store");
        let storage = Storage { bucket: Arc::new(store), kind: StorageKind::Folder };
        let client = ClientOptions::new("tester", "testhost");
        let repo = Repository::create(&storage, PASSWORD, &CreateOptions::new("e3"), client).expect("repository");
        Site { dir, lab, repo }
    }

    /// One run over these VMs.
    fn back_up(&self, vms: &[&str]) {
        let host = Host::new(self.lab.seam());
        let state = HostState::open(&self.dir.path().join("state")).expect("state");
        let (options, run) = (BackupOptions::new("test"), new_run_id());
        for name in vms {
            let writes = GuestWrites { seed: 7, mib: 1, spread: Spread::Scattered };
            self.lab.guest_write_only(name, writes).expect("guest writes");
            let vm = host.find_vm(name).expect("VM");
            let context = BackupContext {
                host: &host,
                host_name: "HV01",
                repo: &self.repo,
                state: &state,
                options: &options,
                observer: &Silent,
                cancel: &Cancel::default(),
            };
            back_up_vm(&context, &vm, &run).unwrap_or_else(|error| panic!("back up {name}: {error}"));
        }
    }

    fn points(&self) -> Vec<Point> {
        list_points(&self.repo, None).expect("points")
    }

    /// `e3-server repo adopt`.
    fn adopt(&self, data: &Path, database: &Database, password: &str, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_e3-server"));
        command.args(["repo", "adopt"]).arg(self.dir.path().join("repo")).arg("--data").arg(data).args(more);
        if let Some(address) = database.address() {
            command.args(["--database", &address]);
        }
        command.env("E3_PASSWORD", password).output().expect("the server's program")
    }
}

#[track_caller]
fn adopted(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn list(server: &TestServer, owner: &support::As) -> Vec<Value> {
    let listed = server.get(owner, "e3backup_restore_points_list.php", &json!({})).ok();
    listed["restore_points"].as_array().expect("points").clone()
}

#[test]
fn a_lost_catalogue_comes_back_out_of_the_repository() {
    let site = Site::new();
    site.back_up(&["DC01", "SQL01"]);
    site.back_up(&["DC01"]);
    let held = site.points()[0].id.clone();
    let hold = Hold::new("court order", None).expect("hold");
    hold_points(&site.repo, std::slice::from_ref(&held), &hold).expect("held");
    for database in Database::each() {
        let folder = tempfile::tempdir().expect("folder");
        let data = folder.path().to_owned();
        let wrong = site.adopt(&data, &database, "not the password", &[]);
        assert!(!wrong.status.success());
        let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(told.starts_with("error: adopt the repository"), "{told}");
        let text = adopted(&site.adopt(&data, &database, PASSWORD, &["--name", "the old one"]));
        assert!(text.contains("3 points of 2 VMs"), "{text}");

        let server = TestServer::serve(folder, settings(&data, &database));
        // Who makes the first account is the owner of what was adopted.
        let owner = server.token(&server.set_up());
        let listed = list(&server, &owner);
        assert_eq!(listed.len(), 3, "{database:?}: {listed:?}");
        for point in site.points() {
            let description = point.describe(&site.repo).expect("point.json");
            let row = listed.iter().find(|row| row["manifest_id"] == point.snapshot.id.as_str());
            let row = row.unwrap_or_else(|| panic!("{database:?}: no row for {}", point.snapshot.id));
            let is_incremental =
                description.disks.iter().any(|disk| matches!(disk.read, backup::ReadMode::Incremental { .. }));
            let expected = if is_incremental { "Incremental" } else { "Full" };
            assert_eq!(row["backup_type"], expected, "{database:?}");
            assert_eq!(row["vm_name"], description.vm_name.as_str());
            assert_eq!(row["is_restorable"], true, "{row}");
            assert_eq!(row["hold"], point.id == held, "{row}");
            let size: u64 = description.disks.iter().map(|disk| disk.size_bytes).sum();
            assert_eq!(row["total_size_bytes"], size, "{row}");
            let at: jiff::Timestamp = row["snapshot_time"].as_str().expect("time").parse().expect("time");
            assert_eq!(at.as_millisecond(), description.frozen.as_millisecond(), "{row}");
        }
        let incremental = listed.iter().find(|row| row["backup_type"] == "Incremental").expect("an incremental");
        let parent = listed.iter().find(|row| row["id"] == incremental["parent_backup_id"]).expect("its parent");
        assert_eq!((&parent["vm_name"], &parent["backup_type"]), (&json!("DC01"), &json!("Full")));
        let jobs = server.get(&owner, "cloudbackup_list_jobs.php", &json!({})).ok();
        assert_eq!(jobs["total"], 1, "{jobs}");
        let job = &jobs["jobs"][0];
        assert_eq!((&job["status"], &job["pause_reason"]), (&json!("paused"), &json!("adopted")), "{job}");
        let runs = server.get(&owner, "cloudbackup_hyperv_snapshots.php", &json!({"job_id": job["job_id"]})).ok();
        let sizes: Vec<usize> = runs["snapshots"]
            .as_array()
            .expect("runs")
            .iter()
            .map(|run| run["vms"].as_array().map_or(0, Vec::len))
            .collect();
        assert_eq!(sizes, [1, 2], "newest first: {runs}");

        // It goes on like any other job: an agent is enrolled, and gets the repository with its password.
        let agent = server.agent(&owner, "HV01", None);
        server.discover(&agent, &["DC01"]);
        let go_on =
            json!({"job_id": job["job_id"], "version": job["version"], "agent_id": agent.id(), "status": "active"});
        server.post(&owner, "cloudbackup_update_job.php", &go_on).ok();
        server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        let run = server.claim(&agent);
        assert_eq!((&run["repository_password"], &run["dest_type"]), (&json!(PASSWORD), &json!("local")), "{run}");

        // Again: nothing new. Without one of its points: its row goes. While an agent works on it: later.
        let text = adopted(&site.adopt(&data, &database, PASSWORD, &[]));
        assert!(text.contains("new          0"), "{text}");
        assert_eq!(list(&server, &owner).len(), 3);
        let until = if database.address().is_some() { "2999-01-01 00:00:00" } else { "2999-01-01T00:00:00.000Z" };
        assert_eq!(server.change(&format!("UPDATE s3_kopia_repo_locks SET expires_at = '{until}'")), 1);
        let busy = site.adopt(&data, &database, PASSWORD, &[]);
        let told = String::from_utf8_lossy(&busy.stderr).into_owned();
        assert!(!busy.status.success() && told.contains("an agent works on this repository"), "{told}");
        assert_eq!(server.get(&owner, "cloudbackup_audit.php", &json!({})).ok()["chain_intact"], true);
        server.stop();
    }

    // A point that went while nobody looked is not offered any more.
    let folder = tempfile::tempdir().expect("folder");
    adopted(&site.adopt(folder.path(), &Database::Sqlite, PASSWORD, &[]));
    let session = WriteSession::new(site.repo.clone(), SessionOptions { parallel_uploads: 1 }).expect("session");
    let gone = site.points().into_iter().find(|point| point.vm_name == "SQL01").expect("a point");
    session.delete_manifest(&gone.snapshot.id, gone.snapshot.modified);
    session.flush().expect("deleted");
    let text = adopted(&site.adopt(folder.path(), &Database::Sqlite, PASSWORD, &[]));
    assert!(text.contains("2 points of 1 VMs") && text.contains("1 rows whose point is gone"), "{text}");
}
