//! The VMs of a host, with what a backup must know of each before it starts (spec 2).
//!
//! One query per class, joined in memory (spec 1.7): walking associations costs hundreds of milliseconds per VM.

use vhdx::{DiskKind, Guid};

use crate::broken_chain::problem_of_chain;
use crate::checkpoint_list::{CheckpointInfo, CheckpointKind, checkpoint_info};
use crate::devices::{DiskDevice, DiskRole, disk_devices};
use crate::disk_file::DiskFormat;
use crate::guest::{Guest, guest};
use crate::host::MANAGEMENT_SERVICE;
use crate::names::configuration_of;
use crate::reference_point::{ReferencePoint, reference_point};
use crate::seam::{CimValue, Instance, ObjectPath};
use crate::{ClusteredVm, DiskSlot, Error, Host, Operation, VmId, VmState, wql};

/// A VM that is registered on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Vm {
    /// Its identity.
    pub id: VmId,
    /// Its display name: not unique, any Unicode.
    pub name: String,
    /// The `Msvm_ComputerSystem`.
    pub path: ObjectPath,
    /// The active `Msvm_VirtualSystemSettingData`.
    pub settings_path: ObjectPath,
    /// What it is doing.
    pub state: VmState,
    /// An operation in progress (`OperationalStatus[1]`); a checkpoint has to wait for its end.
    pub operation: Option<Operation>,
    /// 1 or 2.
    pub generation: u8,
    /// Such as `9.0`.
    pub configuration_version: String,
    /// Virtual processors; `None` if its settings do not say.
    pub processors: Option<u64>,
    /// Start-up memory in MiB; `None` if its settings do not say.
    pub memory_mib: Option<u64>,
    /// The disks that a checkpoint freezes, in order of their slots.
    pub disks: Vec<VmDisk>,
    /// What a checkpoint leaves out, and why.
    pub excluded_disks: Vec<ExcludedDisk>,
    /// Disks that should be backed up and cannot be: a file of the chain is missing, or the host cannot read it.
    pub unreadable_disks: Vec<UnreadableDisk>,
    /// All checkpoints; see [`Vm::user_checkpoints`] and [`Vm::recovery_checkpoints`].
    pub checkpoints: Vec<CheckpointInfo>,
    /// Reference points, whoever made them.
    pub reference_points: Vec<ReferencePoint>,
    /// Whether the guest can be asked to freeze.
    pub vss: VssReadiness,
    /// What the guest says it is.
    pub guest: Guest,
    /// A virtual TPM is on.
    pub tpm: bool,
    /// Shielding was asked for: no console, and no start outside of the guarded fabric (spec 6.6).
    pub shielded: bool,
    /// Hyper-V Replica: 0 none, 1 primary, 2 replica, 3 test replica, 4 extended replica; primary and replica share the
    /// VM id.
    pub replication_mode: u16,
}

impl Vm {
    /// Standard and production checkpoints. A change of this set between runs asks for a full backup (spec 4.9).
    pub fn user_checkpoints(&self) -> impl Iterator<Item = &CheckpointInfo> {
        self.checkpoints.iter().filter(|checkpoint| checkpoint.kind == CheckpointKind::User)
    }

    /// Backup checkpoints, ours and others': leftovers, or another product at work (spec 3.10).
    pub fn recovery_checkpoints(&self) -> impl Iterator<Item = &CheckpointInfo> {
        self.checkpoints.iter().filter(|checkpoint| checkpoint.kind == CheckpointKind::Recovery)
    }

    /// `VM "web" (0A1B…)`, as error texts name it.
    pub(crate) fn label(&self) -> String {
        format!("VM {:?} ({})", self.name, self.id)
    }
}

/// A disk that a checkpoint freezes. The paths are those of now: after a checkpoint they name the new leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDisk {
    /// Where it is attached.
    pub slot: DiskSlot,
    /// `InstanceID` of its storage allocation setting.
    pub instance_id: String,
    /// The file the VM writes.
    pub path: String,
    /// Container format.
    pub format: DiskFormat,
    /// How the leaf stores its payload.
    pub kind: DiskKind,
    /// The identity that stays through checkpoints, migrations and other slots.
    pub virtual_disk_id: Guid,
    /// What the guest sees.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub logical_sector_bytes: u32,
    /// 512 or 4096.
    pub physical_sector_bytes: u32,
    /// The files, leaf first.
    pub chain: Vec<String>,
    /// Whether changes can be tracked.
    pub tracking: TrackingSupport,
}

