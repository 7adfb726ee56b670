//! The disks read into the repository, in full or as changes, and every entry looked up again.

use std::ops::Range;
use std::panic::resume_unwind;

use hyperv::{FrozenReader, Vm};
use kopia_repo::WriteSession;
use vhdx::VirtualDisk;

use super::Run;
use super::freeze::OpenDisk;
use super::guard::Watch;
use super::prepare::Base;
use super::report::{Warning, WarningCode};
use crate::audit::{Audit, Audited};
use crate::decision::{Decision, FullReason, VmFacts, decide, reason_of_failed_query};
use crate::disk_backup::{DiskBackup, StoredDisk, lost_pieces, lost_segments, touched_segments};
use crate::disk_object::DiskObject;
use crate::layout::Layout;
use crate::observer::Event;
use crate::point::ReadMode;
use crate::source_guard::SourceGuard;
use crate::{BackupError, Cancel};

/// How often what vanished from the repository is read again before the run fails.
const MAX_REPAIRS: usize = 3;

/// A disk after it was stored.
pub(super) struct FinishedDisk {
    pub(super) stored: StoredDisk,
    pub(super) read: ReadMode,
    pub(super) audited: Audited,
    /// What a person should know of it.
    pub(super) warning: Option<Warning>,
}

/// What the disks of a run are read with.
pub(super) struct Source<'a> {
    pub(super) session: &'a WriteSession,
    pub(super) guard: &'a SourceGuard<'a>,
    pub(super) watch: &'a Watch<'a>,
}

