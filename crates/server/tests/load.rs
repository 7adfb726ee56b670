//! A thousand agents, ten thousand VMs, two hundred thousand points (console 6): what polls and lists take meanwhile.
//!
//! The server is `e3-server`, built as this test is: `cargo test --release -p server --test load -- --ignored --nocapture`
//! gives the figures that count.

mod support;

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use server::store::Value;
use support::database::Database;
use support::{As, TestServer, guid};

const AGENTS: usize = 1000;
const VMS_PER_AGENT: usize = 10;
const POINTS_PER_VM: usize = 20;
const POLL_EVERY: Duration = Duration::from_secs(15);
const LASTS: Duration = Duration::from_secs(75);

/// Rows of a table, a few hundred in a statement.
fn insert(server: &TestServer, table: &str, columns: &str, rows: Vec<Vec<Value>>) {
    let app = server.app().clone();
    let (table, columns) = (table.to_owned(), columns.to_owned());
    server.runtime.block_on(async move {
        let mut tx = app.db.write().await.expect("write");
        for rows in rows.chunks(400) {
            let marks = format!("({})", server::store::marks(rows[0].len()));
            let sql = format!("INSERT INTO {table} ({columns}) VALUES {}", vec![marks; rows.len()].join(", "));
            tx.change(&sql, &rows.concat()).await.unwrap_or_else(|error| panic!("{table}: {error:?}"));
        }
        tx.commit().await.expect("commit");
    });
}

/// Fills the database; the agents with their tokens.
fn furnish(server: &TestServer, owner: &As) -> Vec<As> {
    let now = server.clock.now();
    let ago = |hours: usize| -> Value {
        let hours = i64::try_from(hours).expect("small");
        now.checked_sub(jiff::SignedDuration::from_hours(hours)).expect("time").into()
    };
    let id = |at: usize| -> Value { i64::try_from(at).expect("small").into() };
    let destination = server.destination(owner, "one/", None);
    let model = server.agent(owner, "HV-model", None);
    server.discover(&model, &["model"]);
    let job = server.job(owner, &model, destination, None);
    let repository: Value = job["repository_id"].as_str().map(str::to_owned).into();
    let client: Value = server.count("SELECT id FROM s3_clients").into();
    let token = |at: usize| format!("agt_load_{at}");
    let (first_agent, first_job, first_vm, first_run, first_point) = (10_000, 10_000, 100_000, 100_000, 1_000_000);
    let agents = (0..AGENTS).map(|at| {
        vec![
            id(first_agent + at),
            format!("00000000-0000-4000-8000-{at:012}").into(),
            client.clone(),
            0_i64.into(),
            server::secret::hash(&token(at)).into(),
            ago(500),
            format!("HV{at:04}").into(),
            format!("device-{at}").into(),
            "0.1.0".into(),
            "hypervisor".into(),
            ago(0),
            ago(500),
            ago(500),
        ]
    });
    insert(
        server,
        "s3_cloudbackup_agents",
        "id, agent_uuid, client_id, tenant_key, token_hash, token_rotated_at, \
        hostname, device_id, agent_version, agent_type, last_seen_at, created_at, updated_at",
        agents.collect(),
    );
    let jobs = (0..AGENTS).map(|at| {
        vec![
            id(first_job + at),
            format!("00000000-0000-7000-8000-{at:012}").into(),
            client.clone(),
            id(first_agent + at),
            repository.clone(),
            format!("nightly {at}").into(),
            "hyperv".into(),
            "hyperv".into(),
            "x".into(),
            "".into(),
            destination.into(),
            "daily".into(),
            json!({"type": "daily", "time": "02:00"}).into(),
            "UTC".into(),
            json!({"backup_all_vms": true}).into(),
            now.checked_add(jiff::SignedDuration::from_hours(9)).expect("time").into(),
            ago(500),
            ago(500),
        ]
    });
    insert(
        server,
        "s3_cloudbackup_jobs",
        "id, job_uuid, client_id, agent_id, repository_id, name, engine, source_type, \
        source_display_name, source_path, dest_bucket_id, schedule_type, schedule_json, timezone, hyperv_config, \
        next_run_at, created_at, updated_at",
        jobs.collect(),
    );
    let vm = |at: usize| (at / VMS_PER_AGENT, format!("VM{at:05}"));
    let vms = AGENTS * VMS_PER_AGENT;
    let hosts = (0..vms).map(|at| {
        let (agent, name) = vm(at);
        vec![client.clone(), id(first_agent + agent), guid(&name).into(), name.into(), true.into(), ago(500), ago(0)]
    });
    insert(
        server,
        "s3_host_vms",
        "client_id, agent_id, vm_guid, vm_name, backupable, created_at, last_seen_at",
        hosts.collect(),
    );
    let rows = (0..vms).map(|at| {
        let (agent, name) = vm(at);
        vec![
            id(first_vm + at),
            id(first_job + agent),
            name.clone().into(),
            guid(&name).into(),
            ago(500),
            ago(0),
            id(first_agent + agent),
            client.clone(),
        ]
    });
    insert(
        server,
        "s3_hyperv_vms",
        "id, job_id, vm_name, vm_guid, created_at, updated_at, agent_id, client_id",
        rows.collect(),
    );
    // Each agent ran once a day.
    let runs = (0..AGENTS * POINTS_PER_VM).map(|at| {
        let (agent, day) = (at / POINTS_PER_VM, at % POINTS_PER_VM);
        vec![
            id(first_run + at),
            format!("00000000-0000-7000-9000-{at:012}").into(),
            id(first_job + agent),
            client.clone(),
            id(first_agent + agent),
            repository.clone(),
            "hyperv".into(),
            "backup".into(),
            "schedule".into(),
            "success".into(),
            ago(day * 24 + 3),
            ago(day * 24 + 2),
            1_000_000_i64.into(),
            ago(day * 24 + 2),
        ]
    });
    insert(
        server,
        "s3_cloudbackup_runs",
        "id, run_uuid, job_id, client_id, agent_id, repository_id, engine, run_type, \
        trigger_type, status, created_at, finished_at, bytes_transferred, updated_at",
        runs.collect(),
    );
    for day in 0..POINTS_PER_VM {
        let points = (0..vms).map(|at| {
            let (agent, name) = vm(at);
            vec![
                id(first_point + day * vms + at),
                id(first_vm + at),
                id(first_run + agent * POINTS_PER_VM + day),
                if day + 1 == POINTS_PER_VM { "Full" } else { "Incremental" }.into(),
                format!("m-{at}-{day}").into(),
                ago(day * 24 + 2),
                client.clone(),
                repository.clone(),
                guid(&name).into(),
                name.into(),
                id(first_agent + agent),
                ago(day * 24 + 3),
            ]
        });
        insert(
            server,
            "s3_hyperv_backup_points",
            "id, vm_id, run_id, backup_type, manifest_id, created_at, client_id, \
            repository_id, vm_guid, vm_name, agent_id, snapshot_time",
            points.collect(),
        );
        let disks =
            (0..vms).map(|at| vec![id(first_point + day * vms + at), "disk".into(), "C:\\vms\\disk.vhdx".into()]);
        insert(server, "s3_hyperv_backup_point_disks", "backup_point_id, virtual_disk_id, disk_path", disks.collect());
    }
    (0..AGENTS)
        .map(|at| As::Agent { id: i64::try_from(first_agent + at).expect("small"), token: token(at), boot: "b".into() })
        .collect()
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[(times.len() * 99 / 100).min(times.len() - 1)]
}

