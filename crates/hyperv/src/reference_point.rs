//! Reference points: the instants that changes are counted from (spec 4.4, 4.6).

use vhdx::Guid;

use crate::checkpoint_list::LOOK_AGAIN_AFTER;
use crate::devices::host_resource;
use crate::disk_file::unexpected;
use crate::host::{REFERENCE_POINT_SERVICE, SNAPSHOT_SERVICE};
use crate::inventory::{MEDIA, REFERENCE_POINTS};
use crate::job::{Ended, Invocation, JobLimits};
use crate::names::slot_part;
use crate::seam::{CimValue, Instance, ObjectPath};
use crate::{Checkpoint, Consistency, CreateError, Error, FrozenDisk, Host, VmId, wql};

/// A reference point that exists, whoever made it.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferencePoint {
    /// Its `__PATH`, to destroy it with.
    pub path: ObjectPath,
    /// The key that survives a move to another host; its form differs between versions of Windows. Not to be parsed.
    pub instance_id: String,
    /// The VM.
    pub vm_id: VmId,
    /// The level that was reached; `None` for a number we do not know.
    pub consistency: Option<Consistency>,
    /// `ReferencePointType`: 1 log based (Replica), 2 change tracking.
    pub reference_point_type: u16,
    /// `VirtualDiskIdentifiers`, the slots, as delivered.
    pub disk_identifiers: CimValue,
    /// `ResilientChangeTrackingIdentifiers`, parallel to them, as delivered.
    pub tracking_identifiers: CimValue,
}

impl ReferencePoint {
    /// The path without host and namespace (`__RELPATH`): the form to keep in a record.
    pub fn relative_path(&self) -> &str {
        relative_path(&self.path)
    }
}

/// What [`Host::convert_to_reference_point`] made.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// The new reference point.
    pub reference_point: ReferencePoint,
    /// The id of each disk that has one.
    pub ids: Vec<DiskTracking>,
    /// Why others have none. Their next backup is a full one (spec 11, row 34).
    pub defects: Vec<TrackingDefect>,
    /// What the host remarked on a job that it completed all the same.
    pub warnings: Vec<String>,
}

impl Conversion {
    /// The id that names the frozen instant of a disk, from which the next backup asks for changes.
    pub fn rct_id(&self, disk: &FrozenDisk) -> Option<&str> {
        let same: Vec<_> = self.ids.iter().filter(|known| known.virtual_disk_id == disk.virtual_disk_id).collect();
        let slot = slot_part(&disk.sasd_instance_id);
        // A copied file attached twice has the same identity twice (spec 4.6); then the slot decides.
        let found = match same.as_slice() {
            [one] => Some(*one),
            several => several.iter().find(|known| known.slot.eq_ignore_ascii_case(slot)).copied(),
        };
        found.map(|known| known.rct_id.as_str())
    }
}

/// The change tracking id of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskTracking {
    /// The disk.
    pub virtual_disk_id: Guid,
    /// The slot part of its setting's `InstanceID`.
    pub slot: String,
    /// Opaque, up to 256 UTF-16 units; compare with case.
    pub rct_id: String,
}

/// Why a reference point has no id for a disk, or for any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrackingDefect {
    /// `ReferencePointType` is not 2.
    #[error("the reference point is of type {0}, not of type 2 (change tracking)")]
    WrongType(u16),
    /// An array does not hold strings.
    #[error("{0} of the reference point is not an array of strings")]
    NotStrings(&'static str),
    /// The array of ids is empty.
    #[error("the reference point has no change tracking ids for its {disks} disks")]
    NoIds {
        /// How many disks it names.
        disks: usize,
    },
    /// The arrays are not parallel.
    #[error("the reference point has {ids} change tracking ids for {disks} disks")]
    DifferentLengths {
        /// How many disks it names.
        disks: usize,
        /// How many ids it has.
        ids: usize,
    },
    /// An id is empty.
    #[error("the reference point has an empty change tracking id for disk {0}")]
    EmptyId(String),
    /// An identifier leads to no disk of the checkpoint.
    #[error("the reference point names disk {0}, which is none of the checkpoint's")]
    UnknownDisk(String),
    /// A disk of the checkpoint is not named.
    #[error("the reference point does not name the disk at {0}")]
    MissingDisk(String),
}

