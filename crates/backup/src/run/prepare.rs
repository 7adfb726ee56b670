//! Before the checkpoint: the VM at rest and fit, the base, the intent in the journal.

use hyperv::{Host, Vm, VmState};

use super::Run;
use super::describe::exclusion_text;
use super::report::WarningCode;
use crate::BackupError;
use crate::commit::timestamp;
use crate::error::chain_text;
use crate::point::{Point, PointDescription, list_points};
use crate::recovery::LOOKS;
use crate::restore_vm::unfinished_in_place;
use crate::state::Intent;

/// The newest point of a VM that can be described.
pub(super) struct Base {
    pub(super) point: Point,
    pub(super) description: PointDescription,
}

/// The user checkpoints of a VM, as far as its change tracking may depend on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UserCheckpoints {
    /// `InstanceID`s, sorted.
    pub(super) ids: Vec<String>,
    /// The one that was applied last.
    pub(super) last_applied: Option<String>,
}

impl UserCheckpoints {
    pub(super) fn of(host: &Host, vm: &Vm) -> Result<Self, BackupError> {
        let mut ids: Vec<String> = vm.user_checkpoints().map(|one| one.instance_id.clone()).collect();
        ids.sort();
        let last_applied = host
            .last_applied_checkpoint(vm)
            .map_err(BackupError::host(format!("look at the checkpoints of VM {}", vm.name)))?;
        Ok(Self { ids, last_applied })
    }

    /// Whether nobody made, deleted or applied one since `before`. While the run's own checkpoint exists the disks
    /// branch off that one.
    pub(super) fn follows(&self, before: &Self, own_checkpoint: &str) -> bool {
        let own = self.last_applied.as_deref() == Some(own_checkpoint);
        self.ids == before.ids && (own || self.last_applied == before.last_applied)
    }
}

impl Run<'_> {
    /// Waits while the host does something to the VM; a checkpoint in that state fails or hurts.
    pub(super) fn wait_until_idle(&self, vm: &Vm) -> Result<Vm, BackupError> {
        let clock = &self.context.host.seam().clock;
        let start = clock.monotonic();
        loop {
            let now = self
                .context
                .host
                .vm(&vm.id)
                .map_err(BackupError::host(format!("look at VM {}", vm.name)))?
                .ok_or_else(|| BackupError::NotBackupable {
                    vm: vm.name.clone(),
                    problem: "it is no longer on this host".into(),
                })?;
            let waiting = match (&now.operation, &now.state) {
                (Some(operation), _) => format!("{operation:?}"),
                (None, VmState::InTransition { value, text }) => format!("state {value} {text}"),
                (None, _) => return Ok(now),
            };
            if self.context.cancel.is_cancelled() {
                return Err(BackupError::Cancelled);
            }
            let waited = clock.monotonic().saturating_sub(start);
            if waited >= self.context.options.idle_wait {
                return Err(BackupError::NotBackupable {
                    vm: vm.name.clone(),
                    problem: format!("the host has been busy with it for too long ({waiting}); try again later"),
                });
            }
            clock.sleep(hyperv::next_look(waited, LOOKS.0, LOOKS.1));
        }
    }

    pub(super) fn check_backupable(&mut self, vm: &Vm) -> Result<(), BackupError> {
        let refuse = |problem: String| Err(BackupError::NotBackupable { vm: vm.name.clone(), problem });
        if let VmState::Critical(state) = vm.state {
            return refuse(format!("its storage is lost (state {state}); bring the storage back first"));
        }
        if let Some(what_to_do) = crate::instant::is_instant(self.context.state, vm.id.as_str())? {
            return refuse(what_to_do);
        }
        if let Some(disk) = vm.unreadable_disks.first() {
            if let Some(what_to_do) = unfinished_in_place(self.context.state, vm.id.as_str())? {
                return refuse(format!("a restore in place of it is not finished: {what_to_do}"));
            }
            return refuse(format!("its disk {} cannot be read: {}", disk.path, disk.problem));
        }
        if vm.disks.is_empty() {
            return refuse("no disk of it can be backed up".into());
        }
        for disk in &vm.excluded_disks {
            let text = format!("{} is not in the point: {}", disk.path, exclusion_text(disk.reason));
            self.warn(&vm.name, WarningCode::DiskLeftOut, text);
        }
        for checkpoint in vm.recovery_checkpoints() {
            let text = format!(
                "a backup checkpoint that is not ours is on the VM and was left alone: {:?}; two backup products on one \
                 VM confuse each other",
                checkpoint.name
            );
            self.warn(&vm.name, WarningCode::Foreign, text);
        }
        Ok(())
    }

    /// The newest point that can be described. One that is damaged, or whose bytes go just now, leaves the run an older
    /// base or none, which costs a full read at most.
    pub(super) fn base(&mut self, vm: &Vm) -> Result<Option<Base>, BackupError> {
        let repo = self.context.repo;
        // Another agent may have made or deleted points of this VM since this process opened the repository.
        repo.refresh()?;
        for point in list_points(repo, Some(vm.id.as_str()))?.into_iter().rev() {
            match point.describe(repo) {
                Ok(description) => return Ok(Some(Base { point, description })),
                Err(error) if error.is_damage() => {
                    // One that was deleted since it was listed is nobody's damage.
                    repo.refresh()?;
                    if list_points(repo, Some(vm.id.as_str()))?.iter().any(|one| one.id == point.id) {
                        let text = format!("point {} is damaged, and no base: {}", point.id, chain_text(&error));
                        self.warn(&vm.name, WarningCode::PointDamaged, text);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub(super) fn journal_intent(&mut self, vm: &Vm) -> Result<(), BackupError> {
        let attempt = 1;
        let tag = format!("e3:{}:{}:{attempt}", self.context.state.agent_id(), self.run_id);
        self.journal.intent = Some(Intent {
            run_id: self.run_id.to_owned(),
            attempt,
            repository_id: self.context.repo.id(),
            started: timestamp(&*self.context.host.seam().clock),
            tag,
            known_checkpoints: vm.checkpoints.iter().map(|one| one.path.to_string()).collect(),
            known_reference_points: vm.reference_points.iter().map(|one| one.path.to_string()).collect(),
            draft: None,
            converted: None,
            doomed: Vec::new(),
        });
        self.save(vm)
    }
}
