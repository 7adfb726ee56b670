//! `vm list`, `vm show`.

use backup::GuestFamily;
use hyperv::{Exclusion, Protection, TrackingSupport, Vm, VmState, VssReadiness};
use serde_json::{Value, json};

use crate::cli::VmCommand;
use crate::completion;
use crate::context::Context;
use crate::failure::{Attempt as _, Failure};
use crate::outcome::Outcome;
use crate::output::{Align, Table, json_document, line, note};
use crate::units::{size, visible};

/// `vm …`
pub fn run(context: &Context, command: VmCommand) -> Result<Outcome, Failure> {
    match command {
        VmCommand::List => list(context),
        VmCommand::Show { vm } => show(context, &vm),
    }
}

fn list(context: &Context) -> Result<Outcome, Failure> {
    let host = context.host()?;
    let mut vms = host.host.list_vms().attempt("list the virtual machines", &*host.name)?;
    vms.sort_by(|a, b| (a.name.to_lowercase(), a.id.as_str()).cmp(&(b.name.to_lowercase(), b.id.as_str())));
    completion::remember_vms(vms.iter().map(|vm| &*vm.name));
    if context.global.json {
        json_document(&json!({ "host": host.name, "vms": vms.iter().map(vm_json).collect::<Vec<_>>() }));
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        vms.iter().for_each(|vm| line(vm.id.as_str()));
        return Ok(Outcome::DONE);
    }
    if vms.is_empty() {
        note(&format!("{} has no virtual machines", host.name));
        return Ok(Outcome::DONE);
    }
    let mut table = Table::new(&[
        ("VM", Align::Left),
        ("STATE", Align::Left),
        ("DISKS", Align::Right),
        ("SIZE", Align::Right),
        ("BACKUP", Align::Left),
        ("ID", Align::Left),
    ]);
    for vm in &vms {
        table.row(vec![
            vm.name.clone(),
            state_name(&vm.state).to_owned(),
            vm.disks.len().to_string(),
            size(vm.disks.iter().map(|disk| disk.size_bytes).sum()),
            backup_text(vm),
            vm.id.to_string(),
        ]);
    }
    table.print();
    Ok(Outcome::DONE)
}

fn show(context: &Context, selector: &str) -> Result<Outcome, Failure> {
    let host = context.host()?;
    let vm = host.host.find_vm(selector).attempt(format!("show {selector}"), &*host.name)?;
    if context.global.json {
        json_document(&json!({ "host": host.name, "vm": vm_json(&vm) }));
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        line(vm.id.as_str());
        return Ok(Outcome::DONE);
    }
    let guest = vm.guest.os_name.as_deref().unwrap_or("does not say what it is");
    for (name, value) in [
        ("vm", format!("{} ({})", vm.name, vm.id)),
        ("host", host.name.clone()),
        ("state", state_name(&vm.state).to_owned()),
        ("generation", format!("{}, configuration version {}", vm.generation, vm.configuration_version)),
        ("guest", guest.to_owned()),
        ("backup", vm.protection().to_string()),
    ] {
        line(&format!("{name:<12} {}", visible(&value)));
    }
    for caution in vm.cautions() {
        line(&format!("{:<12} {}", "note", visible(&caution.to_string())));
    }
    line("");
    let mut table =
        Table::new(&[("DISK", Align::Right), ("SLOT", Align::Left), ("SIZE", Align::Right), ("FILE", Align::Left)]);
    for (number, disk) in vm.disks.iter().enumerate() {
        table.row(vec![number.to_string(), disk.slot.to_string(), size(disk.size_bytes), disk.path.clone()]);
    }
    table.print();
    Ok(Outcome::DONE)
}

/// How it can be backed up, in a word or two; `vm show` says why.
fn backup_text(vm: &Vm) -> String {
    let mut text = match vm.protection() {
        Protection::Incremental { full_each_time } if full_each_time.is_empty() => "incremental".to_owned(),
        Protection::Incremental { full_each_time } => {
            format!("incremental, {} of {} disks always full", full_each_time.len(), vm.disks.len())
        }
        Protection::FullOnly(_) => "always full".to_owned(),
        Protection::Impossible(_) => return "impossible".to_owned(),
    };
    if !vm.excluded_disks.is_empty() {
        text += &format!(", {} left out", vm.excluded_disks.len());
    }
    text
}

/// As scripts see it.
fn protection_name(protection: &Protection) -> &'static str {
    match protection {
        Protection::Incremental { .. } => "incremental",
        Protection::FullOnly(_) => "full_only",
        Protection::Impossible(_) => "impossible",
    }
}

fn vm_json(vm: &Vm) -> Value {
    let disks: Vec<Value> = vm
        .disks
        .iter()
        .enumerate()
        .map(|(number, disk)| {
            json!({
                "number": number,
                "virtual_disk_id": disk.virtual_disk_id.to_string(),
                "slot": disk.slot.to_string(),
                "path": disk.path,
                "size_bytes": disk.size_bytes,
                "tracked": disk.tracking == TrackingSupport::Supported,
            })
        })
        .collect();
    let excluded: Vec<Value> = vm
        .excluded_disks
        .iter()
        .map(|disk| json!({ "path": disk.path, "reason": exclusion_name(disk.reason) }))
        .collect();
    let unreadable: Vec<Value> =
        vm.unreadable_disks.iter().map(|disk| json!({ "path": disk.path, "problem": disk.problem })).collect();
    let protection = vm.protection();
    json!({
        "protection": protection_name(&protection),
        "protection_text": protection.to_string(),
        "cautions": vm.cautions().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "guest_family": GuestFamily::from(vm.guest.family),
        "guest_os": vm.guest.os_name,
        "vm_id": vm.id.to_string(),
        "vm_name": vm.name,
        "state": state_name(&vm.state),
        "generation": vm.generation,
        "configuration_version": vm.configuration_version,
        "disks": disks,
        "excluded_disks": excluded,
        "unreadable_disks": unreadable,
        "user_checkpoints": vm.user_checkpoints().count(),
        "recovery_checkpoints": vm.recovery_checkpoints().count(),
        "reference_points": vm.reference_points.len(),
        "guest_freeze": match vm.vss {
            VssReadiness::Ready => "ready",
            VssReadiness::Disabled => "disabled",
            VssReadiness::NotResponding(_) => "not_responding",
            VssReadiness::Unknown => "unknown",
        },
    })
}

fn state_name(state: &VmState) -> &'static str {
    match state {
        VmState::Running => "running",
        VmState::Off => "off",
        VmState::Saved => "saved",
        VmState::Paused => "paused",
        VmState::InTransition { .. } => "changing",
        VmState::Critical(_) => "critical",
        VmState::Unknown(_) => "unknown",
    }
}

fn exclusion_name(reason: Exclusion) -> &'static str {
    match reason {
        Exclusion::PassThrough => "pass_through",
        Exclusion::Shared => "shared",
        Exclusion::VhdSet => "vhd_set",
        Exclusion::FibreChannel => "fibre_channel",
    }
}