/// The server as it is installed, in a process of its own, on a database that was furnished before.
struct Serving {
    process: Child,
    http: ureq::Agent,
    base: String,
}

impl Serving {
    fn start(folder: &Path, database: &Database, http: ureq::Agent) -> Serving {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let listen = free.local_addr().expect("its address").to_string();
        drop(free);
        let mut command = Command::new(env!("CARGO_BIN_EXE_e3-server"));
        // A thousand addresses, not one, as a proxy would say of them.
        command.args(["serve", "--listen", &listen, "--trusted-proxy", "127.0.0.1", "--data"]).arg(folder);
        if let Some(address) = database.address() {
            command.env("E3_SERVER_DATABASE", address);
        }
        let log = File::create(folder.join("log")).expect("a log");
        let began = Instant::now();
        let process = command.env("E3_LOG", "warn").stdout(Stdio::null()).stderr(log).spawn().expect("the server");
        let serving = Serving { process, http, base: format!("https://{listen}/") };
        while TcpStream::connect(&listen).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "the server does not come up");
            thread::sleep(Duration::from_millis(10));
        }
        println!("{database:?}: serves {:?} after its start (budget 1 s)", began.elapsed());
        serving
    }

    fn get(&self, path: &str, from: usize, headers: &[(&str, &str)]) {
        let mut request = self.http.get(format!("{}{path}", self.base));
        request = request.header("x-forwarded-for", format!("10.0.{}.{}", from / 250, from % 250 + 1));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.call().unwrap_or_else(|error| panic!("{path}: {error}"));
        let body = response.body_mut().read_to_string().unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(response.status() == 200 && body.contains("\"success\":true"), "{path}: {} {body}", response.status());
    }

    /// MiB that it has now, and had at most.
    fn memory(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let mib = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 10
        };
        (mib("VmRSS:"), mib("VmHWM:"))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn loaded(database: &Database) {
    let server = TestServer::start(database);
    let session = server.set_up();
    let As::Token(owner) = server.token(&session) else { panic!("a token") };
    let started = Instant::now();
    let agents = furnish(&server, &As::Token(owner.clone()));
    let furnished = started.elapsed();
    let started = Instant::now();
    server.tick();
    println!("{database:?}: furnished in {furnished:?}; all states and alerts in {:?}", started.elapsed());
    assert_eq!(server.count("SELECT COUNT(*) FROM vm_status") / 10_000, 1, "every VM has a state");
    let started = Instant::now();
    server.tick();
    println!("{database:?}: the same with nothing to change in {:?}", started.elapsed());
    let (folder, http) = server.make_way();
    let server = Serving::start(folder.path(), database, http);
    println!("{database:?}: {} MiB at first", server.memory().0);
    let bearer = format!("Bearer {owner}");
    let ends = Instant::now() + LASTS;
    let (polls, pages) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let is_over = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        // Every agent in its turn, each turn 15 seconds long; a worker is late only when the server is.
        for _ in 0..24 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let turn = POLL_EVERY * u32::try_from(at / AGENTS).expect("small");
                    let due = ends - LASTS + turn + POLL_EVERY * u32::try_from(at % AGENTS).expect("small") / 1000;
                    if due >= ends {
                        return;
                    }
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let As::Agent { id, token, .. } = &agents[at % AGENTS] else { panic!("an agent") };
                    let headers = [("x-agent-id", id.to_string()), ("x-agent-token", token.clone())];
                    let began = Instant::now();
                    server.get(
                        "api/agent_poll.php?long_poll=0",
                        at % AGENTS,
                        &headers.each_ref().map(|(k, v)| (*k, v.as_str())),
                    );
                    polls.lock().expect("lock").push(began.elapsed());
                }
            });
        }
        for reader in 0..4 {
            let (server, bearer, pages, is_over) = (&server, &bearer, &pages, &is_over);
            scope.spawn(move || {
                let lists = [
                    "cloudbackup_vms.php",
                    "e3backup_agent_list.php",
                    "e3backup_run_list.php",
                    "e3backup_restore_points_list.php",
                    "cloudbackup_list_jobs.php",
                    "cloudbackup_alerts.php",
                    "cloudbackup_dashboard.php",
                ];
                for turn in reader.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = lists[turn % lists.len()];
                    let window = match name {
                        "cloudbackup_dashboard.php" => String::new(),
                        "e3backup_run_list.php" => format!("?page={}", turn % 100 + 1),
                        _ => format!("?offset={}", turn % 900),
                    };
                    let began = Instant::now();
                    server.get(&format!("api/{name}{window}"), 2000 + reader, &[("authorization", bearer)]);
                    pages.lock().expect("lock").push((name, began.elapsed()));
                    thread::sleep(Duration::from_millis(250));
                }
            });
        }
        thread::sleep(ends.saturating_duration_since(Instant::now()));
        is_over.store(true, Ordering::Relaxed);
    });
    let (polls, pages) = (polls.into_inner().expect("lock"), pages.into_inner().expect("lock"));
    let (memory, most) = server.memory();
    println!("{database:?}: {} polls, p99 {:?} (budget 100 ms)", polls.len(), p99(polls.clone()));
    let all = pages.iter().map(|(_, took)| *took).collect::<Vec<_>>();
    println!("{database:?}: {} list pages, p99 {:?} (budget 300 ms)", all.len(), p99(all));
    let mut names: Vec<&str> = pages.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let times: Vec<Duration> = pages.iter().filter(|(other, _)| *other == name).map(|(_, took)| *took).collect();
        println!("  {name}: {} times, p99 {:?}", times.len(), p99(times));
    }
    println!("{database:?}: the server has {memory} MiB, {most} MiB at most");
    assert!(polls.len() > AGENTS * 3, "only {} polls were made in {LASTS:?}", polls.len());
}

#[test]
#[ignore = "long: 1,000 agents poll for more than a minute"]
fn a_thousand_agents_poll_beside_readers_of_two_hundred_thousand_points() {
    for database in Database::each() {
        loaded(&database);
    }
}
