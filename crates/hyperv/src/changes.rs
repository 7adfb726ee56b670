//! What changed on a frozen disk since an earlier instant (spec 4.7, 4.8).

use std::ops::Range;

use crate::seam::{VirtDiskError, VirtDiskHandle};

/// The changes could not be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("query what changed on {path} since {id:?}: {problem}")]
pub struct ChangesError {
    /// What the caller can do; see each kind.
    pub kind: ChangesErrorKind,
    /// The frozen file.
    pub path: String,
    /// The change tracking id.
    pub id: String,
    /// What happened, with the code if there was one.
    pub problem: String,
}

/// Why the changes could not be told. All but two mean: back this disk up in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangesErrorKind {
    /// 0xC03A0029: the id is malformed, or not of this disk. Full.
    InvalidId,
    /// 0xC03A002A: tracking is off; the next checkpoint switches it on. Full.
    Disabled,
    /// 0xC03A0030: the id is not known (any more). Full.
    Missing,
    /// 0xC03A0034: the disk is another one. Full, and look at its identity.
    UnexpectedDisk,
    /// 0xC05CFF0A: a shared disk. It cannot be backed up.
    Shared,
    /// Access denied or a sharing violation: this is not a frozen file. An error of the caller, never a reason for a
    /// full backup of the same path.
    WrongFile,
    /// The file is gone: merged, or moved. Read the VM again.
    FileGone,
    /// Any other code, or an answer that contradicts itself. Full.
    Other,
}

/// Ranges per call: small enough for one buffer, large enough that few calls are needed (spec 4.7).
const RANGES_PER_PAGE: usize = 4096;

/// Every range of the virtual disk that may have changed since `id`: ascending, without overlaps, neighbours merged,
/// clipped to the disk. Empty means that nothing changed.
pub(crate) fn changed_ranges(
    handle: &dyn VirtDiskHandle,
    path: &str,
    id: &str,
    size_bytes: u64,
    sector_bytes: u64,
) -> Result<Vec<Range<u64>>, ChangesError> {
    let query = Query { handle, path, id, size_bytes };
    let mut ranges = Vec::new();
    match query.region(0..size_bytes, &mut ranges) {
        // Some hosts may want less than the whole disk in one question (spec 4.7).
        Err(Failure::Call(error)) if is_invalid_parameter(error.code) && size_bytes > sector_bytes => {
            let middle = (size_bytes / 2).next_multiple_of(sector_bytes.max(1)).min(size_bytes);
            ranges.clear();
            for part in [0..middle, middle..size_bytes] {
                query.region(part, &mut ranges).map_err(|failure| query.error(failure))?;
            }
        }
        result => result.map_err(|failure| query.error(failure))?,
    }
    Ok(merge_neighbours(ranges))
}

struct Query<'a> {
    handle: &'a dyn VirtDiskHandle,
    path: &'a str,
    id: &'a str,
    size_bytes: u64,
}

enum Failure {
    Call(VirtDiskError),
    Answer(String),
}

impl Query<'_> {
    fn region(&self, region: Range<u64>, ranges: &mut Vec<Range<u64>>) -> Result<(), Failure> {
        let mut offset = region.start;
        while offset < region.end {
            let left = region.end - offset;
            let page = self.handle.changed_ranges(self.id, offset, left, RANGES_PER_PAGE).map_err(Failure::Call)?;
            if page.processed_bytes == 0 || page.processed_bytes > left {
                let processed = page.processed_bytes;
                return Err(Failure::Answer(format!("{processed} bytes processed of {left} asked for at {offset}")));
            }
            ranges.extend(page.ranges.iter().filter_map(|range| {
                let end = range.offset_bytes.saturating_add(range.len_bytes).min(self.size_bytes);
                (range.offset_bytes < end).then_some(range.offset_bytes..end)
            }));
            offset += page.processed_bytes;
        }
        Ok(())
    }

    fn error(&self, failure: Failure) -> ChangesError {
        let (kind, problem) = match failure {
            Failure::Call(error) => (kind_of(error.code), error.to_string()),
            Failure::Answer(problem) => (ChangesErrorKind::Other, problem),
        };
        ChangesError { kind, path: self.path.to_owned(), id: self.id.to_owned(), problem }
    }
}

