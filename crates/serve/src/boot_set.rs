//! What a VM touches when it boots, remembered for its next boot (spec block-serving C.2).
//!
//! It names positions, not content, so that it serves for every point of the VM. Losing it costs time only.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Recording ends so long after the first read.
pub const RECORD_FOR: Duration = Duration::from_secs(600);
/// Most entries of all disks together.
pub const MAX_ENTRIES: usize = 65_536;
/// Type of the manifest that holds it.
pub const MANIFEST_TYPE: &str = "e3-bootset";

const VERSION: u32 = 1;

/// The segments of one disk, in the order of first touch.
#[derive(Clone, Debug, Default)]
pub struct FirstTouches {
    seen: HashSet<u64>,
    order: Vec<u64>,
    t_ms: Vec<u64>,
}

impl FirstTouches {
    /// Notes a touch, unless there was one before.
    pub fn touch(&mut self, segment: u64, now_ms: u64) {
        if self.order.len() < MAX_ENTRIES && self.seen.insert(segment) {
            self.order.push(segment);
            self.t_ms.push(now_ms);
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// The boot set of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSet {
    v: u32,
    segment: u64,
    disks: BTreeMap<String, DiskTouches>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct DiskTouches {
    order: Vec<u64>,
    t_ms: Vec<u64>,
}

impl BootSet {
    /// A boot set in segments of this size, without a disk.
    pub fn new(segment_bytes: u32) -> Self {
        Self { v: VERSION, segment: segment_bytes.into(), disks: BTreeMap::new() }
    }

    /// Adds a disk; entries beyond the limit for all disks are dropped.
    pub fn add(&mut self, disk: impl Into<String>, touches: &FirstTouches) {
        let used: usize = self.disks.values().map(|disk| disk.order.len()).sum();
        let keep = touches.order.len().min(MAX_ENTRIES.saturating_sub(used));
        let touches = DiskTouches { order: touches.order[..keep].to_vec(), t_ms: touches.t_ms[..keep].to_vec() };
        self.disks.insert(disk.into(), touches);
    }

    /// The segments of a disk in order, in segments of this size; none when it is recorded in others.
    pub fn order(&self, disk: &str, segment_bytes: u32) -> &[u64] {
        match self.disks.get(disk) {
            Some(touches) if self.segment == u64::from(segment_bytes) => &touches.order,
            _ => &[],
        }
    }

    /// Whether no disk was touched.
    pub fn is_empty(&self) -> bool {
        self.disks.values().all(|disk| disk.order.is_empty())
    }

    /// Whether it is of a version that this program knows, and no longer than it may be.
    pub fn is_usable(&self) -> bool {
        let entries: usize = self.disks.values().map(|disk| disk.order.len()).sum();
        self.v == VERSION && entries <= MAX_ENTRIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_touched_is_remembered_in_order() {
        let mut touches = FirstTouches::default();
        for (segment, now_ms) in [(5, 0), (2, 10), (5, 20), (9, 30)] {
            touches.touch(segment, now_ms);
        }
        let mut set = BootSet::new(1 << 20);
        set.add("disk", &touches);
        let read: BootSet = serde_json::from_str(&serde_json::to_string(&set).unwrap()).unwrap();
        assert!(read == set && read.is_usable());
        assert_eq!(read.order("disk", 1 << 20), [5, 2, 9]);
        assert_eq!(read.order("disk", 4 << 20), [] as [u64; 0], "positions in other segments mean nothing");
        assert_eq!(read.order("other", 1 << 20), [] as [u64; 0]);
        let newer: BootSet = serde_json::from_str(r#"{"v":2,"segment":1048576,"disks":{}}"#).unwrap();
        assert!(!newer.is_usable());
    }

    #[test]
    fn no_more_entries_than_allowed_in_all() {
        let mut touches = FirstTouches::default();
        (0..MAX_ENTRIES as u64 + 5).for_each(|segment| touches.touch(segment, 0));
        let mut set = BootSet::new(1 << 20);
        set.add("a", &touches);
        set.add("b", &touches);
        assert_eq!((set.order("a", 1 << 20).len(), set.order("b", 1 << 20).len()), (MAX_ENTRIES, 0));
        assert!(set.is_usable());
    }
}
