//! How a VM can be backed up, as data with a sentence: what a person is told before the first run (spec 2.3, 2.6, 2.7).

use std::fmt;

use crate::{DiskFormat, DiskSlot, Exclusion, Operation, TrackingSupport, Vm, VmDisk, VmState, VssReadiness};

/// What backups of a VM are. Its text is one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protection {
    /// After the first backup only changes are read; of every disk but those in `full_each_time`.
    Incremental {
        /// Disks whose changes are not tracked, with the reason.
        full_each_time: Vec<(DiskSlot, TrackingSupport)>,
    },
    /// Every backup reads every disk.
    FullOnly(FullOnly),
    /// No backup can be made.
    Impossible(Impossible),
}

/// Why every backup is a full one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FullOnly {
    /// The host, or the functional level of its cluster, is older than Server 2016.
    HostTooOld,
    /// The configuration version is below 6.2.
    ConfigurationTooOld {
        /// Such as `5.0`.
        version: String,
    },
    /// None of the disks can be tracked, each for its reason.
    Disks(Vec<(DiskSlot, TrackingSupport)>),
}

/// Why no backup can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Impossible {
    /// `EnabledState` 32781 to 32792: the VM's storage is lost.
    StorageLost(u16),
    /// A file of a disk is missing, or the host cannot read it.
    UnreadableDisk {
        /// The disk's file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// Every disk is of a kind that no checkpoint covers.
    OnlyExcludedDisks(Vec<(String, Exclusion)>),
    /// The VM has no disk at all.
    NoDisks,
}

/// What a person should know of a VM although it can be backed up. Its text is one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caution {
    /// A disk is left out of every backup.
    DiskLeftOut {
        /// The file or device.
        path: String,
        /// Why.
        reason: Exclusion,
    },
    /// Other VMs may use the same disks; some hosts refuse any checkpoint of such a VM (spec 11, row 19).
    SharesDisks,
    /// A differencing disk without a checkpoint: a golden image, of which the resolved content is stored.
    HasParent {
        /// Where the disk is attached.
        slot: DiskSlot,
        /// The parent's file.
        parent: String,
    },
    /// Two disks have one identity: their changes are told apart by slot, and a move between slots asks for a full.
    SameIdentity(DiskSlot, DiskSlot),
    /// This VM is a replica: a base made of the primary does not serve it.
    Replica {
        /// `ReplicationMode`.
        mode: u16,
    },
    /// A shielded VM: its files are stored as they are, and start again only in the same guarded fabric.
    Shielded,
    /// A virtual TPM: another host opens it only with the certificates of this host's guardian (spec 6.6).
    VirtualTpm,
    /// The VM is saved: its disks are as a running guest left them.
    Saved,
    /// The VM is paused, so that its guest cannot freeze.
    Paused,
    /// Asking the guest to freeze would fail.
    GuestDoesNotFreeze(VssReadiness),
    /// Something runs on the VM that a backup has to wait for.
    Busy(Operation),
    /// User checkpoints exist; a change among them between two runs makes the next one a full.
    UserCheckpoints(usize),
    /// Backup checkpoints exist: a run that ended badly, or another product at work.
    BackupCheckpoints(Vec<String>),
}

impl VmDisk {
    /// The parent of a disk that was made to differ from one. What checkpoints make is called `.avhdx` or `.avhd`.
    fn golden_parent(&self) -> Option<&str> {
        let made_by_checkpoint = |path: &str| {
            let path = path.to_ascii_lowercase();
            path.ends_with(".avhdx") || path.ends_with(".avhd")
        };
        let pairs = self.chain.iter().zip(self.chain.iter().skip(1));
        pairs.filter(|(child, _)| !made_by_checkpoint(child)).map(|(_, parent)| parent.as_str()).next()
    }
}