/// Whether resilient change tracking can work for a disk (spec 2.7). That it *is* on shows only on the frozen file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackingSupport {
    /// Yes; the first checkpoint switches it on.
    Supported,
    /// The host is older than Server 2016.
    HostTooOld,
    /// The VM's configuration version is below 6.2.
    ConfigurationTooOld,
    /// Not a VHDX.
    NotVhdx,
    /// Persistent memory: not known to work.
    PersistentMemory,
}

/// A disk that no checkpoint covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExcludedDisk {
    /// Where it is attached; `None` for adapters that have no slot.
    pub slot: Option<DiskSlot>,
    /// `InstanceID` of the setting.
    pub instance_id: String,
    /// The file or device, as the host names it.
    pub path: String,
    /// Why.
    pub reason: Exclusion,
}

/// Why a disk is left out (spec 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// A physical disk of the host.
    PassThrough,
    /// A VHDX that several VMs may write (`PersistentReservationsSupported`).
    Shared,
    /// A VHD set.
    VhdSet,
    /// Disks behind a virtual fibre channel adapter.
    FibreChannel,
}

/// A disk that should be backed up and cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableDisk {
    /// Where it is attached; `None` when its controller was not found.
    pub slot: Option<DiskSlot>,
    /// `InstanceID` of its setting.
    pub instance_id: String,
    /// The file it should have.
    pub path: String,
    /// What is wrong, for people.
    pub problem: String,
}

/// Whether an application-consistent checkpoint can be expected to work (spec 2.2, 3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VssReadiness {
    /// The guest's component answers.
    Ready,
    /// The component is switched off in the VM's settings.
    Disabled,
    /// The component reports this `OperationalStatus[0]`: 7 failed for good, 12 no contact, 13 lost; asking costs the
    /// guest timeout and fails.
    NotResponding(u16),
    /// The VM does not run, or nothing is known.
    Unknown,
}

/// Why a VM was not found by what a person typed.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Neither an id nor a name fits.
    #[error("find VM {selector:?}: no VM on this host has this id or name")]
    NotFound {
        /// What was looked for.
        selector: String,
    },
    /// Names are not unique.
    #[error("find VM {selector:?}: {} VMs have this name: {}", .candidates.len(), ids(.candidates))]
    Ambiguous {
        /// What was looked for.
        selector: String,
        /// Every VM that fits, with its exact name.
        candidates: Vec<(VmId, String)>,
    },
    /// The host could not be asked.
    #[error(transparent)]
    Host(#[from] Error),
}

fn ids(candidates: &[(VmId, String)]) -> String {
    candidates.iter().map(|(id, name)| format!("{id} ({name})")).collect::<Vec<_>>().join(", ")
}

/// Everything that was read, before it is joined.
#[derive(Default)]
struct Records {
    systems: Vec<Instance>,
    settings: Vec<Instance>,
    media: Vec<Instance>,
    drives_and_controllers: Vec<Instance>,
    fibre_channel: Vec<Instance>,
    reference_points: Vec<Instance>,
    vss_settings: Vec<Instance>,
    vss_components: Vec<Instance>,
    kvp_components: Vec<Instance>,
    security: Vec<Instance>,
    processors: Vec<Instance>,
    memory: Vec<Instance>,
    host_tracks: bool,
}

impl Host {
    /// Every VM of the host, ordered by name and id.
    pub fn list_vms(&self) -> Result<Vec<Vm>, Error> {
        let attempt = "list the VMs";
        let systems = self.find(attempt, &wql::all("Msvm_ComputerSystem"))?;
        let all = |class: &str| self.find(attempt, &wql::all(class));
        let records = Records {
            systems,
            settings: all(SETTINGS)?,
            media: all(MEDIA)?,
            drives_and_controllers: all(DEVICES)?,
            fibre_channel: all(FIBRE_CHANNEL)?,
            reference_points: all(REFERENCE_POINTS)?,
            vss_settings: all(VSS_SETTINGS)?,
            vss_components: all(VSS_COMPONENTS)?,
            kvp_components: all(KVP_COMPONENTS)?,
            security: all(SECURITY)?,
            processors: all(PROCESSORS)?,
            memory: all(MEMORY)?,
            host_tracks: self.makes_reference_points(attempt)?,
        };
        self.join(attempt, &records)
    }

