//! `lab create`, `lab add-vm`, `lab write`: a simulated host to play with.

use std::path::Path;

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