impl Vm {
    /// How this VM can be backed up as it is now.
    pub fn protection(&self) -> Protection {
        if let VmState::Critical(state) = self.state {
            return Protection::Impossible(Impossible::StorageLost(state));
        }
        if let Some(disk) = self.unreadable_disks.first() {
            let (path, problem) = (disk.path.clone(), disk.problem.clone());
            return Protection::Impossible(Impossible::UnreadableDisk { path, problem });
        }
        if self.disks.is_empty() {
            let excluded: Vec<_> = self.excluded_disks.iter().map(|disk| (disk.path.clone(), disk.reason)).collect();
            return Protection::Impossible(match excluded.is_empty() {
                true => Impossible::NoDisks,
                false => Impossible::OnlyExcludedDisks(excluded),
            });
        }
        let untracked: Vec<_> = self
            .disks
            .iter()
            .filter(|disk| disk.tracking != TrackingSupport::Supported)
            .map(|disk| (disk.slot, disk.tracking))
            .collect();
        if untracked.len() < self.disks.len() {
            return Protection::Incremental { full_each_time: untracked };
        }
        let all = |reason| untracked.iter().all(|(_, tracking)| *tracking == reason);
        Protection::FullOnly(if all(TrackingSupport::HostTooOld) {
            FullOnly::HostTooOld
        } else if all(TrackingSupport::ConfigurationTooOld) {
            FullOnly::ConfigurationTooOld { version: self.configuration_version.clone() }
        } else {
            FullOnly::Disks(untracked)
        })
    }

    /// What a person should know beside [`Vm::protection`], the weightiest first.
    pub fn cautions(&self) -> Vec<Caution> {
        let mut cautions = Vec::new();
        for disk in &self.excluded_disks {
            cautions.push(Caution::DiskLeftOut { path: disk.path.clone(), reason: disk.reason });
        }
        if self.excluded_disks.iter().any(|disk| matches!(disk.reason, Exclusion::Shared | Exclusion::VhdSet)) {
            cautions.push(Caution::SharesDisks);
        }
        let backup_checkpoints: Vec<_> =
            self.recovery_checkpoints().map(|checkpoint| checkpoint.name.clone()).collect();
        if !backup_checkpoints.is_empty() {
            cautions.push(Caution::BackupCheckpoints(backup_checkpoints));
        }
        if self.shielded {
            cautions.push(Caution::Shielded);
        } else if self.tpm {
            cautions.push(Caution::VirtualTpm);
        }
        if let mode @ 2..=4 = self.replication_mode {
            cautions.push(Caution::Replica { mode });
        }
        match (&self.state, self.vss) {
            (VmState::Saved, _) => cautions.push(Caution::Saved),
            (VmState::Paused, _) => cautions.push(Caution::Paused),
            (VmState::Running, vss @ (VssReadiness::Disabled | VssReadiness::NotResponding(_))) => {
                cautions.push(Caution::GuestDoesNotFreeze(vss));
            }
            _ => {}
        }
        for (at, disk) in self.disks.iter().enumerate() {
            if let Some(parent) = disk.golden_parent() {
                cautions.push(Caution::HasParent { slot: disk.slot, parent: parent.to_owned() });
            }
            let same = self.disks[..at].iter().find(|other| other.virtual_disk_id == disk.virtual_disk_id);
            cautions.extend(same.map(|other| Caution::SameIdentity(other.slot, disk.slot)));
        }
        let user_checkpoints = self.user_checkpoints().count();
        if user_checkpoints > 0 {
            cautions.push(Caution::UserCheckpoints(user_checkpoints));
        }
        cautions.extend(self.operation.map(Caution::Busy));
        cautions
    }
}

impl TrackingSupport {
    /// Why changes are not tracked, to follow "because".
    fn reason(self) -> &'static str {
        match self {
            Self::Supported => "its changes are tracked",
            Self::HostTooOld => "this host, or its cluster's functional level, is older than Server 2016",
            Self::ConfigurationTooOld => "the VM's configuration version is below 6.2",
            Self::NotVhdx => "it is a VHD, and only VHDX files record their changes",
            Self::PersistentMemory => "it is persistent memory, whose changes are not recorded",
        }
    }
}

impl Exclusion {
    /// Why it is left out, to follow "because".
    fn reason(self) -> &'static str {
        match self {
            Self::PassThrough => "it is a physical disk of the host, which no checkpoint can freeze",
            Self::Shared => "several VMs may write to it, so that no checkpoint of one VM can freeze it",
            Self::VhdSet => "it is a VHD set, which only a checkpoint of a group of VMs can freeze",
            Self::FibreChannel => "it lies behind a virtual fibre channel adapter, out of the host's reach",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incremental { full_each_time } if full_each_time.is_empty() => {
                f.write_str("Incremental: after the first backup only changes are read.")
            }
            Self::Incremental { full_each_time } => {
                f.write_str("Incremental")?;
                for (slot, tracking) in full_each_time {
                    write!(f, ", but the disk at {slot} is read in full each time, because {}", tracking.reason())?;
                }
                f.write_str(".")
            }
            Self::FullOnly(why) => write!(f, "Full each time: {why}."),
            Self::Impossible(why) => write!(f, "No backup is possible: {why}."),
        }
    }
}

