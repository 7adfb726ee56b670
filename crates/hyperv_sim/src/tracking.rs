//! Resilient change tracking: which bytes of a disk were written since named instants.
//!
//! The record of a disk file lies beside it: `<file>.rct` holds everything, `<file>.mrt` a coarse copy of the newest
//! interval. They are the only place where the record is kept, so that losing, copying or damaging them has its effect.
//! Their content is this program's own; the real formats are unknown.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::extents::Extents;
use crate::paths::WinPath;
use crate::state::{FileOp, HostState};
use crate::store::{Store, replace_cached};

pub(crate) const INVALID_ID: u32 = 0xC03A_0029;
pub(crate) const DISABLED: u32 = 0xC03A_002A;
pub(crate) const MISSING: u32 = 0xC03A_0030;

const MAGIC: &[u8] = b"RCTSIM1\n";
const COARSE_BYTES: u64 = 1 << 20;

/// What was written to one disk file, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The GUID part of the ids; parents and children share it.
    lineage: String,
    next_sequence: u32,
    /// Files below this one know nothing of what was asked for: tracking began anew here.
    #[serde(default)]
    is_beginning: bool,
    /// In order of time; never empty.
    intervals: Vec<Interval>,
}

/// The time from one instant to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Interval {
    /// The instant it begins with; none for the beginning of the file.
    id: Option<String>,
    written: Extents,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Coarse {
    lineage: String,
    written: Extents,
}

impl Record {
    /// Tracking begins.
    pub(crate) fn new() -> Self {
        let lineage = crate::state::new_uuid().hyphenated().to_string();
        Self { lineage, next_sequence: 1, is_beginning: true, intervals: vec![Interval::default()] }
    }

    /// The record of a child that is made now.
    pub(crate) fn child(&self) -> Self {
        Self { is_beginning: false, intervals: vec![Interval::default()], ..self.clone() }
    }

    /// Forgets what was written before the newest instant, and lets every id answer as before: a lie.
    pub(crate) fn forget_written(&mut self) {
        let newest = self.intervals.len() - 1;
        self.intervals[..newest].iter_mut().for_each(|interval| interval.written = Extents::default());
        self.newest_mut().written = Extents::default();
    }

    /// What a power cut leaves: the coarse copy of the newest interval.
    pub(crate) fn lose_detail(&mut self, size_bytes: u64) {
        let newest = self.newest_mut();
        newest.written = newest.written.rounded(COARSE_BYTES, size_bytes);
    }

    /// Names this instant, with a sequence not below `least`; gives the id.
    pub(crate) fn add_marker(&mut self, least: u32) -> String {
        self.next_sequence = self.next_sequence.max(least);
        let id = format!("rctX:{}:{:08x}", self.lineage.replace('-', ":"), self.next_sequence);
        self.next_sequence = self.next_sequence.wrapping_add(1);
        self.intervals.push(Interval { id: Some(id.clone()), written: Extents::default() });
        id
    }

    pub(crate) fn drop_marker(&mut self, id: &str) {
        let Some(index) = self.intervals.iter().position(|interval| interval.id.as_deref() == Some(id)) else { return };
        let dropped = self.intervals.remove(index);
        match index.checked_sub(1) {
            Some(before) => self.intervals[before].written.extend(&dropped.written),
            None => self.intervals.insert(0, Interval { id: None, written: dropped.written }),
        }
    }

    pub(crate) fn add_written(&mut self, written: &Extents) {
        self.newest_mut().written.extend(written);
    }

    /// Takes over what a child recorded, as its content is taken over. A merge that was cut off does it again; then, too,
    /// every interval goes to its own place.
    pub(crate) fn absorb(&mut self, child: Record) {
        if child.is_beginning && self.lineage != child.lineage {
            // The child's content has nothing to do with what was asked for before.
            *self = Record { intervals: vec![Interval::default()], ..child.clone() };
        }
        self.next_sequence = self.next_sequence.max(child.next_sequence);
        let position = |intervals: &[Interval], id: &str| intervals.iter().position(|i| i.id.as_deref() == Some(id));
        let first_id = child.intervals.iter().find_map(|interval| interval.id.as_deref());
        let first_known = first_id.and_then(|id| position(&self.intervals, id));
        let before_child = first_known.unwrap_or(self.intervals.len()).saturating_sub(1);
        for interval in child.intervals {
            let place = match &interval.id {
                None => Some(before_child),
                Some(id) => position(&self.intervals, id),
            };
            match place {
                Some(place) => self.intervals[place].written.extend(&interval.written),
                None => self.intervals.push(interval),
            }
        }
    }

