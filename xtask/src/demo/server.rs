//! `cargo xtask demo --server`: a server, two agents on simulated hosts, real backups in them, and calls to try.
//!
//! The programs are started as an administrator starts them, and everything is done through the API that a script would
//! use. Ctrl-C ends all of them.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::process::{output_of, typed};
use crate::report::{heading, seconds};
use crate::workspace::Workspace;

const EMAIL: &str = "demo@example.com";
const PASSWORD: &str = "a password for the demo only";
/// The hosts, and their VMs.
const HOSTS: [(&str, &[&str]); 2] = [("hv01", &["files01", "web01"]), ("hv02", &["sql01"])];
/// How long a run of the demo may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the programs have to end before they are killed.
const GRACE: Duration = Duration::from_secs(20);

/// Plays it, and waits for Ctrl-C.
pub fn run(workspace: &Workspace, folder: &Path, then_exit: bool) -> Result<ExitCode> {
    heading("building server and agent (release)");
    let mut build = workspace.release_build_with_server();
    if !build.status().context("start cargo")?.success() {
        bail!("{} failed", typed(&build));
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).context("watch for Ctrl-C")?;
    }
    let mut estate = Estate::new(workspace, folder);
    let shown = estate.play(&stop);
    if shown.is_ok() && !then_exit {
        println!("\nEverything runs. Ctrl-C ends it.");
        while !stop.load(Ordering::Relaxed) {
            estate.expect_all_alive()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    heading("ending");
    estate.end()?;
    println!("Nothing runs any more. What was made lies in {}.", folder.display());
    match shown {
        Err(_) if stop.load(Ordering::Relaxed) => Ok(ExitCode::SUCCESS),
        shown => shown.map(|()| ExitCode::SUCCESS),
    }
}

/// What was started.
struct Estate {
    programs: PathBuf,
    folder: PathBuf,
    running: Vec<(String, Child)>,
    api: Option<Api>,
}

/// The server, as its owner speaks to it.
struct Api {
    http: ureq::Agent,
    base: String,
    fingerprint: String,
    token: String,
}

impl Estate {
    fn new(workspace: &Workspace, folder: &Path) -> Self {
        let programs = workspace.target.join("release");
        Self { programs, folder: folder.to_owned(), running: Vec::new(), api: None }
    }

    fn play(&mut self, stop: &AtomicBool) -> Result<()> {
        let begun = Instant::now();
        heading("a server with an account");
        let link = self.start_server()?;
        self.set_up(&link)?;

        heading("two simulated hosts, enrolled");
        for (host, vms) in HOSTS {
            self.agent(&["lab", "create", &self.lab(host)])?;
            for vm in vms {
                self.agent(&["lab", "add-vm", &self.lab(host), vm, "--size", "2GiB"])?;
                self.agent(&["lab", "write", &self.lab(host), vm, "--mib", "40", "--quiet"])?;
            }
            self.enroll(host)?;
        }

        heading("a job of both hosts, every night, and two runs of it now");
        let job = self.make_job(stop)?;
        self.run_job(job, stop)?;
        for (host, vms) in HOSTS {
            for vm in vms {
                self.agent(&["lab", "write", &self.lab(host), vm, "--mib", "4", "--quiet"])?;
            }
        }
        self.run_job(job, stop)?;
        self.show_points()?;
        println!("\nReady {} after the build.", seconds(begun.elapsed()));
        self.show_calls(job)
    }

    /// Starts it; the link that makes the first account.
    fn start_server(&mut self) -> Result<String> {
        let data = self.folder.join("server");
        let log = File::create(self.folder.join("server.log")).context("make a log")?;
        let mut command = Command::new(self.programs.join("e3-server"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&data);
        println!("$ {}", typed(&command));
        let mut child =
            command.stdout(Stdio::piped()).stderr(log).stdin(Stdio::null()).spawn().context("start the server")?;
        let output = child.stdout.take().context("its output")?;
        self.running.push(("the server".to_owned(), child));
        let (mut address, mut fingerprint, mut link) = (None, None, None);
        let mut lines = BufReader::new(output).lines();
        for line in lines.by_ref() {
            let line = line.context("read what the server prints")?;
            println!("  {line}");
            let word = |name: &str| {
                line.trim().strip_prefix(name).and_then(|rest| rest.split_whitespace().next().map(str::to_owned))
            };
            address = address.or(word("address"));
            fingerprint = fingerprint.or(word("fingerprint"));
            link = link.or(word("set-up link"));
            if line.starts_with("Stop with") {
                break;
            }
        }
        // What it prints later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let pem = fs::read(data.join("server.crt")).context("read the server's certificate")?;
        let certificate = Certificate::from_pem(&pem).context("read the server's certificate")?;
        let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[certificate])).build();
        let config = ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false);
        let base = address.context("the server printed no address")?;
        let fingerprint = fingerprint.context("the server printed no fingerprint")?;
        self.api = Some(Api { http: config.build().into(), base, fingerprint, token: String::new() });
        link.context("the server printed no set-up link")
    }

    fn set_up(&mut self, link: &str) -> Result<()> {
        let api = self.api.as_mut().context("a server")?;
        let setup = link.rsplit('/').next().unwrap_or_default();
        let asked = json!({ "token": setup, "email": EMAIL, "password": PASSWORD, "name": "Demo" });
        let (answer, cookie) = api.send("POST", "console_setup.php", &asked, &[])?;
        let csrf = answer["csrf_token"].as_str().unwrap_or_default().to_owned();
        let headers = [("cookie", cookie.unwrap_or_default()), ("x-csrf-token", csrf), ("origin", api.base.clone())];
        let (answer, _) =
            api.send("POST", "e3backup_api_token_create.php", &json!({"description": "demo"}), &headers)?;
        api.token = answer["token"].as_str().context("no API token")?.to_owned();
        Ok(())
    }

    fn enroll(&mut self, host: &str) -> Result<()> {
        let api = self.api.as_ref().context("a server")?;
        let token = api.post("e3backup_token_create.php", &json!({}))?["token"].as_str().unwrap_or_default().to_owned();
        let selector = format!("lab:{}", self.lab(host));
        let mut command = self.command(&["enroll", &api.base, "--fingerprint", &api.fingerprint, "--host", &selector]);
        println!("$ E3_ENROLL_TOKEN=… {}", typed(&command));
        print!("{}", indented(&output_of(command.env("E3_ENROLL_TOKEN", token))?));
        let log = File::create(self.folder.join(format!("{host}.log"))).context("make a log")?;
        let mut run = self.command(&["run", "--host", &selector]);
        println!("$ {} &", typed(&run));
        let child = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("start an agent")?;
        self.running.push((format!("the agent of {host}"), child));
        Ok(())
    }

    fn make_job(&self, stop: &AtomicBool) -> Result<i64> {
        let api = self.api.as_ref().context("a server")?;
        let count: usize = HOSTS.iter().map(|(_, vms)| vms.len()).sum();
        self.wait("the agents to report their machines", stop, || {
            let vms = api.get("cloudbackup_vms.php")?;
            Ok((vms["total"].as_u64() == Some(count as u64)).then_some(()))
        })?;
        let agents = api.get("e3backup_agent_list.php")?;
        let ids: Vec<&Value> =
            agents["agents"].as_array().into_iter().flatten().map(|agent| &agent["agent_id"]).collect();
        let group = json!({ "name": "both hosts", "kind": "group", "agent_ids": ids });
        let group = api.post("e3backup_host_group_create.php", &group)?["host_group"]["id"].clone();
        let destination =
            json!({ "name": "repository", "dest_type": "local", "dest_local_path": self.folder.join("repo") });
        let destination = api.post("cloudbackup_destination_create.php", &destination)?["destination"]["id"].clone();
        let job = api.post(
            "cloudbackup_create_job.php",
            &json!({
                "name": "nightly", "host_group_id": group, "dest_bucket_id": destination, "timezone": "UTC",
                "hyperv_config": { "backup_all_vms": true }, "schedule_json": { "type": "daily", "time": "02:00" },
            }),
        )?;
        job["job"]["job_id"].as_i64().context("no job")
    }

    /// Runs the job on every host, and waits for the end.
    fn run_job(&self, job: i64, stop: &AtomicBool) -> Result<()> {
        let api = self.api.as_ref().context("a server")?;
        let started = api.post("cloudbackup_start_run.php", &json!({ "job_id": job }))?;
        for run in started["run_ids"].as_array().into_iter().flatten() {
            let ended = self.wait("a run", stop, || {
                let answer = api.get(&format!("cloudbackup_get_run.php?run_id={run}"))?;
                let status = answer["run"]["status"].as_str().unwrap_or_default();
                Ok((!["queued", "starting", "running"].contains(&status)).then(|| answer["run"].clone()))
            })?;
            println!(
                "run {run} on {}: {}",
                ended["hostname"].as_str().unwrap_or("?"),
                ended["status"].as_str().unwrap_or("?")
            );
            if ended["status"] != "success" {
                bail!("run {run}: {}", ended["error_summary"]);
            }
        }
        Ok(())
    }

    fn show_points(&self) -> Result<()> {
        let api = self.api.as_ref().context("a server")?;
        let points = api.get("e3backup_restore_points_list.php")?;
        for point in points["restore_points"].as_array().into_iter().flatten() {
            let text = |key: &str| point[key].as_str().unwrap_or_default().to_owned();
            println!("point {}  {}  {}  {}", point["id"], text("vm_name"), text("backup_type"), text("snapshot_time"));
        }
        Ok(())
    }

    fn show_calls(&self, job: i64) -> Result<()> {
        let api = self.api.as_ref().context("a server")?;
        let vms = api.get("cloudbackup_vms.php")?;
        let vm = &vms["vms"][0]["vm_ids"][0];
        let points = api.get("e3backup_restore_points_list.php")?;
        let point = &points["restore_points"][0]["id"];
        let agents = api.get("e3backup_agent_list.php")?;
        let agent = &agents["agents"][0]["agent_id"];
        heading("try it");
        println!("address      {}", api.base);
        println!("login        {EMAIL}   {PASSWORD}");
        println!("fingerprint  {}", api.fingerprint);
        println!("logs         {}", self.folder.display());
        println!("\nIn another shell:");
        println!(
            "  call() {{ curl -sS --cacert {} -H \"Authorization: Bearer {}\" \"$@\"; echo; }}",
            self.folder.join("server").join("server.crt").display(),
            api.token
        );
        let post = |name: &str, body: Value| {
            format!("call {}/api/{name} -H 'Content-Type: application/json' -d '{body}'", api.base)
        };
        let get = |name: &str| format!("call '{}/api/{name}'", api.base);
        let calls = [
            ("how safe every machine is", get("cloudbackup_vms.php")),
            ("the hosts", get("e3backup_agent_list.php")),
            (
                "what is on one of them now (ask with the id that it answers)",
                post("agent_list_hyperv_vms.php", json!({ "agent_id": agent })),
            ),
            ("the answer", get("cloudbackup_command_status.php?command_id=1")),
            ("the points", get("e3backup_restore_points_list.php")),
            ("the points of one machine", get(&format!("cloudbackup_hyperv_backup_points.php?vm_id={vm}"))),
            ("run the job now", post("cloudbackup_start_run.php", json!({ "job_id": job }))),
            ("the runs", get("e3backup_run_list.php")),
            (
                "read every byte of a point",
                post("cloudbackup_verify_point.php", json!({ "backup_point_id": point, "level": "full" })),
            ),
            (
                "bring a machine back under another name",
                post(
                    "cloudbackup_hyperv_start_restore.php",
                    json!({ "backup_point_id": point, "target_agent_id": agent, "target_vm_name": "restored" }),
                ),
            ),
        ];
        for (number, (what, call)) in calls.iter().enumerate() {
            println!("\n{:>2}  {what}\n    {call}", number + 1);
        }
        Ok(())
    }

    fn wait<T>(&self, what: &str, stop: &AtomicBool, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if stop.load(Ordering::Relaxed) {
                bail!("stopped while waiting for {what}");
            }
            if begun.elapsed() > PATIENCE {
                bail!("waited for {what} too long: look at the logs in {}", self.folder.display());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// A program that ended by itself would leave the rest without a meaning.
    fn expect_all_alive(&mut self) -> Result<()> {
        for (name, child) in &mut self.running {
            if let Some(status) = child.try_wait().context("look after a program")? {
                bail!("{name} ended with {status}: look at the logs in {}", self.folder.display());
            }
        }
        Ok(())
    }

    /// Asks every program to end, the agents first, and kills what does not.
    fn end(&mut self) -> Result<()> {
        for (name, mut child) in self.running.drain(..).rev() {
            // A terminal's Ctrl-C reached it already; a signal to this process alone did not.
            let asked = Command::new("kill").args(["-TERM", &child.id().to_string()]).stderr(Stdio::null()).status();
            let begun = Instant::now();
            while child.try_wait()?.is_none() {
                if asked.is_err() || begun.elapsed() > GRACE {
                    child.kill()?;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            println!("{name} has ended");
        }
        Ok(())
    }

    fn lab(&self, host: &str) -> String {
        self.folder.join(host).display().to_string()
    }

    /// Calls the agent's program before the user's eyes.
    fn agent(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(arguments);
        println!("$ {}", typed(&command));
        print!("{}", indented(&output_of(&mut command)?));
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("e3-backup-agent"));
        // The user's own configuration is none of the demo's.
        command.args(arguments).env("E3_CONFIG", self.folder.join("config.toml"));
        command
    }
}

impl Drop for Estate {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Api {
    fn get(&self, name: &str) -> Result<Value> {
        self.call("GET", name, &Value::Null)
    }

    fn post(&self, name: &str, body: &Value) -> Result<Value> {
        self.call("POST", name, body)
    }

    fn call(&self, method: &str, name: &str, body: &Value) -> Result<Value> {
        let (answer, _) = self.send(method, name, body, &[("authorization", format!("Bearer {}", self.token))])?;
        Ok(answer)
    }

    fn send(
        &self,
        method: &str,
        name: &str,
        body: &Value,
        headers: &[(&str, String)],
    ) -> Result<(Value, Option<String>)> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}/api/{name}", self.base));
        for (key, value) in headers {
            request = request.header(*key, value);
        }
        let sent = if method == "GET" {
            self.http.run(request.body(())?)
        } else {
            self.http.run(request.header("content-type", "application/json").body(body.to_string())?)
        };
        let mut response = sent.with_context(|| format!("{method} {name}"))?;
        let cookie = response.headers().get("set-cookie").and_then(|value| value.to_str().ok());
        let cookie = cookie.and_then(|cookie| cookie.split(';').next()).map(str::to_owned);
        let text = response.body_mut().read_to_string().with_context(|| format!("{method} {name}"))?;
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("{method} {name}: {text}"))?;
        if answer["success"] != true {
            bail!("{method} {name}: {}", answer["message"]);
        }
        Ok((answer, cookie))
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
