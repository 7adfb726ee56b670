//! Controllers, drives and media of a VM that is built from its settings.

use crate::devices::{HARD_DISK, IDE_CONTROLLER, PHYSICAL_DISK, SCSI_CONTROLLER, host_resource};
use crate::inventory::{DEVICES, MEDIA};
use crate::names::same_path;
use crate::seam::{CimValue, Instance, ObjectPath};
use crate::{ControllerKind, Error, slot_part};

use super::super::RecreateWarning;
use super::super::firmware::{Moved, carried_by_device};
use super::super::former::{DVD_DRIVE, FormerDrive, instance_id, resource_type};
use super::super::workbench::one_string;
use super::Build;

const SCSI_SUB_TYPE: &str = "Microsoft:Hyper-V:Synthetic SCSI Controller";
const DISK_DRIVE_SUB_TYPE: &str = "Microsoft:Hyper-V:Synthetic Disk Drive";
const DVD_DRIVE_SUB_TYPE: &str = "Microsoft:Hyper-V:Synthetic DVD Drive";
const DVD_SUB_TYPE: &str = "Microsoft:Hyper-V:Virtual CD/DVD Disk";

const DISK_PROPERTIES: &[&str] = &["CachingMode", "WriteHardeningMethod", "IOPSLimit", "IOPSReservation"];

impl Build<'_> {
    /// Controllers, then drives, then media: each is the parent of the next.
    pub(super) fn add_drives(&mut self, settings: &ObjectPath) -> Result<(), Error> {
        let (ide, scsi) = self.controllers(settings)?;
        let mut attached = 0;
        for former in self.former.drives() {
            let controllers = match former.controller {
                ControllerKind::Ide => &ide,
                ControllerKind::Scsi => &scsi,
            };
            let controller = controllers
                .get(former.controller_number as usize)
                .and_then(|controller| controller.path.clone())
                .ok_or_else(|| {
                    let number = former.controller_number;
                    self.bench.missing(format!("{:?} controller {number} of the new VM", former.controller))
                })?;
            attached += self.add_drive(settings, &controller, &former)?;
        }
        if attached != self.bench.wanted.disks.len() {
            let problem = format!(
                "the stored definition has no drive for {} of the restored disks",
                self.bench.wanted.disks.len() - attached
            );
            return Err(self.bench.unexpected(problem));
        }
        Ok(())
    }

    /// The IDE controllers that the VM was made with, by number, and as many SCSI controllers as it had before.
    fn controllers(&self, settings: &ObjectPath) -> Result<(Vec<Instance>, Vec<Instance>), Error> {
        let bench = self.bench;
        let devices = bench.components(settings, Some(DEVICES))?;
        let of_type = |kind: u64| devices.iter().filter(move |device| resource_type(device) == Some(kind)).cloned();
        let mut ide: Vec<Instance> = of_type(IDE_CONTROLLER).collect();
        ide.sort_by_key(|controller| controller.get("Address").as_str().map(str::to_owned));
        let mut scsi: Vec<Instance> = of_type(SCSI_CONTROLLER).collect();
        while scsi.len() < self.former.scsi_controllers() {
            let template = bench.template(DEVICES, SCSI_SUB_TYPE)?;
            let what = format!("add SCSI controller {}", scsi.len());
            scsi.push(bench.add(&what, settings, &template, Vec::new())?);
        }
        Ok((ide, scsi))
    }

    /// Adds one drive with its medium; 1 if it is a restored disk.
    fn add_drive(
        &mut self,
        settings: &ObjectPath,
        controller: &ObjectPath,
        former: &FormerDrive<'_>,
    ) -> Result<usize, Error> {
        let bench = self.bench;
        let is_dvd = resource_type(former.drive) == Some(DVD_DRIVE);
        let file = former.medium.and_then(host_resource).unwrap_or_default().to_owned();
        let disk = former.medium.and_then(|medium| bench.wanted.disk_for(instance_id(medium)));
        let former_slot = slot_part(instance_id(former.drive)).to_owned();
        if !is_dvd && disk.is_none() {
            self.moved.push(Moved { former_slot, instance_id: None });
            let is_physical = former.drive.get("ResourceSubType").as_str() == Some(PHYSICAL_DISK);
            let (path, why) = match is_physical {
                true => {
                    let path = host_resource(former.drive).unwrap_or_default().to_owned();
                    (path, "it is a physical disk of the former host")
                }
                false => (file, "it was not restored"),
            };
            // A drive without a medium was empty before, too; nothing is left out with it.
            if !path.is_empty() {
                self.warnings.push(RecreateWarning::DiskLeftOut { path, why });
            }
            return Ok(0);
        }
        let sub_type = if is_dvd { DVD_DRIVE_SUB_TYPE } else { DISK_DRIVE_SUB_TYPE };
        let drive = match self.drive_at(settings, controller, &former.location)? {
            Some(drive) => drive,
            None => {
                let template = bench.template(DEVICES, sub_type)?;
                let place = vec![
                    ("Parent", CimValue::String(controller.as_str().to_owned())),
                    ("AddressOnParent", CimValue::String(former.location.clone())),
                ];
                bench.add(&format!("add a drive at {}", former.location), settings, &template, place)?
            }
        };
        self.moved.push(Moved { former_slot, instance_id: Some(instance_id(&drive).to_owned()) });
        let parent = drive.path.clone().ok_or_else(|| bench.unexpected("the new drive has no path".into()))?;
        let parent = ("Parent", CimValue::String(parent.as_str().to_owned()));
        if let (Some(disk), Some(medium)) = (disk, former.medium) {
            let template = bench.template(MEDIA, HARD_DISK)?;
            let mut changes = carried_by_device(medium, &template, DISK_PROPERTIES);
            changes.extend([parent, ("HostResource", one_string(&disk.path))]);
            bench.add(&format!("attach {}", disk.path), settings, &template, changes)?;
            return Ok(1);
        }
        if is_dvd && !file.is_empty() {
            if bench.host.seam.files.facts(&file).is_err() {
                self.warnings.push(RecreateWarning::ImageMissing { path: file });
            } else {
                let template = bench.template(MEDIA, DVD_SUB_TYPE)?;
                let changes = vec![parent, ("HostResource", one_string(&file))];
                bench.add(&format!("insert {file}"), settings, &template, changes)?;
            }
        }
        Ok(0)
    }

    /// A drive that the host made by itself at this place.
    fn drive_at(
        &self,
        settings: &ObjectPath,
        controller: &ObjectPath,
        location: &str,
    ) -> Result<Option<Instance>, Error> {
        let devices = self.bench.components(settings, Some(DEVICES))?;
        Ok(devices.into_iter().find(|device| {
            device.get("AddressOnParent").as_str().is_some_and(|at| at.trim() == location)
                && device.get("Parent").as_str().is_some_and(|parent| same_path(parent, controller.as_str()))
        }))
    }
}
