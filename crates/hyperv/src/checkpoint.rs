//! Making the recovery checkpoint that a backup reads from (spec 3).

use std::sync::Arc;
use std::time::Duration;

use vhdx::Guid;

use crate::checkpoint_list::{CheckpointKind, LOOK_AGAIN_AFTER, checkpoint_info};
use crate::devices::{DiskRole, disk_devices};
use crate::disk_file::{DiskFormat, unexpected};
use crate::host::{MANAGEMENT_SERVICE, SNAPSHOT_SERVICE};
use crate::inventory::{COMPONENT, DEVICES, MEDIA, SETTINGS};
use crate::job::{Ended, Invocation, JobLimits};
use crate::names::configuration_of;
use crate::seam::{CimValue, Instance, ObjectPath};
use crate::{Cancel, CreateError, DiskSlot, Error, ErrorKind, Host, Vm, VmId, cim_xml, wql};

/// The state that the disks are frozen in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// The guest was asked to freeze: application-consistent on Windows, file-system-consistent on Linux.
    Application,
    /// As after a power cut.
    Crash,
}

impl Consistency {
    /// The number in `ConsistencyLevel` of settings and of reference points.
    pub(crate) fn level(self) -> u8 {
        match self {
            Self::Application => 1,
            Self::Crash => 2,
        }
    }

    pub(crate) fn from_level(level: u64) -> Option<Self> {
        match level {
            1 => Some(Self::Application),
            2 => Some(Self::Crash),
            _ => None,
        }
    }
}

/// What application writers in the guest take the backup for (`GuestBackupType`, spec 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestBackup {
    /// 1: writers may truncate their logs.
    Full,
    /// 2: a copy; logs stay.
    Copy,
}

/// How a checkpoint is to be made.
#[derive(Clone, Debug)]
pub struct CheckpointRequest {
    /// What to ask for. A request for [`Consistency::Application`] never degrades: it fails (spec 3.6).
    pub consistency: Consistency,
    /// What to tell the guest's writers; hosts from before version 1703 have no such setting and decide themselves.
    pub guest_backup: GuestBackup,
    /// Leave out pass-through disks instead of failing because of them.
    pub ignore_non_snapshottable: bool,
    /// The name by which the checkpoint is recognised later.
    pub tag: String,
    /// How long to wait before the job is asked to stop.
    pub limits: JobLimits,
    /// What is called before the guest is asked to freeze, and after.
    pub hooks: Option<Arc<dyn FreezeHooks>>,
    /// Lets another thread stop the wait. A job that completes although it was asked to stop counts as done: its
    /// checkpoint is returned rather than lost.
    pub cancel: Cancel,
}

impl CheckpointRequest {
    /// The defaults of spec 3.1 and 3.7: a copy backup, pass-through disks left out, 20 minutes for the guest's freeze
    /// or 5 without it.
    pub fn new(consistency: Consistency, tag: impl Into<String>) -> Self {
        let limit = match consistency {
            Consistency::Application => Duration::from_secs(20 * 60),
            Consistency::Crash => Duration::from_secs(5 * 60),
        };
        Self {
            consistency,
            guest_backup: GuestBackup::Copy,
            ignore_non_snapshottable: true,
            tag: tag.into(),
            hooks: None,
            // A Linux guest's freeze alone can last 15 minutes.
            limits: JobLimits { limit, after_cancel: Duration::from_secs(15 * 60) },
            cancel: Cancel::default(),
        }
    }
}

/// The caller's own commands around the freeze, in the guest or elsewhere: Hyper-V calls none (spec 9.3).
///
/// `after` is called once for every call of `before`, whatever came of it and of the checkpoint, and as soon as the
/// disks are frozen: what `before` holds up, waits no longer than the checkpoint takes.
pub trait FreezeHooks: Send + Sync + std::fmt::Debug {
    /// Called right before the request. An error stops the checkpoint: nothing is asked of the host.
    fn before(&self) -> Result<(), String>;
    /// Called when the request has ended. An error is a warning of the checkpoint, if there is one.
    fn after(&self) -> Result<(), String>;
}

/// A recovery checkpoint: every disk frozen at one instant, to be read and then converted or destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The `Msvm_VirtualSystemSettingData`.
    pub path: ObjectPath,
    /// `Microsoft:<GUID>`.
    pub instance_id: String,
    /// The VM.
    pub vm_id: VmId,
    /// The VM's name when it was made, for messages.
    pub vm_name: String,
    /// Its name now.
    pub tag: String,
    /// What was asked for, and therefore reached.
    pub consistency: Consistency,
    /// The frozen disks, in order of their slots.
    pub disks: Vec<FrozenDisk>,
    /// Its configuration files.
    pub config_files: ConfigPaths,
    /// What the host remarked on a job that it completed all the same.
    pub warnings: Vec<String>,
}

