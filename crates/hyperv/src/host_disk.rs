//! Disks of the host itself, found by the serial number that their target gives them and by nothing else (spec 7.3).

use std::time::Duration;

use crate::disk_file::unexpected;
use crate::names::same_path;
use crate::seam::{CimType, CimValue, Instance, Namespace, ObjectPath};
use crate::{Error, Host, wql};

const DISK: &str = "MSFT_Disk";
const PARTITION: &str = "MSFT_Partition";
/// `BusType`.
const ISCSI: u64 = 9;
/// Time between looks at the disks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// `GptType` of a partition with a volume.
const BASIC_DATA: &str = "{ebd0a0a2-b9e5-4433-87c0-68b6b72699c7}";

/// A disk that arrived over iSCSI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDisk {
    /// Its object.
    pub path: ObjectPath,
    /// VPD page 80, as the target gave it.
    pub serial: String,
    /// Changes at every arrival: for messages only.
    pub number: u64,
    /// The volume manager leaves it alone.
    pub is_offline: bool,
    /// Windows refuses writes.
    pub is_read_only: bool,
    /// Size in bytes.
    pub size_bytes: u64,
}

impl Host {
    /// The iSCSI disk with this serial number, if it has arrived.
    pub fn find_host_disk(&self, serial: &str) -> Result<Option<HostDisk>, Error> {
        let attempt = format!("look for the disk with serial number {serial}");
        let found = self.query(&attempt, Namespace::Storage, &wql::all(DISK))?;
        let mut ours: Vec<HostDisk> = found.into_iter().filter_map(|disk| host_disk(disk, serial)).collect();
        match (ours.pop(), ours.len()) {
            (found, 0) => Ok(found),
            // Two paths to one disk, or two disks that say the same: neither is touched.
            (_, more) => {
                Err(Error::Unexpected { attempt, problem: format!("{} disks have this serial number", more + 1) })
            }
        }
    }

    /// Waits for the disk of a session that was just made.
    pub fn wait_for_host_disk(&self, serial: &str, limit: Duration) -> Result<HostDisk, Error> {
        let attempt = format!("wait for the disk with serial number {serial}");
        let start = self.seam.clock.monotonic();
        loop {
            if let Some(disk) = self.find_host_disk(serial)? {
                return Ok(disk);
            }
            if self.seam.clock.monotonic().saturating_sub(start) >= limit {
                let waited = limit.as_secs();
                let problem = format!(
                    "it did not come within {waited} s of the login; look for it with `Get-Disk`: another initiator, a \
                     multipath driver or a policy may keep it"
                );
                return Err(unexpected(&attempt, problem));
            }
            self.storage(&attempt, &ObjectPath::of_class("MSFT_StorageSetting"), "UpdateHostStorageCache", &[])?;
            self.seam.clock.sleep(LOOK_EVERY);
        }
    }

    /// Brings a disk on-line for reading and writing. One that is so already is left alone.
    pub fn bring_disk_online(&self, disk: &HostDisk) -> Result<(), Error> {
        let attempt = format!("bring disk {} (serial number {}) on-line", disk.number, disk.serial);
        if disk.is_read_only {
            let parameters = [("IsReadOnly", CimValue::Boolean(false))];
            self.storage(&attempt, &disk.path, "SetAttributes", &parameters)?;
        }
        if disk.is_offline {
            self.storage(&attempt, &disk.path, "Online", &[])?;
        }
        Ok(())
    }

    /// Takes a disk off-line; its volume is dismounted with it.
    pub fn take_disk_offline(&self, disk: &HostDisk) -> Result<(), Error> {
        if disk.is_offline {
            return Ok(());
        }
        let attempt = format!("take disk {} (serial number {}) off-line", disk.number, disk.serial);
        self.storage(&attempt, &disk.path, "Offline", &[]).map(drop)
    }

    /// Shows the volume of a disk in an empty NTFS folder (an access path, not a drive letter, spec 7.4). Where it is shown
    /// there already, nothing is done.
    pub fn mount_disk(&self, disk: &HostDisk, folder: &str) -> Result<(), Error> {
        let attempt = format!("show the volume of disk {} (serial number {}) in {folder}", disk.number, disk.serial);
        let partition = self.data_partition(&attempt, disk)?;
        let Some(partition) = partition else {
            let what = "a partition with a volume on it (the volume may be unreadable for this version of Windows)";
            return Err(Error::Missing { attempt, what: what.to_owned() });
        };
        if shows_in(&partition, folder) {
            return Ok(());
        }
        let path = partition.path.ok_or_else(|| unexpected(&attempt, "its partition has no object path".into()))?;
        let parameters = [("AccessPath", CimValue::String(folder.to_owned()))];
        self.storage(&attempt, &path, "AddAccessPath", &parameters).map(drop)
    }

    /// Takes the volume of a disk out of a folder again. One that is not there is a success.
    pub fn unmount_disk(&self, disk: &HostDisk, folder: &str) -> Result<(), Error> {
        let attempt =
            format!("take the volume of disk {} (serial number {}) out of {folder}", disk.number, disk.serial);
        let partition = self.data_partition(&attempt, disk)?.filter(|partition| shows_in(partition, folder));
        let Some(path) = partition.and_then(|partition| partition.path) else { return Ok(()) };
        let parameters = [("AccessPath", CimValue::String(folder.to_owned()))];
        self.storage(&attempt, &path, "RemoveAccessPath", &parameters).map(drop)
    }

    fn data_partition(&self, attempt: &str, disk: &HostDisk) -> Result<Option<Instance>, Error> {
        let query = wql::associated(&disk.path, "MSFT_DiskToPartition", Some(PARTITION));
        let found = self.query(attempt, Namespace::Storage, &query)?;
        let has_volume =
            |one: &Instance| one.get("GptType").as_str().is_some_and(|kind| kind.eq_ignore_ascii_case(BASIC_DATA));
        Ok(found.into_iter().find(has_volume))
    }
}

fn host_disk(disk: Instance, serial: &str) -> Option<HostDisk> {
    let text = |name| disk.get(name).as_str().unwrap_or_default().trim().to_owned();
    // Without a path nothing could be done to it: it counts as one that has not come.
    let path = disk.path.clone()?;
    // Windows may pad what the target said.
    let is_it = disk.get("BusType").as_u64() == Some(ISCSI) && text("SerialNumber").eq_ignore_ascii_case(serial);
    is_it.then(|| HostDisk {
        serial: text("SerialNumber"),
        number: disk.get("Number").as_u64().unwrap_or_default(),
        is_offline: disk.get("IsOffline").as_bool() == Some(true),
        is_read_only: disk.get("IsReadOnly").as_bool() == Some(true),
        size_bytes: disk.get("Size").as_u64().unwrap_or_default(),
        path,
    })
}

fn shows_in(partition: &Instance, folder: &str) -> bool {
    let CimValue::Array(CimType::String, paths) = partition.get("AccessPaths") else { return false };
    // Windows ends access paths with a backslash.
    paths.iter().filter_map(CimValue::as_str).any(|path| same_path(path.trim_end_matches('\\'), folder))
}
