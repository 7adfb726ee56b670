//! Whether a point can be restored: its structure, or every byte of it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use kopia_repo::format::snapshot::EntryType;
use kopia_repo::{ContentId, Repository, object_of};

use crate::disk_object::DiskObject;
use crate::observer::{Event, Observer};
use crate::point::Point;
use crate::{BackupError, Cancel};

/// How deep to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerifyLevel {
    /// Description, tree, heads and entry lists are right; every content is in the index and its pack long enough.
    Structure,
    /// Besides, every byte is read, decrypted, decompressed and its hash compared.
    Full,
}

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Damage, in words; empty is a sound point.
    pub damage: Vec<String>,
    /// Entries of all disks looked up.
    pub entries: u64,
    /// Plaintext bytes read and compared with their hash.
    pub read_bytes: u64,
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
        if level == VerifyLevel::Full {
            read_everything(&object, &name, observer, cancel, &mut report)?;
        }
    }
    Ok(report)
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

fn read_everything(
    object: &DiskObject,
    name: &str,
    observer: &dyn Observer,
    cancel: &Cancel,
    report: &mut VerifyReport,
) -> Result<(), BackupError> {
    let readers = (2 * std::thread::available_parallelism().map_or(2, |count| count.get())).max(4);
    observer.event(Event::Started { subject: name, total_bytes: object.len_bytes(), what: "verify" });
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
            let Ok(entries) = object.piece(piece) else { continue };
            for chunk in entries.chunks(16) {
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
