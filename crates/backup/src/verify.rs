//! Whether a point can be restored: its structure, a sample or every byte of it, or a restore that is tried.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use kopia_repo::format::snapshot::EntryType;
use kopia_repo::grouped::ENTRIES_PER_PIECE;
use kopia_repo::{ContentId, Repository, object_of};

use crate::disk_object::DiskObject;
use crate::observer::{Event, Observer};
use crate::point::Point;
use crate::restore::{TargetFormat, restore_disk};
use crate::volumes::{VolumeCheck, check_volumes};
use crate::{BackupError, Cancel};

/// How deep to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerifyLevel {
    /// Description, tree, heads and entry lists are right; every content is in the index and its pack long enough.
    Structure,
    /// Besides, a random part of the stored segments is read, decrypted, decompressed and its hash compared: one in a
    /// hundred, and 64 at least.
    Sample,
    /// All of them are.
    Full,
}

/// Segments of a disk in a sample: so many at least, and this share.
const MIN_SAMPLE: u64 = 64;
const SAMPLE_SHARE: u64 = 100;

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Damage, in words; empty is a sound point.
    pub damage: Vec<String>,
    /// Entries of all disks looked up.
    pub entries: u64,
    /// Segments read, of all that the disks have.
    pub segments: (u64, u64),
    /// Plaintext bytes read and compared with their hash.
    pub read_bytes: u64,
    /// File systems that were checked on restored disks.
    pub volumes: Vec<VolumeCheck>,
}

/// At most so many findings are listed; the count goes on.
const MAX_LISTED: usize = 50;

