//! What a run leaves to the others on its host: room on the volumes, an end to its checkpoint, and figures about both.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use hyperv::Vm;
use hyperv::seam::{Clock, HostFiles};

use super::{GuardLimits, Run};
use crate::BackupError;
use crate::run::report::WarningCode;
use crate::state::PastRun;

/// Time between looks at volumes and files while disks are read.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Share of a VM's disks that its first checkpoint may need, as a divisor (spec hyperv 11, row 11).
const FIRST_RUN_SHARE: u64 = 20;

impl Run<'_> {
    /// Refuses a VM whose volume has no room for a checkpoint, or whose disks wait for too many merges already.
    pub(super) fn check_room(&mut self, vm: &Vm) -> Result<(), BackupError> {
        let limits = self.context.options.guard;
        let allowed = vm.user_checkpoints().count() + limits.max_chain_depth;
        if let Some(disk) = vm.disks.iter().find(|disk| disk.chain.len() > allowed) {
            return Err(BackupError::MergeStuck {
                vm: vm.name.clone(),
                disk: disk.path.clone(),
                files: disk.chain.len(),
            });
        }
        let peak = self.journal.history.iter().map(|run| run.avhdx_peak_bytes).max();
        let disks: u64 = vm.disks.iter().map(|disk| disk.size_bytes).sum();
        let expected = peak.map_or(disks / FIRST_RUN_SHARE, |peak| 2 * peak);
        let needed_bytes = expected.max(limits.min_free_bytes);
        for (volume, path) in volumes(vm) {
            let Some(free_bytes) = free_bytes(&*self.context.host.seam().files, &path) else { continue };
            if free_bytes < limits.min_free_bytes {
                let needed_bytes = limits.min_free_bytes;
                return Err(BackupError::NoRoom { vm: vm.name.clone(), volume, free_bytes, needed_bytes });
            }
            if free_bytes < needed_bytes {
                let text = format!(
                    "{volume} has {} MiB free, and the checkpoint may need {} MiB: make room, or the run may have to \
                     give up",
                    free_bytes >> 20,
                    needed_bytes >> 20,
                );
                self.warn(&vm.name, WarningCode::LowSpace, text);
            }
        }
        Ok(())
    }

    /// Watches from now on, the checkpoint being made at `frozen`.
    pub(super) fn watch(&self, vm: &Vm, frozen: Duration) -> Result<Watch<'_>, BackupError> {
        let host = self.context.host;
        // As they are now the disks lead to the files that the guest writes.
        let now = host.vm(&vm.id).map_err(BackupError::host(format!("look at VM {}", vm.name)))?;
        let leaves = now.map(|vm| vm.disks.into_iter().map(|disk| disk.path).collect()).unwrap_or_default();
        Ok(Watch {
            vm: vm.name.clone(),
            files: &*host.seam().files,
            clock: &*host.seam().clock,
            limits: self.context.options.guard,
            volumes: volumes(vm),
            leaves,
            frozen,
            seen: Mutex::default(),
        })
    }

    /// What the next run should know of this one.
    pub(super) fn remember(&mut self, run: PastRun) {
        const REMEMBERED: usize = 10;
        self.journal.history.push(run);
        let excess = self.journal.history.len().saturating_sub(REMEMBERED);
        self.journal.history.drain(..excess);
    }

    /// Runs in a row, up to the last, whose merge was not seen.
    pub(super) fn unmerged_runs(&self) -> usize {
        self.journal.history.iter().rev().take_while(|run| run.merge_ms.is_none()).count()
    }
}

/// Looks at a VM's volumes while its checkpoint exists.
pub(super) struct Watch<'a> {
    vm: String,
    files: &'a dyn HostFiles,
    clock: &'a dyn Clock,
    limits: GuardLimits,
    volumes: BTreeMap<String, String>,
    /// The files that grow while the checkpoint exists.
    leaves: Vec<String>,
    frozen: Duration,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    looked: Option<Duration>,
    peak_bytes: u64,
}

impl Watch<'_> {
    /// To be called often: looks now and then, and refuses to go on when the checkpoint has to go.
    pub(super) fn check(&self) -> Result<(), BackupError> {
        let now = self.clock.monotonic();
        {
            let mut seen = self.seen.lock().expect("no panic while held");
            if seen.looked.is_some_and(|looked| now.saturating_sub(looked) < LOOK_EVERY) {
                return Ok(());
            }
            seen.looked = Some(now);
        }
        self.look();
        let age = now.saturating_sub(self.frozen);
        if age > self.limits.max_checkpoint_age {
            return Err(BackupError::CheckpointTooOld { vm: self.vm.clone(), age });
        }
        for (volume, path) in &self.volumes {
            let needed_bytes = self.limits.min_free_bytes / 2;
            if let Some(free_bytes) = free_bytes(self.files, path).filter(|free| *free < needed_bytes) {
                let (vm, volume) = (self.vm.clone(), volume.clone());
                return Err(BackupError::NoRoom { vm, volume, free_bytes, needed_bytes });
            }
        }
        Ok(())
    }

    /// Bytes of the files that the guest wrote beside the frozen ones: the most that was seen, now included.
    pub(super) fn peak_bytes(&self) -> u64 {
        self.look();
        self.seen.lock().expect("no panic while held").peak_bytes
    }

    fn look(&self) {
        let sizes = self.leaves.iter().filter_map(|leaf| Some(self.files.facts(leaf).ok()?.len_bytes));
        let bytes = sizes.sum();
        let mut seen = self.seen.lock().expect("no panic while held");
        seen.peak_bytes = seen.peak_bytes.max(bytes);
    }
}

/// `None`, with a line in the trace, where the host does not say.
fn free_bytes(files: &dyn HostFiles, path: &str) -> Option<u64> {
    files.free_bytes(path).inspect_err(|error| tracing::warn!(path, %error, "free space is not known")).ok()
}

/// The volumes that hold a VM's disks, each with a file on it.
fn volumes(vm: &Vm) -> BTreeMap<String, String> {
    vm.disks.iter().map(|disk| (volume_of(&disk.path).to_owned(), disk.path.clone())).collect()
}

/// The part of a path that names the volume: a drive, a cluster's shared volume, a share.
fn volume_of(path: &str) -> &str {
    let parts = |count: usize| {
        let mut ends = path.match_indices('\\').map(|(at, _)| at);
        ends.nth(count).map_or(path, |end| &path[..end])
    };
    let is_cluster_volume = path
        .get(1..)
        .is_some_and(|rest| rest.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(":\\ClusterStorage\\")));
    match path {
        _ if path.starts_with(r"\\") => parts(3),
        _ if is_cluster_volume => parts(2),
        _ => parts(0),
    }
}

#[cfg(test)]
mod tests {
    use super::volume_of;

    #[test]
    fn volumes_are_told_apart() {
        for (path, volume) in [
            (r"D:\VMs\DC01\disk.vhdx", "D:"),
            (r"C:\ClusterStorage\Volume1\DC01\disk.vhdx", r"C:\ClusterStorage\Volume1"),
            (r"c:\clusterstorage\v2\x", r"c:\clusterstorage\v2"),
            (r"C:\ClusterStorageOld\x", "C:"),
            (r"\\files\vms\DC01\disk.vhdx", r"\\files\vms"),
            (r"\\files", r"\\files"),
            ("odd", "odd"),
            ("é:\\x", "é:"),
            ("", ""),
        ] {
            assert_eq!(volume_of(path), volume, "{path}");
        }
    }
}