    /// The newest instant named in this file, and whether something was written after it.
    fn newest_id(&self) -> (Option<&str>, bool) {
        let newest = self.intervals.iter().rposition(|interval| interval.id.is_some());
        let after = &self.intervals[newest.unwrap_or(0)..];
        let written = after.iter().any(|interval| !interval.written.is_empty());
        (newest.and_then(|index| self.intervals[index].id.as_deref()), written)
    }

    /// Lineage and the first sequence that was not given out yet.
    pub(crate) fn position(&self) -> (&str, u32) {
        (&self.lineage, self.next_sequence)
    }

    fn newest_mut(&mut self) -> &mut Interval {
        self.intervals.last_mut().expect("there is always an interval")
    }

    fn coarse(&self) -> Coarse {
        let newest = self.intervals.last().map(|interval| interval.written.rounded(COARSE_BYTES, u64::MAX));
        Coarse { lineage: self.lineage.clone(), written: newest.unwrap_or_default() }
    }
}

pub(crate) fn companions(disk: &WinPath) -> [WinPath; 2] {
    [disk.with_suffix(".rct"), disk.with_suffix(".mrt")]
}

/// The record of a disk file; `None` when a companion is missing, damaged, or belongs to another.
pub(crate) fn load(store: &Store, disk: &WinPath) -> Result<Option<Record>, LabError> {
    let [rct, mrt] = companions(disk);
    let (Some(rct), Some(mrt)) = (read(store, &rct)?, read(store, &mrt)?) else { return Ok(None) };
    let Ok(record) = serde_json::from_slice::<Record>(&rct) else { return Ok(None) };
    let Ok(coarse) = serde_json::from_slice::<Coarse>(&mrt) else { return Ok(None) };
    let fits = coarse.lineage == record.lineage && !record.intervals.is_empty();
    Ok(fits.then_some(record))
}

pub(crate) fn save(store: &Store, disk: &WinPath, record: &Record) -> Result<(), LabError> {
    let [rct, mrt] = companions(disk);
    // The coarse copy first, as the one that is written through on a real host.
    write(store, &mrt, &serde_json::to_vec(&record.coarse()).expect("has a JSON form"))?;
    write(store, &rct, &serde_json::to_vec(record).expect("has a JSON form"))
}

fn read(store: &Store, path: &WinPath) -> Result<Option<Vec<u8>>, LabError> {
    let file = store.file(path)?;
    match fs::read(&file) {
        Ok(content) => Ok(content.strip_prefix(MAGIC).map(<[u8]>::to_vec)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LabError::io("read", file)(e)),
    }
}

fn write(store: &Store, path: &WinPath, json: &[u8]) -> Result<(), LabError> {
    store.before_write()?;
    replace_cached(&store.file(path)?, &[MAGIC, json].concat())
}

/// Carries out a [`FileOp`]. Doing it again changes nothing.
pub(crate) fn carry_out(store: &Store, op: &FileOp) -> Result<(), LabError> {
    match op {
        FileOp::Delete(path) => {
            let file = store.file(path)?;
            store.before_write()?;
            match fs::remove_file(&file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(LabError::io("delete", file)(e)),
                _ => Ok(()),
            }
        }
        FileOp::DropMarker { disk, id } => {
            let Some(mut record) = load(store, disk)? else { return Ok(()) };
            let before = record.clone();
            record.drop_marker(id);
            if record == before { Ok(()) } else { save(store, disk, &record) }
        }
        FileOp::WriteConfiguration { .. } => unreachable!("configuration files need the state of the host"),
    }
}

/// Notes that `written` is about to be written to `disk`. It stands before the data, so that the record covers it
/// whatever happens in between.
pub(crate) fn note_written(store: &Store, disk: &WinPath, written: &Extents) -> Result<(), LabError> {
    // After a loss of the companions tracking goes on, but in a new lineage: older ids will not answer.
    let mut record = load(store, disk)?.unwrap_or_else(Record::new);
    record.add_written(written);
    save(store, disk, &record)
}

