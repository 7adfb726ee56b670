//! Objects of the storage namespace.

use hyperv::seam::{Instance, ObjectPath};

use crate::builder::Builder;
use crate::disks;
use crate::error::LabError;
use crate::host::Tx;
use crate::state::Power;
use crate::storage::{DiskSettings, RemoteDisk, Session};

/// A disk that the host has from the beginning; nobody's business.
const SYSTEM_DISK: &str = "S0M3B0DY";

/// Portals, targets, sessions, disks and partitions.
pub(super) fn instances(tx: &Tx<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Instance> {
    let mut list = Vec::new();
    let storage = &tx.storage;
    if wanted("MSFT_iSCSITargetPortal") {
        list.extend(storage.portals.iter().map(|portal| {
            Builder::new(tx, "MSFT_iSCSITargetPortal")
                .text("InitiatorInstanceName", r"ROOT\ISCSIPRT\0000_0")
                .text("TargetPortalAddress", &portal.address)
                .number("TargetPortalPortNumber", portal.port.into())
                .build()
        }));
    }
    if wanted("MSFT_iSCSITarget") {
        let mut names: Vec<&String> = storage.portals.iter().flat_map(|portal| &portal.targets).collect();
        names.extend(storage.sessions.iter().filter_map(|session| session.login.target.as_ref()));
        names.sort();
        names.dedup();
        list.extend(names.into_iter().map(|name| {
            let is_it = |session: &Session| session.login.target.as_ref() == Some(name);
            Builder::new(tx, "MSFT_iSCSITarget")
                .text("NodeAddress", name)
                .flag("IsConnected", storage.sessions.iter().any(is_it))
                .build()
        }));
    }
    if wanted("MSFT_iSCSISession") {
        list.extend(storage.sessions.iter().map(|session| {
            Builder::new(tx, "MSFT_iSCSISession")
                .text("SessionIdentifier", &session.id)
                .text("TargetNodeAddress", session.login.target.as_deref().unwrap_or_default())
                .text("InitiatorNodeAddress", "iqn.1991-05.com.microsoft:labhost")
                .text("AuthenticationType", if session.login.chap.is_some() { "ONEWAYCHAP" } else { "NONE" })
                .number("NumberOfConnections", 1)
                .flag("IsConnected", session.login.answers())
                .flag("IsPersistent", false)
                .flag("IsDiscovered", true)
                .build()
        }));
    }
    if wanted("MSFT_Disk") {
        list.push(system_disk(tx));
        list.extend(arrived(tx).map(|(_, disk)| remote_disk(tx, disk)));
    }
    if wanted("MSFT_Partition") {
        list.extend(arrived(tx).filter_map(|(_, disk)| partition(tx, disk)));
    }
    list
}

/// Disks and their partitions.
pub(super) fn pairs(tx: &Tx<'_>, association: &str) -> Vec<(ObjectPath, ObjectPath)> {
    let path = |instance: Instance| instance.path.expect("objects of the host have paths");
    match association {
        "MSFT_DiskToPartition" => arrived(tx)
            .filter_map(|(_, disk)| Some((path(remote_disk(tx, disk)), path(partition(tx, disk)?))))
            .collect(),
        _ => Vec::new(),
    }
}

fn arrived<'t>(tx: &'t Tx<'_>) -> impl Iterator<Item = (&'t Session, &'t RemoteDisk)> {
    tx.storage.disks().filter(|(_, disk)| disk.arrives_ms <= tx.now_ms)
}

fn object_id(tx: &Tx<'_>, serial: &str) -> String {
    let host = &tx.options.host_name;
    format!(r#"{{1}}\\{host}\root/Microsoft/Windows/Storage/Providers_v2\WSP_Disk.ObjectId="{serial}""#)
}

fn system_disk(tx: &Tx<'_>) -> Instance {
    Builder::new(tx, "MSFT_Disk")
        .text("ObjectId", &object_id(tx, SYSTEM_DISK))
        .number("Number", 0)
        .text("UniqueId", "5000C50000000001")
        .number("UniqueIdFormat", 3)
        .text("SerialNumber", SYSTEM_DISK)
        .number("BusType", 11)
        .flag("IsOffline", false)
        .flag("IsReadOnly", false)
        .number("Size", 1 << 40)
        .build()
}

fn remote_disk(tx: &Tx<'_>, disk: &RemoteDisk) -> Instance {
    let settings = tx.storage.settings(&disk.serial);
    Builder::new(tx, "MSFT_Disk")
        .text("ObjectId", &object_id(tx, &disk.serial))
        .number("Number", disk.number.into())
        .text("UniqueId", &disk.unique_id)
        .number("UniqueIdFormat", 3)
        // Padded, as some Windows do.
        .text("SerialNumber", &format!("{}    ", disk.serial))
        .number("BusType", 9)
        .flag("IsOffline", settings.is_none_or(|settings| settings.is_offline))
        .flag("IsReadOnly", settings.is_none_or(|settings| settings.is_read_only))
        .number("Size", disk.size_bytes)
        .build()
}

/// None while the disk is off-line.
fn partition(tx: &Tx<'_>, disk: &RemoteDisk) -> Option<Instance> {
    let settings: &DiskSettings = tx.storage.settings(&disk.serial).filter(|settings| !settings.is_offline)?;
    let paths = settings.folders.iter().map(|folder| format!(r"{}\", folder.as_str()));
    let volume = format!(r"\\?\Volume{{{}}}\", disk.serial);
    Some(
        Builder::new(tx, "MSFT_Partition")
            .text("ObjectId", &object_id(tx, &format!("{}/1", disk.serial)))
            .number("DiskNumber", disk.number.into())
            .number("PartitionNumber", 1)
            .text("GptType", "{ebd0a0a2-b9e5-4433-87c0-68b6b72699c7}")
            .texts("AccessPaths", paths.chain([volume]).collect())
            .build(),
    )
}

/// The serial number of the remote disk that a disk or partition object is, or lies on.
pub(crate) fn serial_of(tx: &Tx<'_>, object: &Instance) -> Option<String> {
    let id = object.get("ObjectId").as_str()?;
    let is_it =
        |disk: &RemoteDisk| id == object_id(tx, &disk.serial) || id == object_id(tx, &format!("{}/1", disk.serial));
    tx.storage.disks().find(|(_, disk)| is_it(disk)).map(|(_, disk)| disk.serial.clone())
}

/// Whether a VM that is not off reads from a volume of this disk.
pub(crate) fn is_used(tx: &Tx<'_>, serial: &str) -> Result<bool, LabError> {
    let Some(settings) = tx.storage.settings(serial) else { return Ok(false) };
    for vm in tx.vms.iter().filter(|vm| vm.power != Power::Off) {
        for disk in &vm.active.disks {
            // A chain that does not open is read by nobody.
            let Ok(chain) = disks::open_chain(tx.store, &disk.file)? else { continue };
            let files = disks::chain_paths(tx.store, &chain);
            if files.iter().any(|file| settings.folders.contains(&file.folder())) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
