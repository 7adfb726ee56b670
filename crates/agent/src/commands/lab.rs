//! `lab create`, `lab add-vm`, `lab write`: a simulated host to play with.

use std::path::Path;

use hyperv::{Host, VmState};
use hyperv_sim::{DiskSource, GuestWrites, LabHost, LabOptions, Spread, VmOptions};
use serde_json::json;
use vhdx::VirtualDisk as _;

use crate::cli::LabCommand;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::outcome::Outcome;
use crate::output::{json_document, line, note};
use crate::units::{hex, size};

/// `lab …`
pub fn run(context: &Context, command: LabCommand) -> Result<Outcome, Failure> {
    match command {
        LabCommand::Create { dir } => create(context, &dir),
        LabCommand::AddVm { dir, name, disk, size } => {
            let disks: Vec<DiskSource> = disk
                .into_iter()
                .map(DiskSource::Copy)
                .chain(size.into_iter().map(|size_bytes| DiskSource::Empty { size_bytes }))
                .collect();
            add_vm(context, &dir, &name, &disks)
        }
        LabCommand::MoveVm { dir, name, to } => move_vm(context, &dir, &name, &to),
        LabCommand::Write { dir, name, seed, mib } => write(context, &dir, &name, seed, mib),
    }
}

fn create(context: &Context, dir: &Path) -> Result<Outcome, Failure> {
    let on = dir.display().to_string();
    LabHost::create_with(dir, LabOptions::real_time()).attempt("create a simulated host", &*on)?;
    let host = format!("lab:{on}");
    if context.global.json {
        json_document(&json!({ "dir": on, "host": host }));
    } else if context.global.quiet {
        line(&host);
    } else {
        line(&format!("created  {host}"));
        note(&format!(
            "next     e3-backup-agent lab add-vm {on} NAME --disk FILE     (or --size 10GiB for an empty disk)"
        ));
    }
    Ok(Outcome::DONE)
}

fn add_vm(context: &Context, dir: &Path, name: &str, disks: &[DiskSource]) -> Result<Outcome, Failure> {
    let what = format!("add VM {name}");
    let lab = open(dir)?;
    for disk in disks {
        if let DiskSource::Copy(path) = disk
            && !path.is_file()
        {
            let why = "there is no such file";
            return Err(
                Failure::new(what, path.display().to_string(), Code::NotFound, why).with_steps(&["correct --disk"])
            );
        }
    }
    let id = lab.add_vm(name, disks, VmOptions::default()).attempt(&*what, dir.display().to_string())?;
    let mut sizes = Vec::with_capacity(disks.len());
    for disk in 0..disks.len() {
        let opened = lab.open_guest_disk(&id, disk).attempt(&*what, format!("disk {disk}"))?;
        sizes.push(opened.geometry().size_bytes);
    }
    if context.global.json {
        let disks: Vec<_> =
            sizes.iter().enumerate().map(|(number, size)| json!({ "number": number, "size_bytes": size })).collect();
        json_document(&json!({ "vm_id": id, "vm_name": name, "disks": disks }));
    } else if context.global.quiet {
        line(&id);
    } else {
        let sizes: Vec<String> = sizes.into_iter().map(size).collect();
        line(&format!("added  {name}  {id}  disks: {}", sizes.join(", ")));
    }
    Ok(Outcome::DONE)
}

/// The simulated hosts share no migration service: the VM is stopped here, and there it is at once as it was.
fn move_vm(context: &Context, dir: &Path, name: &str, to: &Path) -> Result<Outcome, Failure> {
    let what = format!("move VM {name}");
    let on = format!("{} to {}", dir.display(), to.display());
    let (from, to) = (open(dir)?, open(to)?);
    let host = Host::new(from.seam());
    let vm = host.find_vm(name).attempt(&*what, &*on)?;
    let id = vm.id.as_str();
    let refuse = |why: String| {
        Failure::new(&*what, &*on, Code::TargetRefused, why)
            .with_steps(&["remove its checkpoints", "wait until its merges are done"])
    };
    if !vm.checkpoints.is_empty() || !from.is_at_rest(id).attempt(&*what, &*on)? {
        return Err(refuse("it has checkpoints, or a merge goes on".into()));
    }
    let mut sources = Vec::with_capacity(vm.disks.len());
    for disk in 0..from.disk_count(id).attempt(&*what, &*on)? {
        let chain = from.disk_chain(id, disk).attempt(&*what, &*on)?;
        let [file] = &chain[..] else { return Err(refuse(format!("disk {disk} consists of {} files", chain.len()))) };
        sources.push(from.host_file(file).attempt(&*what, &*on)?);
    }
    let running = vm.state != VmState::Off;
    if running {
        from.stop_vm(id).attempt(&*what, &*on)?;
    }
    let copies: Vec<DiskSource> = sources.iter().cloned().map(DiskSource::Copy).collect();
    let options = VmOptions { id: Some(id.to_owned()), running, ..VmOptions::default() };
    to.add_vm(&vm.name, &copies, options).attempt(&*what, &*on)?;
    let strangers = from.stray_files().attempt(&*what, &*on)?;
    host.remove_vm(&vm.path).attempt(&*what, &*on)?;
    // A migration takes its files along; what only lay about before stays.
    for file in from.stray_files().attempt(&*what, &*on)?.into_iter().filter(|file| !strangers.contains(file)) {
        let path = from.host_file(&file).attempt(&*what, &*file)?;
        std::fs::remove_file(&path).attempt(&*what, path.display().to_string())?;
    }
    if context.global.json {
        json_document(&json!({ "vm_id": id, "vm_name": vm.name, "running": running }));
    } else if context.global.quiet {
        line(id);
    } else {
        line(&format!("moved  {}  {id}  {on}", vm.name));
    }
    Ok(Outcome::DONE)
}

fn write(context: &Context, dir: &Path, name: &str, seed: Option<u64>, mib: u32) -> Result<Outcome, Failure> {
    let what = format!("write as the guest of {name}");
    let lab = open(dir)?;
    let seed = seed.unwrap_or_else(random_seed);
    let writes = GuestWrites { seed, mib, spread: Spread::Scattered };
    let hashes = lab.guest_write(name, writes).attempt(what, dir.display().to_string())?;
    if context.global.json {
        let disks: Vec<_> =
            hashes.iter().enumerate().map(|(number, hash)| json!({ "number": number, "sha256": hex(hash) })).collect();
        json_document(&json!({ "vm_name": name, "seed": seed, "mib": mib, "disks": disks }));
        return Ok(Outcome::DONE);
    }
    if !context.global.quiet {
        note(&format!("{name}: about {mib} MiB written, seed {seed}"));
    }
    for (number, hash) in hashes.iter().enumerate() {
        match context.global.quiet {
            true => line(&hex(hash)),
            false => line(&format!("disk {number}  sha256 {}", hex(hash))),
        }
    }
    Ok(Outcome::DONE)
}

fn open(dir: &Path) -> Result<std::sync::Arc<LabHost>, Failure> {
    let what = "open the simulated host";
    let on = dir.display().to_string();
    if !dir.join("host.json").is_file() {
        return Err(Failure::new(what, on, Code::NotFound, "there is no simulated host in this folder")
            .with_steps(&["check the folder", "make one: `lab create DIR`"]));
    }
    LabHost::open(dir).attempt(what, on)
}

fn random_seed() -> u64 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    // Short enough to be typed again.
    u64::from(u32::from_ne_bytes(bytes))
}