    /// One VM, read afresh; `None` when it is not on this host (perhaps on another node of the cluster).
    pub fn vm(&self, id: &VmId) -> Result<Option<Vm>, Error> {
        let attempt = format!("read VM {id}");
        let attempt = attempt.as_str();
        let systems = self.find(attempt, &wql::by("Msvm_ComputerSystem", "Name", id.as_str()))?;
        if systems.is_empty() {
            // An account without rights sees nothing (spec 2.1): that is no VM that is gone.
            self.service(attempt, MANAGEMENT_SERVICE)?;
            return Ok(None);
        }
        let settings = self.find(attempt, &wql::by(SETTINGS, "VirtualSystemIdentifier", id.as_str()))?;
        let active = settings.iter().find(|settings| is_active(settings)).and_then(|settings| settings.path.as_ref());
        let devices = match active {
            Some(active) => self.find(attempt, &wql::associated(active, COMPONENT, None))?,
            None => Vec::new(),
        };
        let of_class = |class: &str| -> Vec<Instance> {
            devices.iter().filter(|device| device.class.eq_ignore_ascii_case(class)).cloned().collect()
        };
        let records = Records {
            systems,
            settings,
            media: of_class(MEDIA),
            drives_and_controllers: of_class(DEVICES),
            fibre_channel: of_class(FIBRE_CHANNEL),
            reference_points: self.find(attempt, &wql::by(REFERENCE_POINTS, "VirtualSystemIdentifier", id.as_str()))?,
            vss_settings: of_class(VSS_SETTINGS),
            vss_components: self.find(attempt, &wql::by(VSS_COMPONENTS, "SystemName", id.as_str()))?,
            kvp_components: self.find(attempt, &wql::by(KVP_COMPONENTS, "SystemName", id.as_str()))?,
            security: self.find(attempt, &wql::all(SECURITY))?,
            processors: of_class(PROCESSORS),
            memory: of_class(MEMORY),
            host_tracks: self.makes_reference_points(attempt)?,
        };
        Ok(self.join(attempt, &records)?.into_iter().next())
    }

    /// The VM that a person means: by id, or by name when exactly one has it. An exact name wins over one that differs
    /// in case.
    pub fn find_vm(&self, selector: &str) -> Result<Vm, FindError> {
        let not_found = || FindError::NotFound { selector: selector.to_owned() };
        if let Ok(id) = selector.parse::<VmId>() {
            if let Some(vm) = self.vm(&id)? {
                return Ok(vm);
            }
            // A cluster that does not answer is no worse than none here.
            if let Ok(Some(ClusteredVm { owner_node, .. })) = self.clustered_vm(&id) {
                return Err(Error::OnOtherNode { attempt: format!("find VM {id}"), node: owner_node }.into());
            }
        }
        // Names are compared here and never enter a query.
        let attempt = format!("find VM {selector:?}");
        let systems = self.find(&attempt, &wql::all("Msvm_ComputerSystem"))?;
        let names = || {
            systems.iter().filter_map(|system| {
                let id: VmId = system.get("Name").as_str()?.parse().ok()?;
                Some((id, system.get("ElementName").as_str().unwrap_or_default().to_owned()))
            })
        };
        let mut candidates: Vec<_> = names().filter(|(_, name)| name == selector).collect();
        if candidates.is_empty() {
            let lower = selector.to_lowercase();
            candidates = names().filter(|(_, name)| name.to_lowercase() == lower).collect();
        }
        match candidates.as_slice() {
            [] => {
                self.service(&attempt, MANAGEMENT_SERVICE)?;
                Err(not_found())
            }
            [(id, _)] => self.vm(id)?.ok_or_else(not_found),
            _ => Err(FindError::Ambiguous { selector: selector.to_owned(), candidates }),
        }
    }

