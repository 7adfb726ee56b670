//! A disk of a point to a file or a block device: in parallel, and with holes where the disk has zeroes.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kopia_repo::ContentId;
use vhdx::WriteAt as _;
use vhdx::io::{UncachedFile, begin_aligned};

use crate::disk_object::DiskObject;
use crate::observer::{Event, Observer};
use crate::state::sync_folder_of;
use crate::{BackupError, Cancel};

/// Segments per message to the writers.
const BATCH: usize = 16;

/// What the target file is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetFormat {
    /// The dynamic VHDX that is stored, byte for byte.
    Vhdx,
    /// The disk as its guest sees it.
    Raw,
}

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Bytes written; the rest of the file is holes.
    pub written_bytes: u64,
    /// Length of the target.
    pub len_bytes: u64,
}

/// What restoring a disk would move and take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskQuote {
    /// Length of the target.
    pub len_bytes: u64,
    /// Bytes of the guest's that are not zero.
    pub data_bytes: u64,
    /// Bytes that are free where it goes, if that is known.
    pub free_bytes: Option<u64>,
    /// How long it may take; from the speed of a few reads.
    pub estimate: Option<std::time::Duration>,
}

/// Looks at what [`restore_disk`] would do; nothing is written.
pub fn quote_disk(disk: &DiskObject, target: &Path, format: TargetFormat) -> Result<DiskQuote, BackupError> {
    let data_bytes = count_stored(disk, TargetFormat::Raw)?;
    let begun = std::time::Instant::now();
    let probed_bytes = crate::restore_vm::probe(disk)?;
    let estimate = crate::restore_vm::estimate(data_bytes, probed_bytes, begun.elapsed());
    let len_bytes = target_len(disk, format);
    Ok(DiskQuote { len_bytes, data_bytes, free_bytes: free_bytes(folder_of(target)), estimate })
}

fn target_len(disk: &DiskObject, format: TargetFormat) -> u64 {
    match format {
        TargetFormat::Vhdx => disk.len_bytes(),
        TargetFormat::Raw => disk.layout().geometry().size_bytes(),
    }
}

/// The folder that a target lies in.
fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A segment and where it goes.
#[derive(Clone, Copy)]
struct Task {
    /// `None` is zeroes, which only a block device needs written.
    content: Option<ContentId>,
    offset_bytes: u64,
    /// Less than a segment at the end of a raw disk.
    len_bytes: u64,
}

/// Restores a disk to `target`. A file appears under its name only when it is complete and durable; a file that is
/// there already is refused unless `overwrite`. A block device must be at least as large as the disk.
pub fn restore_disk(
    disk: &DiskObject,
    target: &Path,
    format: TargetFormat,
    overwrite: bool,
    label: &str,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<RestoreReport, BackupError> {
    let len_bytes = target_len(disk, format);
    let stored_bytes = count_stored(disk, format)?;
    let output = Output::open(target, format, len_bytes, stored_bytes, overwrite)?;
    let total_bytes = if output.device { len_bytes } else { stored_bytes };
    observer.event(Event::Started { subject: label, total_bytes, what: "restore" });
    let written = copy(disk, format, &output, label, observer, cancel);
    observer.event(Event::Finished { subject: label });
    let written_bytes = match written {
        Ok(bytes) => bytes,
        Err(error) => {
            output.discard();
            return Err(error);
        }
    };
    output.complete()?;
    Ok(RestoreReport { written_bytes, len_bytes })
}

fn copy(
    disk: &DiskObject,
    format: TargetFormat,
    output: &Output,
    label: &str,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<u64, BackupError> {
    let writers = (2 * std::thread::available_parallelism().map_or(2, |count| count.get())).max(4);
    let failed = AtomicBool::new(false);
    let error: Mutex<Option<BackupError>> = Mutex::default();
    let fail = |one: BackupError| {
        error.lock().expect("no panic while held").get_or_insert(one);
        failed.store(true, Ordering::Relaxed);
    };
    let written = AtomicU64::new(0);
    let to = UncachedFile::new(&output.file, &output.working);
    let (tasks_in, tasks) = crossbeam_channel::bounded::<Vec<Task>>(2 * writers);
    std::thread::scope(|scope| {
        for _ in 0..writers {
            let tasks = tasks.clone();
            let (fail, failed, written, to) = (&fail, &failed, &written, &to);
            scope.spawn(move || {
                let mut plaintext = Vec::new();
                for batch in tasks {
                    for task in batch {
                        if failed.load(Ordering::Relaxed) {
                            return;
                        }
                        match write_segment(disk, output, to, task, &mut plaintext) {
                            Ok(()) => {
                                written.fetch_add(task.len_bytes, Ordering::Relaxed);
                                observer.event(Event::Advanced { subject: label, bytes: task.len_bytes });
                            }
                            Err(error) => return fail(error),
                        }
                    }
                }
            });
        }
        drop(tasks);
        let mut batch = Vec::with_capacity(BATCH);
        let sent = for_each_task(disk, format, output.device, &mut |task| {
            if cancel.is_cancelled() {
                return Err(BackupError::Cancelled);
            }
            batch.push(task);
            if batch.len() == BATCH {
                // Writers that are gone have left an error.
                let _ = tasks_in.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)));
            }
            Ok(!failed.load(Ordering::Relaxed))
        });
        match sent {
            Ok(()) => drop(tasks_in.send(batch)),
            Err(error) => fail(error),
        }
        drop(tasks_in);
    });
    match error.into_inner().expect("no panic while held") {
        Some(error) => Err(error),
        None => Ok(written.into_inner()),
    }
}

