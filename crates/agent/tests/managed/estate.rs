//! Two simulated hosts with an agent process each, a server process, and a place for a repository.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bucket::test_support::SeaweedFs;
use hyperv_sim::{LabHost, LabOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::server_process::Server;
use crate::support::{Desk, PASSWORD, finish, hex, sha256_of};

/// The hosts, by their folders.
pub const HOSTS: [&str; 2] = ["hv01", "hv02"];

/// How the command line opens the repository that the agents write.
pub struct Repository {
    /// Its URL.
    pub url: String,
    /// Access key and secret, if it needs them.
    pub keys: Option<(String, String)>,
    /// Its password.
    pub password: &'static str,
}

impl Repository {
    /// That of [`Estate::folder_destination`].
    pub fn folder() -> Self {
        Self { url: "repo".to_owned(), keys: None, password: PASSWORD }
    }

    fn open<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("E3_REPOSITORY", &self.url).env("E3_PASSWORD", self.password);
        if let Some((key, secret)) = &self.keys {
            command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", secret);
        }
        command
    }
}

/// Everything of one test.
pub struct Estate {
    pub desk: Desk,
    pub server: Server,
    agents: Vec<Option<Child>>,
    /// What is started as an agent, if not the program that was built.
    pub program: Option<PathBuf>,
    /// Ids of the agents, by host.
    pub agent_ids: Vec<i64>,
}

impl Estate {
    /// Hosts that are enrolled; their agents do not run yet.
    pub fn enrolled(database: Option<String>) -> Self {
        Self::enrolled_on(database, &LabOptions::real_time())
    }

    /// The same with merges that take so long that somebody can see them.
    pub fn with_slow_merges() -> Self {
        Self::enrolled_on(None, &LabOptions { merge_ms: 4000, ..LabOptions::real_time() })
    }

    fn enrolled_on(database: Option<String>, options: &LabOptions) -> Self {
        let desk = Desk::empty();
        let server = Server::start(&desk.path("server"), database);
        let mut estate = Self { desk, server, agents: Vec::new(), program: None, agent_ids: Vec::new() };
        for host in HOSTS {
            let options = LabOptions { host_name: host.to_uppercase(), ..options.clone() };
            LabHost::create_with(estate.desk.path(host), options).expect("a host");
            let id = estate.enroll(host, &[]);
            estate.agent_ids.push(id);
            estate.agents.push(None);
        }
        estate
    }

    /// Enrols a host; its agent's id.
    pub fn enroll(&self, host: &str, more: &[&str]) -> i64 {
        let selector = format!("lab:{host}");
        let (origin, fingerprint) = (self.server.origin(), self.server.fingerprint.clone());
        let mut command = self.desk.command(["enroll", &origin, "--fingerprint", &fingerprint, "--host", &selector]);
        command.args(more).arg("--json").env("E3_ENROLL_TOKEN", self.server.enrolment_token());
        let run = finish(&mut command);
        assert_eq!(run.exit, Some(0), "{run:?}");
        run.json()["agent_id"].as_i64().expect("id")
    }