impl Host {
    /// Turns a recovery checkpoint into a reference point of its instant; the checkpoint is gone afterwards, and its
    /// disks are merged in the background. Every handle to its disks must be closed before.
    ///
    /// A reference point without usable ids is no error, because the checkpoint is gone all the same: it is reported
    /// in [`Conversion::defects`]. On an error, the checkpoint may still be there, and a reference point that appeared
    /// is in [`CreateError::left_behind`].
    pub fn convert_to_reference_point(&self, checkpoint: &Checkpoint) -> Result<Conversion, CreateError> {
        let vm = &checkpoint.vm_id;
        let attempt = format!(
            "convert the checkpoint {:?} of VM {:?} ({vm}) to a reference point",
            checkpoint.tag, checkpoint.vm_name
        );
        let attempt = attempt.as_str();
        let service = self.service(attempt, SNAPSHOT_SERVICE)?;
        let before = self.reference_points_for(attempt, vm)?;
        let is_new = |point: &ReferencePoint| before.iter().all(|known| known.path != point.path);
        let parameters = [
            ("AffectedSnapshot", CimValue::Reference(checkpoint.path.clone())),
            ("ReferencePointSettings", CimValue::String(String::new())),
        ];
        let made = self
            .invoke(&Invocation {
                attempt,
                object: &service,
                method: "ConvertToReferencePoint",
                parameters: &parameters,
                limits: JobLimits::DEFAULT,
                cancel: None,
            })
            .and_then(|ended| self.find_reference_point(attempt, checkpoint, ended, is_new))
            .and_then(|(reference_point, warnings)| {
                let (ids, defects) = self.map_ids(attempt, checkpoint, &reference_point)?;
                Ok(Conversion { reference_point, ids, defects, warnings })
            });
        made.map_err(|error| {
            let now = self.reference_points_for(attempt, vm).unwrap_or_default();
            CreateError { error, left_behind: now.into_iter().filter(is_new).map(|point| point.path).collect() }
        })
    }

    /// The reference points of a VM, whoever made them, in the host's order.
    pub fn list_reference_points(&self, vm: &VmId) -> Result<Vec<ReferencePoint>, Error> {
        self.reference_points_for(&format!("list the reference points of VM {vm}"), vm)
    }

    /// Destroys a reference point. One that is gone already is a success.
    pub fn destroy_reference_point(&self, reference_point: &ObjectPath) -> Result<(), Error> {
        self.destroy(
            &format!("destroy the reference point {reference_point}"),
            REFERENCE_POINT_SERVICE,
            "DestroyReferencePoint",
            "AffectedReferencePoint",
            reference_point,
        )
    }

    fn reference_points_for(&self, attempt: &str, vm: &VmId) -> Result<Vec<ReferencePoint>, Error> {
        let found = self.find(attempt, &wql::by(REFERENCE_POINTS, "VirtualSystemIdentifier", vm.as_str()))?;
        Ok(found.iter().filter_map(reference_point).collect())
    }

    /// The new reference point: by the job's association, by the returned reference (often null on Server 2025 even on
    /// success), or as the difference to before (spec 4.4).
    fn find_reference_point(
        &self,
        attempt: &str,
        checkpoint: &Checkpoint,
        ended: Ended,
        is_new: impl Fn(&ReferencePoint) -> bool,
    ) -> Result<(ReferencePoint, Vec<String>), Error> {
        let (output, job, warnings, reason) = match ended {
            Ended::Now(output) => (Some(output), None, Vec::new(), None),
            Ended::Job { output, job, warnings } => (Some(output), Some(job), warnings, None),
            Ended::Unknown { reason } => (None, None, Vec::new(), Some(reason)),
        };
        if let Some(job) = &job {
            let made = self.job_results(attempt, job, REFERENCE_POINTS, |_| true)?;
            let made: Vec<_> = made.iter().filter_map(reference_point).filter(|point| is_new(point)).collect();
            if let [one] = made.as_slice() {
                return Ok((one.clone(), warnings));
            }
        }
        let returned = output.as_ref().and_then(|output| output.get("ResultingReferencePoint").as_str());
        if let Some(path) = returned
            && let Some(instance) = self.get(attempt, &ObjectPath::new(path))?
            && let Some(point) = reference_point(&instance)
            && is_new(&point)
        {
            return Ok((point, warnings));
        }
        let waits = if reason.is_some() { &LOOK_AGAIN_AFTER[..] } else { &LOOK_AGAIN_AFTER[..1] };
        for wait in waits {
            let mut new: Vec<_> = self
                .reference_points_for(attempt, &checkpoint.vm_id)?
                .into_iter()
                .filter(|point| is_new(point))
                .collect();
            // While the checkpoint is there, the conversion has not ended, whatever has appeared (spec 11, row 33).
            let ended = reason.is_none() || self.get(attempt, &checkpoint.path)?.is_none();
            match new.len() {
                1 if ended => return Ok((new.remove(0), warnings)),
                0 | 1 => {}
                several => {
                    let problem = format!("{several} new reference points appeared, and which is ours is not known");
                    return Err(unexpected(attempt, problem));
                }
            }
            self.seam.clock.sleep(*wait);
        }
        let seen = "the checkpoint was not turned into a reference point".to_owned();
        Err(match reason {
            Some(reason) => Error::OutcomeUnknown { attempt: attempt.to_owned(), reason, seen },
            None => unexpected(attempt, format!("the host reports success, but {seen}")),
        })
    }