fn is_invalid_parameter(code: u32) -> bool {
    matches!(code, 87 | 0x8007_0057)
}

fn kind_of(code: u32) -> ChangesErrorKind {
    match code {
        0xC03A_0029 => ChangesErrorKind::InvalidId,
        0xC03A_002A => ChangesErrorKind::Disabled,
        0xC03A_0030 => ChangesErrorKind::Missing,
        0xC03A_0034 => ChangesErrorKind::UnexpectedDisk,
        0xC05C_FF0A => ChangesErrorKind::Shared,
        5 | 32 | 0x8007_0005 | 0x8007_0020 => ChangesErrorKind::WrongFile,
        2 | 3 | 0x8007_0002 | 0x8007_0003 | 32779 => ChangesErrorKind::FileGone,
        _ => ChangesErrorKind::Other,
    }
}

fn merge_neighbours(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether the newest id of a frozen file shows that `base` cannot be an older instant of it, so that an answer to
/// `base` would be about another one: storage was reverted together with its tracking files, and numbers were given
/// out again (spec 4.9).
///
/// Ids look like `rctX:` GUID groups `:` eight hexadecimal digits. Those of another GUID, or of another form, cannot be
/// compared, and are not called reused.
pub fn rct_id_is_reused(base: &str, most_recent: &str) -> bool {
    if base == most_recent {
        return true;
    }
    match (history_and_sequence(base), history_and_sequence(most_recent)) {
        (Some((history, base)), Some((recent_history, recent))) => {
            history.eq_ignore_ascii_case(recent_history) && recent <= base
        }
        _ => false,
    }
}

fn history_and_sequence(id: &str) -> Option<(&str, u32)> {
    let (history, sequence) = id.rsplit_once(':')?;
    (sequence.len() == 8).then(|| u32::from_str_radix(sequence, 16).ok()).flatten().map(|sequence| (history, sequence))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::seam::{ChangedPage, ChangedRange, TrackingState, VirtDiskInfo};

    /// Answers queries from a list, and keeps what was asked.
    struct Pages {
        answers: Mutex<Vec<Result<ChangedPage, u32>>>,
        asked: Mutex<Vec<(u64, u64)>>,
    }

    impl VirtDiskHandle for Pages {
        fn info(&self) -> Result<VirtDiskInfo, VirtDiskError> {
            unreachable!("not asked here")
        }

        fn tracking_state(&self) -> Result<TrackingState, VirtDiskError> {
            unreachable!("not asked here")
        }

        fn changed_ranges(&self, id: &str, offset: u64, len: u64, max: usize) -> Result<ChangedPage, VirtDiskError> {
            assert_eq!((id, max), ("rctX:1", RANGES_PER_PAGE));
            self.asked.lock().unwrap().push((offset, len));
            let answer = self.answers.lock().unwrap().remove(0);
            answer.map_err(|code| VirtDiskError { operation: "QueryChangesVirtualDisk", path: "d".into(), code })
        }

        fn read(&self, _: &mut [u8], _: u64) -> Result<(), VirtDiskError> {
            unreachable!("not asked here")
        }
    }

    fn page(processed_bytes: u64, ranges: &[(u64, u64)]) -> Result<ChangedPage, u32> {
        let ranges = ranges.iter().map(|&(offset_bytes, len_bytes)| ChangedRange { offset_bytes, len_bytes }).collect();
        Ok(ChangedPage { ranges, processed_bytes })
    }

    type Asked = Vec<(u64, u64)>;

    fn ask(size: u64, answers: Vec<Result<ChangedPage, u32>>) -> (Result<Vec<Range<u64>>, ChangesError>, Asked) {
        let pages = Pages { answers: Mutex::new(answers), asked: Mutex::default() };
        let result = changed_ranges(&pages, "d", "rctX:1", size, 512);
        assert!(pages.answers.lock().unwrap().is_empty(), "asked less than expected");
        (result, pages.asked.into_inner().unwrap())
    }

    #[test]
    fn pages_are_put_together() {
        let (ranges, asked) =
            ask(10_240, vec![page(4096, &[(0, 512), (512, 512)]), page(2048, &[]), page(4096, &[(9728, 4096)])]);
        assert_eq!(ranges.unwrap(), vec![0..1024, 9728..10_240]);
        assert_eq!(asked, vec![(0, 10_240), (4096, 6144), (6144, 4096)]);
    }

    #[test]
    fn ranges_are_sorted_merged_and_clipped() {
        let raw = [(2048, 512), (0, 1024), (512, 1024), (1536, 0), (4096, u64::MAX), (9999, 1)];
        let (ranges, _) = ask(5120, vec![page(5120, &raw)]);
        assert_eq!(ranges.unwrap(), vec![0..1536, 2048..2560, 4096..5120]);
    }

    #[test]
    fn nothing_changed_is_a_success() {
        assert_eq!(ask(5120, vec![page(5120, &[])]).0.unwrap(), vec![]);
    }

    #[test]
    fn pages_that_make_no_sense_are_errors() {
        for processed in [0, 5121, u64::MAX] {
            let error = ask(5120, vec![page(processed, &[(0, 512)])]).0.unwrap_err();
            assert_eq!(error.kind, ChangesErrorKind::Other, "{processed}");
        }
    }

    #[test]
    fn a_host_that_refuses_the_whole_disk_is_asked_in_two_parts() {
        for code in [87, 0x8007_0057] {
            let (ranges, asked) = ask(5120, vec![Err(code), page(2560, &[(0, 512)]), page(2560, &[(4608, 512)])]);
            assert_eq!(ranges.unwrap(), vec![0..512, 4608..5120]);
            assert_eq!(asked, vec![(0, 5120), (0, 2560), (2560, 2560)]);
        }
        let (result, asked) = ask(5120, vec![Err(87), Err(87)]);
        assert_eq!(result.unwrap_err().kind, ChangesErrorKind::Other);
        assert_eq!(asked.len(), 2, "split once only");
    }

    #[test]
    fn codes_have_meanings() {
        for (code, kind) in [
            (0xC03A_0029, ChangesErrorKind::InvalidId),
            (0xC03A_002A, ChangesErrorKind::Disabled),
            (0xC03A_0030, ChangesErrorKind::Missing),
            (0xC03A_0034, ChangesErrorKind::UnexpectedDisk),
            (0xC05C_FF0A, ChangesErrorKind::Shared),
            (0x8007_0020, ChangesErrorKind::WrongFile),
            (5, ChangesErrorKind::WrongFile),
            (2, ChangesErrorKind::FileGone),
            (23, ChangesErrorKind::Other),
        ] {
            assert_eq!(ask(512, vec![Err(code)]).0.unwrap_err().kind, kind, "{code:#x}");
        }
    }

    #[test]
    fn reused_ids_are_noticed() {
        let id = |guid: &str, sequence: &str| format!("rctX:{guid}:ce75:4303:b54f:6c18394f105c:{sequence}");
        let base = id("5bfde23b", "0000000a");
        for (recent, reused) in [
            (base.clone(), true),
            (id("5BFDE23B", "00000009"), true),
            (id("5bfde23b", "0000000A"), true),
            (id("5bfde23b", "0000000b"), false),
            (id("6bfde23b", "00000001"), false),
            (String::new(), false),
            ("something else".to_owned(), false),
        ] {
            assert_eq!(rct_id_is_reused(&base, &recent), reused, "{recent}");
        }
    }
}
