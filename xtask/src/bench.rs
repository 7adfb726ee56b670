//! `cargo xtask bench`: the same work by us and by others, side by side in one run, as ratios.
//!
//! Figures of one machine at one hour mean little; ratios from one run mean something. Nothing here fails because
//! something was slow, only because something was wrong: every restored disk is compared.

mod contenders;
mod scaling;
mod serving;
mod source_disk;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};

use self::contenders::{Contender, Kopia, Ours, Restic, Step};
use crate::agent::Agent;
use crate::disk_content::{expect_content, sha256_of_file};
use crate::figures::{size, table};
use crate::folder::{disk_usage_bytes, make_empty, remove};
use crate::measure::{Measured, measure};
use crate::options::{BenchOptions, BenchPart};
use crate::peers::{Install, Peers};
use crate::process::output_of;
use crate::report::{heading, seconds};
use crate::workspace::Workspace;

/// The disk file's name in the folder that other programs back up.
const DISK_FILE: &str = "disk.vhdx";
const VM: &str = "bench";

/// Measures, and prints tables.
pub fn run(options: &BenchOptions) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    let runs = options.runs.unwrap_or(if options.quick { 1 } else { 3 });
    let disk_gib = options.disk_gib.unwrap_or(if options.quick { 1 } else { 4 });
    let folder = make_empty(&options.dir.clone().unwrap_or_else(|| workspace.target.join("bench")))?;

    let agent = Agent::build(&workspace, &folder, "bench")?;
    let cache = Cache { cold: options.cold };
    if options.part == Some(BenchPart::Serve) {
        serving::run(&agent, &folder, disk_gib, runs)?;
        make_empty(&folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !options.only_scaling {
        heading("peers");
        let peers = Peers::gather(&workspace, if options.offline { Install::Nothing } else { Install::Missing });
        compare(&agent, &peers, &folder, disk_gib, runs, &cache)?;
    }
    if !options.no_scaling {
        let gib: &[u64] = if options.quick { &[8, 64] } else { &[8, 64, 256] };
        scaling::run(&agent, &folder, gib, &cache)?;
    }
    // What is left is large and can be made again.
    make_empty(&folder)?;
    Ok(ExitCode::SUCCESS)
}

fn compare(agent: &Agent, peers: &Peers, folder: &Path, disk_gib: u64, runs: u32, cache: &Cache) -> Result<()> {
    heading(&format!("a disk of {disk_gib} GiB"));
    let source = folder.join("source");
    fs::create_dir(&source).with_context(|| format!("create {}", source.display()))?;
    let (raw, disk_file) = (folder.join("disk.raw"), source.join(DISK_FILE));
    let content = source_disk::make_raw(&raw, disk_gib << 30)?;
    output_of(agent.command(["vhd", "convert", "--format", "vhdx"]).arg(&raw).arg(&disk_file))?;
    println!("{content}; as VHDX {}", size(disk_usage_bytes(&disk_file)?));
    let sha256 = sha256_of_file(&raw)?;
    expect_content(&disk_file, &sha256, "vhd convert")?;
    remove(&raw)?;
    output_of(agent.command(["lab", "create"]).arg(agent.lab()))?;
    output_of(agent.command(["lab", "add-vm"]).arg(agent.lab()).args([VM, "--disk"]).arg(&disk_file))?;

    let mut contenders: Vec<Box<dyn Contender>> = vec![Box::new(Ours {
        agent: agent.with_repository(folder.join("e3-repo")),
        vm: VM,
        folder: folder.to_owned(),
    })];
    if let Some(program) = peers.program("kopia") {
        let folder = folder.join("kopia");
        contenders.push(Box::new(Kopia { program: program.to_owned(), source: source.clone(), folder }));
    }
    if let Some(program) = peers.program("restic") {
        let folder = folder.join("restic");
        contenders.push(Box::new(Restic { program: program.to_owned(), source: source.clone(), folder }));
    }

    let mut results: Vec<Results> = contenders.iter().map(|_| Results::default()).collect();
    for run in 0..runs as usize {
        for turn in 0..contenders.len() {
            // Each begins once, so that none always meets the state that another leaves.
            let which = (run + turn) % contenders.len();
            let contender = contenders[which].as_ref();
            println!("run {} of {runs}: {}", run + 1, contender.name());
            contender.reset()?;
            for step in Step::ALL {
                let mut command = contender.command(step)?;
                cache.prepare()?;
                results[which].add(step, measure(&mut command)?);
                if step == Step::Full {
                    results[which].stored_bytes = disk_usage_bytes(&contender.repository())?;
                }
                if step == Step::Restore {
                    expect_content(&contender.restored(), &sha256, contender.name())?;
                    remove(&contender.restored())?;
                }
            }
        }
    }
    for contender in &contenders {
        remove(&contender.repository())?;
    }

    heading(&format!("best of {runs}, {}", cache.name()));
    print!("{}", table(&backup_rows(&contenders, &results)));
    println!(
        "\nA ratio above 1 means: so many times as long as e3. Every restored disk was compared.\n\
         Unchanged: e3 asks the host's change tracking; the others see a new time on the file and read it again.\n\
         Kopia: BLAKE3-256-128, AES256-GCM-HMAC-SHA256, FIXED-1M, zstd-fastest, as e3. restic: its defaults.\n\
         Flushes: all three flush (fsync) the files of the repository; of what they restore, e3 flushes the file\n\
         it wrote, Kopia and restic leave that to the system."
    );
    convert(agent, peers, folder, &disk_file, &sha256, runs, cache)
}

fn backup_rows(contenders: &[Box<dyn Contender>], results: &[Results]) -> Vec<Vec<String>> {
    let names = contenders.iter().flat_map(|contender| {
        let name = contender.name();
        if name == "e3" {
            vec![name.to_owned(), "memory".into()]
        } else {
            vec![name.to_owned(), "ratio".into(), "memory".into()]
        }
    });
    let mut rows = vec![[String::new()].into_iter().chain(names).collect::<Vec<_>>()];
    for step in Step::ALL {
        let mut row = vec![step.name().to_owned()];
        for (place, result) in results.iter().enumerate() {
            let (Some(time), Some(ours)) = (result.best(step), results[0].best(step)) else { continue };
            row.push(seconds(time));
            if place > 0 {
                row.push(ratio(time, ours));
            }
            row.push(result.peak_memory(step).map_or_else(|| "–".into(), size));
        }
        rows.push(row);
    }
    let mut row = vec!["repository after full".to_owned()];
    for (place, result) in results.iter().enumerate() {
        row.push(size(result.stored_bytes));
        if place > 0 {
            row.push(format!("{:.2}", result.stored_bytes as f64 / results[0].stored_bytes.max(1) as f64));
        }
        row.push(String::new());
    }
    rows.push(row);
    rows
}

/// VHDX to raw, by us and by QEMU.
fn convert(
    agent: &Agent,
    peers: &Peers,
    folder: &Path,
    disk_file: &Path,
    sha256: &str,
    runs: u32,
    cache: &Cache,
) -> Result<()> {
    heading("VHDX to raw");
    let output = folder.join("converted.raw");
    let mut ours = agent.command(["vhd", "convert", "--format", "raw"]);
    ours.arg(disk_file).arg(&output);
    let mut commands = vec![("e3 vhd convert", ours)];
    if let Some(qemu_img) = peers.program("qemu-img") {
        for (name, options) in [
            ("qemu-img convert -W -m 16", "convert -W -m 16 -f vhdx -O raw"),
            ("the same, flushing (-t writeback)", "convert -W -m 16 -t writeback -f vhdx -O raw"),
        ] {
            let mut command = Command::new(qemu_img);
            command.args(options.split(' ')).arg(disk_file).arg(&output);
            commands.push((name, command));
        }
    }
    let mut best: Vec<Option<Measured>> = vec![None; commands.len()];
    for run in 0..runs as usize {
        for turn in 0..commands.len() {
            let which = (run + turn) % commands.len();
            remove(&output)?;
            cache.prepare()?;
            let measured = measure(&mut commands[which].1)?;
            expect_content(&output, sha256, commands[which].0)?;
            if best[which].as_ref().is_none_or(|best| measured.time < best.time) {
                best[which] = Some(measured);
            }
        }
    }
    remove(&output)?;
    let mut rows = vec![["", "time", "ratio", "memory"].map(str::to_owned).to_vec()];
    let ours = best[0].as_ref().map_or(Duration::ZERO, |measured| measured.time);
    for ((name, _), measured) in commands.iter().zip(&best) {
        let Some(measured) = measured else { continue };
        let memory = measured.peak_memory_bytes.map_or_else(|| "–".into(), size);
        rows.push(vec![(*name).to_owned(), seconds(measured.time), ratio(measured.time, ours), memory]);
    }
    print!("{}", table(&rows));
    println!("\nFlushes: e3 flushes the raw file before it ends; qemu-img does so only with -t.");
    Ok(())
}

fn ratio(time: Duration, ours: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() / ours.as_secs_f64().max(0.001))
}