/// What was written since `id`, asked on the first file of `chain` (leaf first). The error is what the API returns.
pub(crate) fn changes_since(
    store: &Store,
    state: &HostState,
    chain: &[WinPath],
    id: &str,
) -> Result<Result<Extents, u32>, LabError> {
    if !chain.first().is_some_and(|leaf| state.is_tracked(leaf)) {
        return Ok(Err(DISABLED));
    }
    let Some(lineage) = lineage_of(id) else { return Ok(Err(INVALID_ID)) };
    let (mut changes, mut is_known_lineage) = (Extents::default(), false);
    for file in chain {
        let Some(record) = load(store, file)? else { return Ok(Err(MISSING)) };
        is_known_lineage |= record.lineage == lineage;
        let found = record.intervals.iter().position(|interval| interval.id.as_deref() == Some(id));
        for interval in &record.intervals[found.unwrap_or(0)..] {
            changes.extend(&interval.written);
        }
        if found.is_some() {
            return Ok(Ok(changes));
        }
        if record.is_beginning {
            break;
        }
    }
    // An id of another disk is simply wrong; one of this disk has expired.
    Ok(Err(if is_known_lineage { MISSING } else { INVALID_ID }))
}

/// The state that `GetVirtualDiskInformation` tells: whether tracking is on, the newest id, whether anything is newer.
pub(crate) fn newest_id(
    store: &Store,
    state: &HostState,
    chain: &[WinPath],
) -> Result<(bool, Option<String>, bool), LabError> {
    let enabled = chain.first().is_some_and(|leaf| state.is_tracked(leaf));
    let mut newer = false;
    for file in chain.iter().filter(|_| enabled) {
        let Some(record) = load(store, file)? else { break };
        let (id, written) = record.newest_id();
        newer |= written;
        if let Some(id) = id {
            return Ok((enabled, Some(id.to_owned()), newer));
        }
    }
    Ok((enabled, None, newer))
}

/// The lineage of a well-formed id, `rctX:5bfde23b:ce75:4303:b54f:6c18394f105c:00000001`.
fn lineage_of(id: &str) -> Option<String> {
    let groups: Vec<&str> = id.strip_prefix("rctX:")?.split(':').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let is_hex = |group: &&str| group.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (lengths == [8, 4, 4, 4, 12, 8] && groups.iter().all(is_hex)).then(|| groups[..5].join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(range: std::ops::Range<u64>) -> Extents {
        let mut extents = Extents::default();
        extents.insert(range);
        extents
    }

    #[test]
    fn dropping_a_marker_keeps_what_was_written_after_it() {
        let mut record = Record::new();
        let first = record.add_marker(0);
        record.add_written(&written(0..10));
        let second = record.add_marker(0);
        record.add_written(&written(20..30));
        record.drop_marker(&second);
        assert_eq!(record.intervals.len(), 2);
        assert_eq!(record.newest_id(), (Some(first.as_str()), true));
        assert_eq!(record.intervals[1].written.iter().collect::<Vec<_>>(), [0..10, 20..30]);
    }

    #[test]
    fn ids_and_writes_survive_a_merge() {
        let mut parent = Record::new();
        let frozen = parent.add_marker(0);
        let mut child = parent.child();
        child.add_written(&written(5..6));
        let later = child.add_marker(0);
        child.add_written(&written(8..9));
        parent.absorb(child.clone());
        let once = parent.clone();
        parent.absorb(child);
        assert_eq!(parent, once, "a merge that is made again");
        let ids: Vec<_> = parent.intervals.iter().map(|interval| interval.id.as_deref()).collect();
        assert_eq!(ids, [None, Some(frozen.as_str()), Some(later.as_str())]);
        assert_eq!(parent.intervals[1].written, written(5..6));
        assert_eq!(parent.intervals[2].written, written(8..9));
        assert!(parent.add_marker(0).ends_with(":00000003"), "sequences are never given out twice");
    }

    #[test]
    fn ids_have_the_grammar_seen_in_the_field() {
        let id = Record::new().add_marker(0);
        assert!(lineage_of(&id).is_some(), "{id}");
        for bad in ["", "rctX:", &id[1..], &id.to_uppercase(), &format!("{id}0"), &id.replace(':', "-")] {
            assert_eq!(lineage_of(bad), None, "{bad}");
        }
    }
}
