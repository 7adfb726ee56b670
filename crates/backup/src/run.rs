//! One backup of one VM: the plan, then the steps of spec hyperv 0.4 and DESIGN 4, in that order.
//!
//! `prepare` is what comes before the checkpoint, `freeze` the checkpoint and what is found in it, `read` the disks,
//! `describe` the point's own document, `end` the way back to a VM without checkpoint.

mod describe;
mod end;
mod freeze;
mod guard;
mod options;
mod prepare;
mod read;
mod report;

use std::sync::Arc;
use std::time::Duration;

use hyperv::{ChainBefore, ChainMember, FrozenDisk, Host, Vm};
use kopia_repo::{Repository, WriteSession};

pub use self::options::{BackupOptions, ConsistencyPolicy, GuardLimits};
use self::prepare::{Base, UserCheckpoints};
use self::read::Source;
pub use self::report::{HostCost, RunStats, VmReport, Warning, WarningCode};
use crate::commit::{DraftFile, PointDraft, commit, timestamp};
use crate::error::chain_text;
use crate::observer::{Event, Observer};
use crate::point::{PointDescription, PointDisk};
use crate::recovery::HostSide;
use crate::source_guard::SourceGuard;
use crate::state::{HostState, Intent, PastRun, VmJournal, random_hex};
use crate::{BackupError, Cancel, evidence, recovery};

/// What runs on one host share.
pub struct BackupContext<'a> {
    /// The host.
    pub host: &'a Host,
    /// Its name, as sources and descriptions give it.
    pub host_name: &'a str,
    /// Where to.
    pub repo: &'a Arc<Repository>,
    /// The host's locks and journals.
    pub state: &'a HostState,
    /// How.
    pub options: &'a BackupOptions,
    /// Who is told.
    pub observer: &'a dyn Observer,
    /// Who may stop it.
    pub cancel: &'a Cancel,
}

impl<'a> BackupContext<'a> {
    /// What of it needs no repository.
    pub fn host_side(&self) -> HostSide<'a> {
        HostSide { host: self.host, state: self.state, idle_wait: self.options.idle_wait }
    }
}

/// A new run id: one per invocation, however many VMs it covers.
pub fn new_run_id() -> String {
    random_hex(8)
}

/// Backs up one VM. On an error there is no new point, and the host is as it was before, or the journal knows what is
/// left to do.
pub fn back_up_vm(context: &BackupContext<'_>, vm: &Vm, run_id: &str) -> Result<VmReport, BackupError> {
    let _lock = context.state.lock_vm(vm.id.as_str(), &vm.name)?;
    let journal = context.state.journal(vm.id.as_str())?;
    let mut run = Run { context, run_id, warnings: Vec::new(), journal, user_checkpoints: UserCheckpoints::default() };
    run.phase(&vm.name, "looking at the host");
    let vm = &run.wait_until_idle(vm)?;
    let recovered = recovery::recover(context, vm, &mut run.journal)?;
    run.warnings.extend(recovered.into_iter().map(|text| Warning { code: WarningCode::Recovered, text }));
    let vm = &run.wait_until_idle(vm)?;
    run.check_backupable(vm)?;
    run.check_room(vm)?;
    run.user_checkpoints = UserCheckpoints::of(context.host, vm)?;
    let base = run.base(vm)?;
    // A storage that does not answer, or whose clock is another, is found out while nothing is frozen yet.
    let session = context.options.resources.session(context.repo)?;
    session.begin()?;
    run.journal_intent(vm)?;
    match run.checkpoint_to_point(vm, base, session) {
        Ok(report) => Ok(report),
        Err(error) => {
            run.undo(vm, &error);
            Err(error)
        }
    }
}

/// Puts in order what a run on this VM left that did not end; says in words what was done. Nothing is done to a VM that
/// is in use.
pub fn settle_vm(context: &BackupContext<'_>, vm: &Vm) -> Result<Vec<String>, BackupError> {
    let _lock = context.state.lock_vm(vm.id.as_str(), &vm.name)?;
    recovery::recover(context, vm, &mut context.state.journal(vm.id.as_str())?)
}

struct Run<'a> {
    context: &'a BackupContext<'a>,
    run_id: &'a str,
    warnings: Vec<Warning>,
    journal: VmJournal,
    /// As they were before the checkpoint.
    user_checkpoints: UserCheckpoints,
}

