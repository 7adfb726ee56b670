//! Path 1: importing the configuration files (spec 6.3).

use crate::devices::{DRIVE, HARD_DISK, MEDIUM, PHYSICAL_DISK, host_resource, is, parent_of};
use crate::inventory::{DEVICES, MEDIA, MEMORY, PROCESSORS, SETTINGS};
use crate::names::same_path;
use crate::seam::{CimValue, Instance, ObjectPath};
use crate::{CreateError, Definition, Error, Host, Vm, VmId, wql};

use super::firmware::NO_AUTOMATIC_START;
use super::former::{CONNECTION, instance_id, is_adapter, is_connection_of, name_of};
use super::network::{CONNECTED, Connection, DISCONNECTED, NO_ADDRESS, decide};
use super::system::{PLANNED_VM, VM};
use super::workbench::{Workbench, one_string};
use super::{Identity, MacChoice, RecreateWarning, Recreated, Recreation, check_disks, memory_changes};

/// What an ISO or a diskette image is on its drive.
const IMAGES: [&str; 2] = ["Microsoft:Hyper-V:Virtual CD/DVD Disk", "Microsoft:Hyper-V:Virtual Floppy Disk"];

impl Host {
    /// Makes a VM from its configuration files. `definition_file` is the absolute path of the `.vmcx` on this host, with
    /// the `.vmrs` and `.vmgs` beside it under the same stem; the host expects them as `…\Virtual Machines\<GUID>.vmcx`
    /// and leaves them where they are. The restored disks are written before.
    ///
    /// The planned VM is validated before it is realized: what this host cannot run is in the error, every problem with
    /// its text. After any error nothing of the VM is left, or it is named in [`CreateError::left_behind`].
    pub fn import_vm(
        &self,
        definition_file: &str,
        definition: &Definition,
        wanted: &Recreation,
    ) -> Result<Recreated, CreateError> {
        let attempt = format!("import VM {:?} from {definition_file}", wanted.name);
        let attempt = attempt.as_str();
        check_disks(attempt, definition, wanted)?;
        let bench = Workbench::new(self, attempt, wanted)?;
        if wanted.identity == Identity::Keep {
            self.refuse_taken_id(attempt, &definition.summary.vm_id)?;
        }
        let (planned_before, realized_before) = (self.systems(attempt, PLANNED_VM)?, self.systems(attempt, VM)?);
        let parameters = [
            ("SystemDefinitionFile", CimValue::String(definition_file.to_owned())),
            ("SnapshotFolder", CimValue::String(String::new())),
            ("GenerateNewSystemIdentifier", CimValue::Boolean(wanted.identity == Identity::New)),
        ];
        let made = bench
            .run("read the definition", "ImportSystemDefinition", &parameters)
            .and_then(|ended| bench.made_system(PLANNED_VM, "ImportedSystem", &planned_before, ended, |_| true));
        let planned = match made {
            Ok(planned) => planned,
            Err(error) => {
                // A planned VM that appeared is ours only perhaps: another import may run beside this one.
                let now = self.systems(attempt, PLANNED_VM).unwrap_or_default();
                let new = now.into_iter().filter(|now| planned_before.iter().all(|known| known.path != now.path));
                return Err(CreateError { error, left_behind: new.filter_map(|system| system.path).collect() });
            }
        };
        let import = Import { bench: &bench, definition, warnings: Vec::new() };
        import.finish(&planned).map_err(|error| {
            let id = planned.get("Name").as_str().unwrap_or_default();
            let is_ours = |system: &&Instance| {
                system.get("Name").as_str().is_some_and(|name| name.eq_ignore_ascii_case(id))
                    && realized_before.iter().all(|known| known.path != system.path)
            };
            let mut made: Vec<ObjectPath> = planned.path.iter().cloned().collect();
            let realized = self.systems(attempt, VM).unwrap_or_default();
            made.extend(realized.iter().filter(is_ours).filter_map(|system| system.path.clone()));
            self.roll_back(error, &made)
        })
    }

    fn refuse_taken_id(&self, attempt: &str, id: &str) -> Result<(), Error> {
        let taken = |kind: &str| Err(Error::Exists { attempt: attempt.to_owned(), what: format!("{kind} {id}") });
        for (class, kind) in [(VM, "VM"), (PLANNED_VM, "the planned VM")] {
            if !self.find(attempt, &wql::by(class, "Name", id))?.is_empty() {
                return taken(kind);
            }
        }
        if let Ok(id) = id.parse::<VmId>()
            && let Ok(Some(role)) = self.clustered_vm(&id)
        {
            return Err(Error::OnOtherNode { attempt: attempt.to_owned(), node: role.owner_node });
        }
        Ok(())
    }
}

