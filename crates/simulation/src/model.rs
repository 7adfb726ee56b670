//! What really is: the guests' bytes, what was frozen, which points there must be. It asks the agent nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::story::HostFault;

/// 4 KiB: the unit of guest writes.
pub(crate) const UNIT: u64 = 4096;

#[derive(Default)]
pub(crate) struct Model {
    pub(crate) vms: Vec<Vm>,
    pub(crate) points: Vec<Point>,
    /// Runs that died or failed after a freeze: their point may still appear.
    pub(crate) pending: BTreeMap<String, Pending>,
    pub(crate) copies: Vec<Copy>,
    pub(crate) faults: Vec<(usize, HostFault)>,
    /// Counts everything that happens to disks: the order of things.
    pub(crate) event: u64,
    pub(crate) runs: u32,
    pub(crate) clock_offset_s: i64,
    /// By disk and tracking id: the event at which that instant was frozen.
    pub(crate) instants: BTreeMap<(String, String), u64>,
    /// By point and disk: the event whose id the point holds, where that is not its own.
    pub(crate) tracked_since: BTreeMap<(String, String), u64>,
}

pub(crate) struct Vm {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) host: usize,
    pub(crate) running: bool,
    /// In the order of their places.
    pub(crate) disks: Vec<Disk>,
    pub(crate) detached: Vec<(String, Disk)>,
    pub(crate) checkpoints: Vec<UserCheckpoint>,
    pub(crate) foreign_checkpoints: Vec<String>,
    pub(crate) foreign_reference_points: Vec<String>,
    pub(crate) run: Option<RunInProgress>,
    /// Something went wrong, or the line of points was cut, since the last good point: a full needs no other excuse.
    pub(crate) full_excused: bool,
}

#[derive(Clone)]
pub(crate) struct Disk {
    /// Name of the first file of the chain: it stays through checkpoints and moves.
    pub(crate) key: String,
    pub(crate) content: Arc<Vec<u8>>,
    /// The last event after which tracking cannot tell what differs from before.
    pub(crate) broken_at: u64,
    /// When the disk went back with its tracking: to the instant of which event, and at which event. Ids of instants
    /// before the first are still true, ids of those between are not.
    pub(crate) reverts: Vec<(u64, u64)>,
    /// What the guest touched, by event.
    pub(crate) touched: Vec<(u64, Range<u64>)>,
}

#[derive(Clone)]
pub(crate) struct UserCheckpoint {
    pub(crate) id: String,
    /// At which event it was made.
    pub(crate) event: u64,
    pub(crate) disks: Vec<Disk>,
}

pub(crate) struct Copy {
    pub(crate) copy: hyperv_sim::DiskCopy,
    pub(crate) vm: usize,
    pub(crate) key: String,
    pub(crate) content: Arc<Vec<u8>>,
    pub(crate) event: u64,
}

/// The disks of a VM at one instant.
#[derive(Clone)]
pub(crate) struct Frozen {
    pub(crate) event: u64,
    pub(crate) disks: Vec<Disk>,
    pub(crate) user_checkpoints: Vec<String>,
    pub(crate) host: usize,
}

pub(crate) struct RunInProgress {
    pub(crate) id: String,
    /// Recovery checkpoints that were there before.
    pub(crate) known: Vec<String>,
    /// Those that appeared, with what they froze.
    pub(crate) frozen: Vec<(String, Frozen)>,
    /// Files in the chain of each disk when it began.
    pub(crate) chain_depths: BTreeMap<String, usize>,
    /// Somebody else did something to the VM meanwhile.
    pub(crate) disturbed: bool,
}

pub(crate) struct Pending {
    pub(crate) vm: usize,
    pub(crate) frozen: Frozen,
}

pub(crate) struct Point {
    pub(crate) id: String,
    pub(crate) vm: usize,
    pub(crate) frozen: Frozen,
    /// Disks that an unnoticed lie may have spoiled.
    pub(crate) doubtful: Vec<String>,
    pub(crate) deleted: bool,
}

impl Model {
    pub(crate) fn next_event(&mut self) -> u64 {
        self.event += 1;
        self.event
    }

    /// Points of a VM that must be there, oldest first.
    pub(crate) fn live_points(&self, vm: usize) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(move |point| point.vm == vm && !point.deleted)
    }

    pub(crate) fn point(&self, id: &str) -> Option<&Point> {
        self.points.iter().find(|point| point.id == id)
    }

    /// Whether something is broken that a VM's runs can meet.
    pub(crate) fn is_broken_for(&self, vm: usize) -> bool {
        self.faults.iter().any(|(of, fault)| *of == vm || !fault.is_of_one_vm())
    }
}

impl Vm {
    pub(crate) fn freeze(&self, event: u64) -> Frozen {
        Frozen { event, disks: self.disks.clone(), user_checkpoints: self.checkpoint_ids(), host: self.host }
    }

    pub(crate) fn checkpoint_ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.checkpoints.iter().map(|one| one.id.clone()).collect();
        ids.sort();
        ids
    }
}

impl Disk {
    pub(crate) fn new(key: String, content: Vec<u8>, event: u64) -> Self {
        Self { key, content: Arc::new(content), broken_at: event, reverts: Vec::new(), touched: Vec::new() }
    }

    /// The guest's write.
    pub(crate) fn write(&mut self, at: u64, data: &[u8], event: u64) {
        let content = Arc::make_mut(&mut self.content);
        content[at as usize..at as usize + data.len()].copy_from_slice(data);
        self.touched.push((event, at..at + data.len() as u64));
    }

    /// Aligned pieces of `piece` bytes that the guest touched after an event, with ranges rounded to `granularity`.
    pub(crate) fn pieces_touched_after(&self, event: u64, granularity: u64, piece: u64) -> u64 {
        let mut pieces = std::collections::BTreeSet::new();
        for (at, range) in &self.touched {
            if *at > event {
                let start = range.start / granularity * granularity;
                let end = range.end.next_multiple_of(granularity).min(self.content.len() as u64);
                pieces.extend(start / piece..end.div_ceil(piece));
            }
        }
        pieces.len() as u64
    }
}

impl HostFault {
    pub(crate) fn is_of_one_vm(self) -> bool {
        use HostFault::*;
        matches!(
            self,
            Unreadable { .. } | DeviceLost { .. } | MergeBlocked | ChangesFail { .. } | ChangesOmit { .. } | LeavesFile
        )
    }
}
