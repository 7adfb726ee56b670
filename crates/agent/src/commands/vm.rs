//! `vm list`.

use hyperv::{Exclusion, TrackingSupport, Vm, VmState, VssReadiness};
use serde_json::{Value, json};

use crate::cli::VmCommand;
use crate::context::Context;
use crate::failure::{Attempt as _, Failure};
use crate::outcome::Outcome;
use crate::output::{Align, Table, json_document, line, note};
use crate::units::size;

/// `vm …`
pub fn run(context: &Context, command: VmCommand) -> Result<Outcome, Failure> {
    match command {
        VmCommand::List => list(context),
    }
}

fn list(context: &Context) -> Result<Outcome, Failure> {
    let host = context.host()?;
    let mut vms = host.host.list_vms().attempt("list the virtual machines", &*host.name)?;
    vms.sort_by(|a, b| (a.name.to_lowercase(), a.id.as_str()).cmp(&(b.name.to_lowercase(), b.id.as_str())));
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

/// What a backup would meet, as far as the inventory tells.
fn backup_text(vm: &Vm) -> String {
    if let Some(disk) = vm.unreadable_disks.first() {
        return format!("no: {} cannot be read", hyperv::file_name(&disk.path));
    }
    if vm.disks.is_empty() {
        return "no: no disk that can be frozen".into();
    }
    if matches!(vm.state, VmState::Critical(_)) {
        return "no: its storage is lost".into();
    }
    let mut text = match vm.disks.iter().all(|disk| disk.tracking == TrackingSupport::Supported) {
        true => "incremental".to_owned(),
        false => "always full".to_owned(),
    };
    if !vm.excluded_disks.is_empty() {
        text += &format!(", {} disks left out", vm.excluded_disks.len());
    }
    text
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
    json!({
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