/// A disk as the checkpoint froze it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenDisk {
    /// Where it is attached.
    pub slot: DiskSlot,
    /// `InstanceID` of the checkpoint's storage allocation setting.
    pub sasd_instance_id: String,
    /// The frozen file: never the path that the running VM lists (spec 3.4).
    pub path: String,
    /// The frozen file and its parents, as host paths.
    pub chain: Vec<String>,
    /// The identity across runs.
    pub virtual_disk_id: Guid,
}

/// Where a checkpoint's configuration lies (spec 3.5). A `.vmgs` exists since version 1709 only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigPaths {
    /// The definition.
    pub vmcx: String,
    /// Run-time state.
    pub vmrs: String,
    /// Guest state: firmware variables and the virtual TPM.
    pub vmgs: String,
}

impl Host {
    /// Makes a recovery checkpoint, names it with the request's tag, and finds its disks.
    ///
    /// Every disk in `vm` must turn up in the checkpoint. On an error, what may have appeared on the host is in
    /// [`CreateError::left_behind`]. The VM must not be in a transition, and nobody else may change it meanwhile.
    pub fn create_recovery_checkpoint(&self, vm: &Vm, request: &CheckpointRequest) -> Result<Checkpoint, CreateError> {
        let attempt = format!("make a recovery checkpoint of {}", vm.label());
        let attempt = attempt.as_str();
        if request.cancel.is_cancelled() {
            return Err(Error::Cancelled { attempt: attempt.to_owned(), job_ended: true }.into());
        }
        let service = self.service(attempt, SNAPSHOT_SERVICE)?;
        let settings = self.snapshot_settings(attempt, request)?;
        let before = self.recovery_checkpoints_of(attempt, &vm.id)?;
        let parameters = [
            ("AffectedSystem", CimValue::Reference(vm.path.clone())),
            ("SnapshotSettings", CimValue::String(settings)),
            ("SnapshotType", CimValue::Uint16(RECOVERY_SNAPSHOT)),
        ];
        let call = Invocation {
            attempt,
            object: &service,
            method: "CreateSnapshot",
            parameters: &parameters,
            limits: request.limits,
            cancel: Some(&request.cancel),
        };
        let (ended, hook_warning) = self.invoke_between_hooks(&call, request.hooks.as_deref());
        let made = ended
            .and_then(|ended| self.find_checkpoint(attempt, &vm.id, &before, ended))
            .map(|(settings, mut warnings)| {
                warnings.extend(hook_warning);
                (settings, warnings)
            })
            .and_then(|(settings, warnings)| self.describe_checkpoint(attempt, vm, request, settings, warnings));
        made.map_err(|error| CreateError { left_behind: self.new_checkpoints(attempt, &vm.id, &before), error })
    }

    /// The call with the caller's hooks around it, and what went wrong with the second one.
    fn invoke_between_hooks(
        &self,
        call: &Invocation<'_>,
        hooks: Option<&dyn FreezeHooks>,
    ) -> (Result<Ended, Error>, Option<String>) {
        let Some(hooks) = hooks else { return (self.invoke(call), None) };
        let ended = match hooks.before() {
            Ok(()) => self.invoke(call),
            Err(problem) => Err(Error::Hook { attempt: call.attempt.to_owned(), problem }),
        };
        let warning = hooks.after().err().map(|problem| format!("after the freeze: {problem}"));
        (ended, warning)
    }

    /// `Msvm_VirtualSystemSnapshotSettingData` as text; `GuestBackupType` only where the host's class has it.
    fn snapshot_settings(&self, attempt: &str, request: &CheckpointRequest) -> Result<String, Error> {
        const CLASS: &str = "Msvm_VirtualSystemSnapshotSettingData";
        let known = self.class_properties(attempt, CLASS)?.unwrap_or_default();
        let mut properties = vec![
            ("ConsistencyLevel", CimValue::Uint8(request.consistency.level())),
            ("IgnoreNonSnapshottableDisks", CimValue::Boolean(request.ignore_non_snapshottable)),
        ];
        if known.iter().any(|name| name.eq_ignore_ascii_case("GuestBackupType")) {
            let guest_backup = match request.guest_backup {
                GuestBackup::Full => 1,
                GuestBackup::Copy => 2,
            };
            properties.push(("GuestBackupType", CimValue::Uint8(guest_backup)));
        }
        let properties = properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let instance = Instance { class: CLASS.to_owned(), path: None, properties };
        cim_xml::to_text(&instance).map_err(|source| Error::CimXml { attempt: attempt.to_owned(), source })
    }

