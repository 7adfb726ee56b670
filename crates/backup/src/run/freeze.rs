//! The checkpoint, the definition of the VM in it, and its disks opened.

use std::time::Duration;

use hyperv::{
    ChainMember, Checkpoint, CheckpointRequest, CreateError, ErrorKind, FrozenDisk, FrozenReader, Vm, VmState,
    VssReadiness,
};
use kopia_repo::WriteSession;

use super::report::WarningCode;
use super::{ConsistencyPolicy, Run};
use crate::commit::DraftFile;
use crate::decision::DiskFacts;
use crate::error::chain_text;
use crate::point::PointChainFile;
use crate::state::LateCheckpoint;
use crate::{BackupError, Consistency};

/// Longest configuration file that is copied; real ones have a few MiB.
const MAX_CONFIG_FILE_BYTES: u64 = 256 << 20;

/// A frozen disk with all that was found out about it.
pub(super) struct OpenDisk<'f> {
    pub(super) frozen: &'f FrozenDisk,
    pub(super) label: String,
    pub(super) reader: FrozenReader,
    pub(super) chain: Vec<ChainMember>,
    pub(super) most_recent_id: Option<String>,
    pub(super) facts: DiskFacts,
}

impl Run<'_> {
    /// Makes the checkpoint by the policy; the reason says why less was reached than asked for.
    pub(super) fn checkpoint(&mut self, vm: &Vm) -> Result<(Checkpoint, Consistency, Option<String>), BackupError> {
        let policy = self.context.options.consistency;
        let running = vm.state == VmState::Running;
        let mut lowered = None;
        if policy != ConsistencyPolicy::Crash && running {
            // Asking a guest that cannot answer costs its whole time-out and fails (spec hyperv 3.6).
            let hopeless = match vm.vss {
                VssReadiness::Disabled => Some("backup is switched off in the VM's integration services".to_owned()),
                VssReadiness::NotResponding(status) => Some(format!("the guest's backup service reports {status}")),
                VssReadiness::Ready | VssReadiness::Unknown => None,
            };
            match hopeless {
                Some(reason) if policy == ConsistencyPolicy::PreferApplication => lowered = Some(reason),
                _ => match self.create(vm, hyperv::Consistency::Application) {
                    Ok(checkpoint) => return Ok((checkpoint, Consistency::Application, None)),
                    Err(error) => {
                        // What has nothing to do with the guest would fail again, or leave a second checkpoint behind
                        // one whose fate is not known.
                        let of_guest = matches!(
                            error.kind(),
                            ErrorKind::VssFailed | ErrorKind::Timeout | ErrorKind::Unsupported | ErrorKind::Other
                        );
                        if policy == ConsistencyPolicy::RequireApplication || !of_guest {
                            return Err(self.no_checkpoint(vm, error));
                        }
                        lowered = Some(chain_text(&error));
                    }
                },
            }
        }
        let checkpoint = self.create(vm, hyperv::Consistency::Crash).map_err(|error| self.no_checkpoint(vm, error))?;
        if let Some(reason) = &lowered {
            let text = format!("only crash-consistent: {reason}");
            self.warn(&vm.name, WarningCode::ConsistencyLowered, text);
        }
        // A VM that does not run has nothing in flight: its disks are as consistent as the guest left them.
        let consistency = if vm.state == VmState::Off { Consistency::Offline } else { Consistency::Crash };
        Ok((checkpoint, consistency, lowered))
    }

    /// Tries again where a later try can end differently (spec hyperv 11): the host was busy (row 7, three times), a
    /// file was held (row 8, once), the guest was too slow or at work (row 13, once). The last failure is returned.
    fn create(&mut self, vm: &Vm, consistency: hyperv::Consistency) -> Result<Checkpoint, CreateError> {
        const BUSY_TRIES: u32 = 3;
        let options = self.context.options;
        let (mut busy, mut held, mut slow) = (0, 0, 0);
        loop {
            let error = match self.create_once(vm, consistency) {
                Err(error) => error,
                made => return made,
            };
            let is_busy = error.kind() == ErrorKind::Busy;
            let pause = if is_busy && error.hresults().is_empty() && busy < BUSY_TRIES {
                busy += 1;
                options.busy_pause
            } else if is_busy && !error.hresults().is_empty() && held == 0 {
                held += 1;
                options.busy_pause
            } else if error.guest_may_recover() && slow == 0 {
                slow += 1;
                options.guest_pause
            } else {
                return Err(error);
            };
            tracing::warn!(vm = vm.name, error = %chain_text(&error), pause_s = pause.as_secs(), "no checkpoint yet");
            self.phase(&vm.name, "waiting before another try at the checkpoint");
            if !self.rest(pause) {
                return Err(error);
            }
        }
    }

    /// Sleeps, unless the run is cancelled meanwhile: then it says so at once.
    fn rest(&self, pause: Duration) -> bool {
        const STEP: Duration = Duration::from_millis(200);
        let clock = &*self.context.host.seam().clock;
        let start = clock.monotonic();
        loop {
            if self.context.cancel.is_cancelled() {
                return false;
            }
            let left = pause.saturating_sub(clock.monotonic().saturating_sub(start));
            if left.is_zero() {
                return true;
            }
            clock.sleep(left.min(STEP));
        }
    }

    fn create_once(&mut self, vm: &Vm, consistency: hyperv::Consistency) -> Result<Checkpoint, CreateError> {
        let request = CheckpointRequest {
            cancel: self.context.cancel.clone(),
            ..CheckpointRequest::new(consistency, self.intent().tag.clone())
        };
        let made = self.context.host.create_recovery_checkpoint(vm, &request).inspect_err(|error| {
            for path in &error.left_behind {
                // Best effort now; the journal makes sure later.
                let _ = self.context.host.destroy_checkpoint(path);
            }
        });
        let goes_on = match &made {
            Ok(_) => false,
            Err(error) => {
                matches!(
                    error.error,
                    hyperv::Error::Timeout { job_ended: false, .. }
                        | hyperv::Error::Cancelled { job_ended: false, .. }
                        | hyperv::Error::OutcomeUnknown { .. }
                ) || error.kind() == ErrorKind::Timeout
            }
        };
        if goes_on {
            let intent = self.intent();
            self.journal.late = Some(LateCheckpoint {
                run_id: intent.run_id.clone(),
                tag: intent.tag.clone(),
                known_checkpoints: intent.known_checkpoints.clone(),
            });
            if let Err(error) = self.save(vm) {
                tracing::error!(vm = vm.name, error = %chain_text(&error), "a late checkpoint could not be noted");
            }
        }
        if let (Ok(checkpoint), Some(late)) = (&made, &mut self.journal.late) {
            late.known_checkpoints.push(checkpoint.path.to_string());
            // Before the checkpoint is worked on: after a crash it must not be taken for the late one. It is the
            // intent's then, which is removed as well.
            if let Err(error) = self.save(vm) {
                tracing::error!(vm = vm.name, error = %chain_text(&error), "a late checkpoint could not be noted");
            }
        }
        made
    }

    fn no_checkpoint(&self, vm: &Vm, error: CreateError) -> BackupError {
        if self.context.cancel.is_cancelled() {
            return BackupError::Cancelled;
        }
        BackupError::Host { attempt: format!("create a checkpoint of {}", vm.name), source: Box::new(error) }
    }

    pub(super) fn definition_files(
        &self,
        vm: &Vm,
        checkpoint: &Checkpoint,
        session: &WriteSession,
    ) -> Result<Vec<DraftFile>, BackupError> {
        let failed = |what: &str| BackupError::host(format!("{what} of {}", vm.name));
        let definition =
            self.context.host.capture_checkpoint_definition(vm, checkpoint).map_err(failed("read the definition"))?;
        let json = serde_json::to_vec_pretty(&definition.to_json()).expect("the definition is plain data");
        let mut files = vec![self.write_file(session, "", "vm.json", &json)?];
        for config in self.context.host.open_config_files(checkpoint).map_err(failed("open the configuration files"))? {
            let len = config.facts.len_bytes;
            if len > MAX_CONFIG_FILE_BYTES {
                return Err(BackupError::NotBackupable {
                    vm: vm.name.clone(),
                    problem: format!("its configuration file {} has {len} bytes", config.path),
                });
            }
            let mut bytes = vec![0; len as usize];
            config
                .file
                .read_exact_at(&mut bytes, 0)
                .map_err(BackupError::host(format!("read {} of {}", config.path, vm.name)))?;
            files.push(self.write_file(session, "config", hyperv::file_name(&config.path), &bytes)?);
        }
        Ok(files)
    }

    /// A small file, cut like everything else when it is longer than a segment.
    fn write_file(
        &self,
        session: &WriteSession,
        folder: &str,
        name: &str,
        bytes: &[u8],
    ) -> Result<DraftFile, BackupError> {
        let object = session.write_file_object(bytes, 1 << 20, self.context.options.compression)?;
        Ok(DraftFile {
            folder: folder.into(),
            name: name.into(),
            object: object.to_string(),
            size_bytes: bytes.len() as u64,
        })
    }

    pub(super) fn open_disk<'f>(
        &self,
        vm: &Vm,
        checkpoint: &Checkpoint,
        frozen: &'f FrozenDisk,
    ) -> Result<OpenDisk<'f>, BackupError> {
        let label = format!("{} {}", vm.name, frozen.slot);
        let host = self.context.host;
        let failed = |what: &str| BackupError::host(format!("{what} {label}"));
        let reader = host.open_frozen(frozen).map_err(failed("open the frozen disk of"))?;
        let chain = host.chain_facts(frozen).map_err(failed("look at the files of"))?;
        let tracking = reader.tracking_state().ok();
        let present = |facts: &Option<hyperv::seam::FileFacts>| facts.as_ref().is_some_and(|facts| facts.len_bytes > 0);
        let info = reader.info();
        let facts = DiskFacts {
            virtual_disk_id: frozen.virtual_disk_id.to_string(),
            ambiguous: checkpoint.disks.iter().filter(|one| one.virtual_disk_id == frozen.virtual_disk_id).count() > 1,
            size_bytes: info.size_bytes,
            sector_bytes: (info.logical_sector_bytes, info.physical_sector_bytes),
            chain: chain.iter().map(|file| PointChainFile::of(&file.file_name, &file.facts)).collect(),
            companions: chain.first().is_some_and(|leaf| present(&leaf.rct) && present(&leaf.mrt)),
            tracking: tracking.as_ref().is_some_and(|state| state.enabled),
            most_recent_id: tracking.as_ref().map(|state| state.most_recent_id.clone()).unwrap_or_default(),
        };
        let most_recent_id = tracking.map(|state| state.most_recent_id).filter(|id| !id.is_empty());
        Ok(OpenDisk { frozen, label, reader, chain, most_recent_id, facts })
    }
}
