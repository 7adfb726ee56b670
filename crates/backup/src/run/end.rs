//! The end of a run: the checkpoint becomes a reference point, the merge is watched, or everything is undone.

use std::time::Duration;

use hyperv::{ChainBefore, ChainMember, Checkpoint, FrozenDisk, MergeOutcome, Vm};

use super::Run;
use super::prepare::{Base, UserCheckpoints};
use super::report::{Warning, WarningCode};
use crate::commit::PointDraft;
use crate::error::chain_text;
use crate::point::{PointDisk, ReadMode};
use crate::state::Converted;
use crate::{BackupError, recovery};

impl Run<'_> {
    pub(super) fn check_chains(&self, vm: &Vm, chains: &[(FrozenDisk, Vec<ChainMember>)]) -> Result<(), BackupError> {
        for (disk, before) in chains {
            let now = self
                .context
                .host
                .chain_facts(disk)
                .map_err(BackupError::host(format!("look at the files of {} {}", vm.name, disk.slot)))?;
            let identity = |chain: &[ChainMember]| -> Vec<(String, String, u64, std::time::SystemTime)> {
                chain
                    .iter()
                    .map(|file| {
                        (file.path.clone(), file.facts.file_id.clone(), file.facts.len_bytes, file.facts.modified)
                    })
                    .collect()
            };
            if identity(&now) != identity(before) {
                return Err(BackupError::NotBackupable {
                    vm: vm.name.clone(),
                    problem: format!(
                        "the frozen files of {} changed while they were read: something else works on this VM",
                        disk.slot
                    ),
                });
            }
        }
        Ok(())
    }

    /// Ends the checkpoint. With user checkpoints made or applied meanwhile no reference point is taken: the next run is
    /// full (spec hyperv 0.4).
    pub(super) fn convert(
        &mut self,
        vm: &Vm,
        checkpoint: &Checkpoint,
        draft: &PointDraft,
        base: Option<&Base>,
    ) -> Result<Converted, BackupError> {
        let host = self.context.host;
        self.journal.intent.as_mut().expect("written before the checkpoint").draft = Some(draft.clone());
        self.save(vm)?;
        let now = host.vm(&vm.id).map_err(BackupError::host(format!("look at VM {}", vm.name)))?;
        let now = now.map(|now| UserCheckpoints::of(host, &now)).transpose()?;
        let disks = draft.description.disks.len();
        let converted = if now.is_some_and(|now| now.follows(&self.user_checkpoints, &checkpoint.instance_id)) {
            match host.convert_to_reference_point(checkpoint) {
                Ok(conversion) => {
                    self.host_remarks(&conversion.warnings);
                    for defect in &conversion.defects {
                        let text = format!("the next backup of a disk will be full: {defect}");
                        self.warn(&vm.name, WarningCode::TrackingLost, text);
                    }
                    let rct_id = |disk| conversion.rct_id(disk).map(str::to_owned);
                    Converted {
                        rct_ids: checkpoint.disks.iter().map(rct_id).collect(),
                        crash_only: conversion.reference_point.consistency == Some(hyperv::Consistency::Crash),
                        reference_point: Some(conversion.reference_point.path.to_string()),
                    }
                }
                Err(error) if is_final(&error.error) => self.do_without(vm, checkpoint, draft, base, &error)?,
                Err(error) => return Err(BackupError::host(format!("convert the checkpoint of {}", vm.name))(error)),
            }
        } else {
            host.destroy_checkpoint(&checkpoint.path)
                .map_err(BackupError::host(format!("remove the checkpoint of {}", vm.name)))?;
            let text = "user checkpoints changed during the run; the next run is full".to_owned();
            self.warn(&vm.name, WarningCode::TrackingLost, text);
            Converted { reference_point: None, rct_ids: vec![None; disks], crash_only: false }
        };
        self.journal.intent.as_mut().expect("written before the checkpoint").converted = Some(converted.clone());
        self.save(vm)?;
        Ok(converted)
    }

    /// The checkpoint cannot be converted: it is destroyed, and the data is committed all the same. Where a disk's
    /// changes were read against an older instant whose reference point still exists, that one stays and so do its ids:
    /// what changed since it includes what changed since now (spec hyperv 11, row 35; law 2).
    fn do_without(
        &mut self,
        vm: &Vm,
        checkpoint: &Checkpoint,
        draft: &PointDraft,
        base: Option<&Base>,
        error: &dyn std::error::Error,
    ) -> Result<Converted, BackupError> {
        tracing::error!(vm = vm.name, error = %chain_text(error), "the checkpoint cannot be converted");
        let host = self.context.host;
        host.destroy_checkpoint(&checkpoint.path)
            .map_err(BackupError::host(format!("remove the checkpoint of {}", vm.name)))?;
        let old = base.and_then(|base| {
            let path = base.description.reference_point.as_ref()?;
            let is_ours = self.journal.reference_points.iter().any(|known| known.path == *path);
            is_ours.then(|| (base, path.clone()))
        });
        let id_of = |disk: &PointDisk| {
            let (base, _) = old.as_ref()?;
            let ReadMode::Incremental { .. } = disk.read else { return None };
            let mut same = base.description.disks.iter().filter(|one| one.virtual_disk_id == disk.virtual_disk_id);
            // Of two disks with one identity it is not certain which is which: the next run reads them in full.
            same.next().filter(|_| same.next().is_none())?.rct_id.clone()
        };
        let rct_ids: Vec<Option<String>> = draft.description.disks.iter().map(id_of).collect();
        let kept = old.map(|(_, path)| path).filter(|_| rct_ids.iter().any(Option::is_some));
        recovery::remove_new_reference_points(self.context, vm, self.intent(), kept.as_deref())?;
        let next = match &kept {
            Some(_) => "the next one reads what changed since an older instant",
            None => "the next one is full",
        };
        let text = format!("the host made no reference point of this backup; {next}: {}", chain_text(error));
        self.warn(&vm.name, WarningCode::ConversionFailed, text);
        Ok(Converted { reference_point: kept, rct_ids, crash_only: false })
    }

    /// After the commit: the superseded reference point goes, the merge is watched, the journal is closed.
    ///
    /// How long the merge took since the end of the checkpoint, if it was seen.
    pub(super) fn finish(
        &mut self,
        vm: &Vm,
        converted: &Converted,
        before: &[ChainBefore],
        ended: Duration,
    ) -> Result<Option<Duration>, BackupError> {
        self.phase(&vm.name, "watching the merge");
        recovery::supersede(self.context, vm, &mut self.journal, converted)?;
        let host = self.context.host;
        let limit = self.context.options.merge_wait;
        let watch = || {
            host.wait_for_merge(&vm.id, before, limit)
                .map_err(BackupError::host(format!("watch the merge of {}", vm.name)))
        };
        let mut seen = watch();
        if let Ok(MergeOutcome::Blocked { merging_is_off: true, .. }) = seen {
            // An export that was broken off leaves it so; nothing else switches it back (row 37).
            match host.allow_merging(&vm.id) {
                Ok(()) => {
                    self.host_remarks(&["merging was switched off for this VM, and was switched on again".to_owned()]);
                    seen = watch();
                }
                Err(error) => tracing::warn!(vm = vm.name, error = %chain_text(&error), "merging stays switched off"),
            }
        }
        let took = host.seam().clock.monotonic().saturating_sub(ended);
        let text = match seen {
            Ok(MergeOutcome::Merged) => None,
            Ok(MergeOutcome::StillMerging { .. }) => {
                Some(format!("the host is still merging after {} s", limit.as_secs()))
            }
            Ok(MergeOutcome::Blocked { merging_is_off: true, .. }) => {
                Some("merging is switched off for this VM".to_owned())
            }
            Ok(MergeOutcome::Blocked { .. }) => {
                Some("the host does not merge: a file of the chain is in use, or the volume is full".to_owned())
            }
            // The point is committed and restorable whatever the host says now.
            Err(error) => Some(chain_text(&error)),
        };
        let merged = text.is_none().then_some(took);
        if let Some(text) = text {
            let again = match self.unmerged_runs() {
                0 => String::new(),
                runs => format!("; so it was after {runs} runs before this one, see to it"),
            };
            self.warn(&vm.name, WarningCode::MergePending, format!("the merge was not seen to end: {text}{again}"));
        }
        for text in recovery::remove_late(self.context.host_side(), vm, &mut self.journal)? {
            self.warnings.push(Warning { code: WarningCode::Recovered, text });
        }
        // One that did not come by the end of the next run comes no more, and what appears from now on is another's.
        self.journal.late.take_if(|late| late.run_id != self.run_id);
        Ok(merged)
    }

    /// After a failure: what the run made on the host is removed now, if the host lets us; the journal knows it anyway.
    pub(super) fn undo(&mut self, vm: &Vm, error: &BackupError) {
        tracing::info!(vm = vm.name, error = %chain_text(error), "the backup failed: removing what it made");
        if let Err(error) = recovery::recover(self.context, vm, &mut self.journal) {
            tracing::warn!(vm = vm.name, error = %chain_text(&error), "left for the next run to remove");
        }
    }
}

/// Whether a conversion failed and nothing of it can still appear.
fn is_final(error: &hyperv::Error) -> bool {
    use hyperv::Error::{JobFailed, Refused, Timeout};
    matches!(error, JobFailed { .. } | Refused { .. } | Timeout { job_ended: true, .. })
}