    fn recovery_checkpoints_of(&self, attempt: &str, vm: &VmId) -> Result<Vec<ObjectPath>, Error> {
        let all = self.checkpoints_for(attempt, vm)?.into_iter();
        Ok(all
            .filter(|checkpoint| checkpoint.kind == CheckpointKind::Recovery)
            .map(|checkpoint| checkpoint.path)
            .collect())
    }

    /// The recovery checkpoints that were not there before; nothing when even that cannot be asked, because the error
    /// that is being reported says more.
    fn new_checkpoints(&self, attempt: &str, vm: &VmId, before: &[ObjectPath]) -> Vec<ObjectPath> {
        let now = self.recovery_checkpoints_of(attempt, vm).unwrap_or_default();
        now.into_iter().filter(|path| !before.contains(path)).collect()
    }

    /// The settings of the new checkpoint: what the method returned, what its job is associated with, or the difference
    /// to before (spec 3.2).
    fn find_checkpoint(
        &self,
        attempt: &str,
        vm: &VmId,
        before: &[ObjectPath],
        ended: Ended,
    ) -> Result<(Instance, Vec<String>), Error> {
        let is_new = |settings: &Instance| {
            is_recovery(settings) && settings.path.as_ref().is_some_and(|path| !before.contains(path))
        };
        let (output, job, warnings, reason) = match ended {
            Ended::Now(output) => (Some(output), None, Vec::new(), None),
            Ended::Job { output, job, warnings } => (Some(output), Some(job), warnings, None),
            Ended::Unknown { reason } => (None, None, Vec::new(), Some(reason)),
        };
        if let Some(job) = &job
            && let [settings] = self.job_results(attempt, job, SETTINGS, is_new)?.as_slice()
        {
            return Ok((settings.clone(), warnings));
        }
        let returned = output.as_ref().and_then(|output| output.get("ResultingSnapshot").as_str());
        if let Some(path) = returned
            && let Some(settings) = self.get(attempt, &ObjectPath::new(path))?
            && is_new(&settings)
        {
            return Ok((settings, warnings));
        }
        // The work may go on although its job cannot be asked, so an unknown end is looked at for a while.
        let waits = if reason.is_some() { &LOOK_AGAIN_AFTER[..] } else { &LOOK_AGAIN_AFTER[..1] };
        for wait in waits {
            let found = self.checkpoints_for(attempt, vm)?;
            let new: Vec<_> = found
                .iter()
                .filter(|checkpoint| checkpoint.kind == CheckpointKind::Recovery && !before.contains(&checkpoint.path))
                .collect();
            match new.as_slice() {
                [one] => {
                    if let Some(settings) = self.get(attempt, &one.path)? {
                        return Ok((settings, warnings));
                    }
                }
                [] => {}
                several => {
                    let problem =
                        format!("{} new recovery checkpoints appeared, and which is ours is not known", several.len());
                    return Err(unexpected(attempt, problem));
                }
            }
            self.seam.clock.sleep(*wait);
        }
        Err(match reason {
            Some(reason) => {
                let seen = "no new recovery checkpoint is there".to_owned();
                Error::OutcomeUnknown { attempt: attempt.to_owned(), reason, seen }
            }
            None => unexpected(attempt, "the host reports success, but no new recovery checkpoint is there".into()),
        })
    }