impl Run<'_> {
    /// All disks, as many at a time as the process may read. The first failure stops the others.
    pub(super) fn back_up_disks(
        &self,
        vm: &Vm,
        disks: &[OpenDisk<'_>],
        base: Option<&Base>,
        source: &Source<'_>,
    ) -> Result<Vec<FinishedDisk>, BackupError> {
        let resources = &self.context.options.resources;
        let stop = Cancel::default();
        let one = |disk| {
            let cancel = self.context.cancel;
            let _turn = resources.turn(cancel).ok_or(BackupError::Cancelled)?;
            if stop.is_cancelled() {
                return Err(BackupError::Cancelled);
            }
            self.back_up_disk(vm, disk, base, source).inspect_err(|_| stop.cancel())
        };
        if disks.len() < 2 || self.context.repo.is_inline() {
            return disks.iter().map(one).collect();
        }
        let one = &one;
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = disks.iter().map(|disk| scope.spawn(move || one(disk))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        // The one that failed by itself says more than those that were stopped because of it.
        let mut finished = Vec::with_capacity(results.len());
        let mut failed = None;
        for result in results {
            match result {
                Ok(disk) => finished.push(disk),
                Err(error) if failed.is_none() || !matches!(error, BackupError::Cancelled) => failed = Some(error),
                Err(_) => {}
            }
        }
        failed.map_or(Ok(finished), Err)
    }

    fn back_up_disk(
        &self,
        vm: &Vm,
        disk: &OpenDisk<'_>,
        base: Option<&Base>,
        source: &Source<'_>,
    ) -> Result<FinishedDisk, BackupError> {
        let facts = VmFacts {
            forced: self.context.options.full,
            host: self.context.host_name.to_owned(),
            replication_mode: vm.replication_mode,
            user_checkpoints: self.user_checkpoints.ids.clone(),
            last_applied_checkpoint: self.user_checkpoints.last_applied.clone(),
            segment_bytes: self.context.options.segment_bytes,
            restored_in_place: self.journal.restored_in_place,
        };
        let decision = decide(&facts, &disk.facts, base.map(|base| &base.description));
        let reason = match (decision, base) {
            (Decision::Full(reason), _) => reason,
            (Decision::Changes { .. }, None) => unreachable!("changes need a base"),
            (Decision::Changes { base_disk, rct_id }, Some(base)) => {
                match self.incremental(disk, base, base_disk, &rct_id, source)? {
                    Ok(finished) => return Ok(finished),
                    Err(reason) => reason,
                }
            }
        };
        self.full(disk, reason, source)
    }

    /// The inner error is the reason for a full instead.
    fn incremental(
        &self,
        disk: &OpenDisk<'_>,
        base: &Base,
        base_disk: u32,
        rct_id: &str,
        source: &Source<'_>,
    ) -> Result<Result<FinishedDisk, FullReason>, BackupError> {
        let changed = match disk.reader.changed_ranges(rct_id) {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!(disk = disk.label, %error, "changes cannot be told");
                return match reason_of_failed_query(error.kind) {
                    Some(reason) => Ok(Err(reason)),
                    None => Err(BackupError::host(format!("ask what changed on {}", disk.label))(error)),
                };
            }
        };
        let of_base = base
            .description
            .disks
            .iter()
            .find(|one| one.number == base_disk)
            .expect("the decision names a disk of the base");
        let object = match base.point.open_disk(self.context.repo, of_base) {
            Ok(object) => object,
            Err(error) if error.is_damage() => {
                tracing::error!(disk = disk.label, point = base.point.id, %error, "the base cannot be used");
                return Ok(Err(FullReason::BaseUnusable));
            }
            Err(error) => return Err(error),
        };
        let touched = touched_segments(object.layout(), &changed);
        let audit = Audit {
            disk: &disk.reader,
            label: &disk.label,
            base: &object,
            changed: &touched,
            clock: &*self.context.host.seam().clock,
            cancel: self.context.cancel,
            guard: source.guard,
            buffers: self.context.options.resources.buffers(),
        };
        let audited = match audit.run(self.context.options.audit_everything) {
            Ok(audited) => audited,
            Err(error @ BackupError::TrackingLied { .. }) => {
                tracing::error!(disk = disk.label, %error, "change tracking was wrong");
                return Ok(Err(FullReason::AuditFailed));
            }
            Err(error) => return Err(error),
        };
        let segment = u64::from(object.layout().segment_bytes());
        let total: u64 = touched.iter().map(|range| (range.end - range.start) * segment).sum();
        let stored = self.with_progress(&disk.label, "incremental", total, source.watch, |progress| {
            self.disk_backup(disk, source, progress).incremental(&object, &changed)
        })?;
        let read = ReadMode::Incremental { base: base.point.id.clone() };
        Ok(Ok(FinishedDisk { stored, read, audited, warning: None }))
    }

    fn full(&self, disk: &OpenDisk<'_>, reason: FullReason, source: &Source<'_>) -> Result<FinishedDisk, BackupError> {
        let geometry = disk.reader.geometry();
        let segment_bytes =
            self.context.options.segment_bytes.unwrap_or_else(|| Layout::default_segment_bytes(geometry.size_bytes));
        let layout = Layout::new(geometry, segment_bytes)
            .map_err(|source| BackupError::Layout { disk: disk.label.clone(), source })?;
        if let Some(problem) = disk.reader.allocation_problem() {
            tracing::warn!(disk = disk.label, problem, "the allocation is not known: every byte is read");
        }
        let total = allocated_bytes(&disk.reader).unwrap_or(geometry.size_bytes);
        let stored = self.with_progress(&disk.label, "full", total, source.watch, |progress| {
            self.disk_backup(disk, source, progress).full(layout)
        })?;
        let warning = (reason == FullReason::AuditFailed).then(|| Warning {
            code: WarningCode::TrackingLied,
            text: format!(
                "{} changed where change tracking says it did not; it was read in full, and points since the last full \
                 read of it are doubtful",
                disk.label
            ),
        });
        Ok(FinishedDisk { stored, read: ReadMode::Full { reason }, audited: Audited::default(), warning })
    }

    fn disk_backup<'d>(
        &'d self,
        disk: &'d OpenDisk<'_>,
        source: &'d Source<'_>,
        progress: &'d (dyn Fn(u64) -> Result<(), BackupError> + Sync),
    ) -> DiskBackup<'d> {
        DiskBackup {
            disk: &disk.reader,
            label: &disk.label,
            virtual_disk_id: disk.frozen.virtual_disk_id,
            session: source.session,
            compression: self.context.options.compression,
            clock: &*self.context.host.seam().clock,
            cancel: self.context.cancel,
            guard: source.guard,
            buffers: self.context.options.resources.buffers(),
            progress,
        }
    }

    fn with_progress<T>(
        &self,
        label: &str,
        what: &str,
        total_bytes: u64,
        watch: &Watch<'_>,
        work: impl FnOnce(&(dyn Fn(u64) -> Result<(), BackupError> + Sync)) -> Result<T, BackupError>,
    ) -> Result<T, BackupError> {
        let observer = self.context.observer;
        observer.event(Event::Started { subject: label, total_bytes, what });
        let result = work(&|bytes| {
            observer.event(Event::Advanced { subject: label, bytes });
            watch.check()
        });
        observer.event(Event::Finished { subject: label });
        result
    }

    /// Looks every entry up in a fresh index while the frozen disks can still be read; what others removed meanwhile is
    /// read again. Returns entries and look-ups.
    pub(super) fn check_entries(
        &self,
        disks: &[OpenDisk<'_>],
        finished: &mut [FinishedDisk],
        source: &Source<'_>,
    ) -> Result<(u64, u64), BackupError> {
        let repo = self.context.repo;
        let (mut entries, mut checked) = (0, 0);
        for (disk, finished) in disks.iter().zip(finished) {
            repo.refresh()?;
            let mut repairs = 0;
            loop {
                let object = DiskObject::open(repo.clone(), finished.stored.object, finished.stored.layout)?;
                let mut looked_up = 0;
                let lost = lost_segments(&object, &mut looked_up)?;
                checked += looked_up;
                if lost.is_empty() && !lost_pieces(repo, object.object())? {
                    entries += object.segments();
                    break;
                }
                repairs += 1;
                if repairs > MAX_REPAIRS {
                    return Err(BackupError::ReadBack {
                        problem: format!(
                            "{} contents of {} keep vanishing from the repository",
                            lost.len(),
                            disk.label
                        ),
                    });
                }
                tracing::warn!(disk = disk.label, contents = lost.len(), "contents vanished meanwhile: read again");
                finished.stored = self.disk_backup(disk, source, &|_| Ok(())).repair(&finished.stored, &lost)?;
                source.session.flush()?;
                repo.refresh()?;
            }
        }
        Ok((entries, checked))
    }
}

/// Bytes that the chain says hold data: for progress only.
fn allocated_bytes(disk: &FrozenReader) -> Option<u64> {
    let mut total = 0;
    for extent in disk.extents(0..disk.geometry().size_bytes) {
        let extent = extent.ok()?;
        if extent.kind == vhdx::ExtentKind::Data {
            let Range { start, end } = extent.range;
            total += end - start;
        }
    }
    Some(total)
}
