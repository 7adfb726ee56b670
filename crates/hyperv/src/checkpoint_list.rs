//! Checkpoints that exist, whoever made them, and removing one.

use std::time::{Duration, SystemTime};

use crate::host::SNAPSHOT_SERVICE;
use crate::inventory::SETTINGS;
use crate::job::{Ended, Invocation, JobLimits};
use crate::seam::{CimValue, Instance, ObjectPath};
use crate::{Error, ErrorKind, Host, Vm, VmId, wql};

/// A checkpoint that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// The `Msvm_VirtualSystemSettingData`.
    pub path: ObjectPath,
    /// `Microsoft:<GUID>`.
    pub instance_id: String,
    /// What it is for.
    pub kind: CheckpointKind,
    /// `ElementName`: the tag, of a recovery checkpoint of ours.
    pub name: String,
    /// `CreationTime`.
    pub created: Option<SystemTime>,
    /// Path of the checkpoint that it was taken after.
    pub parent: Option<String>,
}

/// `VirtualSystemType` of a checkpoint (spec 1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointKind {
    /// Standard or production: `…:Snapshot:Realized`.
    User,
    /// For a backup: `…:Snapshot:Recovery`.
    Recovery,
    /// Replica's, planned and missing ones, by the text behind `Microsoft:Hyper-V:Snapshot:`.
    Other(String),
}

impl Host {
    /// The checkpoints of a VM, in the host's order.
    pub fn list_checkpoints(&self, vm: &VmId) -> Result<Vec<CheckpointInfo>, Error> {
        self.checkpoints_for(&format!("list the checkpoints of VM {vm}"), vm)
    }

    /// `InstanceID` of the user checkpoint that was applied last, which is where the VM's disks branch off. Another one
    /// than at the last backup asks for a full backup (spec 4.9).
    pub fn last_applied_checkpoint(&self, vm: &Vm) -> Result<Option<String>, Error> {
        let attempt = format!("read the last applied checkpoint of {}", vm.label());
        let found = self.find(&attempt, &wql::associated(&vm.path, "Msvm_LastAppliedSnapshot", Some(SETTINGS)))?;
        Ok(found.first().and_then(|settings| settings.get("InstanceID").as_str()).map(str::to_owned))
    }

    pub(crate) fn checkpoints_for(&self, attempt: &str, vm: &VmId) -> Result<Vec<CheckpointInfo>, Error> {
        let settings = self.find(attempt, &wql::by(SETTINGS, "VirtualSystemIdentifier", vm.as_str()))?;
        Ok(settings.iter().filter_map(checkpoint_info).collect())
    }

    /// Removes a checkpoint; its disks are then merged in the background. One that is gone already is a success.
    ///
    /// Foreign checkpoints are the caller's to spare: this removes what it is given.
    pub fn destroy_checkpoint(&self, checkpoint: &ObjectPath) -> Result<(), Error> {
        self.destroy(
            &format!("remove the checkpoint {checkpoint}"),
            SNAPSHOT_SERVICE,
            "DestroySnapshot",
            "AffectedSnapshot",
            checkpoint,
        )
    }

    /// Destroys an object with a method of a service; what is gone, whatever the method said, is a success.
    pub(crate) fn destroy(
        &self,
        attempt: &str,
        service: &'static str,
        method: &'static str,
        parameter: &str,
        object: &ObjectPath,
    ) -> Result<(), Error> {
        let service = self.service(attempt, service)?;
        let parameters = [(parameter, CimValue::Reference(object.clone()))];
        let limits = JobLimits::DEFAULT;
        let ended = self.invoke(&Invocation {
            attempt,
            object: &service,
            method,
            parameters: &parameters,
            limits,
            cancel: None,
        });
        match ended {
            Ok(Ended::Now(_) | Ended::Job { .. }) => Ok(()),
            Ok(Ended::Unknown { reason }) => {
                // The job may still be at work when its object is gone.
                for wait in LOOK_AGAIN_AFTER {
                    if self.get(attempt, object)?.is_none() {
                        return Ok(());
                    }
                    self.seam.clock.sleep(wait);
                }
                match self.get(attempt, object)? {
                    None => Ok(()),
                    Some(_) => {
                        let seen = "it is still there".to_owned();
                        Err(Error::OutcomeUnknown { attempt: attempt.to_owned(), reason, seen })
                    }
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::ServiceGone | ErrorKind::AccessDenied) => Err(error),
            Err(error) => match self.get(attempt, object) {
                Ok(None) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

/// Waits between looks for a result whose job cannot be asked any more.
pub(crate) const LOOK_AGAIN_AFTER: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(15)];

/// What an `Msvm_VirtualSystemSettingData` says, if it is a checkpoint's.
pub(crate) fn checkpoint_info(settings: &Instance) -> Option<CheckpointInfo> {
    let kind = settings.get("VirtualSystemType").as_str()?.strip_prefix("Microsoft:Hyper-V:Snapshot:")?;
    let text = |name| settings.get(name).as_str().unwrap_or_default().to_owned();
    Some(CheckpointInfo {
        path: settings.path.clone()?,
        instance_id: text("InstanceID"),
        kind: match kind {
            "Realized" => CheckpointKind::User,
            "Recovery" => CheckpointKind::Recovery,
            other => CheckpointKind::Other(other.to_owned()),
        },
        name: text("ElementName"),
        created: settings.get("CreationTime").as_str().and_then(time_of),
        parent: settings.get("Parent").as_str().filter(|parent| !parent.is_empty()).map(str::to_owned),
    })
}

/// A CIM time `yyyymmddHHMMSS.mmmmmm±UUU`, with `UUU` the minutes that local time is ahead of UTC (DSP0004 5.5.1).
fn time_of(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    if bytes.len() != 25 || bytes[14] != b'.' || !matches!(bytes[21], b'+' | b'-') {
        return None;
    }
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(8..10)?, number(10..12)?, number(12..14)?);
    let (micros, ahead) = (number(15..21)?, number(22..25)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970-01-01 with years that begin in March, so that the leap day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
            - 1
            - 719_468;
    let ahead = if bytes[21] == b'-' { -ahead } else { ahead };
    let seconds = u64::try_from(days * 86_400 + hour * 3_600 + (minute - ahead) * 60 + second).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cim_times() {
        for (text, seconds) in [
            ("19700101000000.000000+000", Some(0)),
            ("20240229123456.000000+000", Some(1_709_210_096)),
            ("20240229123456.000000+060", Some(1_709_206_496)),
            ("20240229123456.000000-300", Some(1_709_228_096)),
            ("20000301000000.000000+000", Some(951_868_800)),
            ("00000005123456.000000:000", None),
            ("20241329123456.000000+000", None),
            ("16010101000000.000000+000", None),
            ("2024", None),
            ("20240229123456.00000é+000", None),
        ] {
            let expected = seconds.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(time_of(text), expected, "{text}");
        }
    }
}
