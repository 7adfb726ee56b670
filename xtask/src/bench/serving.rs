//! Reading a point that is served, beside servers of the same disk as a raw file; and the time to the first read.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{VM, ratio, source_disk};
use crate::agent::Agent;
use crate::figures::table;
use crate::process::{find_program, output_of, typed};
use crate::report::{heading, seconds};

/// How long a server may take until it can be connected to.
const START: Duration = Duration::from_secs(30);
const NAME: &str = "disk0";
const TARGET: &str = "iqn.2026-01.test:bench";

/// A way to read, as arguments of `qemu-img bench`.
struct Reading {
    name: &'static str,
    arguments: String,
}

/// A server under test.
struct Server {
    name: &'static str,
    uri: String,
    process: Child,
    /// Its ratios are to this one of ours.
    against: usize,
}

impl Drop for Server {
    fn drop(&mut self) {
        // tgtd heeds nothing else.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Measures, and prints tables.
pub fn run(agent: &Agent, folder: &Path, disk_gib: u64, runs: u32) -> Result<()> {
    heading(&format!("a disk of {disk_gib} GiB"));
    let raw = folder.join("disk.raw");
    println!("{}", source_disk::make_raw(&raw, disk_gib << 30)?);
    output_of(&mut agent.command(["repo", "create"]))?;
    output_of(agent.command(["lab", "create"]).arg(agent.lab()))?;
    output_of(agent.command(["lab", "add-vm"]).arg(agent.lab()).args([VM, "--disk"]).arg(&raw))?;
    output_of(&mut agent.command(["backup", VM]))?;

    let mib = disk_gib << 10;
    let readings = [
        Reading { name: "1 MiB, in order", arguments: format!("-c {mib} -d 8 -s 1048576") },
        // Never the neighbour of the one before.
        Reading { name: "4 KiB, scattered", arguments: "-c 50000 -d 16 -s 4096 -S 17829888".into() },
    ];
    let servers = start_all(agent, folder, &raw, disk_gib)?;
    let mut best: Vec<[Option<Duration>; 2]> = vec![[None; 2]; servers.len()];
    for server in &servers {
        println!("warming {}", server.name);
        read(server, &readings[0])?;
        read(server, &readings[1])?;
    }
    for run in 0..runs as usize {
        for turn in 0..servers.len() {
            let which = (run + turn) % servers.len();
            for (reading, best) in readings.iter().zip(&mut best[which]) {
                let time = read(&servers[which], reading)?;
                *best = Some(best.map_or(time, |best| best.min(time)));
            }
        }
    }
    heading(&format!("reads of a warm point, best of {runs}"));
    let names = readings.iter().flat_map(|reading| [reading.name.to_owned(), "ratio".into()]);
    let mut rows = vec![[String::new()].into_iter().chain(names).collect::<Vec<_>>()];
    for (server, times) in servers.iter().zip(&best) {
        let mut row = vec![server.name.to_owned()];
        for (time, ours) in times.iter().zip(&best[server.against]) {
            let (Some(time), Some(ours)) = (time, ours) else { continue };
            row.extend([seconds(*time), ratio(*time, *ours)]);
        }
        rows.push(row);
    }
    print!("{}", table(&rows));
    println!(
        "\nA ratio above 1 means: so many times as long as e3 over the same protocol. The others serve the raw file."
    );
    drop(servers);
    first_read(agent, folder, runs)
}

/// Ours, and those of the others that are there.
fn start_all(agent: &Agent, folder: &Path, raw: &Path, disk_gib: u64) -> Result<Vec<Server>> {
    let point = format!("{VM}@latest");
    let all = format!("{}GiB", disk_gib + 1);
    let mut servers = Vec::new();
    let socket = |name: &str| folder.join(name).display().to_string();
    let ours = |transport: &str, place: [&str; 2]| {
        let mut command = agent.command(["serve", transport, &point, "--memory", &all, "--json"]);
        command.args(place);
        command
    };
    let (process, told) = start_ours(&mut ours("nbd", ["--socket", &socket("e3.sock")]))?;
    let uri = text(&told["exports"][0]["uri"])?;
    servers.push(Server { name: "e3, NBD, in memory", uri, process, against: 0 });
    let mut on_disk = agent.command(["serve", "nbd", &point, "--json", "--cache-size", &all, "--socket"]);
    on_disk.arg(socket("e3-disk.sock")).arg("--cache").arg(folder.join("cache"));
    let (process, told) = start_ours(&mut on_disk)?;
    let uri = text(&told["exports"][0]["uri"])?;
    servers.push(Server { name: "e3, NBD, in the disk cache", uri, process, against: 0 });
    for (name, program, arguments, path) in [
        ("qemu-nbd", "qemu-nbd", format!("-f raw -x {NAME} -t -e 8 -r -k"), socket("qemu.sock")),
        ("nbdkit", "nbdkit", "-f -r -U".to_owned(), socket("nbdkit.sock")),
    ] {
        let Some(found) = find_program(program) else {
            println!("SKIPPED {name}: not installed");
            continue;
        };
        let mut command = Command::new(found);
        command.args(arguments.split(' ')).arg(&path);
        if program == "nbdkit" {
            command.arg("file");
        }
        let process = start(command.arg(raw))?;
        wait_until("its socket is there", || Path::new(&path).exists())?;
        let export = if program == "nbdkit" { "" } else { NAME };
        servers.push(Server { name, uri: format!("nbd+unix:///{export}?socket={path}"), process, against: 0 });
    }
    let ours_at = servers.len();
    let (process, told) = start_ours(&mut ours("iscsi", ["--listen", "127.0.0.1:0"]))?;
    let uri = text(&told["units"][0]["uri"])?;
    servers.push(Server { name: "e3, iSCSI, in memory", uri, process, against: ours_at });
    match start_tgt(folder, raw, ours_at)? {
        Some(tgt) => servers.push(tgt),
        None => println!("SKIPPED tgt: not installed"),
    }
    Ok(servers)
}

fn start_tgt(folder: &Path, raw: &Path, against: usize) -> Result<Option<Server>> {
    let (Some(tgtd), Some(tgtadm)) = (find_program("tgtd"), find_program("tgtadm")) else { return Ok(None) };
    // Free now, and hardly taken in the moment until tgt has it.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("find a port")?;
    let socket = folder.join("tgt.sock");
    let portal = format!("portal={port}");
    let mut command = Command::new(tgtd);
    let process = start(command.args(["-f", "-C", "0", "--iscsi", &portal]).env("TGT_IPC_SOCKET", &socket))?;
    let server = Server { name: "tgt", uri: format!("iscsi://{port}/{TARGET}/1"), process, against };
    let ask = |words: &str| {
        let mut command = Command::new(&tgtadm);
        command.args(["-C", "0", "--lld", "iscsi", "--op"]).args(words.split(' ')).env("TGT_IPC_SOCKET", &socket);
        command
    };
    wait_until("tgtd answers", || output_of(&mut ask("show --mode target")).is_ok())?;
    output_of(ask("new --mode target --tid 1 -T").arg(TARGET))?;
    output_of(ask("new --mode logicalunit --tid 1 --lun 1 -b").arg(raw))?;
    output_of(&mut ask("bind --mode target --tid 1 -I ALL"))?;
    Ok(Some(server))
}

/// Ours tells on its first line where it serves.
fn start_ours(command: &mut Command) -> Result<(Child, Value)> {
    let shown = typed(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {shown}"))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).with_context(|| format!("read what {shown} says"))?;
    }
    let told = serde_json::from_str(&line).with_context(|| format!("{shown} said {line:?}"))?;
    Ok((child, told))
}

fn start(command: &mut Command) -> Result<Child> {
    let shown = typed(command);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("start {shown}"))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > START {
            bail!("waited in vain until {what}");
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("a text, not {value}"))
}

/// The time that QEMU's own client takes.
fn read(server: &Server, reading: &Reading) -> Result<Duration> {
    let mut command = Command::new("qemu-img");
    command.args(["bench", "-U", "-f", "raw"]).args(reading.arguments.split(' ')).arg(&server.uri);
    let said = output_of(&mut command)?;
    let time = said.split("Run completed in ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    time.map(Duration::from_secs_f64).with_context(|| format!("{}: no time in {said:?}", typed(&command)))
}

/// From the call of `instant start` to the first bytes, nothing in any cache.
fn first_read(agent: &Agent, folder: &Path, runs: u32) -> Result<()> {
    heading(&format!("from `instant start` to the first read, best of {runs}, nothing in any cache of e3's"));
    let sessions = folder.join("sessions");
    let (mut served, mut read) = (Duration::MAX, Duration::MAX);
    for _ in 0..runs {
        let begun = Instant::now();
        let mut command = agent.command(["instant", "start", &format!("{VM}@latest"), "--host", "qemu", "--json"]);
        let (process, told) = start_ours(command.arg("--state").arg(&sessions))?;
        let uri = text(&told["disks"][0]["uri"])?;
        let server = Server { name: "e3", uri, process, against: 0 };
        served = served.min(begun.elapsed());
        output_of(Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read 0 4k"]).arg(&server.uri))?;
        read = read.min(begun.elapsed());
        drop(server);
        fs::remove_dir_all(&sessions).with_context(|| format!("remove {}", sessions.display()))?;
    }
    let row = |name: &str, time| vec![name.to_owned(), seconds(time)];
    let rows = [row("the disks can be connected to", served), row("QEMU's client has been started and has read", read)];
    print!("{}", table(&rows));
    Ok(())
}