/// The measurements of one program.
#[derive(Debug, Default)]
struct Results {
    measured: Vec<(Step, Measured)>,
    stored_bytes: u64,
}

impl Results {
    fn add(&mut self, step: Step, measured: Measured) {
        self.measured.push((step, measured));
    }

    fn of(&self, step: Step) -> impl Iterator<Item = &Measured> {
        self.measured.iter().filter(move |(of, _)| *of == step).map(|(_, measured)| measured)
    }

    fn best(&self, step: Step) -> Option<Duration> {
        self.of(step).map(|measured| measured.time).min()
    }

    fn peak_memory(&self, step: Step) -> Option<u64> {
        self.of(step).filter_map(|measured| measured.peak_memory_bytes).max()
    }
}

/// What is done to the page cache before a measurement.
pub struct Cache {
    cold: bool,
}

impl Cache {
    fn name(&self) -> &'static str {
        if self.cold { "page cache emptied before each" } else { "page cache warm" }
    }

    /// Writes out what the step before left, so that it is not paid for by the next.
    pub fn prepare(&self) -> Result<()> {
        output_of(&mut Command::new("sync"))?;
        if self.cold {
            fs::write("/proc/sys/vm/drop_caches", "3").context("empty the page cache (--cold needs root)")?;
        }
        Ok(())
    }
}