    /// From the parallel arrays to ids per disk (spec 4.6).
    fn map_ids(
        &self,
        attempt: &str,
        checkpoint: &Checkpoint,
        point: &ReferencePoint,
    ) -> Result<(Vec<DiskTracking>, Vec<TrackingDefect>), Error> {
        let mut defects = Vec::new();
        let mut ids = Vec::new();
        for (identifier, rct_id) in pairs(point, &mut defects) {
            if rct_id.is_empty() {
                defects.push(TrackingDefect::EmptyId(identifier.to_owned()));
                continue;
            }
            match self.disk_of_identifier(attempt, checkpoint, identifier)? {
                Some(disk) => ids.push(DiskTracking {
                    virtual_disk_id: disk.virtual_disk_id,
                    slot: slot_part(&disk.sasd_instance_id).to_owned(),
                    rct_id: rct_id.to_owned(),
                }),
                None => defects.push(TrackingDefect::UnknownDisk(identifier.to_owned())),
            }
        }
        if defects.is_empty() {
            let unnamed = checkpoint.disks.iter().filter(|disk| {
                let slot = slot_part(&disk.sasd_instance_id);
                !ids.iter().any(|known| known.virtual_disk_id == disk.virtual_disk_id && known.slot == slot)
            });
            defects.extend(unnamed.map(|disk| TrackingDefect::MissingDisk(disk.slot.to_string())));
        }
        Ok((ids, defects))
    }

    /// The frozen disk that an identifier means: through the active setting and the identity of its file, because disks
    /// can have moved to other slots; else by the slot it had when it was frozen.
    fn disk_of_identifier<'a>(
        &self,
        attempt: &str,
        checkpoint: &'a Checkpoint,
        identifier: &str,
    ) -> Result<Option<&'a FrozenDisk>, Error> {
        let slot = slot_part(identifier);
        let at_slot = |disk: &&FrozenDisk| slot_part(&disk.sasd_instance_id).eq_ignore_ascii_case(slot);
        let service = self.image_service(attempt)?;
        for wait in LOOK_AGAIN_AFTER {
            let settings = self.find(attempt, &wql::by(MEDIA, "InstanceID", identifier))?;
            let Some(path) = settings.first().and_then(host_resource) else {
                return Ok(checkpoint.disks.iter().find(at_slot));
            };
            if let Ok(facts) = self.disk_facts(attempt, &service, path) {
                let same = checkpoint.disks.iter().filter(|disk| disk.virtual_disk_id == facts.virtual_disk_id);
                let same: Vec<_> = same.collect();
                return Ok(match same.as_slice() {
                    [one] => Some(one),
                    several => several.iter().find(|disk| at_slot(disk)).copied(),
                });
            }
            // The merge may remove the file between the two questions; then the setting names another one now.
            self.seam.clock.sleep(wait);
        }
        // A guess by slot could give one disk the id of another, which loses data; no id costs a full backup.
        Ok(None)
    }
}

/// What an `Msvm_VirtualSystemReferencePoint` says.
pub(crate) fn reference_point(instance: &Instance) -> Option<ReferencePoint> {
    Some(ReferencePoint {
        path: instance.path.clone()?,
        instance_id: instance.get("InstanceID").as_str()?.to_owned(),
        vm_id: instance.get("VirtualSystemIdentifier").as_str()?.parse().ok()?,
        consistency: instance.get("ConsistencyLevel").as_u64().and_then(Consistency::from_level),
        reference_point_type: instance
            .get("ReferencePointType")
            .as_u64()
            .and_then(|it| it.try_into().ok())
            .unwrap_or(0),
        disk_identifiers: instance.get("VirtualDiskIdentifiers").clone(),
        tracking_identifiers: instance.get("ResilientChangeTrackingIdentifiers").clone(),
    })
}

/// Pairs of the parallel arrays. Arrays of different lengths give no pair at all: which id belongs to which disk cannot
/// be known then, and a wrong one loses data.
fn pairs<'a>(point: &'a ReferencePoint, defects: &mut Vec<TrackingDefect>) -> Vec<(&'a str, &'a str)> {
    const TRACKING: u16 = 2;
    if point.reference_point_type != TRACKING {
        defects.push(TrackingDefect::WrongType(point.reference_point_type));
        return Vec::new();
    }
    let disks = strings(&point.disk_identifiers);
    let ids = strings(&point.tracking_identifiers);
    match (disks, ids) {
        (None, _) => defects.push(TrackingDefect::NotStrings("VirtualDiskIdentifiers")),
        (_, None) => defects.push(TrackingDefect::NotStrings("ResilientChangeTrackingIdentifiers")),
        (Some(disks), Some(ids)) if ids.is_empty() && !disks.is_empty() => {
            defects.push(TrackingDefect::NoIds { disks: disks.len() });
        }
        (Some(disks), Some(ids)) if ids.len() != disks.len() => {
            defects.push(TrackingDefect::DifferentLengths { disks: disks.len(), ids: ids.len() });
        }
        (Some(disks), Some(ids)) => return disks.into_iter().zip(ids).collect(),
    }
    Vec::new()
}

fn strings(value: &CimValue) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(CimValue::as_str).collect()
}

fn relative_path(path: &ObjectPath) -> &str {
    let text = path.as_str();
    // The class name follows the first colon; keys, which may hold colons of their own, come after it.
    text.split_once(':').map_or(text, |(_, relative)| relative)
}
