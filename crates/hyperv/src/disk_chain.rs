//! Changing chains of disk files: children, other parents, merges of disks that no VM uses (spec 7.4, 7.5).

use std::time::Duration;

use crate::host::MANAGEMENT_SERVICE;
use crate::inventory::{COMPONENT, MEDIA};
use crate::job::{Ended, Invocation, JobLimits};
use crate::names::slot_part;
use crate::seam::{CimType, CimValue, Instance};
use crate::{Error, Host, Vm, cim_xml, wql};

const SETTINGS: &str = "Msvm_VirtualHardDiskSettingData";
/// `Type`.
const DIFFERENCING: u16 = 4;
/// `Format`.
const VHDX: u16 = 3;

/// A merge takes as long as the disks do.
const MERGE: JobLimits = JobLimits { limit: Duration::from_secs(24 * 3600), ..JobLimits::DEFAULT };

impl Host {
    /// Makes a differencing VHDX: what is written goes into it, everything else is read from `parent`, which must not
    /// change from then on.
    pub fn create_child_disk(&self, path: &str, parent: &str) -> Result<(), Error> {
        let attempt = format!("make {path} a child of {parent}");
        let empty = Instance { class: SETTINGS.to_owned(), path: None, properties: Default::default() };
        let text = |text: &str| CimValue::String(text.to_owned());
        let properties = vec![
            ("Type", CimValue::Uint16(DIFFERENCING)),
            ("Format", CimValue::Uint16(VHDX)),
            ("Path", text(path)),
            ("ParentPath", text(parent)),
        ];
        let settings = cim_xml::to_text(&cim_xml::changed(&empty, properties))
            .map_err(|source| Error::CimXml { attempt: attempt.clone(), source })?;
        let parameters = [("VirtualDiskSettingData", CimValue::String(settings))];
        self.image(&attempt, "CreateVirtualHardDisk", &parameters, JobLimits::DEFAULT)
    }

    /// Tells a child that its parent is another file. The host refuses one whose identity (`DataWriteGuid`) is not that
    /// of the parent it was made for.
    pub fn set_parent_disk(&self, child: &str, parent: &str) -> Result<(), Error> {
        let attempt = format!("make {parent} the parent of {child}");
        let parameters = [
            ("ChildPath", CimValue::String(child.to_owned())),
            ("ParentPath", CimValue::String(parent.to_owned())),
            ("LeafPath", CimValue::Null),
            ("IgnoreIDMismatch", CimValue::Boolean(false)),
        ];
        self.image(&attempt, "SetParentVirtualHardDisk", &parameters, JobLimits::DEFAULT)
    }

    /// Writes what a child holds into its parent. No VM may use either. One that was cut off is done again.
    pub fn merge_disk(&self, child: &str, parent: &str) -> Result<(), Error> {
        let attempt = format!("merge {child} into {parent}");
        let parameters = [
            ("SourcePath", CimValue::String(child.to_owned())),
            ("DestinationPath", CimValue::String(parent.to_owned())),
        ];
        self.image(&attempt, "MergeVirtualHardDisk", &parameters, MERGE)
    }

    /// Gives a drive of a VM that is off another file, and the VM its access to it. `instance_id` is that of the disk.
    pub fn replace_disk_file(&self, vm: &Vm, instance_id: &str, path: &str) -> Result<(), Error> {
        let attempt = format!("make {path} a disk of {}", vm.label());
        let media = self.find(&attempt, &wql::associated(&vm.settings_path, COMPONENT, Some(MEDIA)))?;
        let slot = slot_part(instance_id);
        let is_it = |medium: &&Instance| {
            medium.get("InstanceID").as_str().is_some_and(|id| slot_part(id).eq_ignore_ascii_case(slot))
        };
        let medium = media.iter().find(is_it).ok_or_else(|| Error::Missing {
            attempt: attempt.clone(),
            what: format!("the disk {instance_id} of {}", vm.label()),
        })?;
        let file = CimValue::Array(CimType::String, vec![CimValue::String(path.to_owned())]);
        let ended = self.modify_medium(&attempt, medium, vec![("HostResource", file)])?;
        known(&attempt, ended)
    }

    /// `ModifyResourceSettings` of a disk in a drive, with the complete instance as read.
    pub(crate) fn modify_medium(
        &self,
        attempt: &str,
        medium: &Instance,
        changes: Vec<(&str, CimValue)>,
    ) -> Result<Ended, Error> {
        let service = self.service(attempt, MANAGEMENT_SERVICE)?;
        let text = cim_xml::to_text(&cim_xml::changed(medium, changes))
            .map_err(|source| Error::CimXml { attempt: attempt.to_owned(), source })?;
        let texts = CimValue::Array(CimType::String, vec![CimValue::String(text)]);
        self.invoke(&Invocation {
            attempt,
            object: &service,
            method: "ModifyResourceSettings",
            parameters: &[("ResourceSettings", texts)],
            limits: JobLimits::DEFAULT,
            cancel: None,
        })
    }

    fn image(
        &self,
        attempt: &str,
        method: &'static str,
        parameters: &[(&str, CimValue)],
        limits: JobLimits,
    ) -> Result<(), Error> {
        let service = self.image_service(attempt)?;
        let call = Invocation { attempt, object: &service, method, parameters, limits, cancel: None };
        let ended = self.invoke(&call)?;
        known(attempt, ended)
    }
}

/// What follows builds on it, so an end that nobody saw is an error; the step is done again.
fn known(attempt: &str, ended: Ended) -> Result<(), Error> {
    match ended {
        Ended::Now(_) | Ended::Job { .. } => Ok(()),
        Ended::Unknown { reason } => Err(Error::OutcomeUnknown {
            attempt: attempt.to_owned(),
            reason,
            seen: "the step has to be done again".to_owned(),
        }),
    }
}