    fn join(&self, attempt: &str, records: &Records) -> Result<Vec<Vm>, Error> {
        let image_service = self.image_service(attempt)?;
        let mut vms = Vec::new();
        for system in &records.systems {
            // The host itself is an instance too; its name is not a GUID, and its caption may be localised (spec 1.2).
            let Some(id) = system.get("Name").as_str().and_then(|name| name.parse::<VmId>().ok()) else { continue };
            let is_own = |settings: &&Instance| {
                settings
                    .get("VirtualSystemIdentifier")
                    .as_str()
                    .is_some_and(|owner| owner.eq_ignore_ascii_case(id.as_str()))
            };
            let settings: Vec<_> = records.settings.iter().filter(is_own).collect();
            // A VM in the middle of being created or deleted may have no settings; it is not there to back up.
            let Some(active) = settings.iter().find(|settings| is_active(settings)) else { continue };
            let (Some(path), Some(settings_path)) = (&system.path, &active.path) else { continue };
            let text = |instance: &Instance, name| instance.get(name).as_str().unwrap_or_default().to_owned();
            let configuration = active.get("InstanceID").as_str().and_then(configuration_of).unwrap_or_default();
            let security = records.security.iter().find(|setting| belongs_to(setting, configuration));
            let is_on = |name| security.is_some_and(|security| security.get(name).as_bool() == Some(true));
            let quantity = |settings: &[Instance]| {
                let own = settings.iter().find(|setting| belongs_to(setting, configuration));
                own.and_then(|setting| setting.get("VirtualQuantity").as_u64())
            };
            let mut vm = Vm {
                name: text(system, "ElementName"),
                path: path.clone(),
                settings_path: settings_path.clone(),
                state: VmState::of(system),
                operation: Operation::of(system),
                generation: generation(active),
                configuration_version: text(active, "Version"),
                processors: quantity(&records.processors),
                memory_mib: quantity(&records.memory),
                disks: Vec::new(),
                excluded_disks: Vec::new(),
                unreadable_disks: Vec::new(),
                checkpoints: settings.iter().filter_map(|settings| checkpoint_info(settings)).collect(),
                reference_points: records.reference_points.iter().filter(is_own).filter_map(reference_point).collect(),
                vss: vss_readiness(&id, records),
                guest: guest(records.kvp_components.iter().find(|component| is_device_of(component, &id))),
                tpm: is_on("TpmEnabled"),
                shielded: is_on("ShieldingRequested"),
                replication_mode: number(system, "ReplicationMode"),
                id,
            };
            let devices = disk_devices(configuration, &records.media, &records.drives_and_controllers);
            for device in devices {
                self.add_disk(attempt, &image_service, records.host_tracks, device, &mut vm)?;
            }
            for adapter in records.fibre_channel.iter().filter(|adapter| belongs_to(adapter, configuration)) {
                vm.excluded_disks.push(ExcludedDisk {
                    slot: None,
                    instance_id: text(adapter, "InstanceID"),
                    path: text(adapter, "ElementName"),
                    reason: Exclusion::FibreChannel,
                });
            }
            vms.push(vm);
        }
        vms.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(vms)
    }

    fn add_disk(
        &self,
        attempt: &str,
        image_service: &ObjectPath,
        host_tracks: bool,
        device: DiskDevice,
        vm: &mut Vm,
    ) -> Result<(), Error> {
        let DiskDevice { slot, instance_id, path, role } = device;
        let reason = match role {
            DiskRole::PassThrough => Some(Exclusion::PassThrough),
            DiskRole::Shared => Some(Exclusion::Shared),
            DiskRole::Disk => None,
        };
        if let Some(reason) = reason {
            vm.excluded_disks.push(ExcludedDisk { slot, instance_id, path, reason });
            return Ok(());
        }
        let Some(slot) = slot else {
            let problem = "its drive or controller is not among the VM's settings".to_owned();
            vm.unreadable_disks.push(UnreadableDisk { slot, instance_id, path, problem });
            return Ok(());
        };
        match self.disk_chain(attempt, image_service, &path) {
            Ok((facts, _)) if facts.format == DiskFormat::VhdSet => {
                let reason = Exclusion::VhdSet;
                vm.excluded_disks.push(ExcludedDisk { slot: Some(slot), instance_id, path, reason });
            }
            Ok((facts, chain)) => vm.disks.push(VmDisk {
                slot,
                instance_id,
                path,
                format: facts.format,
                kind: facts.kind,
                virtual_disk_id: facts.virtual_disk_id,
                size_bytes: facts.size_bytes,
                logical_sector_bytes: facts.logical_sector_bytes,
                physical_sector_bytes: facts.physical_sector_bytes,
                chain,
                tracking: match facts.format {
                    _ if !host_tracks => TrackingSupport::HostTooOld,
                    DiskFormat::Vhdx if facts.pmem => TrackingSupport::PersistentMemory,
                    DiskFormat::Vhdx if tracks_changes(&vm.configuration_version) => TrackingSupport::Supported,
                    DiskFormat::Vhdx => TrackingSupport::ConfigurationTooOld,
                    _ => TrackingSupport::NotVhdx,
                },
            }),
            // Without the service nothing is known about the disk; that is not the disk's fault.
            Err(error) if error.kind() == crate::ErrorKind::ServiceGone => return Err(error),
            Err(error) => {
                // A chain in a circle is as well told as it can be; a refusal names neither file nor cause.
                let told = matches!(error, Error::Unexpected { .. });
                let found = if told { None } else { problem_of_chain(&*self.seam.files, &path) };
                let problem = match found {
                    Some(found) => format!("{found}; the host says: {error}"),
                    None => error.to_string(),
                };
                vm.unreadable_disks.push(UnreadableDisk { slot: Some(slot), instance_id, path, problem });
            }
        }
        Ok(())
    }
}