/// Verifies a point. An error means that the verification could not be done; damage is a result.
pub fn verify_point(
    repo: &std::sync::Arc<Repository>,
    point: &Point,
    level: VerifyLevel,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<VerifyReport, BackupError> {
    let mut report = VerifyReport::default();
    let label = format!("{} {}", point.vm_name, &point.id[..point.id.len().min(8)]);
    observer.event(Event::Phase { subject: &label, phase: "checking the structure" });
    repo.refresh()?;
    let description = match damage_or(point.describe(repo), &mut report)? {
        Some(description) => description,
        None => return Ok(report),
    };
    let packs = repo.pack_lengths()?;
    check_files(repo, point, &mut report)?;
    for disk in &description.disks {
        let Some(object) = damage_or(point.open_disk(repo, disk), &mut report)? else { continue };
        let name = format!("{label} disk {}", disk.number);
        check_entries(&object, &name, &packs, &mut report)?;
        let sample = match level {
            VerifyLevel::Structure => continue,
            VerifyLevel::Sample => Some(sample(object.segments())),
            VerifyLevel::Full => None,
        };
        report.segments.0 += sample.as_ref().map_or(object.segments(), |sample| sample.len() as u64);
        report.segments.1 += object.segments();
        read_segments(&object, &name, sample.as_ref(), observer, cancel, &mut report)?;
    }
    Ok(report)
}

/// Restores every disk of a point to a file in `scratch`, looks for file systems on it, lets the system's checkers look
/// at them, and removes the files: that it can be restored is not said but tried. Reading checks every byte on the way.
pub fn verify_by_restoring(
    repo: &std::sync::Arc<Repository>,
    point: &Point,
    scratch: &Path,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<VerifyReport, BackupError> {
    let mut report = verify_point(repo, point, VerifyLevel::Structure, observer, cancel)?;
    if !report.is_sound() {
        return Ok(report);
    }
    let failed = |source| BackupError::Target { path: scratch.display().to_string(), source };
    let folder = tempfile::Builder::new().prefix("e3-verify-").tempdir_in(scratch).map_err(failed)?;
    let description = point.describe(repo)?;
    for disk in &description.disks {
        let object = point.open_disk(repo, disk)?;
        let label = format!("{} {} disk {}", point.vm_name, &point.id[..point.id.len().min(8)], disk.number);
        let target = folder.path().join("disk.raw");
        let restored = restore_disk(&object, &target, TargetFormat::Raw, true, &label, observer, cancel);
        let Some(restored) = damage_or(restored, &mut report)? else { continue };
        report.read_bytes += restored.written_bytes;
        report.segments.0 += object.segments();
        report.segments.1 += object.segments();
        observer.event(Event::Phase { subject: &label, phase: "checking the file systems" });
        let file = std::fs::File::open(&target).map_err(failed)?;
        let checks = check_volumes(&file, disk.logical_sector_bytes, disk.number, folder.path());
        for check in checks.map_err(failed)? {
            if check.sound == Some(false) {
                report.found(format!(
                    "disk {}, {} at {}: {}: {}",
                    check.disk,
                    check.file_system,
                    check.offset_bytes,
                    check.checker.as_deref().unwrap_or_default(),
                    check.said.join("; "),
                ));
            }
            report.volumes.push(check);
        }
        drop(file);
        std::fs::remove_file(&target).map_err(failed)?;
    }
    Ok(report)
}

/// Segments of a stream, by number, drawn at random.
fn sample(segments: u64) -> BTreeSet<u64> {
    let wanted = MIN_SAMPLE.max(segments / SAMPLE_SHARE).min(segments);
    let mut sample = BTreeSet::new();
    if wanted == segments {
        sample.extend(0..segments);
    }
    while (sample.len() as u64) < wanted {
        sample.insert(u64::from_ne_bytes(random::bytes()) % segments);
    }
    sample
}

/// Damage goes to the report; anything else is an error of the verification.
fn damage_or<T>(result: Result<T, BackupError>, report: &mut VerifyReport) -> Result<Option<T>, BackupError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_damage() => {
            report.found(crate::error::chain_text(&error));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The small files of the tree, whole.
fn check_files(repo: &Repository, point: &Point, report: &mut VerifyReport) -> Result<(), BackupError> {
    let Some(root) = point.snapshot.manifest.root_entry.clone() else {
        report.found("the snapshot has no root".into());
        return Ok(());
    };
    let mut folders = vec![(String::new(), root)];
    while let Some((path, folder)) = folders.pop() {
        let directory = object_of(&folder).and_then(|id| repo.read_directory(&id)).map_err(BackupError::from);
        let Some(directory) = damage_or(directory, report)? else { continue };
        for entry in directory.entries {
            let path = format!("{path}/{}", entry.name);
            match entry.entry_type {
                EntryType::Directory => folders.push((path, entry)),
                // Disks are checked segment by segment.
                EntryType::File if path.starts_with("/disks/") => {}
                EntryType::File => {
                    let bytes =
                        object_of(&entry).and_then(|id| repo.read_object(&id, 1 << 30)).map_err(BackupError::from);
                    if let Some(bytes) = damage_or(bytes, report)? {
                        report.read_bytes += bytes.len() as u64;
                        if bytes.len() as i64 != entry.size {
                            report.found(format!("{path} has {} bytes instead of {}", bytes.len(), entry.size));
                        }
                    }
                }
                _ => report.found(format!("{path} is neither a file nor a folder")),
            }
        }
    }
    Ok(())
}

fn check_entries(
    object: &DiskObject,
    name: &str,
    packs: &HashMap<String, u64>,
    report: &mut VerifyReport,
) -> Result<(), BackupError> {
    let repo = object.repository();
    let mut last = None;
    for piece in 0..object.object().pieces().len() {
        let Some(entries) = damage_or(object.piece(piece).map_err(BackupError::from), report)? else { continue };
        for entry in entries.iter() {
            report.entries += 1;
            let content = entry.object.content;
            if last == Some(content) {
                continue;
            }
            last = Some(content);
            let problem = match repo.lookup(&content)? {
                None => "is not in the index".to_owned(),
                Some(found) if u64::from(found.original_len) != entry.len => {
                    format!("has {} bytes instead of {}", found.original_len, entry.len)
                }
                Some(found) => match packs.get(&*found.pack) {
                    None => format!("is in pack {}, which is gone", found.pack),
                    Some(len) if u64::from(found.pack_offset) + u64::from(found.packed_len) > *len => {
                        format!("lies behind the end of pack {}", found.pack)
                    }
                    Some(_) => continue,
                },
            };
            report.found(format!("{name}: content {content} at stream offset {} {problem}", entry.start));
        }
    }
    Ok(())
}

/// Reads the segments of `sample`, or all.
fn read_segments(
    object: &DiskObject,
    name: &str,
    sample: Option<&BTreeSet<u64>>,
    observer: &dyn Observer,
    cancel: &Cancel,
    report: &mut VerifyReport,
) -> Result<(), BackupError> {
    let readers = (2 * std::thread::available_parallelism().map_or(2, |count| count.get())).max(4);
    let of_sample = sample.map(|sample| sample.len() as u64 * u64::from(object.layout().segment_bytes()));
    let total_bytes = of_sample.unwrap_or(u64::MAX).min(object.len_bytes());
    observer.event(Event::Started { subject: name, total_bytes, what: "verify" });
    let read = AtomicU64::new(0);
    let found: Mutex<Vec<String>> = Mutex::default();
    let failed: Mutex<Option<BackupError>> = Mutex::default();
    let (work_in, work) = crossbeam_channel::bounded::<Vec<(ContentId, u64, u64)>>(2 * readers);
    std::thread::scope(|scope| {
        for _ in 0..readers {
            let work = work.clone();
            let (read, found, failed) = (&read, &found, &failed);
            scope.spawn(move || {
                let mut plaintext = Vec::new();
                for (content, start, len) in work.into_iter().flatten() {
                    let result = object.repository().read_content_into(&content, &mut plaintext);
                    observer.event(Event::Advanced { subject: name, bytes: len });
                    match result.map_err(BackupError::from) {
                        Ok(()) if plaintext.len() as u64 == len => {
                            read.fetch_add(len, Ordering::Relaxed);
                        }
                        Ok(()) => {
                            let text =
                                format!("{name}: segment at stream offset {start} has {} bytes", plaintext.len());
                            found.lock().expect("no panic while held").push(text);
                        }
                        Err(error) if error.is_damage() => {
                            let text = format!(
                                "{name}: segment at stream offset {start}: {}",
                                crate::error::chain_text(&error)
                            );
                            found.lock().expect("no panic while held").push(text);
                        }
                        Err(error) => {
                            failed.lock().expect("no panic while held").get_or_insert(error);
                        }
                    }
                }
            });
        }
        drop(work);
        let mut last = None;
        for piece in 0..object.object().pieces().len() {
            if cancel.is_cancelled() || failed.lock().expect("no panic while held").is_some() {
                break;
            }
            // A piece that cannot be read was reported with the structure.
            let first = (piece * ENTRIES_PER_PIECE) as u64;
            let is_drawn = |segment: u64| sample.is_none_or(|sample| sample.contains(&segment));
            let range = first..first + ENTRIES_PER_PIECE as u64;
            if sample.is_some_and(|sample| sample.range(range).next().is_none()) {
                continue;
            }
            let Ok(entries) = object.piece(piece) else { continue };
            let drawn: Vec<_> = (first..)
                .zip(entries.iter())
                .filter(|(segment, _)| is_drawn(*segment))
                .map(|(_, entry)| entry)
                .collect();
            for chunk in drawn.chunks(16) {
                let mut batch = Vec::with_capacity(chunk.len());
                for entry in chunk {
                    // A run of one content, mostly zeroes, is read once.
                    if last == Some(entry.object.content) {
                        observer.event(Event::Advanced { subject: name, bytes: entry.len });
                        continue;
                    }
                    last = Some(entry.object.content);
                    batch.push((entry.object.content, entry.start, entry.len));
                }
                let _ = work_in.send(batch);
            }
        }
        drop(work_in);
    });
    observer.event(Event::Finished { subject: name });
    if cancel.is_cancelled() {
        return Err(BackupError::Cancelled);
    }
    if let Some(error) = failed.into_inner().expect("no panic while held") {
        return Err(error);
    }
    report.read_bytes += read.into_inner();
    let mut found = found.into_inner().expect("no panic while held");
    found.sort();
    found.into_iter().for_each(|text| report.found(text));
    Ok(())
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }

    fn found(&mut self, text: String) {
        match self.damage.len() {
            count if count < MAX_LISTED => self.damage.push(text),
            MAX_LISTED => self.damage.push("and more".into()),
            _ => {}
        }
    }
}
