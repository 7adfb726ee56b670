//! The end of a run: the checkpoint becomes a reference point, the merge is watched, or everything is undone.

use hyperv::{ChainBefore, ChainMember, Checkpoint, FrozenDisk, MergeOutcome, Vm};

use super::Run;
use super::prepare::UserCheckpoints;
use super::report::WarningCode;
use crate::commit::PointDraft;
use crate::error::chain_text;
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
    ) -> Result<Converted, BackupError> {
        let host = self.context.host;
        self.journal.intent.as_mut().expect("written before the checkpoint").draft = Some(draft.clone());
        self.save(vm)?;
        let now = host.vm(&vm.id).map_err(BackupError::host(format!("look at VM {}", vm.name)))?;
        let now = now.map(|now| UserCheckpoints::of(host, &now)).transpose()?;
        let disks = draft.description.disks.len();
        let converted = if now.is_some_and(|now| now.follows(&self.user_checkpoints, &checkpoint.instance_id)) {
            let conversion = host
                .convert_to_reference_point(checkpoint)
                .map_err(BackupError::host(format!("convert the checkpoint of {}", vm.name)))?;
            self.host_remarks(&conversion.warnings);
            for defect in &conversion.defects {
                let text = format!("the next backup of a disk will be full: {defect}");
                self.warn(&vm.name, WarningCode::TrackingLost, text);
            }
            Converted {
                rct_ids: checkpoint.disks.iter().map(|disk| conversion.rct_id(disk).map(str::to_owned)).collect(),
                crash_only: conversion.reference_point.consistency == Some(hyperv::Consistency::Crash),
                reference_point: Some(conversion.reference_point.path.to_string()),
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

    /// After the commit: the superseded reference point goes, the merge is watched, the journal is closed.
    pub(super) fn finish(&mut self, vm: &Vm, converted: &Converted, before: &[ChainBefore]) -> Result<(), BackupError> {
        self.phase(&vm.name, "watching the merge");
        recovery::supersede(self.context, vm, &mut self.journal, converted)?;
        let limit = self.context.options.merge_wait;
        let seen = self
            .context
            .host
            .wait_for_merge(&vm.id, before, limit)
            .map_err(BackupError::host(format!("watch the merge of {}", vm.name)));
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
        if let Some(text) = text {
            self.warn(&vm.name, WarningCode::MergePending, format!("the merge was not seen to end: {text}"));
        }
        self.journal.intent = None;
        self.save(vm)
    }

    /// After a failure: what the run made on the host is removed now, if the host lets us; the journal knows it anyway.
    pub(super) fn undo(&mut self, vm: &Vm, error: &BackupError) {
        tracing::info!(vm = vm.name, error = %chain_text(error), "the backup failed: removing what it made");
        if let Err(error) = recovery::recover(self.context, vm, &mut self.journal) {
            tracing::warn!(vm = vm.name, error = %chain_text(&error), "left for the next run to remove");
        }
    }
}