    /// The command that runs a host's agent. It is given no repository and no password: these come from the server.
    pub fn agent_command(&self, host: usize) -> Command {
        let selector = format!("lab:{}", HOSTS[host]);
        let mut command = self.desk.command(["run", "--host", &selector]);
        command.env_remove("E3_REPOSITORY").env_remove("E3_PASSWORD").env("E3_LOG", "info");
        let Some(program) = &self.program else { return command };
        let mut other = Command::new(program);
        other.args(command.get_args()).current_dir(command.get_current_dir().expect("a folder")).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => other.env(name, value),
                None => other.env_remove(name),
            };
        }
        other
    }

    /// Starts the agent of a host.
    pub fn start_agent(&mut self, host: usize, environment: &[(&str, String)]) {
        let mut command = self.agent_command(host);
        command.envs(environment.iter().map(|(key, value)| (key, value)));
        let log = std::fs::File::options().create(true).append(true).open(self.log(host)).expect("log");
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("start the agent");
        assert!(self.agents[host].replace(child).is_none(), "it runs already");
    }

    /// What the agent of a host wrote.
    pub fn log_of(&self, host: usize) -> String {
        std::fs::read_to_string(self.log(host)).unwrap_or_default()
    }

    fn log(&self, host: usize) -> PathBuf {
        self.desk.path(&format!("{}.log", HOSTS[host]))
    }

    /// Kills the agent of a host: -9.
    pub fn kill_agent(&mut self, host: usize) {
        let mut child = self.agents[host].take().expect("it runs");
        child.kill().expect("kill");
        child.wait().expect("its end");
    }

    /// Waits until the agent of a host has ended by itself.
    pub fn agent_ended(&mut self, host: usize) -> std::process::ExitStatus {
        let mut child = self.agents[host].take().expect("it runs");
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("look") {
                return status;
            }
            if begun.elapsed() > Duration::from_secs(60) {
                let _ = child.kill();
                panic!("the agent of {} does not end", HOSTS[host]);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Every process of this estate.
    pub fn processes(&self) -> Vec<u32> {
        let agents = self.agents.iter().flatten().map(Child::id);
        agents.chain([self.server.process_id()]).collect()
    }

    /// Asks the agent of a host to end, as a service manager does.
    pub fn stop_agent(&mut self, host: usize) -> std::process::ExitStatus {
        let id = self.agents[host].as_ref().expect("it runs").id();
        kill_process(Pid::from_raw(id.cast_signed()).expect("a process"), Signal::TERM).expect("signal");
        self.agent_ended(host)
    }

    /// The host, as its administrator and its guests see it.
    pub fn lab(&self, host: usize) -> Arc<LabHost> {
        LabHost::open(self.desk.path(HOSTS[host])).expect("the host")
    }

    /// A VM with one disk of random bytes.
    pub fn add_vm(&self, host: usize, name: &str, mib: usize, seed: u64) {
        let file = self.desk.raw_file(&format!("{name}-{seed}.raw"), mib, seed);
        self.desk.ok(["lab", "add-vm", HOSTS[host], name, "--disk", &file.display().to_string()]);
    }

    /// Lets the guest write.
    pub fn guest_writes(&self, host: usize, name: &str, seed: u64) {
        let seed = seed.to_string();
        self.desk.ok(["lab", "write", HOSTS[host], name, "--seed", &seed, "--mib", "1"]);
    }

    /// SHA-256 of the VM's first disk, as its guest sees it now.
    pub fn guest_hash(&self, host: usize, name: &str) -> String {
        hex(&self.lab(host).disk_sha256(name, 0).expect("its disk"))
    }

    /// Waits until the server knows these VMs.
    pub fn wait_for_vms(&self, names: &[&str]) {
        self.server.wait_for("the VMs", "cloudbackup_vms.php", &[], |answer| {
            let vms = answer["vms"].as_array().or(answer["rows"].as_array())?;
            let has = |name: &&str| vms.iter().any(|vm| vm["vm_name"] == **name);
            names.iter().all(has).then_some(())
        });
    }

    /// A folder as destination, with the password that this test knows; its id.
    pub fn folder_destination(&self) -> i64 {
        let asked = json!({
            "name": "folder", "dest_type": "local", "dest_local_path": self.desk.path("repo"),
            "repository_password": PASSWORD,
        });
        self.destination(&asked)
    }

    /// A bucket of a real S3 service as destination; its id, and how the command line names it.
    pub fn s3_destination(&self, service: &SeaweedFs) -> (i64, String) {
        service.create_bucket("backups", false).expect("a bucket");
        let keys = service.credentials();
        let asked = json!({
            "name": "bucket", "endpoint": service.endpoint(), "bucket": "backups", "prefix": "one/",
            "access_key": keys.access_key_id, "secret_key": keys.secret_access_key, "allow_http": true,
            "repository_password": PASSWORD,
        });
        (self.destination(&asked), format!("s3://backups/one/?endpoint={}", service.endpoint()))
    }

    /// A destination; its id.
    pub fn destination(&self, asked: &Value) -> i64 {
        let made = self.server.post("cloudbackup_destination_create.php", asked);
        made["destination"]["id"].as_i64().expect("id")
    }

    /// A job of every VM of one host; its id.
    pub fn job(&self, host: usize, destination: i64, more: &Value) -> i64 {
        let mut asked = json!({
            "name": format!("all of {}", HOSTS[host]), "agent_id": self.agent_ids[host], "dest_bucket_id": destination,
            "hyperv_config": {"backup_all_vms": true}, "timezone": "UTC", "schedule_json": {"type": "manual"},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            asked[key] = value.clone();
        }
        let made = self.server.post("cloudbackup_create_job.php", &asked);
        made["job"]["job_id"].as_i64().unwrap_or_else(|| panic!("{made}"))
    }

    /// Starts a job by hand; its runs.
    pub fn start_run(&self, job: i64) -> Vec<Value> {
        let started = self.server.post("cloudbackup_start_run.php", &json!({"job_id": job}));
        started["run_ids"].as_array().expect("runs").clone()
    }

    /// Waits until the one VM of a run is in a phase, or the run is over; whether it was seen.
    pub fn wait_for_phase(&self, run: &Value, phase: &str) -> bool {
        self.server.wait_for(phase, "cloudbackup_progress.php", &[("run_id", &run.to_string())], |answer| {
            if !["queued", "starting", "running"].contains(&answer["run_status"].as_str()?) {
                return Some(false);
            }
            let vms = answer["progress_json"]["vms"].as_array()?;
            vms.iter().any(|vm| vm["phase"] == phase || vm["state"] == phase).then_some(true)
        })
    }

    /// SHA-256 of the disk of a point, restored by the command line, without the server.
    pub fn restored_hash(&self, repository: &Repository, point: &str) -> String {
        let name = format!("restored-{}.raw", point.replace('@', "-"));
        let arguments = ["restore", "disk", point, "--disk", "0", "--to", &name, "--format", "raw", "--overwrite"];
        let run = finish(repository.open(&mut self.desk.command(arguments)));
        assert_eq!(run.exit, Some(0), "{run:?}");
        sha256_of(&self.desk.path(&name))
    }

    /// Points in the repository, as the command line sees it.
    pub fn stored_points(&self, repository: &Repository) -> usize {
        self.stored_snapshots(repository).len()
    }

    /// The ids of the points' manifests in the repository.
    pub fn stored_snapshots(&self, repository: &Repository) -> Vec<Value> {
        let run = finish(repository.open(&mut self.desk.command(["points", "list", "--json"])));
        assert_eq!(run.exit, Some(0), "{run:?}");
        run.json()["points"].as_array().expect("points").iter().map(|point| point["snapshot_id"].clone()).collect()
    }

    /// All runs of a job.
    pub fn runs(&self, job: i64) -> Vec<Value> {
        let runs = self.server.get("cloudbackup_list_runs.php", &[("job_id", &job.to_string()), ("limit", "100")]);
        runs["runs"].as_array().unwrap_or_else(|| panic!("{runs}")).clone()
    }

    /// Nothing of ours is left on a host but the reference points that it should have.
    pub fn expect_clean_host(&self, host: usize, vm: &str, reference_points: usize) {
        let lab = self.lab(host);
        let begun = Instant::now();
        while !lab.is_at_rest(vm).expect("look") {
            assert!(begun.elapsed() < Duration::from_secs(30), "jobs or merges of {vm} do not end");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(lab.checkpoints(vm).expect("look"), (Vec::new(), Vec::new()), "checkpoints of {vm}");
        assert_eq!(lab.reference_points(vm).expect("look").len(), reference_points, "reference points of {vm}");
        assert_eq!(lab.stray_files().expect("look"), Vec::<String>::new());
    }
}

impl Drop for Estate {
    fn drop(&mut self) {
        for child in self.agents.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for host in HOSTS {
                let log = std::fs::read_to_string(self.desk.path(&format!("{host}.log"))).unwrap_or_default();
                eprintln!("--- log of {host}\n{log}");
            }
        }
    }
}
