//! Methods of the storage namespace: the iSCSI initiator, disks and partitions.

use hyperv::seam::{CimValue, Instance, MethodOutput};

use super::{answer, answer_with};
use crate::error::LabError;
use crate::host::Tx;
use crate::initiator::{Link, Login, LoginError};
use crate::objects::{is_used, serial_of};
use crate::paths::WinPath;
use crate::provider::Inputs;
use crate::state::new_guid;
use crate::storage::{DiskSettings, Portal, RemoteDisk, Session};

const FAILED: u32 = 4;
const INVALID_PARAMETER: u32 = 5;
const LOGIN_FAILED: u32 = 0xEFFF_0002;
const CONNECTION_FAILED: u32 = 0xEFFF_0003;
const AUTHENTICATION_FAILED: u32 = 0xEFFF_0009;
const SERVICE_UNAVAILABLE: u32 = 0xEFFF_0013;
const SESSION_EXISTS: u32 = 0xEFFF_0016;
const SESSION_BUSY: u32 = 0xEFFF_001F;
const PATH_IN_USE: u32 = 42002;
const NO_SUCH_FOLDER: u32 = 42007;

/// `Win32_Service.StartService`.
pub(super) fn start_service(tx: &mut Tx<'_>, object: &Instance) -> MethodOutput {
    if object.get("Name").as_str() != Some("MSiSCSI") || tx.storage.initiator_runs {
        return answer(10);
    }
    tx.edit().storage.initiator_runs = true;
    answer(0)
}

/// `MSFT_iSCSITargetPortal.New`: asks at once which targets there are.
pub(super) fn new_portal(tx: &mut Tx<'_>, inputs: &Inputs) -> MethodOutput {
    let address = inputs.text("TargetPortalAddress").to_owned();
    let port = match inputs.number("TargetPortalPortNumber") {
        0 => 3260,
        port => port as u16,
    };
    if !tx.storage.initiator_runs {
        return answer(SERVICE_UNAVAILABLE);
    }
    // Names would be looked up, which is nobody's business here.
    if address.parse::<std::net::IpAddr>().is_err() {
        return answer(INVALID_PARAMETER);
    }
    let targets = match targets_of(&address, port) {
        Ok(targets) => targets,
        Err(code) => return answer(code),
    };
    let portals = &mut tx.edit().storage.portals;
    portals.retain(|portal| portal.address != address || portal.port != port);
    portals.push(Portal { address, port, targets });
    answer(0)
}

/// `MSFT_iSCSITargetPortal.Update`.
pub(super) fn update_portal(tx: &mut Tx<'_>, object: &Instance) -> MethodOutput {
    let (address, port) = portal_of(object);
    match targets_of(&address, port) {
        Ok(targets) => {
            let mut portals = tx.edit().storage.portals.iter_mut();
            if let Some(portal) = portals.find(|portal| portal.address == address && portal.port == port) {
                portal.targets = targets;
            }
            answer(0)
        }
        Err(code) => answer(code),
    }
}

/// `MSFT_iSCSITargetPortal.Remove`.
pub(super) fn remove_portal(tx: &mut Tx<'_>, object: &Instance) -> MethodOutput {
    let (address, port) = portal_of(object);
    tx.edit().storage.portals.retain(|portal| portal.address != address || portal.port != port);
    answer(0)
}

fn portal_of(object: &Instance) -> (String, u16) {
    let address = object.get("TargetPortalAddress").as_str().unwrap_or_default().to_owned();
    (address, object.get("TargetPortalPortNumber").as_u64().unwrap_or_default() as u16)
}

fn targets_of(address: &str, port: u16) -> Result<Vec<String>, u32> {
    let login = Login { address: address.to_owned(), port, target: None, chap: None };
    let mut link = Link::log_in(&login).map_err(|error| code_of(&error))?;
    link.targets().map_err(|_| CONNECTION_FAILED)
}

fn code_of(error: &LoginError) -> u32 {
    match error {
        LoginError::Connection(_) => CONNECTION_FAILED,
        LoginError::Refused(2, 1) => AUTHENTICATION_FAILED,
        LoginError::Refused(3, 1) => SERVICE_UNAVAILABLE,
        LoginError::Refused(..) => LOGIN_FAILED,
    }
}

