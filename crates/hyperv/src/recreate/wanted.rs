//! What a re-created VM is to be: the choices of a restore, as data.

use std::collections::BTreeMap;

use crate::{Cancel, JobLimits};

/// What a re-created VM is to be. Its [`Definition`](crate::Definition) says what it was.
#[derive(Clone, Debug)]
pub struct Recreation {
    /// Display name.
    pub name: String,
    /// Whether it is the same VM to the host.
    pub identity: Identity,
    /// Absolute directory for its configuration, checkpoints, paging and guest state.
    pub data_root: String,
    /// The restored disks. A disk of the definition that is not here is left out, and its drive removed.
    pub disks: Vec<RestoredDisk>,
    /// Addresses of its network adapters.
    pub mac: MacChoice,
    /// Where its network adapters are connected.
    pub network: NetworkChoice,
    /// What becomes of a virtual TPM when the VM is built from settings; an import keeps it as it is.
    pub tpm: TpmChoice,
    /// Another number of virtual processors than before.
    pub processors: Option<u64>,
    /// Another amount of start-up memory than before, in MiB.
    pub memory_mib: Option<u64>,
    /// Keeps the automatic start action; without it the VM never starts by itself (spec 6.3 step 4), so that a copy
    /// does not appear on the network with the next reboot of the host.
    pub keep_automatic_start: bool,
    /// How long each call to the host may take.
    pub limits: JobLimits,
    /// Lets another thread stop the work; what was made by then is removed again.
    pub cancel: Cancel,
}

impl Recreation {
    /// A copy beside the original, if that still exists: a new id, new addresses, and no network.
    pub fn as_copy(name: impl Into<String>, data_root: impl Into<String>, disks: Vec<RestoredDisk>) -> Self {
        Self {
            name: name.into(),
            identity: Identity::New,
            data_root: data_root.into(),
            disks,
            mac: MacChoice::New,
            network: NetworkChoice::disconnected(),
            tpm: TpmChoice::Off,
            processors: None,
            memory_mib: None,
            keep_automatic_start: false,
            limits: JobLimits::DEFAULT,
            cancel: Cancel::default(),
        }
    }

    /// The VM itself, in the place of one that is gone: its id, addresses, network, and automatic start.
    pub fn as_original(name: impl Into<String>, data_root: impl Into<String>, disks: Vec<RestoredDisk>) -> Self {
        Self {
            identity: Identity::Keep,
            mac: MacChoice::Keep,
            network: NetworkChoice::as_before(),
            tpm: TpmChoice::SameKeyProtector,
            keep_automatic_start: true,
            ..Self::as_copy(name, data_root, disks)
        }
    }

    /// The restored file of the disk whose setting had this `InstanceID`; compared by slot, because the configuration
    /// that an id begins with is another one in a checkpoint, in the VM, and in its copy (spec 1.4).
    pub(crate) fn disk_for(&self, instance_id: &str) -> Option<&RestoredDisk> {
        let slot = crate::slot_part(instance_id);
        self.disks.iter().find(|disk| crate::slot_part(&disk.instance_id).eq_ignore_ascii_case(slot))
    }
}

/// Whether a re-created VM is the same VM to the host (spec 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The id of the definition: only if no VM, planned VM, or role of the cluster has it.
    Keep,
    /// A new id.
    New,
}

/// One disk, restored to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredDisk {
    /// `InstanceID` of the disk in the [`Definition`](crate::Definition) (`disks[].instance_id`).
    pub instance_id: String,
    /// Absolute path of the file on the host.
    pub path: String,
    /// Bytes that the file will take, while it has not been written; a preflight compares them with the free space.
    pub needs_bytes: Option<u64>,
}

/// Addresses of network adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MacChoice {
    /// As they were. Two running VMs with one address disturb each other.
    Keep,
    /// The host gives new, dynamic ones at the first start.
    New,
}

/// Where network adapters are connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkChoice {
    /// Connect to a switch of this host with the same id, or the same name if exactly one has it.
    pub reconnect: bool,
    /// Other switches: from the id or name of the former switch to the id or name of one on this host.
    pub switches: BTreeMap<String, String>,
}

impl NetworkChoice {
    /// As it was, as far as this host has the switches.
    pub fn as_before() -> Self {
        Self { reconnect: true, switches: BTreeMap::new() }
    }

    /// Not at all.
    pub fn disconnected() -> Self {
        Self { reconnect: false, switches: BTreeMap::new() }
    }
}

/// What becomes of a virtual TPM when a VM is built from settings (spec 6.6). Its content is lost in either case, and a
/// guest with BitLocker asks for its recovery key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TpmChoice {
    /// No TPM.
    Off,
    /// An empty TPM under the former key protector: starts on a host whose guardian has the certificates.
    SameKeyProtector,
}