    /// What a finished job has made (`Msvm_AffectedJobElement`). A job that has expired by now has no answer.
    pub(crate) fn job_results(
        &self,
        attempt: &str,
        job: &ObjectPath,
        class: &str,
        wanted: impl Fn(&Instance) -> bool,
    ) -> Result<Vec<Instance>, Error> {
        match self.find(attempt, &wql::associated(job, "Msvm_AffectedJobElement", Some(class))) {
            Ok(found) => Ok(found.into_iter().filter(|instance| wanted(instance)).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Names the checkpoint, then reads what a backup needs of it.
    fn describe_checkpoint(
        &self,
        attempt: &str,
        vm: &Vm,
        request: &CheckpointRequest,
        settings: Instance,
        warnings: Vec<String>,
    ) -> Result<Checkpoint, Error> {
        let path = settings.path.clone().ok_or_else(|| unexpected(attempt, "its settings have no path".into()))?;
        self.rename_checkpoint(attempt, &path, settings, &request.tag)?;
        self.read_checkpoint(attempt, &path, vm, request.consistency, warnings)
    }

    /// Sets `ElementName`.
    fn rename_checkpoint(&self, attempt: &str, path: &ObjectPath, settings: Instance, tag: &str) -> Result<(), Error> {
        let attempt = format!("{attempt}: name it {tag:?}");
        let attempt = attempt.as_str();
        let service = self.service(attempt, MANAGEMENT_SERVICE)?;
        let settings = cim_xml::changed(&settings, vec![("ElementName", CimValue::String(tag.to_owned()))]);
        let text =
            cim_xml::to_text(&settings).map_err(|source| Error::CimXml { attempt: attempt.to_owned(), source })?;
        let parameters = [("SystemSettings", CimValue::String(text))];
        let call = Invocation {
            attempt,
            object: &service,
            method: "ModifySystemSettings",
            parameters: &parameters,
            limits: JobLimits::DEFAULT,
            cancel: None,
        };
        let mut waits = LOOK_AGAIN_AFTER.iter();
        loop {
            match self.invoke(&call) {
                Ok(_) => {}
                // The VM may still count as busy with the checkpoint that was just made.
                Err(error)
                    if error.kind() == ErrorKind::Busy
                        && let Some(wait) = waits.next() =>
                {
                    self.seam.clock.sleep(*wait);
                    continue;
                }
                Err(error) => return Err(error),
            }
            let now = self.get(attempt, path)?.ok_or_else(|| gone(attempt, path))?;
            if now.get("ElementName").as_str() == Some(tag) {
                return Ok(());
            }
            match waits.next() {
                Some(wait) => self.seam.clock.sleep(*wait),
                None => return Err(unexpected(attempt, format!("its name is still {:?}", now.get("ElementName")))),
            }
        }
    }

    fn read_checkpoint(
        &self,
        attempt: &str,
        path: &ObjectPath,
        vm: &Vm,
        consistency: Consistency,
        warnings: Vec<String>,
    ) -> Result<Checkpoint, Error> {
        let settings = self.get(attempt, path)?.ok_or_else(|| gone(attempt, path))?;
        let text = |name: &str| settings.get(name).as_str().unwrap_or_default().to_owned();
        let instance_id = text("InstanceID");
        let configuration = configuration_of(&instance_id).unwrap_or_default();
        let media = self.find(attempt, &wql::associated(path, COMPONENT, Some(MEDIA)))?;
        let devices = self.find(attempt, &wql::associated(path, COMPONENT, Some(DEVICES)))?;
        let service = self.image_service(attempt)?;
        let mut disks = Vec::new();
        for device in disk_devices(configuration, &media, &devices) {
            if device.role != DiskRole::Disk {
                continue;
            }
            let slot = device.slot.ok_or_else(|| {
                unexpected(attempt, format!("the drive or controller of {} was not found", device.instance_id))
            })?;
            let (facts, chain) = self.disk_chain(attempt, &service, &device.path)?;
            if facts.format == DiskFormat::VhdSet {
                continue;
            }
            disks.push(FrozenDisk {
                slot,
                sasd_instance_id: device.instance_id,
                path: device.path,
                chain,
                virtual_disk_id: facts.virtual_disk_id,
            });
        }
        let is_frozen = |id: Guid| disks.iter().any(|disk| disk.virtual_disk_id == id);
        if let Some(lost) = vm.disks.iter().find(|disk| !is_frozen(disk.virtual_disk_id)) {
            return Err(unexpected(attempt, format!("it does not hold the disk at {} ({})", lost.slot, lost.path)));
        }
        Ok(Checkpoint {
            path: path.clone(),
            config_files: ConfigPaths::of(&settings),
            tag: text("ElementName"),
            instance_id,
            vm_id: vm.id.clone(),
            vm_name: vm.name.clone(),
            consistency,
            disks,
            warnings,
        })
    }
}

/// `SnapshotType` of a backup checkpoint (spec 3.1).
const RECOVERY_SNAPSHOT: u16 = 32768;

fn is_recovery(settings: &Instance) -> bool {
    checkpoint_info(settings).is_some_and(|info| info.kind == CheckpointKind::Recovery)
}

fn gone(attempt: &str, path: &ObjectPath) -> Error {
    Error::Missing { attempt: attempt.to_owned(), what: path.to_string() }
}

impl ConfigPaths {
    /// `ConfigurationFile` is relative to `ConfigurationDataRoot`, and the others share its stem (spec 1.3, 3.5).
    pub(crate) fn of(settings: &Instance) -> Self {
        let text = |name: &str| settings.get(name).as_str().unwrap_or_default();
        let vmcx = join(text("ConfigurationDataRoot"), text("ConfigurationFile"));
        let stem = vmcx.strip_suffix(".vmcx").unwrap_or(&vmcx).to_owned();
        let vmgs = match (text("GuestStateDataRoot"), text("GuestStateFile")) {
            (_, "") => format!("{stem}.vmgs"),
            ("", file) => join(text("ConfigurationDataRoot"), file),
            (root, file) => join(root, file),
        };
        Self { vmrs: format!("{stem}.vmrs"), vmgs, vmcx }
    }
}

fn join(root: &str, file: &str) -> String {
    let is_absolute = file.starts_with('\\') || file.get(1..2) == Some(":");
    if root.is_empty() || is_absolute {
        return file.to_owned();
    }
    format!("{}\\{file}", root.trim_end_matches('\\'))
}
