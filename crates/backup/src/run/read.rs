//! The disks read into the repository, in full or as changes, and every entry looked up again.

use std::ops::Range;

use hyperv::{FrozenReader, Vm};
use kopia_repo::WriteSession;
use vhdx::VirtualDisk;

use super::Run;
use super::freeze::OpenDisk;
use super::prepare::Base;
use super::report::WarningCode;
use crate::BackupError;
use crate::audit::audit;
use crate::decision::{Decision, FullReason, VmFacts, decide, reason_of_failed_query};
use crate::disk_backup::{DiskBackup, StoredDisk, lost_pieces, lost_segments, touched_segments};
use crate::disk_object::DiskObject;
use crate::layout::Layout;
use crate::observer::Event;
use crate::point::ReadMode;

/// How often what vanished from the repository is read again before the run fails.
const MAX_REPAIRS: usize = 3;

/// A disk after it was stored.
pub(super) struct FinishedDisk {
    pub(super) stored: StoredDisk,
    pub(super) read: ReadMode,
    pub(super) audit_bytes: u64,
}

impl Run<'_> {
    pub(super) fn back_up_disk(
        &mut self,
        vm: &Vm,
        disk: &OpenDisk<'_>,
        base: Option<&Base>,
        session: &WriteSession,
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
                match self.incremental(vm, disk, base, base_disk, &rct_id, session)? {
                    Ok(finished) => return Ok(finished),
                    Err(reason) => reason,
                }
            }
        };
        self.full(disk, reason, session)
    }

    /// The inner error is the reason for a full instead.
    fn incremental(
        &mut self,
        vm: &Vm,
        disk: &OpenDisk<'_>,
        base: &Base,
        base_disk: u32,
        rct_id: &str,
        session: &WriteSession,
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
        let clock = &*self.context.host.seam().clock;
        let audited = audit(&disk.reader, &disk.label, &object, &touched, clock, self.context.cancel);
        let audit_bytes = match audited {
            Ok(bytes) => bytes,
            Err(error @ BackupError::TrackingLied { .. }) => {
                let text = format!("{error}; read in full, and points since the last full read of it are doubtful");
                self.warn(&vm.name, WarningCode::TrackingLied, text);
                return Ok(Err(FullReason::AuditFailed));
            }
            Err(error) => return Err(error),
        };
        let segment = u64::from(object.layout().segment_bytes());
        let total: u64 = touched.iter().map(|range| (range.end - range.start) * segment).sum();
        let stored = self.with_progress(&disk.label, "incremental", total, |progress| {
            self.disk_backup(disk, session, progress).incremental(&object, &changed)
        })?;
        Ok(Ok(FinishedDisk { stored, read: ReadMode::Incremental { base: base.point.id.clone() }, audit_bytes }))
    }

    fn full(
        &self,
        disk: &OpenDisk<'_>,
        reason: FullReason,
        session: &WriteSession,
    ) -> Result<FinishedDisk, BackupError> {
        let geometry = disk.reader.geometry();
        let segment_bytes =
            self.context.options.segment_bytes.unwrap_or_else(|| Layout::default_segment_bytes(geometry.size_bytes));
        let layout = Layout::new(geometry, segment_bytes)
            .map_err(|source| BackupError::Layout { disk: disk.label.clone(), source })?;
        if let Some(problem) = disk.reader.allocation_problem() {
            tracing::warn!(disk = disk.label, problem, "the allocation is not known: every byte is read");
        }
        let total = allocated_bytes(&disk.reader).unwrap_or(geometry.size_bytes);
        let stored = self.with_progress(&disk.label, "full", total, |progress| {
            self.disk_backup(disk, session, progress).full(layout)
        })?;
        Ok(FinishedDisk { stored, read: ReadMode::Full { reason }, audit_bytes: 0 })
    }

    fn disk_backup<'d>(
        &'d self,
        disk: &'d OpenDisk<'_>,
        session: &'d WriteSession,
        progress: &'d (dyn Fn(u64) + Sync),
    ) -> DiskBackup<'d> {
        DiskBackup {
            disk: &disk.reader,
            label: &disk.label,
            virtual_disk_id: disk.frozen.virtual_disk_id,
            session,
            compression: self.context.options.compression,
            clock: &*self.context.host.seam().clock,
            cancel: self.context.cancel,
            progress,
        }
    }

    fn with_progress<T>(
        &self,
        label: &str,
        what: &str,
        total_bytes: u64,
        work: impl FnOnce(&(dyn Fn(u64) + Sync)) -> Result<T, BackupError>,
    ) -> Result<T, BackupError> {
        let observer = self.context.observer;
        observer.event(Event::Started { subject: label, total_bytes, what });
        let result = work(&|bytes| observer.event(Event::Advanced { subject: label, bytes }));
        observer.event(Event::Finished { subject: label });
        result
    }

    /// Looks every entry up in a fresh index while the frozen disks can still be read; what others removed meanwhile is
    /// read again. Returns entries and look-ups.
    pub(super) fn check_entries(
        &self,
        disks: &[OpenDisk<'_>],
        finished: &mut [FinishedDisk],
        session: &WriteSession,
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
                finished.stored = self.disk_backup(disk, session, &|_| ()).repair(&finished.stored, &lost)?;
                session.flush()?;
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