impl Run<'_> {
    /// Steps 1 to 13. Everything that an error leaves behind is in the journal.
    fn checkpoint_to_point(
        &mut self,
        vm: &Vm,
        base: Option<Base>,
        session: WriteSession,
    ) -> Result<VmReport, BackupError> {
        let context = self.context;
        let clock = &*context.host.seam().clock;
        let started = self.intent().started;
        self.phase(&vm.name, "creating the checkpoint");
        let (checkpoint, consistency, reason) = self.checkpoint(vm)?;
        let frozen = timestamp(clock);
        let frozen_at = clock.monotonic();
        self.host_remarks(&checkpoint.warnings);

        self.phase(&vm.name, "reading the definition");
        let mut files = self.definition_files(vm, &checkpoint, &session)?;

        let disks = checkpoint
            .disks
            .iter()
            .map(|frozen| self.open_disk(vm, &checkpoint, frozen))
            .collect::<Result<Vec<_>, _>>()?;
        let guard = SourceGuard::new(clock, context.cancel, &context.options.reads);
        let watch = self.watch(vm, frozen_at)?;
        let source = Source { session: &session, guard: &guard, watch: &watch };
        let mut finished = self.back_up_disks(vm, &disks, base.as_ref(), &source)?;

        self.phase(&vm.name, "making it durable");
        session.flush()?;
        let (entries, entries_checked) = self.check_entries(&disks, &mut finished, &source)?;
        let avhdx_peak_bytes = watch.peak_bytes();
        let reads = guard.times();
        drop(watch);
        for warning in finished.iter_mut().filter_map(|disk| disk.warning.take()) {
            self.warn(&vm.name, warning.code, warning.text);
        }
        if context.cancel.is_cancelled() {
            return Err(BackupError::Cancelled);
        }

        let description = self.describe(vm, base.as_ref(), &disks, &finished, started, frozen, consistency, reason);
        for disk in &description.disks {
            let (folder, name) = disk.file.rsplit_once('/').expect("disks lie in a folder");
            files.push(DraftFile {
                folder: folder.into(),
                name: name.into(),
                object: disk.object.clone(),
                size_bytes: disk.file_bytes,
            });
        }
        let stats = session.stats();
        let description = PointDescription { stored_bytes: stats.data_bytes + stats.metadata_bytes, ..description };
        let source_host = base
            .as_ref()
            .map_or_else(|| context.host_name.to_owned(), |base| base.point.snapshot.manifest.source.host.clone());
        let draft = PointDraft { description, source_host, files };
        drop(session);

        // Nothing may hold a handle when the merge begins; and the chain must still be the one that was read.
        let chains: Vec<(FrozenDisk, Vec<ChainMember>)> =
            disks.into_iter().map(|disk| (disk.frozen.clone(), disk.chain)).collect();
        self.check_chains(vm, &chains)?;

        self.phase(&vm.name, "converting the checkpoint");
        let converted = self.convert(vm, &checkpoint, &draft, base.as_ref())?;
        let converted_at = clock.monotonic();
        self.phase(&vm.name, "writing the point");
        let (point, of_commit) = commit(context.repo, clock, &draft, &converted)?;
        let description = point.describe(context.repo)?;
        let depths: Vec<ChainBefore> = checkpoint.disks.iter().map(ChainBefore::from).collect();
        if self.warnings.iter().any(|warning| warning.code == WarningCode::TrackingLied) {
            // The new point is safe whether or not this can be noted.
            match evidence::doubt(context.repo, &description, timestamp(clock)) {
                Ok(points) if points.is_empty() => {}
                Ok(points) => {
                    let text = format!("points that may lack changes of the guest: {}", points.join(", "));
                    self.warn(&vm.name, WarningCode::TrackingLied, text);
                }
                Err(error) => {
                    let text = format!("earlier points could not be marked as doubtful: {}", chain_text(&error));
                    self.warn(&vm.name, WarningCode::TrackingLied, text);
                }
            }
        }
        let merge = self.finish(vm, &converted, &depths, converted_at)?;
        let checkpoint = converted_at.saturating_sub(frozen_at);
        self.remember(PastRun {
            run_id: self.run_id.to_owned(),
            checkpoint_ms: millis(checkpoint),
            avhdx_peak_bytes,
            merge_ms: merge.map(millis),
        });
        self.journal.intent = None;
        self.save(vm)?;

        let sum = |of: fn(&PointDisk) -> u64| description.disks.iter().map(of).sum();
        let stats = RunStats {
            read_bytes: sum(|disk| disk.read_bytes),
            audit_bytes: sum(|disk| disk.audit_bytes),
            changed_bytes: sum(|disk| disk.changed_bytes),
            data_bytes: stats.data_bytes + of_commit.data_bytes,
            metadata_bytes: stats.metadata_bytes + of_commit.metadata_bytes,
            uploaded_bytes: stats.uploaded_bytes + of_commit.uploaded_bytes,
            entries,
            entries_checked,
        };
        let host = HostCost { checkpoint, avhdx_peak_bytes, merge, reads };
        Ok(VmReport { point, description, warnings: std::mem::take(&mut self.warnings), stats, host })
    }

    fn intent(&self) -> &Intent {
        self.journal.intent.as_ref().expect("written before the first deed")
    }

    fn save(&self, vm: &Vm) -> Result<(), BackupError> {
        self.context.state.write_journal(vm.id.as_str(), &self.journal)
    }

    fn phase(&self, vm: &str, phase: &str) {
        self.context.observer.event(Event::Phase { subject: vm, phase });
    }

    fn warn(&mut self, vm: &str, code: WarningCode, text: String) {
        self.context.observer.event(Event::Warning { subject: vm, text: &text });
        self.warnings.push(Warning { code, text });
    }

    fn host_remarks(&mut self, texts: &[String]) {
        for text in texts {
            self.warnings.push(Warning { code: WarningCode::Host, text: text.clone() });
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