impl fmt::Display for FullOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostTooOld => f.write_str(
                "this host, or its cluster's functional level, is older than Server 2016 and tracks no changes",
            ),
            Self::ConfigurationTooOld { version } => write!(
                f,
                "configuration version {version} tracks no changes; raising it (Update-VMVersion, VM off, no way back) does"
            ),
            Self::Disks(disks) => {
                for (at, (slot, tracking)) in disks.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "; " };
                    write!(f, "{comma}the disk at {slot} cannot be tracked, because {}", tracking.reason())?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StorageLost(state) => {
                write!(f, "the VM has lost its storage (state {state}); bring the storage back first")
            }
            Self::UnreadableDisk { path, problem } => write!(f, "the disk {path} cannot be read ({problem})"),
            Self::OnlyExcludedDisks(disks) => {
                for (at, (path, reason)) in disks.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "; " };
                    write!(f, "{comma}{path} is left out, because {}", reason.reason())?;
                }
                Ok(())
            }
            Self::NoDisks => f.write_str("the VM has no disk"),
        }
    }
}

impl fmt::Display for Caution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DiskLeftOut { path, reason } => write!(f, "{path} is not backed up, because {}.", reason.reason()),
            Self::SharesDisks => f.write_str(
                "The VM shares disks with others; if the host refuses checkpoints of it, back up its guests from inside.",
            ),
            Self::HasParent { slot, parent } => write!(
                f,
                "The disk at {slot} differs from {parent}; a backup holds the content of both, and a restore is one disk."
            ),
            Self::SameIdentity(first, second) => write!(
                f,
                "The disks at {first} and {second} have the same identity (a copied file); give one a new one with Set-VHD -ResetDiskIdentifier."
            ),
            Self::Replica { mode } => write!(
                f,
                "This is a {} of Hyper-V Replica; the first backup after a failover is a full one.",
                match mode {
                    3 => "test replica",
                    4 => "extended replica",
                    _ => "replica",
                }
            ),
            Self::Shielded => f.write_str("The VM is shielded; a restore starts only in the same guarded fabric."),
            Self::VirtualTpm => f.write_str(
                "The VM has a virtual TPM; keep this host's guardian certificates, or another host cannot open it.",
            ),
            Self::Saved => {
                f.write_str("The VM is saved; a backup of it restores as after a power cut, unless its saved state is restored too.")
            }
            Self::Paused => f.write_str("The VM is paused; its guest cannot freeze, so a backup is crash-consistent."),
            Self::GuestDoesNotFreeze(VssReadiness::Disabled) => f.write_str(
                "Backup is switched off in the VM's integration services; its backups are crash-consistent.",
            ),
            Self::GuestDoesNotFreeze(VssReadiness::NotResponding(status)) => write!(
                f,
                "The guest's backup service does not answer (status {status}); its backups are crash-consistent."
            ),
            Self::GuestDoesNotFreeze(_) => f.write_str("It is not known whether the guest can freeze."),
            Self::Busy(operation) => write!(f, "The host is busy with the VM ({operation:?}); a backup waits for the end."),
            Self::UserCheckpoints(1) => {
                f.write_str("The VM has a user checkpoint; when it goes, the next backup is a full one.")
            }
            Self::UserCheckpoints(count) => {
                write!(f, "The VM has {count} user checkpoints; when they change, the next backup is a full one.")
            }
            Self::BackupCheckpoints(names) => write!(
                f,
                "A backup checkpoint is on the VM ({}): a run that ended badly, or another backup product.",
                names.join(", ")
            ),
        }
    }
}

impl fmt::Display for DiskFormat {
    /// `VHD`, `VHDX`, `VHD set`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
            Self::VhdSet => "VHD set",
        })
    }
}