fn write_segment(
    disk: &DiskObject,
    output: &Output,
    to: &UncachedFile<'_>,
    task: Task,
    plaintext: &mut Vec<u8>,
) -> Result<(), BackupError> {
    let len = task.len_bytes as usize;
    let start = begin_aligned(plaintext, disk.layout().segment_bytes() as usize);
    match task.content {
        Some(content) => disk.repository().append_content(&content, plaintext)?,
        None => plaintext.resize(start + len, 0),
    }
    let bytes = plaintext.get(start..start + len).ok_or_else(|| BackupError::ReadBack {
        problem: format!("a segment has {} bytes instead of {len}", plaintext.len() - start),
    })?;
    to.write_all_at(bytes, task.offset_bytes).map_err(|source| output.failed(source))
}

/// Every segment that has to be written, in an order close to that of the packs. The visitor may end the walk.
fn for_each_task(
    disk: &DiskObject,
    format: TargetFormat,
    zeroes_too: bool,
    visit: &mut dyn FnMut(Task) -> Result<bool, BackupError>,
) -> Result<(), BackupError> {
    let layout = disk.layout();
    let size = layout.geometry().size_bytes();
    let zero = disk.zero_content();
    let mut number = 0;
    for piece in 0..disk.object().pieces().len() {
        for entry in disk.piece(piece)?.iter() {
            let content = entry.object.content;
            let task = match (format, layout.slot_of(number)) {
                (TargetFormat::Vhdx, _) => {
                    Some(Task { content: Some(content), offset_bytes: entry.start, len_bytes: entry.len })
                }
                (TargetFormat::Raw, None) => None,
                (TargetFormat::Raw, Some((slot, part))) => {
                    let block = disk.slots().block(slot).expect("the head was checked against the entries");
                    let offset_bytes = layout.virtual_offset(block, part);
                    let len_bytes = size.saturating_sub(offset_bytes).min(entry.len);
                    (len_bytes > 0).then_some(Task { content: Some(content), offset_bytes, len_bytes })
                }
            };
            number += 1;
            // A hole reads as zeroes; a device keeps what it had.
            let task = task.filter(|_| content != zero || zeroes_too);
            if let Some(task) = task
                && !visit(task)?
            {
                return Ok(());
            }
        }
    }
    if zeroes_too && format == TargetFormat::Raw {
        for block in 0..layout.geometry().blocks() {
            if disk.slots().slot(block).is_some() {
                continue;
            }
            for part in 0..layout.segments_per_block() {
                let offset_bytes = layout.virtual_offset(block, part);
                let len_bytes = size.saturating_sub(offset_bytes).min(u64::from(layout.segment_bytes()));
                if len_bytes > 0 && !visit(Task { content: None, offset_bytes, len_bytes })? {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Bytes that a sparse target needs.
pub(crate) fn count_stored(disk: &DiskObject, format: TargetFormat) -> Result<u64, BackupError> {
    let mut bytes = 0;
    for_each_task(disk, format, false, &mut |task| {
        bytes += task.len_bytes;
        Ok(true)
    })?;
    Ok(bytes)
}

struct Output {
    file: File,
    target: PathBuf,
    /// Where it is written until it is complete; the target itself for a device.
    working: PathBuf,
    device: bool,
}

impl Output {
    fn open(
        target: &Path,
        format: TargetFormat,
        len_bytes: u64,
        stored_bytes: u64,
        overwrite: bool,
    ) -> Result<Self, BackupError> {
        let refuse = |problem: String| BackupError::TargetRefused { path: target.display().to_string(), problem };
        let failed = |source| BackupError::Target { path: target.display().to_string(), source };
        match std::fs::metadata(target) {
            Ok(meta) if is_block_device(&meta) => {
                if format == TargetFormat::Vhdx {
                    return Err(refuse("a device takes the raw disk: use --format raw".into()));
                }
                if !overwrite {
                    return Err(refuse("everything on the device would be lost: say --overwrite".into()));
                }
                let file = OpenOptions::new().read(true).write(true).open(target).map_err(failed)?;
                let capacity = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(failed)?;
                if capacity < len_bytes {
                    return Err(refuse(format!("it has {capacity} bytes, the disk {len_bytes}")));
                }
                return Ok(Self { file, target: target.into(), working: target.into(), device: true });
            }
            Ok(meta) if !meta.is_file() => return Err(refuse("it is neither a file nor a block device".into())),
            Ok(_) if !overwrite => return Err(refuse("it exists; say --overwrite, or choose another name".into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if let Some(free) = free_bytes(folder_of(target))
            && free < stored_bytes
        {
            let problem = format!("{stored_bytes} bytes are needed, {free} are free; nothing was written");
            let source = io::Error::new(io::ErrorKind::StorageFull, problem);
            return Err(failed(source));
        }
        let mut name = target.file_name().ok_or_else(|| refuse("it has no file name".into()))?.to_owned();
        name.push(".partial");
        let working = target.with_file_name(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&working)
            .map_err(|source| BackupError::Target { path: working.display().to_string(), source })?;
        if format == TargetFormat::Raw {
            allow_holes(&file);
        }
        let output = Self { file, target: target.into(), working, device: false };
        if let Err(error) = output.file.set_len(len_bytes) {
            let error = output.failed(error);
            output.discard();
            return Err(error);
        }
        Ok(output)
    }

    fn failed(&self, source: io::Error) -> BackupError {
        BackupError::Target { path: self.target.display().to_string(), source }
    }

    fn complete(self) -> Result<(), BackupError> {
        let finished = self.file.sync_all().and_then(|()| {
            if self.device {
                return Ok(());
            }
            std::fs::rename(&self.working, &self.target)?;
            sync_folder_of(&self.target)
        });
        finished.map_err(|source| {
            let error = self.failed(source);
            self.discard();
            error
        })
    }

    /// Leaves nothing that looks like a disk.
    fn discard(&self) {
        if !self.device {
            // The error that led here is the one to report.
            let _ = std::fs::remove_file(&self.working);
        }
    }
}

#[cfg(unix)]
fn is_block_device(meta: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&meta.file_type())
}

#[cfg(not(unix))]
fn is_block_device(_: &std::fs::Metadata) -> bool {
    false
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(windows)]
fn free_bytes(folder: &Path) -> Option<u64> {
    use hyperv::seam::HostFiles;
    hyperv::windows::WindowsFiles.free_bytes(folder.to_str()?).ok()
}

/// A raw disk that is mostly empty takes little space, as on other systems.
#[cfg(windows)]
fn allow_holes(file: &File) {
    // A volume that knows no holes takes the zeroes.
    let _ = hyperv::windows::mark_sparse(file);
}

/// Whatever is not written is a hole.
#[cfg(not(windows))]
fn allow_holes(_: &File) {}
