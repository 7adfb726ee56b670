//! What a guest reads when it boots, remembered for the next boot of its VM (spec block-serving C.2).

use std::sync::Arc;
use std::time::Duration;

use backup::PointDisk;
use kopia_repo::Repository;
use serve::{BootSet, Prefetch, record_boot_set};

use crate::serving::Sources;

/// When it is remembered, counted from the start: early, in case that the keeper is killed, and at the end of the time
/// in which reads count as the boot's.
const MOMENTS: [Duration; 3] = [Duration::from_secs(45), Duration::from_secs(150), Duration::from_secs(600)];
/// A boot that touched fewer segments was none.
const LEAST_SEGMENTS: usize = 8;

/// A boot that is being watched.
pub struct Boot {
    disks: Vec<(PointDisk, Arc<Prefetch>)>,
    remembered: usize,
}

impl Boot {
    /// Each disk, with who sees its reads.
    pub fn watch(disks: Vec<(PointDisk, Arc<Prefetch>)>) -> Self {
        Self { disks, remembered: 0 }
    }

    /// To be called about once a second. Nobody waits for the repository.
    pub fn remember_when_due(&mut self, since_start: Duration, sources: &Sources) {
        if MOMENTS.get(self.remembered).is_none_or(|moment| since_start < *moment) {
            return;
        }
        self.remembered += 1;
        if let Some(set) = self.set() {
            let (repo, vm_id) = (sources.repo.clone(), sources.point.vm_id.clone());
            // Without a thread it is not remembered, which costs time only.
            let _ = std::thread::Builder::new().name("boot set".into()).spawn(move || record(&repo, &vm_id, &set));
        }
    }

    /// At the end of a session that ended before its boot was remembered for good.
    pub fn remember(&self, sources: &Sources) {
        if self.remembered < MOMENTS.len()
            && let Some(set) = self.set()
        {
            record(&sources.repo, &sources.point.vm_id, &set);
        }
    }

    fn set(&self) -> Option<BootSet> {
        let segment_bytes = self.disks.first()?.0.segment_bytes;
        let mut set = BootSet::new(segment_bytes);
        let mut touched = 0;
        // A boot set has one size of segments; disks of another are seldom, and are read without it.
        for (disk, prefetch) in self.disks.iter().filter(|(disk, _)| disk.segment_bytes == segment_bytes) {
            let touches = prefetch.touches();
            touched += touches.len();
            set.add(disk.virtual_disk_id.as_str(), &touches);
        }
        (touched >= LEAST_SEGMENTS).then_some(set)
    }
}

fn record(repo: &Arc<Repository>, vm_id: &str, set: &BootSet) {
    match record_boot_set(repo, vm_id, set) {
        Ok(()) => tracing::info!(vm_id, "what the boot reads is remembered"),
        Err(error) => tracing::warn!(vm_id, %error, "what the boot reads is not remembered"),
    }
}