/// An import from the planned VM on.
struct Import<'a> {
    bench: &'a Workbench<'a>,
    definition: &'a Definition,
    warnings: Vec<RecreateWarning>,
}

impl Import<'_> {
    fn finish(mut self, planned: &Instance) -> Result<Recreated, Error> {
        let bench = self.bench;
        let path = planned.path.clone().ok_or_else(|| bench.unexpected("the planned VM has no path".into()))?;
        let id: VmId = planned
            .get("Name")
            .as_str()
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| bench.unexpected("the planned VM has no id".into()))?;
        if self.bench.wanted.identity == Identity::Keep
            && !id.as_str().eq_ignore_ascii_case(&self.definition.summary.vm_id)
        {
            self.warnings.push(RecreateWarning::IdNotKept);
        }
        self.drop_checkpoints(&path)?;
        let settings = bench.settings_of(&path)?;
        let settings_path =
            settings.path.clone().ok_or_else(|| bench.unexpected("its settings have no path".into()))?;
        self.set_system(&settings_path)?;
        let devices = bench.components(&settings_path, None)?;
        self.set_media(&devices)?;
        self.set_sizes(&devices)?;
        self.set_network(&devices)?;
        self.note_tpm();
        let planned_reference = [("PlannedSystem", CimValue::Reference(path))];
        bench.must("check it against this host", "ValidatePlannedSystem", &planned_reference)?;
        let vm = self.realize(&id, &planned_reference)?;
        Ok(Recreated { vm, warnings: self.warnings })
    }

    /// An imported definition that refers to checkpoints whose files are not here cannot be realized.
    fn drop_checkpoints(&self, planned: &ObjectPath) -> Result<(), Error> {
        let bench = self.bench;
        let query = wql::associated(planned, "Msvm_SnapshotOfVirtualSystem", Some(SETTINGS));
        for checkpoint in bench.host.find(bench.attempt, &query)? {
            if let Some(path) = &checkpoint.path {
                bench.host.destroy_checkpoint(path)?;
            }
        }
        Ok(())
    }

    fn set_system(&self, settings: &ObjectPath) -> Result<(), Error> {
        let bench = self.bench;
        let known = bench.host.class_properties(bench.attempt, SETTINGS)?.unwrap_or_default();
        let mut changes = bench.names_and_roots(&known);
        if !bench.wanted.keep_automatic_start {
            changes.push(("AutomaticStartupAction", CimValue::Uint16(NO_AUTOMATIC_START)));
        }
        bench.modify_system("set its name and directories", settings, changes)
    }

    fn set_media(&mut self, all: &[Instance]) -> Result<(), Error> {
        let devices: Vec<&Instance> = all.iter().filter(|device| device.class.eq_ignore_ascii_case(DEVICES)).collect();
        let mut restored = 0;
        for medium in all.iter().filter(|device| device.class.eq_ignore_ascii_case(MEDIA)) {
            let path = host_resource(medium).unwrap_or_default().to_owned();
            if is(medium, MEDIUM, HARD_DISK) {
                match self.bench.wanted.disk_for(instance_id(medium)) {
                    Some(disk) => {
                        let what = format!("attach {}", disk.path);
                        self.bench.modify(&what, medium, vec![("HostResource", one_string(&disk.path))])?;
                        restored += 1;
                    }
                    None => {
                        self.bench.remove(&format!("leave out {path}"), medium)?;
                        if let Some(drive) = parent_of(medium, &devices, 'D') {
                            self.bench.remove(&format!("remove the drive of {path}"), drive)?;
                        }
                        self.warnings.push(RecreateWarning::DiskLeftOut { path, why: "it was not restored" });
                    }
                }
            } else if IMAGES.iter().any(|image| is(medium, MEDIUM, image)) && !self.is_here(&path)? {
                self.bench.remove(&format!("take out {path}"), medium)?;
                self.warnings.push(RecreateWarning::ImageMissing { path });
            }
        }
        for drive in devices.iter().filter(|drive| is(drive, DRIVE, PHYSICAL_DISK)) {
            let path = host_resource(drive).unwrap_or_default().to_owned();
            self.bench.remove("leave out a pass-through disk", drive)?;
            self.warnings.push(RecreateWarning::DiskLeftOut { path, why: "it is a physical disk of the former host" });
        }
        // The slots that the file knows are those of the definition, or the two are of different VMs.
        if restored != self.bench.wanted.disks.len() {
            let problem = format!(
                "the file has {restored} of the {} restored disks; it is not the definition of this VM",
                self.bench.wanted.disks.len()
            );
            return Err(self.bench.unexpected(problem));
        }
        Ok(())
    }

    fn is_here(&self, path: &str) -> Result<bool, Error> {
        match self.bench.host.seam.files.facts(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::File { attempt: self.bench.attempt.to_owned(), path: path.to_owned(), source }),
        }
    }

    fn set_sizes(&self, devices: &[Instance]) -> Result<(), Error> {
        let of_class = |class: &str| devices.iter().find(|device| device.class.eq_ignore_ascii_case(class));
        if let (Some(count), Some(processors)) = (self.bench.wanted.processors, of_class(PROCESSORS)) {
            let changes = vec![("VirtualQuantity", CimValue::Uint64(count))];
            self.bench.modify("set its processors", processors, changes)?;
        }
        if let (Some(mib), Some(memory)) = (self.bench.wanted.memory_mib, of_class(MEMORY)) {
            self.bench.modify("set its memory", memory, memory_changes(memory, mib))?;
        }
        Ok(())
    }

    fn set_network(&mut self, devices: &[Instance]) -> Result<(), Error> {
        let bench = self.bench;
        let switches = bench.host.switches(bench.attempt)?;
        for adapter in devices.iter().filter(|device| is_adapter(device)) {
            let name = name_of(adapter);
            if bench.wanted.mac == MacChoice::New {
                let changes = vec![
                    ("StaticMacAddress", CimValue::Boolean(false)),
                    ("Address", CimValue::String(NO_ADDRESS.to_owned())),
                ];
                bench.modify(&format!("give network adapter {name:?} a new address"), adapter, changes)?;
            }
            let Some(connection) = devices.iter().find(|device| is_own_connection(device, adapter)) else { continue };
            let former = &self.definition.host.switches;
            let (changes, warning) = match decide(&name, Some(connection), &bench.wanted.network, former, &switches) {
                Connection::To(switch) => {
                    let state = ("EnabledState", CimValue::Uint16(CONNECTED));
                    (vec![("HostResource", one_string(switch.as_str())), state], None)
                }
                Connection::Open(warning) => (vec![("EnabledState", CimValue::Uint16(DISCONNECTED))], warning),
            };
            bench.modify(&format!("set the connection of network adapter {name:?}"), connection, changes)?;
            self.warnings.extend(warning);
        }
        Ok(())
    }

    fn note_tpm(&mut self) {
        let former = self.definition.host.name.as_deref().unwrap_or_default();
        let here = self.bench.host.computer_name();
        if self.definition.summary.tpm && here.as_deref().is_none_or(|here| !here.eq_ignore_ascii_case(former)) {
            self.warnings.push(RecreateWarning::TpmOfOtherHost { host: former.to_owned() });
        }
    }

    fn realize(&mut self, id: &VmId, planned: &[(&str, CimValue)]) -> Result<Vm, Error> {
        let bench = self.bench;
        let ended = bench.run("register it", "RealizePlannedSystem", planned)?;
        if let crate::job::Ended::Job { warnings, .. } = &ended {
            self.warnings.extend(warnings.iter().cloned().map(RecreateWarning::Host));
        }
        // Planned and realized VM have the same id, so the VM itself is the answer, whatever the call returned.
        for wait in crate::checkpoint_list::LOOK_AGAIN_AFTER {
            if let Some(vm) = bench.host.vm(id)? {
                return Ok(vm);
            }
            bench.host.seam.clock.sleep(wait);
        }
        Err(match ended {
            crate::job::Ended::Unknown { reason } => {
                let seen = "the VM is not there".to_owned();
                Error::OutcomeUnknown { attempt: bench.attempt.to_owned(), reason, seen }
            }
            _ => bench.unexpected("the host reports success, but the VM is not there".into()),
        })
    }
}

/// The connection of an adapter, by its `Parent`, else by its `InstanceID`.
fn is_own_connection(device: &Instance, adapter: &Instance) -> bool {
    device.class.eq_ignore_ascii_case(CONNECTION)
        && match (device.get("Parent").as_str(), &adapter.path) {
            (Some(parent), Some(adapter)) if !parent.is_empty() => same_path(parent, adapter.as_str()),
            _ => is_connection_of(device, adapter),
        }
}