/// `MSFT_iSCSITarget.Connect`.
pub(super) fn connect(tx: &mut Tx<'_>, inputs: &Inputs) -> MethodOutput {
    let target = inputs.text("NodeAddress").to_owned();
    if tx.storage.sessions.iter().any(|session| session.login.target.as_deref() == Some(&target)) {
        return answer(SESSION_EXISTS);
    }
    let (address, port) = (inputs.text("TargetPortalAddress"), inputs.number("TargetPortalPortNumber") as u16);
    let knows = |portal: &Portal| {
        let is_portal = portal.address == address && portal.port == port;
        (address.is_empty() || is_portal) && portal.targets.contains(&target)
    };
    let Some(portal) = tx.storage.portals.iter().find(|portal| knows(portal)).cloned() else {
        return answer(INVALID_PARAMETER);
    };
    // A persistent login would hold up the next boot; nobody here wants one.
    if inputs.flag("IsPersistent") {
        return answer(INVALID_PARAMETER);
    }
    let secret = inputs.text("ChapSecret");
    let chap = match inputs.text("AuthenticationType") {
        "" | "NONE" => None,
        "ONEWAYCHAP" if (12..=16).contains(&secret.len()) => {
            Some((inputs.text("ChapUsername").to_owned(), secret.to_owned()))
        }
        _ => return answer(INVALID_PARAMETER),
    };
    let login = Login { address: portal.address, port: portal.port, target: Some(target), chap };
    let units = Link::log_in(&login).and_then(|mut link| {
        let units = link.units()?;
        Ok(units.into_iter().map(|unit| Ok((unit, link.facts(unit)?))).collect::<std::io::Result<Vec<_>>>()?)
    });
    let units = match units {
        Ok(units) => units,
        Err(error) => return answer(code_of(&error)),
    };
    let arrives_ms = tx.now_ms + tx.options.disk_arrival_ms;
    let is_server = !tx.options.new_disks_online;
    let id = format!("ffff{}", new_guid().replace('-', "").to_lowercase());
    let state = tx.edit();
    let mut disks = Vec::new();
    for (unit, facts) in units {
        state.storage.arrivals += 1;
        if state.storage.settings(&facts.serial).is_none() {
            state.storage.settings.push(DiskSettings {
                serial: facts.serial.clone(),
                is_offline: is_server,
                is_read_only: is_server,
                folders: Vec::new(),
            });
        }
        disks.push(RemoteDisk {
            unit,
            serial: facts.serial,
            unique_id: facts.unique_id,
            block_bytes: facts.block_bytes,
            size_bytes: facts.size_bytes,
            number: state.storage.arrivals,
            arrives_ms,
        });
    }
    state.storage.sessions.push(Session { id: id.clone(), login, disks });
    answer_with(0, vec![("CreatediSCSISession", CimValue::String(id))])
}

/// `MSFT_iSCSITarget.Disconnect`: not while a disk of the session is in use.
pub(super) fn disconnect(tx: &mut Tx<'_>, object: &Instance, inputs: &Inputs) -> MethodOutput {
    let target = object.get("NodeAddress").as_str().unwrap_or_default().to_owned();
    let wanted = inputs.text("SessionIdentifier").to_owned();
    let is_it = |session: &Session| {
        session.login.target.as_deref() == Some(&target) && (wanted.is_empty() || session.id == wanted)
    };
    let Some(session) = tx.storage.sessions.iter().find(|session| is_it(session)).cloned() else {
        return answer(INVALID_PARAMETER);
    };
    let is_online = |serial: &str| tx.storage.settings(serial).is_some_and(|settings| !settings.is_offline);
    if session.disks.iter().any(|disk| is_online(&disk.serial)) {
        return answer(SESSION_BUSY);
    }
    tx.edit().storage.sessions.retain(|other| other.id != session.id);
    answer(0)
}

/// `MSFT_Disk.Online` and `Offline`: a volume that a running VM reads from stays.
pub(super) fn set_offline(tx: &mut Tx<'_>, object: &Instance, is_offline: bool) -> Result<MethodOutput, LabError> {
    let Some(serial) = serial_of(tx, object) else { return Ok(answer(INVALID_PARAMETER)) };
    if is_offline && is_used(tx, &serial)? {
        return Ok(answer(FAILED));
    }
    if let Some(settings) = tx.edit().storage.settings_mut(&serial) {
        settings.is_offline = is_offline;
    }
    Ok(answer(0))
}

/// `MSFT_Disk.SetAttributes`.
pub(super) fn set_attributes(tx: &mut Tx<'_>, object: &Instance, inputs: &Inputs) -> MethodOutput {
    let Some(serial) = serial_of(tx, object) else { return answer(INVALID_PARAMETER) };
    if let (Some(value), Some(settings)) =
        (inputs.value("IsReadOnly").as_bool(), tx.edit().storage.settings_mut(&serial))
    {
        settings.is_read_only = value;
    }
    answer(0)
}

/// `MSFT_Partition.AddAccessPath`: the folder is there and empty, and the disk on-line.
pub(super) fn add_access_path(tx: &mut Tx<'_>, object: &Instance, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let folder = WinPath::new(inputs.text("AccessPath").trim_end_matches('\\'));
    let Some(serial) = serial_of(tx, object) else { return Ok(answer(INVALID_PARAMETER)) };
    let real = tx.store.file(&folder)?;
    let is_empty = std::fs::read_dir(&real).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty {
        return Ok(answer(NO_SUCH_FOLDER));
    }
    if tx.storage.settings.iter().any(|settings| settings.folders.contains(&folder)) {
        return Ok(answer(PATH_IN_USE));
    }
    match tx.edit().storage.settings_mut(&serial).filter(|settings| !settings.is_offline && !settings.is_read_only) {
        Some(settings) => settings.folders.push(folder),
        None => return Ok(answer(FAILED)),
    }
    Ok(answer(0))
}

/// `MSFT_Partition.RemoveAccessPath`.
pub(super) fn remove_access_path(
    tx: &mut Tx<'_>,
    object: &Instance,
    inputs: &Inputs,
) -> Result<MethodOutput, LabError> {
    let folder = WinPath::new(inputs.text("AccessPath").trim_end_matches('\\'));
    let Some(serial) = serial_of(tx, object) else { return Ok(answer(INVALID_PARAMETER)) };
    if is_used(tx, &serial)? {
        return Ok(answer(FAILED));
    }
    let Some(settings) = tx.edit().storage.settings_mut(&serial) else { return Ok(answer(INVALID_PARAMETER)) };
    let before = settings.folders.len();
    settings.folders.retain(|known| *known != folder);
    Ok(answer(if settings.folders.len() == before { NO_SUCH_FOLDER } else { 0 }))
}