pub(crate) const SETTINGS: &str = "Msvm_VirtualSystemSettingData";
pub(crate) const MEDIA: &str = "Msvm_StorageAllocationSettingData";
pub(crate) const DEVICES: &str = "Msvm_ResourceAllocationSettingData";
pub(crate) const REFERENCE_POINTS: &str = "Msvm_VirtualSystemReferencePoint";
pub(crate) const COMPONENT: &str = "Msvm_VirtualSystemSettingDataComponent";
pub(crate) const PROCESSORS: &str = "Msvm_ProcessorSettingData";
pub(crate) const MEMORY: &str = "Msvm_MemorySettingData";
pub(crate) const SECURITY: &str = "Msvm_SecuritySettingData";
const FIBRE_CHANNEL: &str = "Msvm_SyntheticFcPortSettingData";
const VSS_SETTINGS: &str = "Msvm_VssComponentSettingData";
const VSS_COMPONENTS: &str = "Msvm_VssComponent";
const KVP_COMPONENTS: &str = "Msvm_KvpExchangeComponent";

/// Whether these are the current settings of a registered VM, rather than a checkpoint or a planned VM.
pub(crate) fn is_active(settings: &Instance) -> bool {
    settings.get("VirtualSystemType").as_str() == Some("Microsoft:Hyper-V:System:Realized")
}

fn belongs_to(setting: &Instance, configuration: &str) -> bool {
    let own = setting.get("InstanceID").as_str().and_then(configuration_of);
    own.is_some_and(|own| own.eq_ignore_ascii_case(configuration))
}

pub(crate) fn number(instance: &Instance, name: &str) -> u16 {
    instance.get(name).as_u64().and_then(|value| u16::try_from(value).ok()).unwrap_or(0)
}

fn generation(active: &Instance) -> u8 {
    match active.get("VirtualSystemSubType").as_str() {
        Some(text) if text.ends_with('2') => 2,
        _ => 1,
    }
}

/// Configuration version 6.2 or later (spec 2.7).
fn tracks_changes(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), minor) => (major, minor.unwrap_or(0)) >= (6, 2),
        _ => false,
    }
}

fn is_device_of(device: &Instance, id: &VmId) -> bool {
    device.get("SystemName").as_str().is_some_and(|system| system.eq_ignore_ascii_case(id.as_str()))
}

fn vss_readiness(id: &VmId, records: &Records) -> VssReadiness {
    const DISABLED: u64 = 3;
    let setting = records.vss_settings.iter().find(|setting| belongs_to(setting, id.as_str()));
    if setting.is_some_and(|setting| setting.get("EnabledState").as_u64() == Some(DISABLED)) {
        return VssReadiness::Disabled;
    }
    let status = records.vss_components.iter().find(|component| is_device_of(component, id)).and_then(|component| {
        component.get("OperationalStatus").as_array().and_then(|status| status.first()).and_then(CimValue::as_u64)
    });
    match status {
        Some(status @ (7 | 12 | 13)) => VssReadiness::NotResponding(status as u16),
        Some(_) => VssReadiness::Ready,
        None => VssReadiness::Unknown,
    }
}
